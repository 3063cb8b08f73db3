"""Means over seeds: of equal seeds in what is compared, and of every seed in which the measure is defined."""

from __future__ import annotations

from typing import Any

from owner.compare.scenes import Group, Scenes, over_seeds


def record(seed: int, accuracy: float = 0.5, precision: float | None = 1.0) -> dict[str, Any]:
    result = {"detection": {"precision": precision, "f1": 0.1}, "summary": {"accuracy": accuracy}}
    return {"values": {"seed": seed}, "status": "done", "result": result}


def group(*records: dict[str, Any]) -> Group:
    return Group(records, planned=3)


def test_a_measure_that_is_undefined_somewhere_leaves_out_that_place_and_not_its_seed() -> None:
    """Nothing was dropped in seed 1 of the first scene: its precision there is none, and the second scene's still counts."""
    first = group(record(0, precision=0.5), record(1, precision=None))
    second = group(record(0, precision=1.0), record(1, precision=0.25))
    assert over_seeds([first, second], "precision") == [0.75, 0.25]
    assert over_seeds([first], "precision") == [0.5]


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
