"""The tables of the page: the paper's Table 4 made anew from what was measured, and each block in full."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from owner.compare.configuration import Comparison
from owner.compare.poisoned import OnData
from owner.compare.scenes import DEFAULTS, NO_DEFENCE, Group, Record, Scenes, attacked, defined, over_seeds, scenes_of
from owner.federated.config import DETECTORS

Lines = list[str]
EVERY_DETECTOR = "gated:guard-detectors=standard"
NOT_APPLICABLE, NOT_RUN, FAILED, UNDEFINED = "n/a", "not run", "failed", "-"

METHODS = (
    (
        "Razmi & Xiong 2021 (CAE)",
        "training examples with their labels, no models",
        "AE with a classifier on its latent",
        "two-component Gaussian mixture over the scores",
        "a clean set, or the attacked one",
    ),
    (
        "Li et al. 2020 (`spectral-vae`)",
        "a client's weights, a fixed random subset",
        "VAE, 500-500, latent 20",
        "the round's mean score",
        "honest updates on public data",
    ),
    (
        "Gu & Yang 2021 (`fedcvae`)",
        "64 weights less the clients' geometric median",
        "CVAE given the round, 100, latent 8 (64, 100, 8: after the IMT Atlantique re-implementation, not the paper's code)",
        "the round's mean score",
        "honest rounds on public data",
    ),
    (
        "FedCLEAN 2025 (`fedclean`)",
        "activations of 250 trigger images less their median",
        "CVAE given the class, 100, latent 8",
        "first gap in the ordered scores",
        "the owner's own fine-tuning",
    ),
    (
        "El Moadine et al. 2022 (`gated`)",
        "activations of the trigger set",
        "AE, 256-64-256",
        "p-value over K honest references",
        "the release's own activations",
    ),
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """Markdown.

    >>> table(["a", "b"], [["1", "2"]])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    return [_line(head), "|" + "---|" * len(head), *(_line(row) for row in rows)]


def spread(values: Sequence[float], *, percent: bool = False) -> str:
    """Mean and standard deviation (n - 1) of several, the value of one, `-` of none.

    >>> spread([0.5, 0.7]), spread([0.934], percent=True), spread([])
    ('0.60 ± 0.14', '93.4', '-')
    """
    if not values:
        return UNDEFINED
    scale, digits = (100, 1) if percent else (1, 2)
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def table_methods() -> Lines:
    """The columns of the paper's Table 4 that nobody measures."""
    return table(["method", "what it looks at", "auto-encoder", "threshold in rounds", "trained on"], METHODS)


def table_4(comparison: Comparison, records: Mapping[str, Record], poisoned: Sequence[OnData] = ()) -> Lines:
    """Who was tested where: a line a row of the paper's, setting, data set and model, of means over those of that row's scenes with attackers
    in which every strategy of the line that has figures at all has one, and over the seeds that all of them have there.

    poisoned: what the method that judges data came to, see `owner.compare.poisoned`.
    """
    head = ["row", "setting", "data", "model", "scenes", "no defence: targeted acc. %", "ASR %", "untargeted acc. %"]
    all_detectors = any(scenes_of(block, {}).with_strategy(EVERY_DETECTOR) for block in comparison.blocks)
    for who in ("row's own", "activation gate", *(["gate with every detector"] if all_detectors else [])):
        head += [f"{who}: F1", "F1 where it took", "targeted acc. %", "ASR %", "untargeted acc. %"]
    marked = marks(comparison, records)
    rows = [_on_data(comparison, one, marked, len(head)) for one in poisoned]
    for line in lines_of_table_4(comparison, records):
        count = f"{line.common} of {line.scenes}" if line.common < line.scenes else str(line.scenes)
        row = [line.row, line.setting, _marked(line.data, marked), line.model, count]
        for strategy in (NO_DEFENCE, "own", "gated", *([EVERY_DETECTOR] if all_detectors else [])):
            groups = line.groups[strategy]
            of_dropping = strategy != NO_DEFENCE
            if groups is None:
                row += [UNDEFINED] * (5 if of_dropping else 3)
                continue
            row += _f1(line.found, groups) if of_dropping else []
            row += _figures(line.found, groups)
        rows.append(row)
    for one in comparison.missing:
        rows.append([one.row, one.reason, one.data, *[UNDEFINED] * (len(head) - 3)])
    return table(head, rows)


@dataclass(frozen=True)
class Table4Line:
    """groups: what figures are means over, by strategy, `own` for the row's own, and by scene; None for one that the block does not have.
    common: how many of the scenes every strategy with figures has. found: the block's."""

    row: str
    setting: str
    data: str
    model: str
    scenes: int
    common: int
    groups: Mapping[str, Mapping[str, Group] | None]
    found: Scenes

    @property
    def title(self) -> str:
        return f"{self.row}, {self.setting}, {self.data}, {self.model}"

    @property
    def every_group(self) -> list[Group]:
        """Each once, though a row's own strategy may be the gate."""
        found = (group for groups in self.groups.values() for group in (groups or {}).values())
        return list({id(group.records[0]): group for group in found if group.records}.values())


