"""What is run: steps that leave one record each, in an order in which a part of them is worth having."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from common.errors import UnknownNameError
from owner.reproduce.settings import CALIBRATED, Settings

Experiment = Literal["tables", "improvement", "gate", "variants", "alone", "jpeg"]
EXPERIMENTS: Final[tuple[Experiment, ...]] = get_args(Experiment)
DEFAULT_EXPERIMENTS: Final[tuple[Experiment, ...]] = ("tables", "improvement", "gate")

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
        base = "part" if self.base == "part" else "genuine"
        if self.is_scratch:
            return ()
        if self.name in {"detect", "variants", "part-detect", "alone-detect"}:
            return (base, *(self.judged(kind) for kind in KINDS))
        if self.name == "gate":
            return (base, *(f"contribution-{kind}" for kind in KINDS))
        return (base,)

    @property
    def after(self) -> tuple[str, ...]:
        """Names of the steps that it does not begin before, where they are run at all: those it needs, and for the gate the
        models of Fig. 6, which it vets where they are."""
        return (*self.needs, *(f"part-{kind}" for kind in KINDS)) if self.name == "gate" else self.needs

    def judged(self, kind: Kind) -> str:
        """Of a step that judges fine-tunes by the paper's rule, the step that made those of a kind.

        >>> Step("cnn", 0, "alone-detect").judged("flip"), Step("cnn", 0, "alone-detect").judged("honest")
        ('alone-flip', 'honest')
        """
        if self.name == "part-detect":
            return f"part-{kind}"
        return f"alone-{kind}" if self.name == "alone-detect" and kind != "honest" else kind

    def sibling(self, name: str) -> Step:
        """Of the same architecture and seed."""
        return Step(self.architecture, self.seed, name)

    @property
    def is_scratch(self) -> bool:
        return self.name in {"genuine", "part", "jpeg"}

    @property
    def kind(self) -> Kind | None:
        """Of a fine-tune; None for other steps."""
        last = self.name.rpartition("-")[2]
        return next((kind for kind in KINDS if kind == last), None)

    @property
    def base(self) -> Literal["genuine", "part"]:
        """The model that is fine-tuned or protected."""
        own = self.name.startswith(("part", "contribution")) or self.name == "gate"
        return "part" if own else "genuine"

    @property
    def data(self) -> Data:
        if self.name in {"part", "jpeg"}:
            return "part" if self.name == "part" else "jpeg"
        return "contribution" if self.name.startswith("contribution") else "whole"

    def __str__(self) -> str:
        return f"{self.architecture} seed {self.seed} {self.name}"


def experiment_steps(experiment: Experiment, architecture: str, settings: Settings) -> tuple[str, ...]:
    """Names of the steps of one experiment, each after what it needs; none where the experiment is not for this architecture.

    >>> experiment_steps("tables", "cnn", Settings())
    ('genuine', 'honest', 'flip', 'pattern', 'detect')
    """
    if experiment == "tables":
        return ("genuine", *KINDS, "detect")
    if experiment == "improvement":
        wanted = architecture in settings.improve
        return ("part", *(f"part-{kind}" for kind in KINDS), "part-detect") if wanted else ()
    if experiment == "gate":
        wanted = architecture in CALIBRATED
        return ("part", *(f"contribution-{kind}" for kind in KINDS), "gate") if wanted else ()
    if experiment == "variants":
        return ("genuine", *KINDS, "variants")
    if experiment == "alone":  # the settings' own reading may be that one
        wanted = settings.attack_data != "alone"
        return ("genuine", "honest", "alone-flip", "alone-pattern", "alone-detect") if wanted else ()
    return ("genuine", "jpeg")


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
