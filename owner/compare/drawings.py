"""Accuracy and attack success over rounds, a figure a data set and model: a panel a scene, a line a strategy, a band over seeds.

Needs matplotlib, which nothing else here does.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import ensure_directory, storage_errors
from owner.compare.configuration import Block, Comparison
from owner.compare.report import FIGURES
from owner.compare.scenes import Record, Scenes, scenes_of
from owner.plotting import pyplot

MEASURES = {"accuracy": "accuracy", "attack_success": "attack success"}
COLOURS = ("#1c2024", "#3e63dd", "#30a46c", "#e5484d", "#d6409f", "#f76b15", "#0090ff", "#8e4ec6", "#978365", "#12a594")
COLUMNS = 4


def draw_all(comparison: Comparison, records: Mapping[str, Record], out: Path) -> dict[str, list[str]]:
    """PNG files below `out`, their names by block; none for blocks without rounds. Raises MissingExtraError, StorageError."""
    plt = pyplot()
    ensure_directory(out)
    return {block.name: _draw(plt, block, records, out) for block in comparison.blocks}


def _draw(plt: Any, block: Block, records: Mapping[str, Record], out: Path) -> list[str]:
    scenes = scenes_of(block, records)
    written = []
    places = dict.fromkeys((v["data"], v["model"]) for v in map(_place, scenes.scenes) if v["setting"] == "federated")
    for data, model in places:
        mine = [s for s in scenes.scenes if (_place(s)["data"], _place(s)["model"]) == (data, model)]
        mine = [s for s in scenes.scenes if (_place(s)["data"], _place(s)["model"]) == (data, model)]
        for measure, title in MEASURES.items():
            curves = {scene: _curves(scenes, scene, measure) for scene in mine}
            panels = [scene for scene in mine if curves[scene]]
            if not panels:
                continue
            figure = _panels(plt, scenes, panels, curves, f"{block.name}: {title}, {data}, {model}", title)
            name = f"{FIGURES}{_plain(block.name)}-{_plain(data)}-{_plain(model)}-{_plain(title)}.png"
            # Without dates and versions in them, equal figures are equal files.
            with storage_errors("write", out / name):
                figure.savefig(out / name, dpi=90, metadata={"Software": None})
            plt.close(figure)
            written.append(name)
    return written


def _curves(scenes: Scenes, scene: str, measure: str) -> dict[str, list[list[float]]]:
    """By variant: per round the values of the seeds that have one."""
    found = {}
    for variant in scenes.variants:
        group = scenes.groups.get((scene, variant))
        runs = [[one[measure] for one in record["result"]["rounds"]] for record in (group.done if group else ())]
        rounds = [[value for value in values if value is not None] for values in zip(*runs, strict=False)]
        if rounds and all(rounds):
            found[variant] = rounds
    return found


def _panels(
    plt: Any,
    scenes: Scenes,
    panels: Sequence[str],
    curves: Mapping[str, Mapping[str, list[list[float]]]],
    title: str,
    label: str,
) -> Any:
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.1 * columns, 2.3 * rows + 0.9), sharey=True, squeeze=False, layout="constrained"
    )
    colours = {variant: COLOURS[i % len(COLOURS)] for i, variant in enumerate(scenes.variants)}
    for place, scene in enumerate(panels):
        axis = axes[place // columns][place % columns]
        for variant, rounds in curves[scene].items():
            numbers = list(range(1, len(rounds) + 1))
            mean = [statistics.fmean(values) for values in rounds]
            name = scenes.variant_title(variant)
            marker = "o" if len(numbers) < 2 else None
            axis.plot(numbers, mean, color=colours[variant], label=name, linewidth=1.3, marker=marker, markersize=3)
            if any(len(values) > 1 for values in rounds):
                low, high = [min(values) for values in rounds], [max(values) for values in rounds]
                axis.fill_between(numbers, low, high, color=colours[variant], alpha=0.12, linewidth=0)
        axis.set(ylim=(-0.02, 1.02), xlabel="round")
        axis.xaxis.label.set_size(7)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(scenes.title(scene, without=("setting", "data", "model")), fontsize=7)
        axis.tick_params(labelsize=7)
    for empty in axes.flat[len(panels) :]:
        empty.set_axis_off()
    figure.supylabel(f"{label} (line: mean over seeds, band: their range)", fontsize=8)
    figure.suptitle(title, fontsize=9)
    shown = {variant for scene in panels for variant in curves[scene]}
    lines = [plt.Line2D([], [], color=colours[v], label=scenes.variant_title(v)) for v in scenes.variants if v in shown]
    figure.legend(handles=lines, loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    return figure


def _place(scene: str) -> dict[str, Any]:
    return dict(json.loads(scene))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