def lines_of_table_4(comparison: Comparison, records: Mapping[str, Record]) -> list[Table4Line]:
    """See `table_4`."""
    made = []
    for block in comparison.blocks:
        if not block.row:
            continue
        found = scenes_of(block, records)
        wanted = {NO_DEFENCE: NO_DEFENCE, "own": block.own, "gated": "gated", EVERY_DETECTOR: EVERY_DETECTOR}
        compared = {name: found.with_strategy(strategy)[:1] for name, strategy in wanted.items()}
        for setting, data, model in dict.fromkeys(_place(scene) for scene in found.scenes):
            scenes = [s for s in found.scenes if _place(s) == (setting, data, model) and attacked(s)]
            common = found.common(scenes, [variant for variants in compared.values() for variant in variants])
            groups = {
                name: {
                    scene: found.group(scene, variant).of_seeds(seeds)
                    for scene, seeds in common.items()
                    for variant in variants
                }
                if variants
                else None
                for name, variants in compared.items()
            }
            made.append(Table4Line(block.row, setting, data, model, len(scenes), len(common), groups, found))
    return made


def table_measures(scenes: Scenes) -> Lines:
    """One line a variant: every measure of dropping, mean over the scenes with attackers, mean and spread over seeds; F1 also over the scenes
    that all variants have, and over those whose attack took where nobody defended. Accuracy stands beside attack success over the scenes
    that have both, and by itself over the others; beside both what no defence came to in the same scenes, for not every variant serves
    every scene. Last, what becomes of honest clients alone."""
    incremental = any(json.loads(scene)["setting"] == "incremental" for scene in scenes.scenes)
    undefended = scenes.with_strategy(NO_DEFENCE)[:1]
    hostile = [scene for scene in scenes.scenes if attacked(scene)]
    quiet = [scene for scene in scenes.scenes if not attacked(scene)]
    common = scenes.common(hostile, scenes.variants)
    head = ["strategy", "precision", "recall", "F1", "F1 in common scenes", "F1 where the attack took", "AUROC"]
    head += ["honest dropped %", "targeted: accuracy %", "attack success %", "untargeted: accuracy %"]
    if undefended:
        head += [
            "no defence, targeted: accuracy %",
            "no defence: attack success %",
            "no defence, untargeted: accuracy %",
        ]
    if quiet:
        head += ["nobody attacks: honest dropped %", "nobody attacks: accuracy %"]
    if incremental:
        head += ["attack success % of what attackers sent", "F1 by its own rule"]
    a_time = f"a {'submission' if incremental else 'round'}"
    head += [f"seconds {a_time}", *([] if incremental else ["of them fitting and checking guards"]), "scenes", "seeds"]
    rows = []
    for variant in scenes.variants:
        groups = [scenes.groups[scene, variant] for scene in scenes.scenes if (scene, variant) in scenes.groups]
        title = scenes.variant_title(variant)
        if incremental and json.loads(variant)["strategy"].partition(":")[0] in DETECTORS:
            title += " †"
        state = _state(groups)
        if state:
            rows.append([title, *[state] * (len(head) - 3), str(len(groups)), "0"])
            continue
        mine = {scene: scenes.group(scene, variant) for scene in hostile}
        fought, calm = list(mine.values()), [scenes.group(scene, variant) for scene in quiet]
        shared = [mine[scene].of_seeds(seeds) for scene, seeds in common.items()]
        line = [title, *(_of_dropping(fought, measure) for measure in ("precision", "recall", "f1"))]
        line += [_of_dropping(shared, "f1"), _f1(scenes, mine)[1], _of_dropping(fought, "auroc")]
        line += [spread(over_seeds(fought, "honest_dropped"), percent=True)]
        line += _figures(scenes, mine) if hostile else [UNDEFINED] * 3
        for one in undefended:
            same = {s: scenes.group(s, one).of_seeds(seeds) for s, group in mine.items() if (seeds := group.seeds)}
            line += _figures(scenes, same) if all(group.done for group in same.values()) else [NOT_RUN] * 3
        if quiet:
            line += [spread(over_seeds(calm, m), percent=True) for m in ("honest_dropped", "accuracy")]
        if incremental:
            line.append(spread(over_seeds(fought, "own_attack_success"), percent=True))
            line.append(spread(over_seeds(fought, "own_rule_f1")))
        line.append(spread(over_seeds(groups, "seconds_per_round")))
        if not incremental:
            line.append(spread(over_seeds(groups, "guard_seconds_per_round")))
        served = [group for group in groups if group.done]
        rows.append([*line, f"{len(served)} of {len(groups)}", _seeds(groups)])
    return table(head, rows)


