"""What is run: steps that leave one record each, in an order in which a part of them is worth having."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from common.errors import UnknownNameError
from owner.reproduce.settings import CALIBRATED, LAST_RATE, Settings

Experiment = Literal["tables", "improvement", "gate", "variants", "alone", "beside", "again", "slow", "jpeg"]
EXPERIMENTS: Final[tuple[Experiment, ...]] = get_args(Experiment)
DEFAULT_EXPERIMENTS: Final[tuple[Experiment, ...]] = ("tables", "improvement", "gate")

OTHER_ATTACK_DATA: Final[tuple[Literal["alone", "beside"], ...]] = ("alone", "beside")
"""Experiments that are a setting of `Settings.attack_data`; their M_f is that of the tables."""

Kind = Literal["honest", "flip", "pattern"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Data = Literal["whole", "part", "contribution", "jpeg"]
"""What is trained on: the whole training set; the owner's part of it; what a contributor has of the rest; the whole, encoded
as JPEG once more."""


@dataclass(frozen=True)
class Step:
    """One piece of work of one architecture and seed.

    name: of its record and weights. needs: names of the steps whose weights it starts from.
    """

    architecture: str
    seed: int
    name: str

    @property
    def needs(self) -> tuple[str, ...]:
        if self.is_scratch:
            return ()
        if self.is_judgement:
            return (self.base, *self.judged.values())
        if self.name == "gate":
            return (self.base, *(f"contribution-{kind}" for kind in KINDS))
        return (self.base,)

    @property
    def after(self) -> tuple[str, ...]:
        """Names of the steps that it does not begin before, where they are run at all: those it needs, and for the gate the
        models of Fig. 6, which it vets where they are."""
        return (*self.needs, *(f"part-{kind}" for kind in KINDS)) if self.name == "gate" else self.needs

    @property
    def judged(self) -> Mapping[str, str]:
        """Of a step that judges fine-tunes by the paper's rule: the steps that made them, by what they are called there.

        >>> dict(Step("cnn", 0, "alone-detect").judged)
        {'honest': 'honest', 'flip': 'alone-flip', 'pattern': 'alone-pattern'}
        >>> dict(Step("cnn", 0, "again-detect").judged)
        {'honest': 'honest', 'again': 'again-honest'}
        """
        group = self.group
        if group == "again":
            return {"honest": "honest", "again": "again-honest"}
        made: dict[str, str] = {kind: f"{group}-{kind}" if group else kind for kind in KINDS}
        return made | {"honest": "honest"} if group in OTHER_ATTACK_DATA else made

    def sibling(self, name: str) -> Step:
        """Of the same architecture and seed."""
        return Step(self.architecture, self.seed, name)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the weights that it leaves; Fig. 6 shows one duration.

        >>> Step("cnn", 0, "flip").models, Step("cnn", 0, "part-flip").models, Step("cnn", 0, "detect").models
        (('flip-short', 'flip-long'), ('part-flip-short',), ())
        """
        if self.is_scratch:
            return (self.name,)
        durations = () if self.kind is None else ("short",) if self.group == "part" else ("short", "long")
        return tuple(f"{self.name}-{duration}" for duration in durations)

    @property
    def group(self) -> str:
        """What fine-tunes and their judgement have in common: `part`, `contribution`, `alone`, `beside`, `slow`, `again`; "" of the
        tables'."""
        return self.name.rpartition("-")[0]

    @property
    def is_scratch(self) -> bool:
        return self.name in {"genuine", "part", "jpeg"}

    @property
    def is_judgement(self) -> bool:
        """By the paper's rule; the gate is another."""
        return self.name == "variants" or self.name.rpartition("-")[2] == "detect"

    @property
    def kind(self) -> Kind | None:
        """Of a fine-tune; None for other steps."""
        last = self.name.rpartition("-")[2]
        return next((kind for kind in KINDS if kind == last), None)

    @property
    def base(self) -> Literal["genuine", "part"]:
        """The model that is fine-tuned or protected."""
        return "part" if self.group in {"part", "contribution"} or self.name == "gate" else "genuine"

    @property
    def data(self) -> Data:
        if self.name in {"part", "jpeg"}:
            return "part" if self.name == "part" else "jpeg"
        return "contribution" if self.group == "contribution" else "whole"

    def __str__(self) -> str:
        return f"{self.architecture} seed {self.seed} {self.name}"


def experiment_steps(experiment: Experiment, architecture: str, settings: Settings) -> tuple[str, ...]:
    """Names of the steps of one experiment, each after what it needs; none where the experiment is not for this architecture.

    >>> experiment_steps("tables", "cnn", Settings())
    ('genuine', 'honest', 'flip', 'pattern', 'detect')
    """
    steps: dict[Experiment, tuple[str, ...]] = {
        "tables": ("genuine", *KINDS, "detect"),
        "improvement": ("part", *(f"part-{kind}" for kind in KINDS), "part-detect"),
        "gate": ("part", *(f"contribution-{kind}" for kind in KINDS), "gate"),
        "variants": ("genuine", *KINDS, "variants"),
        "alone": ("genuine", "honest", "alone-flip", "alone-pattern", "alone-detect"),
        "beside": ("genuine", "honest", "beside-flip", "beside-pattern", "beside-detect"),
        "again": ("genuine", "honest", "again-honest", "again-detect"),
        "slow": ("genuine", *(f"slow-{kind}" for kind in KINDS), "slow-detect"),
        "jpeg": ("genuine", "jpeg"),
    }
    wanted = {
        "improvement": architecture in settings.improve,
        "gate": architecture in CALIBRATED,
        # The settings' own reading may be one of these.
        "alone": settings.attack_data != "alone",
        "beside": settings.attack_data != "beside",
        "slow": settings.finetune_rate != LAST_RATE,
    }
    return steps[experiment] if wanted.get(experiment, True) else ()


def step_names() -> frozenset[str]:
    """Of every step there can be."""
    everywhere = Settings(improve=(CALIBRATED[0],))
    return frozenset(name for one in EXPERIMENTS for name in experiment_steps(one, CALIBRATED[0], everywhere))


def all_steps(
    architectures: Sequence[str], seeds: Sequence[int], experiments: Sequence[str], settings: Settings
) -> list[Step]:
    """Every step, once: a seed after the other, in it the paper's tables of every architecture before anything else.

    Raises UnknownNameError for an experiment that does not exist.
    """
    for name in experiments:
        if name not in EXPERIMENTS:
            raise UnknownNameError("experiment", name, EXPERIMENTS)

    def found() -> Iterator[Step]:
        for seed in seeds:
            for experiment in EXPERIMENTS:
                if experiment in experiments:
                    for architecture in architectures:
                        for name in experiment_steps(experiment, architecture, settings):
                            yield Step(architecture, seed, name)

    return list(dict.fromkeys(found()))
