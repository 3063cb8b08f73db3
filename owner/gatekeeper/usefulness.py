"""What the references of a guard have in common beside honesty: merged into M, they pass the utility check.

A submission that fails utility is rejected for that, whatever its p. So p has to be valid among honest submissions that pass,
and references that fail would only blunt it: they lie in the upper tail of the scores, where the threshold is. A fine-tune that
fails is drawn again, which is rejection sampling from the honest population given that it is useful.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor, nn

from common.activations import observe
from common.devices import Compute
from common.evaluation import Evaluation
from common.examples import Examples
from common.weights import weights_of
from owner.detectors.comparison import is_finite
from owner.gatekeeper.merging import MergePolicy, merge
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.utility import UtilityLimits, check_accuracy, check_recall
from owner.gatekeeper.verdict import Decision


@dataclass(frozen=True)
class Usefulness:
    """limits: of the utility check. merging: how a submission becomes the release that it is checked on."""

    limits: UtilityLimits = field(default_factory=UtilityLimits)
    merging: MergePolicy = field(default_factory=MergePolicy)

    def failed(
        self,
        tuned: nn.Module,
        release: nn.Module,
        logits: Tensor,
        evaluation: Examples,
        *,
        head: str,
        compute: Compute,
    ) -> tuple[str, ...]:
        """Names of the utility checks that `tuned`, merged into `release`, fails; none where it is useful.

        logits: the release's on the examples `evaluation`. Costs one forward pass on them.
        """
        current = weights_of(release)
        would_be = copy.deepcopy(release)
        would_be.load_state_dict(merge(self.merging.policy, current, current, weights_of(tuned), self.merging.weight))
        found = observe(would_be, evaluation.inputs, head=head, compute=compute)
        if not (is_finite(found.features) and is_finite(found.logits)):
            return ("utility",)
        before, after = (
            Evaluation.from_logits(shown, evaluation.labels, evaluation.classes) for shown in (logits, found.logits)
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


def usefulness_of(options: GuardOptions, limits: UtilityLimits | None, merging: MergePolicy) -> Usefulness | None:
    """What the references of a guard with these options are conditioned on; nothing where it has none (Eq. 4)."""
    return None if limits is None or options.references_to_fit == 0 else Usefulness(limits, merging)
