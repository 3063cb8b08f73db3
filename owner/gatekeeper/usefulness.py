"""What the references of a guard have in common beside honesty: merged into M, they pass the utility check.

A submission that fails utility is rejected for that, whatever its p. So p has to be valid among honest submissions that pass,
and references that fail would only blunt it: they lie in the upper tail of the scores, where the threshold is. A fine-tune that
fails is drawn again, which is rejection sampling from the honest population given that it is useful.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from common.activations import Activations, observe
from common.devices import Compute
from common.errors import GuardError, ModelError
from common.evaluation import Evaluation
from common.examples import Examples
from common.weights import weights_of
from owner.detectors.comparison import is_finite
from owner.gatekeeper.merging import MergePolicy, merge
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.utility import UtilityLimits, check_accuracy, check_recall
from owner.gatekeeper.verdict import Decision

TURNED_AWAY = "turned_away"
"""In a reference's plan: how many that were drawn in its place before it would fail utility."""
DIVERGING = 5
"""Fine-tunes of one reference that may diverge before the recommendation is called unfit."""
DRAWS = 30
"""Fine-tunes drawn for one reference in all."""


@dataclass(frozen=True)
class Usefulness:
    """limits: of the utility check. merging: how a submission becomes the release that it is checked on."""

    limits: UtilityLimits = field(default_factory=UtilityLimits)
    merging: MergePolicy = field(default_factory=MergePolicy)

    def failed(
        self,
        tuned: nn.Module,
        release: nn.Module,
        seen: Activations,
        evaluation: Examples,
        *,
        head: str,
        compute: Compute,
    ) -> tuple[str, ...]:
        """Names of the utility checks that `tuned`, merged into `release`, fails; none where it is useful.

        seen: what the release shows on the examples `evaluation`. Costs one forward pass on them.
        """
        current = weights_of(release)
        would_be = copy.deepcopy(release)
        would_be.load_state_dict(merge(self.merging.policy, current, current, weights_of(tuned), self.merging.weight))
        found = observe(would_be, evaluation.inputs, head=head, compute=compute)
        if not (is_finite(found.features) and is_finite(found.logits)):
            return ("utility",)
        before, after = (
            Evaluation.from_logits(logits, evaluation.labels, evaluation.classes)
            for logits in (seen.logits, found.logits)
        )
        checks = (
            check_accuracy(before, after, self.limits, seconds=0.0),
            check_recall(before, after, self.limits, evaluation.class_names, seconds=0.0),
        )
        return tuple(check.name for check in checks if check.decision is not Decision.ACCEPTED)

    def to_json(self) -> dict[str, Any]:
        return {"utility": self.limits.to_json(), "merge": self.merging.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(UtilityLimits.from_json(data["utility"]), MergePolicy.from_json(data["merge"]))


DEFAULTS = Usefulness()


@dataclass
class Draws:
    """What became of the fine-tunes drawn for one reference that are not it.

    turned_away: those that fail utility. failed: of these, by check; one may fail both. diverged: those that are not finite.
    """

    limit: int = DRAWS
    diverging_limit: int = DIVERGING
    turned_away: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    diverged: int = 0
    cause: ModelError | None = None

    @property
    def made(self) -> int:
        """Also the number of the next attempt."""
        return self.turned_away + self.diverged

    def diverge(self, cause: ModelError | None = None) -> None:
        """Raises GuardError where too many have."""
        self.diverged += 1
        self.cause = cause or self.cause
        if self.diverged >= self.diverging_limit:
            why = self.cause.message if self.cause else "its activations are not finite"
            raise GuardError(
                f"honest fine-tuning as recommended fails ({self.diverged} of {self.made} tries): {why}",
                hint=self.cause.hint if self.cause else "recommend a lower learning rate",
            ) from self.cause
        self._check()

    def turn_away(self, failed: Iterable[str]) -> None:
        """Raises GuardError where so many were drawn that the next would hardly be useful either."""
        self.turned_away += 1
        self.failed.update(failed)
        self._check()

    def _check(self) -> None:
        if self.made < self.limit:
            return
        failures = ", ".join(f"{count} fail {name}" for name, count in sorted(self.failed.items()))
        diverged = f", {self.diverged} diverge" if self.diverged else ""
        raise GuardError(
            f"{self.turned_away} of {self.made} honest fine-tunes drawn for one reference fail the utility check ({failures}"
            f"{diverged}): hardly a contributor who does what is recommended could pass it",
            hint="recommend a lower learning rate or fewer epochs, assume a milder [population], or widen the limits of [utility]",
        )


def drawn(plans: Iterable[Mapping[str, Any]]) -> int:
    """How many finite fine-tunes were drawn for the references that have these plans, those turned away among them."""
    return sum(1 + int(plan.get(TURNED_AWAY, 0)) for plan in plans)


def usefulness_of(options: GuardOptions, limits: UtilityLimits | None, merging: MergePolicy) -> Usefulness | None:
    """What the references of a guard with these options are conditioned on; nothing where it has none (Eq. 4)."""
    return None if limits is None or options.references_to_fit == 0 else Usefulness(limits, merging)
