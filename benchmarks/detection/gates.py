"""The gates that are compared: each detector alone, the paper's rule, and combinations, chosen on development models only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.detection.judge import Base, Fit, Group, Model, Score, figures, judge
from benchmarks.detection.metrics import Rate, rate
from benchmarks.detection.scores import BANK
from owner.detectors import ESCALATION
from owner.detectors.combination import Method, family_of
from owner.gatekeeper.combined import APART, CombinedScore

METHODS: tuple[Method, ...] = ("max", "sum", "top3", "fisher", "mahalanobis", "families")


@dataclass(frozen=True)
class Choice:
    """A gate as an owner configures one: `combination`, `detectors`, and with which probe bank (its column)."""

    method: Method
    detectors: tuple[str, ...]
    bank: str = BANK

    def fit(self, base: Base) -> Score:
        combined = CombinedScore.fit(self.method, [self._seen(measures) for measures in base.fitting])
        return lambda measures: combined.score(self._seen(measures))

    def _seen(self, measures: Mapping[str, float]) -> Mapping[str, float]:
        """What a guard with these detectors measures: all their measures, but not what the table adds for Eq. 4."""
        mine = in_bank(measures, self.bank)
        return {n: v for n, v in mine.items() if _detector(n) in self.detectors and not n.endswith("/deviation")}


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
    """The gates to choose among, by the names of all measures: every method over all detectors, over all but those of one
    family, and over those of one family.

    Detectors of utility take part in none: utility is told apart from suspicion. Nor do those of the escalation tier, which are
    no part of the gate that looks at everybody.
    """
    whole = {name: _detector(name) for name in names if "|" not in name and "[" not in name}
    detectors = [d for d in dict.fromkeys(whole.values()) if d not in ESCALATION and family_of(d) != APART]
    families = dict.fromkeys(map(family_of, detectors))
    pools = [tuple(detectors)]
    pools += [tuple(d for d in detectors if family_of(d) != family) for family in families]
    pools += [tuple(d for d in detectors if family_of(d) == family) for family in families]
    return [Choice(method, pool) for pool in dict.fromkeys(pools) if pool for method in METHODS]


def choose(
    development: Sequence[Base], choices: Sequence[Choice], *, leave_out: str | None, bank: str = BANK
) -> Choice:
    """The choice of the largest mean TPR over families at 5 and 1 % and AUROC, over effective attacks that pass utility.

    leave_out: a family no model of which takes part. bank: the probe bank to choose for.

    Ties go to the earlier choice. Nothing but development bases is looked at.
    """

    def worth(choice: Choice) -> float:
        fitted = replace(choice, bank=bank)
        names = sorted({m.family for base in development for m in base.attacked if m.family and m.family != leave_out})
        total = []
        for family in names:
            groups = [judge(base, fitted.fit, _of(base, family)) for base in development]
            found = figures_without_interval(groups)
            if found is not None:
                total.append(found)
        return sum(total) / len(total) if total else 0.0

    return replace(max(choices, key=worth), bank=bank)


def figures_without_interval(groups: Sequence[Group]) -> float | None:
    """Mean of AUROC, TPR at 5 % and TPR at 1 % where there are such attacks."""
    found = figures(groups, "effective-passing-utility", intervals=False)
    if not found.n_attacked:
        return None
    rates = [r.value or 0.0 for r in found.tpr.values()]
    return (found.auroc + sum(rates)) / (1 + len(rates))


def by_equation_4(base: Base, owner: Mapping[str, float], models: Sequence[Model]) -> Rate:
    """How many of these models the paper's rule rejects: E_MSE > mean + std of the owner's own fine-tune M_f."""
    threshold = owner["activation-autoencoder"] + owner["activation-autoencoder/deviation"]
    return rate([not model.measures["activation-autoencoder"] <= threshold for model in models])


def _of(base: Base, family: str) -> list[Model]:
    return [model for model in base.attacked if model.family == family]


def _detector(measure: str) -> str:
    return measure.partition("/")[0]
