"""Means over seeds: of equal seeds in what is compared, and of every seed in which the measure is defined."""

from __future__ import annotations

import json
from typing import Any

import pytest

from owner.compare.scenes import Group, Scenes, defined, over_seeds
from owner.compare.tables import table_measures


def record(seed: int, accuracy: float = 0.5, precision: float | None = 1.0, f1: float = 0.1) -> dict[str, Any]:
    detection = {"precision": precision, "recall": f1, "f1": f1, "auroc": None}
    result = {"detection": detection, "summary": {"accuracy": accuracy}}
    return {"values": {"seed": seed}, "status": "done", "result": result}


def group(*records: dict[str, Any]) -> Group:
    return Group(records, planned=3)


def test_a_measure_that_is_undefined_somewhere_is_the_mean_of_the_rest_and_has_no_spread() -> None:
    """Nothing was dropped in seed 1 of the first scene: between the seeds' means would lie what the scenes differ by."""
    first = group(record(0, precision=0.5), record(1, precision=None))
    second = group(record(0, precision=1.0), record(1, precision=0.25))
    assert over_seeds([first, second], "precision") == [pytest.approx(1.75 / 3)]
    assert defined([first, second], "precision") == (3, 4)
    assert over_seeds([first], "precision") == [0.5]
    assert over_seeds([second], "precision") == [1.0, 0.25]


def test_seeds_of_different_scenes_have_no_spread() -> None:
    """As many cells of either seed, and no scene of which both have run."""
    easy, hard = group(record(0, 0.9)), group(record(1, 0.1))
    assert over_seeds([easy, hard], "accuracy") == [0.5]
    chain = [group(record(0, 0.2)), group(record(0, 0.6), record(1, 0.4)), group(record(1, 0.8))]
    assert over_seeds(chain, "accuracy") == [0.5]


def lines(*groups: tuple[str, str, Group]) -> dict[str, dict[str, str]]:
    """The table of measures: its cells by column, by strategy."""
    names = {scene: json.dumps({"setting": "federated", "attackers": 3, "attack": scene}) for scene, _, _ in groups}
    variants = {strategy: json.dumps({"strategy": strategy}) for _, strategy, _ in groups}
    found = {(names[scene], variants[strategy]): one for scene, strategy, one in groups}
    head, _, *rows = table_measures(Scenes(tuple(names.values()), tuple(variants.values()), found))
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: dict(zip(columns, row, strict=True)) for row in cells}


def test_precision_says_of_how_many_cells_it_is_the_mean() -> None:
    """Where nobody was dropped there is none, and recall and F1 are 0 there."""
    found = lines(
        ("calm", "krum", group(record(0, precision=0.5, f1=0.8))),
        ("rough", "krum", group(record(0, precision=None, f1=0.0))),
    )
    assert (found["krum"]["precision"], found["krum"]["F1"]) == ("0.50 (1 of 2)", "0.40")


def test_f1_is_shown_over_the_scenes_of_all_lines_too() -> None:
    found = lines(
        ("calm", "krum", group(record(0, f1=0.9))),
        ("rough", "krum", group(record(0, f1=0.1))),
        ("calm", "gated", Group(({"values": {"seed": 0}, "status": "n/a", "reason": "too few"},), 3)),
        ("rough", "gated", group(record(0, f1=0.3))),
    )
    assert {who: (line["F1"], line["F1 in common scenes"]) for who, line in found.items()} == {
        "krum": ("0.50", "0.10"),
        "gated": ("0.30", "0.30"),
    }


def test_a_seed_that_not_every_scene_has_is_no_value() -> None:
    found = over_seeds([group(record(0, 0.2), record(1, 0.9)), group(record(0, 0.4))], "accuracy")
    assert len(found) == 1
    assert abs(found[0] - 0.3) < 1e-12


def test_what_is_compared_is_compared_over_seeds_that_all_have() -> None:
    groups = {
        ("calm", "fedavg"): group(record(0), record(1)),
        ("calm", "gated"): group(record(1)),
        ("rough", "fedavg"): group(record(0)),
        ("rough", "gated"): group(record(1)),
        ("calm", "krum"): Group(({"values": {"seed": 0}, "status": "n/a", "reason": "too few"},), 3),
    }
    scenes = Scenes(("calm", "rough"), ("fedavg", "gated", "krum"), groups)
    assert scenes.common(scenes.scenes, scenes.variants) == {"calm": frozenset({1})}
    assert scenes.common(scenes.scenes, ["krum"]) == {}
    assert scenes.group("calm", "fedavg").of_seeds({1}).done == [record(1)]
