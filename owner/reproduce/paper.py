"""The printed figures of El Moadine, Coatrieux, Bellafqira (ICDF2C 2022), and where they contradict each other.

VGG16-YY on CBIS-DDSM, the paper's sixth row, is another data set and is no part of this reproduction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CASES: Final = ("flip-short", "flip-long", "pattern-short", "pattern-long")
"""The paper's columns FA 25, FA 50, PAA 25, PAA 50 (for Wide-ResNet 50 and 100 epochs)."""

TITLES: Final = {
    "cnn": "CNN",
    "resnet18": "ResNet18",
    "resnet152": "ResNet152",
    "wrn-28-10": "Wide-ResNet28",
    "vgg19": "VGG19",
}
ROWS: Final = ("resnet18", "resnet152", "cnn", "wrn-28-10", "vgg19")
"""In the paper's order."""


@dataclass(frozen=True)
class Row:
    """One architecture. accuracy, success: shares in [0, 1]; accuracy of `genuine`, `honest` (one figure, of an unnamed
    duration) and CASES; detected by case."""

    accuracy: dict[str, float]
    success: dict[str, float]
    detected: dict[str, bool]


def _row(accuracy: tuple[float, ...], success: tuple[float, ...], missed: str = "") -> Row:
    return Row(
        {name: round(value / 100, 4) for name, value in zip(("genuine", "honest", *CASES), accuracy, strict=True)},
        {name: round(value / 100, 4) for name, value in zip(CASES, success, strict=True)},
        {name: name != missed for name in CASES},
    )


PAPER: Final = {
    "resnet18": _row((90.85, 84.6, 86.4, 85.9, 90.2, 89.0), (48.20, 74.36, 89.00, 90.20)),
    "resnet152": _row((93.49, 93.3, 91.3, 91.5, 93.3, 93.2), (27.28, 33.0, 99.44, 98.92)),
    "cnn": _row((87.15, 87.1, 82.6, 83.9, 86.6, 86.7), (36.08, 48.60, 96.44, 97.56), missed="pattern-short"),
    "wrn-28-10": _row((95.45, 95.9, 92.8, 92.3, 93.4, 93.6), (23.08, 41.56, 99.20, 99.52)),
    "vgg19": _row((93.90, 93.8, 93.4, 92.8, 93.4, 93.6), (1.68, 4.64, 97.60, 99.04)),
}

FIGURE_6: Final = (0.8460, 0.8793)
"""Accuracy of the ResNet18 trained on 80 % of the training set, and of its fine-tune on all of it."""
