"""A block's records as a table wants them: scenes, which are attacked how, by variants, which defend how, over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from owner.compare.configuration import Block
from owner.federated.grids import SHARE

Record = Mapping[str, Any]

SCENE = ("setting", "data", "model", "clients", "partition", SHARE, "attackers", "attack")
"""What a scene is told by. All else that differs within a block tells a defence: strategy, its options, f."""

NO_DEFENCE = "fedavg"

DEFAULTS = {
    "setting": "federated",
    "data": "digits",
    "model": "mlp",
    "attack": "",
    "partition": "iid",
    "strategy": "fedavg",
}


@dataclass(frozen=True)
class Group:
    """The records of one scene under one variant, one a seed. status: done, n/a, failed, or "" where nothing was run.

    planned: how many seeds the configuration has.
    """

    records: tuple[Record, ...]
    planned: int

    @property
    def done(self) -> list[Record]:
        return [record for record in self.records if record["status"] == "done"]

    @property
    def status(self) -> str:
        states = [record["status"] for record in self.records]
        return next((state for state in ("done", "failed", "n/a") if state in states), "")

    @property
    def reason(self) -> str:
        return next((record["reason"] for record in self.records if record["status"] != "done"), "")

    @property
    def seeds(self) -> frozenset[int]:
        """That are done."""
        return frozenset(seed_of(record) for record in self.done)

    def of_seeds(self, seeds: Iterable[int]) -> Group:
        """With the records of these alone."""
        wanted = set(seeds)
        return Group(tuple(record for record in self.records if seed_of(record) in wanted), self.planned)

    def values(self, measure: str) -> list[float]:
        """Of the seeds that have it."""
        return [value for record in self.done if (value := measured(record, measure)) is not None]


@dataclass(frozen=True)
class Scenes:
    """groups: by (scene, variant), both as JSON text of what tells them."""

    scenes: tuple[str, ...]
    variants: tuple[str, ...]
    groups: Mapping[tuple[str, str], Group] = field(repr=False)

    def title(self, scene: str, *, without: Iterable[str] = ()) -> str:
        """What differs between the scenes, in words."""
        return _title(scene, self.scenes, (*without, "clients", "attackers")) or "all"

    def targeted(self, scene: str) -> bool:
        """Whether its attack has a target, and so a success beside accuracy; of scenes that nothing was run of nobody asks."""
        records = (one for variant in self.variants for one in self.group(scene, variant).done)
        return any(measured(one, "attack_success") is not None for one in records)

    def took(self, scene: str) -> frozenset[int]:
        """The seeds with which its attack is known to reach its goal where nobody defends."""
        undefended = self.with_strategy(NO_DEFENCE)[:1]
        found = (one for variant in undefended for one in self.group(scene, variant).done)
        return frozenset(seed_of(one) for one in found if one["result"].get("attack_effective"))

    def group(self, scene: str, variant: str) -> Group:
        return self.groups.get((scene, variant), Group((), 0))

    def common(self, scenes: Sequence[str], variants: Sequence[str]) -> dict[str, frozenset[int]]:
        """Those of the scenes in which every variant has figures of one seed at least, and of which seeds; a variant that has figures in
        none of them does not count."""
        served = [variant for variant in variants if any(self.group(scene, variant).done for scene in scenes)]
        found = {}
        for scene in scenes if served else ():
            seeds = frozenset.intersection(*(self.group(scene, variant).seeds for variant in served))
            if seeds:
                found[scene] = seeds
        return found

    def with_strategy(self, text: str) -> list[str]:
        """The variants of a strategy, as it is written in the configuration."""
        return [variant for variant in self.variants if json.loads(variant)["strategy"] == text]

    def variant_title(self, variant: str) -> str:
        values = json.loads(variant)
        rest = [str(value) for key, value in values.items() if key != "strategy" and value not in ("", -1)]
        return " ".join([values["strategy"], *rest])


def attacked(scene: str) -> bool:
    """Whether anybody is to attack in it.

    >>> [attacked(json.dumps(one)) for one in ({"attacker-share": 0.3}, {"attacker-share": 0}, {"attackers": 2}, {})]
    [True, False, True, False]
    """
    values = json.loads(scene)
    return bool(values.get(SHARE, values.get("attackers", 0)))


def scenes_of(block: Block, records: Mapping[str, Record]) -> Scenes:
    """records: by name of their cell."""
    varying = _varying([cell.values for cell in block.cells])
    cells: dict[tuple[str, str], list[str]] = {}
    for cell in block.cells:
        values = {**DEFAULTS, **cell.values}
        scene = json.dumps({key: values[key] for key in SCENE if key in values})
        others = [key for key in sorted(varying) if key not in (*SCENE, "strategy", "seed") and key in values]
        variant = json.dumps({"strategy": values["strategy"], **{key: values[key] for key in others}})
        cells.setdefault((scene, variant), []).append(cell.name)
    groups = {
        key: Group(tuple(records[name] for name in names if name in records), len(names))
        for key, names in cells.items()
    }
    scenes, variants = (tuple(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    return Scenes(scenes, variants, groups)


def measured(record: Record, measure: str) -> float | None:
    """precision, recall, f1, auroc, honest_dropped of dropping; own_rule_f1 ... of what the detector's own rule would drop; accuracy,
    attack_success, own_attack_success, seconds_per_round and guard_seconds_per_round as the result sums them up; fitting_seconds."""
    result = record["result"]
    if measure.startswith("own_rule_"):
        found = (result.get("own_rule") or {}).get(measure.removeprefix("own_rule_"))
    elif measure == "fitting_seconds":
        found = result[measure]
    else:
        found = result["detection"].get(measure, result["summary"].get(measure))
    return None if found is None else float(found)


def seed_of(record: Record) -> int:
    return int(record["values"].get("seed", 0))


def over_seeds(groups: Sequence[Group], measure: str) -> list[float]:
    """One value a seed, each the mean over the same groups, so that what they differ by is between seeds.

    Where no seed is common to all groups with figures, or the measure is not defined in the same groups in every seed, the one mean over
    all cells in which it is: what seeds differed by would be between scenes.
    """
    cells, seeds = _comparable(groups)
    by_seed: dict[int, dict[int, float]] = {}
    for place, record in cells:
        if (value := measured(record, measure)) is not None:
            by_seed.setdefault(seed_of(record), {})[place] = value
    if by_seed.keys() == seeds and len({frozenset(values) for values in by_seed.values()}) == 1:
        return [statistics.fmean(values.values()) for _, values in sorted(by_seed.items())]
    every = [value for values in by_seed.values() for value in values.values()]
    return [statistics.fmean(every)] if every else []


def defined(groups: Sequence[Group], measure: str) -> tuple[int, int]:
    """In how many of the cells that `over_seeds` takes its mean over the measure is defined, and how many those are."""
    cells, _ = _comparable(groups)
    return sum(measured(record, measure) is not None for _, record in cells), len(cells)


def _comparable(groups: Sequence[Group]) -> tuple[list[tuple[int, Record]], frozenset[int]]:
    """The cells of the seeds that all groups with figures have, each with its group's number, and those seeds; where they have none in
    common, every cell, and no seed."""
    served = [group for group in groups if group.done]
    seeds = frozenset.intersection(*(group.seeds for group in served)) if served else frozenset()
    cells = [(place, record) for place, group in enumerate(served) for record in group.done]
    return [(place, record) for place, record in cells if not seeds or seed_of(record) in seeds], seeds


def _varying(values: Sequence[Mapping[str, Any]]) -> set[str]:
    keys = {key for one in values for key in one}
    return {key for key in keys if len({json.dumps(one.get(key)) for one in values}) > 1}


def _title(scene: str, among: Sequence[str], without: Iterable[str]) -> str:
    varying = _varying([json.loads(one) for one in among]) - set(without)
    words = {"attack": "no attack"}
    parts = []
    for key, value in json.loads(scene).items():
        if key in varying:
            shown = f"{100 * value:g} % attackers" if key == SHARE else str(value)
            parts.append(shown or words.get(key, key))
    if not attacked(scene) and any(map(attacked, among)):
        # The attack is named for what its success would be.
        return ", ".join([*(part for part in parts if part not in _of_attack(scene)), "nobody attacks"])
    return ", ".join(parts)


def _of_attack(scene: str) -> tuple[str, str]:
    values = json.loads(scene)
    return str(values.get("attack", "")), f"{100 * values.get(SHARE, 0):g} % attackers"
