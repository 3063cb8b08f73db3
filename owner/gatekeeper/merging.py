"""Merge policies: the release that would follow if a submission were accepted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from common.errors import ConfigurationError, GuardError, UnknownNameError
from owner.gatekeeper.stored import whole

Policy = Literal["average", "replace"]


@dataclass(frozen=True)
class MergePolicy:
    """policy: average (current + weight * (submission - its base)) or replace (the submission itself).
    weight: w of average, in (0, 1].
    """

    policy: Policy = "average"
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise UnknownNameError("merge policy", self.policy, get_args(Policy))
        if not 0 < self.weight <= 1:
            raise ConfigurationError(f"the merge weight must be above 0 and at most 1, not {self.weight}")

    def to_json(self) -> dict[str, Any]:
        return {"policy": self.policy, "weight": self.weight}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises ConfigurationError for a field that is missing."""
        return cls(**whole(data, cls, "the fields of a merge policy"))


def merge(
    policy: str,
    current: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    submission: Mapping[str, Tensor],
    weight: float = 0.5,
) -> dict[str, Tensor]:
    """The would-be release: new tensors, of current's names, shapes and dtypes.

    Only floating tensors are merged. Integer ones (BatchNorm's `num_batches_tracked`) are current's: they count the owner's
    own training steps, and a mean of counters means nothing.

    A variance merged onto another release than its base can come out negative. It is kept at (1 - weight) times current's or
    more, which changes nothing where base is current: there the mean of two variances is never less.

    Raises GuardError where names differ or `replace` is asked for on another base than current.

    >>> one, two, three = ({"w": torch.tensor([v])} for v in (1.0, 2.0, 3.0))
    >>> merge("average", two, one, three, 0.5)
    {'w': tensor([3.])}
    """
    chosen = MergePolicy(policy, weight)  # type: ignore[arg-type]
    if not set(current) == set(base) == set(submission):
        odd = sorted((set(current) ^ set(base)) | (set(current) ^ set(submission)))
        raise GuardError(f"weights to be merged must have the same names; these differ: {', '.join(odd[:5])}")
    if chosen.policy == "replace":
        if any(not torch.equal(current[name], base[name]) for name in current):
            raise GuardError("the policy `replace` takes submissions based on the current release only")
        return {name: (submission if t.is_floating_point() else current)[name].clone() for name, t in current.items()}
    return {name: _average(name, tensor, base[name], submission[name], weight) for name, tensor in current.items()}


def _average(name: str, current: Tensor, base: Tensor, submission: Tensor, weight: float) -> Tensor:
    if not current.is_floating_point():
        return current.clone()
    # In place, and one copy in float64 for all: three more would cost more than the arithmetic.
    merged = submission.to(torch.float64, copy=True).sub_(base).mul_(weight).add_(current)
    if name.endswith("running_var"):
        merged = torch.maximum(merged, (1 - weight) * current.double())
    return merged.to(current.dtype)
