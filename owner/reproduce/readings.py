"""Eq. 4's verdicts under each reading of what the paper leaves open, from the records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from owner.reproduce.paper import CASES
from owner.reproduce.results import Results
from owner.reproduce.settings import Settings

HONEST = ("honest-short", "honest-long")
ALONE = "fine-tuned on the attacked images alone"
BESIDE = "fine-tuned on the attacked images beside the whole training set"
SLOW = "fine-tuned at the rate that M's training ended at, a hundredth of its peak"

OTHERWISE: Final[Mapping[str, str]] = {"alone": ALONE, "beside": BESIDE, "slow": SLOW}
"""Experiments that fine-tune otherwise, each with steps `<experiment>-flip`, `<experiment>-detect` ..."""


@dataclass(frozen=True)
class Reading:
    """title: what is read otherwise. deviations: by case and seed, how many per-image standard deviations of M_f the mean error
    lies above M_f's; Eq. 4 rejects above 1."""

    title: str
    deviations: Mapping[str, list[float]]

    def detected(self, case: str) -> list[bool]:
        return [deviation > 1 for deviation in self.deviations.get(case, [])]


def readings(results: Results, settings: Settings, architecture: str) -> list[Reading]:
    """One duration of M_f for all, fine-tuned otherwise (experiments `alone`, `beside` and `slow`), and other auto-encoders (`variants`); the
    settings' own reading is Table 3's."""
    short, long = settings.durations(architecture)
    detected = [record["models"] for record in results.of(architecture, "detect").values()]
    found = [
        Reading(f"M_f of {epochs} epochs for all", _deviations(detected, duration))
        for duration, epochs in (("short", short), ("long", long))
        if detected and settings.honest_epochs != duration
    ]
    for experiment, title in OTHERWISE.items():
        if judged := [record["models"] for record in results.of(architecture, f"{experiment}-detect").values()]:
            found.append(Reading(title, _deviations(judged, settings.honest_epochs)))
    varied: dict[str, list[Mapping[str, Any]]] = {}
    for record in results.of(architecture, "variants").values():
        for title, variant in record["variants"].items():
            varied.setdefault(title, []).append(variant["models"])
    return found + [Reading(title, _deviations(models, settings.honest_epochs)) for title, models in varied.items()]


def _deviations(models: list[Mapping[str, Any]], honest_epochs: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one in models:
        for case in (*CASES, *HONEST):
            kind, _, duration = case.partition("-")
            judge = honest_epochs
            if honest_epochs == "as-attack":
                other = "long" if duration == "short" else "short"
                judge = other if kind == "honest" else duration
            elif case == f"honest-{judge}":  # by its own errors a model always passes
                continue
            honest = one[f"honest-{judge}"]
            if honest["std"] > 0:
                found.setdefault(case, []).append((one[case]["mean"] - honest["mean"]) / honest["std"])
    return found
