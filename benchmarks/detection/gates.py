"""The gates that are compared: each detector alone, the paper's rule, and combinations, chosen on development models only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.detection.judge import Base, Fit, Model, Score, figures, judge
from benchmarks.detection.metrics import Rate, rate
from benchmarks.detection.scores import BANK
from owner.detectors import ESCALATION
from owner.detectors.combination import SIZE, Combination, Method, detector_of, family_of
from owner.gatekeeper.combined import APART, CombinedScore

METHODS: tuple[Method, ...] = ("max", "sum", "top3", "fisher", "mahalanobis", "families", "detectors")


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


def candidates(names: Sequence[str]) -> list[Choice]:
    """The gates to choose among, by the names of all measures: every method, given the size of the update or not, over all
    detectors, over all but one, and over all but those of one family. What looks at one family alone cannot see what shows in
    another, however well it does on the development families.

    Detectors of utility take part in none: utility is told apart from suspicion. Nor do those of the escalation tier, which are
    no part of the gate that looks at everybody.
    """
    whole = {name: detector_of(name) for name in names if "|" not in name and "[" not in name}
    detectors = [d for d in dict.fromkeys(whole.values()) if d not in ESCALATION and family_of(d) != APART]
    families = dict.fromkeys(map(family_of, detectors))
    pools = [tuple(detectors)]
    pools += [tuple(d for d in detectors if family_of(d) != family) for family in families]
    pools += [tuple(d for d in detectors if d != one) for one in detectors]
    return [
        Choice(method, pool, given_size)
        for pool in dict.fromkeys(pools)
        if pool
        for method in METHODS
        for given_size in (False, True)
        if SIZE in pool or not given_size
    ]


@dataclass(frozen=True)
class Scaled:
    """A base every measure of which has been put on the scale of honest fine-tunes, once for all choices.

    base: with z in the place of measures. whole: the combination of all detectors, whose scales they are.
    """

    base: Base
    whole: Combination

    @classmethod
    def of(cls, base: Base, choices: Sequence[Choice], given_size: bool, bank: str) -> Scaled:
        """With every detector of any of the choices. Those that are given the size must have it among their own (`candidates`)."""
        detectors = tuple(dict.fromkeys(name for choice in choices for name in choice.detectors))
        every = Choice("sum", detectors, given_size, bank)
        whole = CombinedScore.fit("sum", [every.seen(m) for m in base.fitting], given_size=given_size).overall

        def z(model: Model) -> Model:
            return replace(model, measures=whole.z(every.seen(model.measures)))

        fitting, calibration = ([whole.z(every.seen(m)) for m in part] for part in (base.fitting, base.calibration))
        return cls(Base(base.number, fitting, calibration, [*map(z, base.honest)], [*map(z, base.attacked)]), whole)

    def fit(self, choice: Choice) -> Fit:
        """As `Choice.fit`, without putting anything on a scale again."""
        use = [name for name in self.whole.scales_ if detector_of(name) in choice.detectors]
        return lambda base: self.whole.otherwise(choice.method, use, base.fitting).combined


class Chooser:
    """Chooses among gates on development bases; nothing else is ever looked at."""

    def __init__(self, development: Sequence[Base], choices: Sequence[Choice]) -> None:
        self.development, self.choices = development, choices
        self._worths: dict[str, list[dict[str, float]]] = {}

    def choose(self, *, leave_out: str | None = None, bank: str = BANK) -> Choice:
        """The choice of the largest mean over families of AUROC, TPR at 5 % and TPR at 1 %, of effective attacks that pass utility.

        leave_out: a family no model of which takes part. bank: the probe bank to choose for. Ties go to the earlier choice.
        """
        if bank not in self._worths:
            scaled = {
                on: [Scaled.of(base, self.choices, on, bank) for base in self.development] for on in (False, True)
            }
            self._worths[bank] = [self._by_family(choice, scaled[choice.given_size]) for choice in self.choices]

        def worth(number: int) -> float:
            found = [value for family, value in self._worths[bank][number].items() if family != leave_out]
            return sum(found) / len(found) if found else 0.0

        return replace(self.choices[max(range(len(self.choices)), key=worth)], bank=bank)

    def _by_family(self, choice: Choice, development: Sequence[Scaled]) -> dict[str, float]:
        """Mean of AUROC, TPR at 5 % and TPR at 1 %, by family that has such attacks."""
        everyone = [judge(one.base, one.fit(choice), one.base.attacked) for one in development]
        families = sorted({one.model.family for group in everyone for one in group.attacked if one.model.family})
        worths = {}
        for family in families:
            groups = [
                replace(group, attacked=tuple(one for one in group.attacked if one.model.family == family))
                for group in everyone
            ]
            found = figures(groups, "effective-passing-utility", intervals=False)
            if found.n_attacked:
                rates = [one.value or 0.0 for one in found.tpr.values()]
                worths[family] = (found.auroc + sum(rates)) / (1 + len(rates))
        return worths


def by_equation_4(base: Base, owner: Mapping[str, float], models: Sequence[Model]) -> Rate:
    """How many of these models the paper's rule rejects: E_MSE > mean + std of the owner's own fine-tune M_f."""
    threshold = owner["activation-autoencoder"] + owner["activation-autoencoder/deviation"]
    return rate([not model.measures["activation-autoencoder"] <= threshold for model in models])
