"""The gates that are compared: each detector alone, the paper's rule, and combinations, chosen on development models only."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from benchmarks.detection.judge import PRIMARY, Base, Fit, Model, Score, figures, judge
from benchmarks.detection.metrics import Rate, rate
from benchmarks.detection.scores import BANK
from common.errors import ConfigurationError
from owner.detectors import ESCALATION
from owner.detectors.combination import SIZE, Method, detector_of, family_of
from owner.gatekeeper.combined import APART, CombinedScore

ALWAYS = (SIZE, "activation-autoencoder", "probe-bank")
"""Never left out: what says how far an update went, and what owners read whatever else decides, the paper's error and the mark it looks like."""
DIVISIONS = 4


@dataclass(frozen=True)
class Choice:
    """A gate as an owner configures one: `combination`, `detectors`, `given_size`, and with which probe bank (its column)."""

    method: Method
    detectors: tuple[str, ...]
    given_size: bool = False
    bank: str = BANK

    def fit(self, base: Base) -> Score:
        combined = CombinedScore.fit(
            self.method, [self.seen(measures) for measures in base.fitting], given_size=self.given_size
        )
        return lambda measures: combined.score(self.seen(measures))

    def seen(self, measures: Mapping[str, float]) -> Mapping[str, float]:
        """What a guard with these detectors measures: all their measures, but not what the table adds for Eq. 4."""
        mine = in_bank(measures, self.bank)
        return {n: v for n, v in mine.items() if detector_of(n) in self.detectors and not n.endswith("/deviation")}


def alone(name: str) -> Fit:
    """One score by itself."""
    return lambda _: lambda measures: measures[name]


def in_bank(measures: Mapping[str, float], bank: str) -> Mapping[str, float]:
    """The measures with those of this probe bank as those of `probe-bank`."""
    if bank == BANK:
        return measures
    kept = {name: value for name, value in measures.items() if not name.startswith(BANK)}
    prefix = f"{bank}|"
    return kept | {name.removeprefix(prefix): value for name, value in measures.items() if name.startswith(prefix)}


def deciding(names: Iterable[str]) -> tuple[str, ...]:
    """The detectors that may take part in a gate, by the names of all measures. Those of utility take part in none: utility is told apart
    from suspicion. Nor do those of the escalation tier, which are no part of the gate that looks at everybody."""
    whole = dict.fromkeys(detector_of(name) for name in names if "|" not in name and "[" not in name)
    return tuple(d for d in whole if d not in ESCALATION and family_of(d) != APART)


@dataclass(frozen=True)
class Parts:
    """A base, of each model of which is known what every detector adds to the score of the method `detectors`: the sum over fewer of them is
    the score of a gate of fewer detectors, without anything being fitted again.

    base: with the parts, by detector, in the place of measures.
    """

    base: Base

    @classmethod
    def of(cls, base: Base, whole: Choice) -> Self:
        """whole: by the method `detectors`."""
        combined = CombinedScore.fit(
            whole.method, [whole.seen(m) for m in base.fitting], given_size=whole.given_size
        ).overall

        def parts(measures: Mapping[str, float]) -> Mapping[str, float]:
            return combined.parts(whole.seen(measures))

        def known(model: Model) -> Model:
            return replace(model, measures=parts(model.measures))

        fitting, calibration = ([parts(m) for m in part] for part in (base.fitting, base.calibration))
        return cls(Base(base.number, fitting, calibration, [*map(known, base.honest)], [*map(known, base.attacked)]))

    @staticmethod
    def fit(detectors: Sequence[str]) -> Fit:
        """The gate of these detectors; `SIZE` must be among them where the whole was given the size."""
        return lambda _: lambda parts: math.fsum(parts[name] for name in detectors)


