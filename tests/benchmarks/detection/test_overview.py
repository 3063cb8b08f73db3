"""The page of all configurations says what was judged, of which attacks, and what was not."""

from __future__ import annotations

from typing import Any

from benchmarks.detection.judge import figures, judge
from benchmarks.detection.overview import overview, shipped
from benchmarks.detection.report import GATE, PRESET_GATE, WHOLE_GATE
from tests.benchmarks.detection.conftest import base, models


def row(
    detector: str, family: str, score: float, *, population: Any = "effective-passing-utility", held_out: bool = True
) -> Any:
    """Of twenty attacked models with this score; the references have 0.00 to 0.98."""
    attacked = models([score] * 20, family)
    group = judge(base(models([0.5] * 20), attacked), lambda _: lambda m: m["a"], attacked)
    about = {"architecture": "badnet-cnn", "dataset": "mnist", "detector": detector, "family": family}
    return about | {"population": population, "held_out": held_out, **figures([group], population).to_json()}


def test_what_was_judged_stands_with_its_attacks_and_the_rest_is_named() -> None:
    found = [
        row(GATE, "sig", 2.0),
        row(GATE, "sig", 0.0, population="effective"),
        row(GATE, "all", 0.0, held_out=False),
        row(WHOLE_GATE, "all", 0.0),
        row(WHOLE_GATE, "all", 2.0, population="effective"),
        row(PRESET_GATE, "all", 2.0, held_out=False),
        row(GATE, "all", 0.0),
    ]
    lines = overview(found, shipped()).splitlines()
    table = [line for line in lines if line.startswith("| [badnet-cnn on mnist](detection-badnet-cnn-mnist.md)")]
    assert [("100 %" in line, line.split(": ")[1].split(" |")[0]) for line in table] == [
        (False, GATE),
        (True, PRESET_GATE),
        (True, WHOLE_GATE),
    ]
    assert [line for line in lines if line.startswith("| sig |")] == ["| sig | 100 % (83, 100); 100 % (83, 100) |"]
    (missing,) = [line for line in lines if "cnn-cifar10`" in line and "resnet" not in line]
    assert missing.startswith("Not judged yet: cnn on cifar10")
    assert not any("Not judged yet: badnet-cnn" in line for line in lines)
