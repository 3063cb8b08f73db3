"""The drawings of a report, as inline SVG: per-image error histograms over a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT = 880, 190, 20
ROW, GAP, TOP, AXIS = 54, 12, 30, 44


@dataclass(frozen=True)
class Histogram:
    """Counts of per-image auto-encoder errors over `log10_edges` of the chart that holds it.

    kind: "genuine", "references", "honest" or "attack", which choose the colour. note: a word or two under the label.
    mean: of the errors themselves, where the marker stands.
    """

    label: str
    kind: str
    counts: Sequence[int]
    mean: float | None = None
    note: str = ""


def error_chart(rows: Sequence[Histogram], log10_edges: Sequence[float], threshold: float | None) -> str:
    """One row per histogram over one shared axis, the first row's outline behind each, the threshold through all."""
    low, high = log10_edges[0], log10_edges[-1]
    height = TOP + len(rows) * (ROW + GAP) + AXIS
    bottom = height - AXIS

    def x(log10_value: float) -> float:
        return LEFT + (log10_value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="Histograms of the auto-encoder error per trigger image">'
    ]
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        at = x(exponent)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{bottom + 16}">10<tspan dy="-5" font-size="8">{exponent}</tspan></text>'
        )
    for number, row in enumerate(rows):
        base = TOP + number * (ROW + GAP) + ROW
        if number:
            parts.append(f'<path class="outline" d="{_steps(rows[0].counts, log10_edges, x, base)}"/>')
        parts.append(f'<path class="fill {escape(row.kind)}" d="{_steps(row.counts, log10_edges, x, base)}Z"/>')
        parts.append(f'<line class="floor" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
        parts.append(f'<text class="label" x="{LEFT - 12}" y="{base - 24}">{escape(row.label)}</text>')
        parts.append(f'<text class="note" x="{LEFT - 12}" y="{base - 9}">{escape(row.note)}</text>')
        if row.mean is not None and row.mean > 0:
            at = x(min(high, max(low, math.log10(row.mean))))
            parts.append(
                f'<path class="mean {escape(row.kind)}" d="M{at:.1f} {base - 1}l-5 8h10z">'
                f"<title>mean {row.mean:.4g}</title></path>"
            )
    if threshold is not None and threshold > 0:
        at = x(min(high, max(low, math.log10(threshold))))
        parts.append(f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{bottom}"/>')
        parts.append(
            f'<text class="threshold-label" x="{at:.1f}" y="{TOP - 13}">threshold of the mean: {threshold:.3g}</text>'
        )
    parts.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{height - 8}">'
        "auto-encoder error e of one trigger image (triangle: mean over all images)</text></svg>"
    )
    return "".join(parts)


def legend(kinds: Mapping[str, str]) -> str:
    """Colour and meaning of each kind of row."""
    return (
        '<p class="legend">'
        + "".join(f'<span><i class="{escape(kind)}"></i>{escape(text)}</span>' for kind, text in kinds.items())
        + "</p>"
    )


def _steps(counts: Sequence[int], log10_edges: Sequence[float], x: Callable[[float], float], base: float) -> str:
    top = max(max(counts, default=0), 1)
    path = [f"M{x(log10_edges[0]):.1f} {base}"]
    for count, right in zip(counts, log10_edges[1:], strict=True):
        path.append(f"V{base - ROW * count / top:.1f}H{x(right):.1f}")
    return "".join(path) + f"V{base}"
