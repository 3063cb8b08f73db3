"""The gates that are compared: each detector alone, the paper's rule, and combinations, chosen on development models only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.detection.judge import Base, Fit, Group, Model, Score, figures, judge
from benchmarks.detection.metrics import Rate, rate
from benchmarks.detection.scores import BANK
from owner.detectors import ESCALATION
from owner.detectors.combination import Combination, Method, family_of

METHODS: tuple[Method, ...] = ("max", "sum", "top3", "fisher", "mahalanobis", "families")
UTILITY = frozenset({"accuracy-drop", "recall-drop"})


@dataclass(frozen=True)
class Choice:
    """A combination: how, of which scores, and with which probe bank (its column)."""

    method: Method
    use: tuple[str, ...]
    bank: str = BANK

    def fit(self, base: Base) -> Score:
        combination = Combination(self.method, self.use).fit([in_bank(m, self.bank) for m in base.fitting])
        return lambda measures: combination.score(in_bank(measures, self.bank))


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
    """The combinations to choose among: every method on the headline scores, on all measures, and on each without a family.

    Scores of the utility family take part in none: utility is told apart from suspicion. Nor do those of the escalation tier,
    which are no part of the gate that looks at everybody.
    """
    names = [name for name in names if name.partition("/")[0] not in ESCALATION]
    usable = [name for name in names if "[" not in name and "|" not in name and family_of(name) != "utility"]
    usable = [name for name in usable if not name.endswith("/deviation")]
    headlines = tuple(name for name in usable if "/" not in name)
    pools = [headlines, tuple(usable)]
    for family in sorted({family_of(name) for name in usable}):
        pools.extend(tuple(name for name in pool if family_of(name) != family) for pool in (headlines, tuple(usable)))
    for family in ("probes", "activations", "weights"):
        pools.append(tuple(name for name in headlines if family_of(name) == family))
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
