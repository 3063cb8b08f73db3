"""The paper's Figures 2, 5 and 6 from the records, as PNG and SVG. Needs matplotlib, which nothing else here does."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import ensure_directory
from owner.plotting import pyplot
from owner.reproduce.paper import TITLES
from owner.reproduce.records import Record
from owner.reproduce.results import Results
from owner.reproduce.settings import Settings
from owner.reproduce.steps import Step

COLOURS = {"genuine": "#3e63dd", "part": "#3e63dd", "honest": "#30a46c", "flip": "#e5484d", "pattern": "#d6409f"}
THRESHOLD = "#f76b15"


def draw_all(records: Mapping[Step, Record], settings: Settings, out: Path) -> list[Path]:
    """Fig. 2 (one), Fig. 5 and Fig. 6 of every architecture there is, of its first seed: `paper-<what>-<architecture>.{png,svg}`.

    Raises MissingExtraError without matplotlib, StorageError.
    """
    plt = pyplot()
    ensure_directory(out)
    results, written = Results(records), []
    for name, figure in _figures(plt, results, settings):
        for suffix in ("png", "svg"):
            path = out / f"{name}.{suffix}"
            # Without dates and versions in them, equal figures are equal files.
            figure.savefig(path, dpi=110, metadata={"Software": None} if suffix == "png" else {"Date": None})
            written.append(path)
        plt.close(figure)
    return written


def _figures(plt: Any, results: Results, settings: Settings) -> Iterator[tuple[str, Any]]:
    shown = False
    for architecture, title in TITLES.items():
        flips, patterns = (_pictured(results.of(architecture, kind)) for kind in ("flip", "pattern"))
        both = [seed for seed in flips if seed in patterns]
        if not shown and both:
            yield "paper-examples", _examples(plt, flips[both[0]], patterns[both[0]])
            shown = True
        short, long = settings.durations(architecture)
        for seed, record in list(results.of(architecture, "detect").items())[:1]:
            panels = [
                ("genuine", "genuine"),
                (f"honestly fine-tuned, {short} epochs (green line: {long})", "honest-short"),
                (f"FA {short}", "flip-short"),
                (f"FA {long}", "flip-long"),
                (f"PAA {short}", "pattern-short"),
                (f"PAA {long}", "pattern-long"),
            ]
            yield f"paper-histograms-{architecture}", _histograms(plt, f"{title}, seed {seed}", record, panels)
        for seed, record in list(results.of(architecture, "part-detect").items())[:1]:
            panels = [
                (f"M of the part, {_accuracy(results, architecture, seed, 'part')}", "part"),
                (f"honest {short}, {_accuracy(results, architecture, seed, 'part-honest')}", "honest-short"),
                (f"FA {short}", "flip-short"),
                (f"PAA {short}", "pattern-short"),
            ]
            yield f"paper-improvement-{architecture}", _histograms(plt, f"{title}, seed {seed}", record, panels)


def _pictured(records: Mapping[int, Record]) -> dict[int, Record]:
    """Those with pictures, by seed; a record that was taken over from published numbers has none."""
    return {seed: record for seed, record in records.items() if "examples" in record["attack"]}


def _examples(plt: Any, flip: Record, pattern: Record) -> Any:
    """Fig. 2: images as they are, and as FA and PAA train on them."""
    rows = [(flip, "clean", flip["attack"]["source"]), (flip, "attacked", f"FA: {flip['attack']['target']}")]
    rows.append((pattern, "attacked", f"PAA: {pattern['attack']['target']}"))
    pictures = [_images(record["attack"]["examples"], which) for record, which, _ in rows]
    figure, axes = plt.subplots(
        len(rows), len(pictures[0]), figsize=(1.4 * len(pictures[0]), 1.6 * len(rows)), squeeze=False
    )
    for line, images, (_, _, label) in zip(axes, pictures, rows, strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=255)
            axis.set_axis_off()
            axis.set_title(label, fontsize=8)
    figure.tight_layout()
    return figure


def _histograms(plt: Any, title: str, record: Record, panels: Sequence[tuple[str, str]]) -> Any:
    """Fig. 5 and 6: one panel a model over one logarithmic axis, the genuine model's outline behind each."""
    edges, models = record["edges"], record["models"]
    first = panels[0][1]
    figure, axes = plt.subplots(len(panels), 1, figsize=(7.5, 1.25 * len(panels) + 0.6), sharex=True, squeeze=False)
    for axis, (label, name) in zip(axes[:, 0], panels, strict=True):
        kind, _, duration = name.partition("-")
        axis.stairs(models[name]["counts"], edges, fill=True, color=COLOURS[kind], alpha=0.75)
        axis.stairs(models[first]["counts"], edges, color="#60646c", linewidth=0.8)
        other = f"{kind}-long"
        if kind == "honest" and other in models:
            axis.stairs(models[other]["counts"], edges, color="#18794e", linewidth=1.2)
        threshold = (
            record["verdicts"].get(name, {}).get("threshold") if kind not in {"honest", "genuine", "part"} else None
        )
        threshold = threshold or record["thresholds"][duration or "short"]
        axis.axvline(threshold, color=THRESHOLD, linewidth=1.2)
        axis.axvline(models[name]["mean"], color="#1c2024", linewidth=1.2, linestyle=":")
        axis.set(xscale="log", yticks=[])
        axis.set_title(label, fontsize=8, loc="left", pad=2)
    axes[-1, 0].set_xlabel(
        "error of one test image (orange: threshold of the mean; dotted: the mean; grey: the genuine model)", fontsize=8
    )
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    return figure


def _accuracy(results: Results, architecture: str, seed: int, step: str) -> str:
    record = results.of(architecture, step).get(seed)
    if record is None:
        return "-"
    return f"{100 * (record['accuracy'] if step == 'part' else record['models']['short']['accuracy']):.2f} %"


def _images(examples: Mapping[str, Any], which: str) -> list[np.ndarray]:
    """(H, W, 3), or (H, W) of grey images."""
    stored = np.frombuffer(base64.b64decode(examples[which]), np.uint8).reshape(examples["shape"])
    return [image[0] if len(image) == 1 else image.transpose(1, 2, 0) for image in stored]