def divided(base: Base) -> Iterator[Base]:
    """The base, and with other references in the place of those that fit the scales: who chooses on one division chooses its accidents."""
    references, count = [*base.fitting, *base.calibration], len(base.fitting)
    for start in range(0, min(DIVISIONS, len(references) // count) * count, count):
        rest = references[:start] + references[start + count :]
        yield replace(base, fitting=references[start : start + count], calibration=rest)


class Chooser:
    """Chooses a gate on development bases; nothing else is ever looked at.

    From the gate of all detectors, given the size of the update or not, that one detector is left out again and again without which the gate
    does best, until every further one would make it worse; those of `ALWAYS` stay, and those that the network gives nothing to see. A detector that sees little adds the spread of its honest
    scores to the sum, and takes that much from the others. The method is `detectors`, the best of all on the first development base.

    detectors: those that may take part.
    Raises ConfigurationError without a development base that has an effective attack: every choice would be as good as any other.
    """

    def __init__(self, development: Sequence[Base], detectors: Sequence[str]) -> None:
        if not any(model.belongs(PRIMARY) for base in development for model in base.attacked):
            raise ConfigurationError(
                "there is nothing to choose a gate on: no development base with attacks that took",
                hint="train and score the development bases first (--bases development)",
            )
        self.development = [part for base in development for part in divided(base)]
        self.detectors = tuple(detectors)
        self._staying = {*ALWAYS, *(name for name in self.detectors if self._constant(name))}
        self._worths: dict[Choice, dict[str, float]] = {}
        self._parts: dict[Choice, list[Parts]] = {}

    def choose(self, *, leave_out: Collection[str] = (), bank: str = BANK) -> Choice:
        """The choice of the largest mean over families of AUROC, TPR at 5 % and TPR at 1 %, of effective attacks that pass utility.

        leave_out: families no model of which takes part. bank: the probe bank to choose for. Ties go to fewer detectors.
        """
        sizes = (False, True) if SIZE in self.detectors else (False,)
        found = [self._fewer(Choice("detectors", self.detectors, size, bank), leave_out) for size in sizes]
        return max(found, key=lambda choice: self._worth(choice, leave_out))

    def _fewer(self, choice: Choice, leave_out: Collection[str]) -> Choice:
        while True:
            smaller = [
                replace(choice, detectors=tuple(d for d in choice.detectors if d != name))
                for name in choice.detectors
                if name not in self._staying and len(choice.detectors) > 1
            ]
            best = max(smaller, key=lambda one: self._worth(one, leave_out), default=choice)
            if best is choice or self._worth(best, leave_out) < self._worth(choice, leave_out):
                return choice
            choice = best

    def _constant(self, name: str) -> bool:
        """Whether this network has nothing that the detector looks at: that it adds nothing here says nothing of others."""
        return len({m.get(name) for base in self.development for m in [*base.fitting, *base.calibration]}) == 1

    def _worth(self, choice: Choice, leave_out: Collection[str]) -> float:
        if choice not in self._worths:
            self._worths[choice] = self._by_family(choice)
        found = [value for family, value in self._worths[choice].items() if family not in leave_out]
        return sum(found) / len(found) if found else 0.0

    def _by_family(self, choice: Choice) -> dict[str, float]:
        """Mean of AUROC, TPR at 5 % and TPR at 1 %, by family that has such attacks."""
        fit = Parts.fit(choice.detectors)
        everyone = [judge(one.base, fit, one.base.attacked) for one in self._known(choice)]
        families = sorted({one.model.family for group in everyone for one in group.attacked if one.model.family})
        worths = {}
        for family in families:
            groups = [
                replace(group, attacked=tuple(one for one in group.attacked if one.model.family == family))
                for group in everyone
            ]
            found = figures(groups, PRIMARY, intervals=False)
            if found.n_attacked:
                rates = [one.value or 0.0 for one in found.tpr.values()]
                worths[family] = (found.auroc + sum(rates)) / (1 + len(rates))
        return worths

    def _known(self, choice: Choice) -> list[Parts]:
        whole = replace(choice, detectors=self.detectors)
        if whole not in self._parts:
            self._parts[whole] = [Parts.of(base, whole) for base in self.development]
        return self._parts[whole]


def by_equation_4(base: Base, owner: Mapping[str, float], models: Sequence[Model]) -> Rate:
    """How many of these models the paper's rule rejects: E_MSE > mean + std of the owner's own fine-tune M_f."""
    threshold = owner["activation-autoencoder"] + owner["activation-autoencoder/deviation"]
    return rate([not model.measures["activation-autoencoder"] <= threshold for model in models])