def table_scenes(scenes: Scenes) -> Lines:
    """One line a scene that was tried, one column a variant: F1, accuracy and, where the attack has a target, its success."""
    head = ["scene", *(scenes.variant_title(variant) for variant in scenes.variants)]
    rows = []
    for scene in scenes.scenes:
        groups = [scenes.group(scene, variant) for variant in scenes.variants]
        if any(group.records for group in groups):
            rows.append([scenes.title(scene), *(_cell(group) for group in groups)])
    left = len(scenes.scenes) - len(rows)
    return [*table(head, rows), *(["", f"Scenes of which nothing was run: {left}."] if left else [])]


def reasons(scenes: Scenes) -> Lines:
    """Why cells are n/a or failed, each reason once."""
    found: dict[str, list[str]] = {}
    for (_, variant), group in scenes.groups.items():
        if group.status in ("n/a", "failed") or (group.reason and len(group.done) < len(group.records)):
            # Numbers of a scene aside, equal reasons are told once.
            found.setdefault(f"{group.status}: {group.reason.splitlines()[0]}", []).append(
                scenes.variant_title(variant)
            )
    return [f"- {', '.join(dict.fromkeys(who))}: {why}." for why, who in found.items()]


def marks(comparison: Comparison, records: Mapping[str, Record]) -> dict[str, str]:
    """What must be said of data sets, by name: how much of the original is at hand, as records tell, and the configuration's notes."""
    parts = {
        _plain(record["values"].get("data", DEFAULTS["data"])): record["data"]["part"]
        for record in records.values()
        if (record.get("data") or {}).get("part")
    }
    notes = [(data, [parts.get(data), comparison.marks.get(data)]) for data in {**comparison.marks, **parts}]
    return {data: "; ".join(note for note in said if note) for data, said in notes}


def _marked(data: str, marked: Mapping[str, str]) -> str:
    return f"{data}*" if _plain(data) in marked else data


def _plain(name: object) -> str:
    return str(name).lower().replace("_", "-")


def _on_data(comparison: Comparison, one: OnData, marked: Mapping[str, str], width: int) -> list[str]:
    row = comparison.poisoned.row if comparison.poisoned else ""
    place = [row, "poisoned training data", _marked(one.data, marked), "linear-svm"]
    if not one.scenes:
        state = [NOT_RUN] * (width - len(place))
    else:
        before, f1, after = spread(one.attacked, percent=True), spread(one.f1), spread(one.filtered, percent=True)
        state = [str(one.scenes), UNDEFINED, UNDEFINED, before, f1, UNDEFINED, UNDEFINED, UNDEFINED, after]
    return [*place, *state, *[NOT_APPLICABLE] * (width - len(place) - len(state))]


def _figures(scenes: Scenes, found: Mapping[str, Group]) -> list[str]:
    """By scene: accuracy and attack success where there is a target, and accuracy where there is none."""
    state = _state(list(found.values()))
    if state:
        return [state] * 3
    targeted = [group for scene, group in found.items() if scenes.targeted(scene)]
    others = [group for scene, group in found.items() if not scenes.targeted(scene)]
    means = over_seeds(targeted, "accuracy"), over_seeds(targeted, "attack_success"), over_seeds(others, "accuracy")
    return [spread(values, percent=True) for values in means]


def _f1(scenes: Scenes, found: Mapping[str, Group]) -> list[str]:
    """By scene: over all, and over those in which, with those seeds with which, the attack takes where nobody defends."""
    state = _state(list(found.values()))
    if state:
        return [state] * 2
    took = [group.of_seeds(seeds) for scene, group in found.items() if (seeds := scenes.took(scene))]
    return [_of_dropping(list(found.values()), "f1"), _of_dropping(took, "f1")]


def _of_dropping(groups: Sequence[Group], measure: str) -> str:
    """With the number of cells in which it is defined, where that is not all of them."""
    known, cells = defined(groups, measure)
    text = spread(over_seeds(groups, measure))
    return text if known in (0, cells) else f"{text} ({known} of {cells})"


def _cell(group: Group) -> str:
    state = _state([group])
    if state:
        return state
    parts = [spread(group.values("f1")), spread(group.values("accuracy"), percent=True)]
    success = group.values("attack_success")
    parts += [spread(success, percent=True)] if success else []
    text = " / ".join(parts)
    return text if len(group.done) == group.planned else f"{text} ({len(group.done)} of {group.planned} seeds)"


def _state(groups: Sequence[Group]) -> str:
    """Why there is no figure; "" where there is one."""
    states = [group.status for group in groups]
    if "done" in states:
        return ""
    return FAILED if "failed" in states else NOT_APPLICABLE if "n/a" in states else NOT_RUN


def _seeds(groups: Sequence[Group]) -> str:
    """How many seeds each of the groups that have figures has."""
    counts = {len(group.done) for group in groups if group.done}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _place(scene: str) -> tuple[str, str, str]:
    values = json.loads(scene)
    return values["setting"], values["data"], values["model"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
