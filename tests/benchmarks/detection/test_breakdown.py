"""How bases differ, and what is left of an attack after a merge, are counted of the models that the pooled figures are of."""

from __future__ import annotations

import dataclasses

from benchmarks.detection.breakdown import after_merge, by_base, placebos
from benchmarks.detection.judge import POPULATIONS, Group, Model, judge
from tests.benchmarks.detection.conftest import base, models


def group(number: int, attacked: list[Model]) -> Group:
    """The references have 0.00 to 0.98: a score of 0.96 is found at 5 %, one of 2 at 1 % too."""
    mine = [dataclasses.replace(model, base=number) for model in attacked]
    honest = [dataclasses.replace(model, base=number) for model in models([0.5, 0.96])]
    return judge(dataclasses.replace(base(honest, mine), number=number), lambda _: lambda m: m["a"], mine)


def test_each_base_has_its_own_rates_and_all_families_together() -> None:
    weak, strong = group(3, models([0.1, 0.96], "sig")), group(4, models([2.0, 2.0], "sig"))
    lines = by_base({"sig": [weak, strong], "flip": [group(3, models([2.0], "flip")), group(4, [])]})
    assert lines[-4:] == [
        "| sig | 1/2, 0/2 | 2/2, 2/2 |",
        "| flip | 1/1, 1/1 | - |",
        "| all | 2/3, 1/3 | 2/2, 2/2 |",
        "| honest, rejected | 1/2, 0/2 | 1/2, 0/2 |",
    ]


def test_of_what_outlives_the_merge_only_that_is_counted() -> None:
    attacked = models([0.1, 0.96, 2.0, 2.0], "sig")
    survives = [dataclasses.replace(m, merged_effective=i in (1, 2)) for i, m in enumerate(attacked)]
    useless = dataclasses.replace(survives[2], passes_utility=False, name="useless")
    lines = after_merge({"sig": [group(3, [*survives, useless])], "flip": [group(3, [])]})
    assert lines[-3:] == ["| sig | 4 | 2 | 2/2, 1/2 |", "| flip | 0 | 0 | - |", "| all | 4 | 2 | 2/2, 1/2 |"]


def test_nothing_is_said_of_merges_that_were_not_measured() -> None:
    assert after_merge({"sig": [group(3, models([2.0], "sig"))]}) == []


def test_placebos_that_pass_utility_are_counted_by_recipe() -> None:
    honest = [dataclasses.replace(m, effective=None) for m in models([0.1, 0.96, 2.0], "sig")]
    assert not any(model.belongs(population) for model in honest for population in POPULATIONS)
    useless = dataclasses.replace(honest[2], passes_utility=False, name="useless")
    lines = placebos({"sig": [group(3, [*honest, useless])], "flip": [group(3, [])]})
    assert lines[-3:] == ["| sig | 3 | 2/3, 1/3 |", "| flip | 0 | - |", "| all | 3 | 2/3, 1/3 |"]
    assert placebos({"sig": [group(3, [])]}) == []
