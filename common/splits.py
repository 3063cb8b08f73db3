"""The owner's disjoint shares of a data set: what trains, what is kept for references, what vets, what evaluates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.errors import ConfigurationError, DataError
from common.examples import Examples

if TYPE_CHECKING:
    from common.datasets import DataSet


@dataclass(frozen=True)
class OwnerShares:
    """Six shares without an example in common; the first, second and last from the training set, the others from the
    test set.

    train: the owner's model is trained on it.
    references: images the model never sees in training, for the honest reference fine-tunes.
    trigger_fit, trigger_calibration: trigger sets the guard is fitted and scored on.
    evaluation: accuracy is measured on it.
    unclaimed: the rest of the training set, which a simulation gives to contributors.
    """

    train: Examples
    references: Examples
    trigger_fit: Examples
    trigger_calibration: Examples
    evaluation: Examples
    unclaimed: Examples


def owner_shares(
    data: DataSet,
    *,
    seed: int,
    train: float,
    references: float,
    trigger_fit: float,
    trigger_calibration: float,
) -> OwnerShares:
    """Divide `data`, class by class and at random by `seed`. `train` and `references` are fractions of the training
    set, `trigger_fit` and `trigger_calibration` of the test set. Examples that belong together (the frames of one
    traffic sign, `DataSet.train_groups`) are never parted.

    Raises ConfigurationError for fractions that are not above 0 or exceed what there is, DataError where a share
    would hold nothing.
    """
    _check_fractions({"train": train, "references": references}, whole="training set", rest_needed=False)
    _check_fractions(
        {"trigger_fit": trigger_fit, "trigger_calibration": trigger_calibration}, whole="test set", rest_needed=True
    )
    generator = torch.Generator().manual_seed(seed)
    of_train = stratified(data.train.labels, (train, references), generator, groups=data.train_groups)
    of_test = stratified(data.test.labels, (trigger_fit, trigger_calibration), generator, groups=data.test_groups)
    shares = OwnerShares(
        train=data.train.take(of_train[0]),
        references=data.train.take(of_train[1]),
        trigger_fit=data.test.take(of_test[0]),
        trigger_calibration=data.test.take(of_test[1]),
        evaluation=data.test.take(of_test[2]),
        unclaimed=data.train.take(of_train[2]),
    )
    for name in ("train", "references", "trigger_fit", "trigger_calibration", "evaluation"):
        if not len(getattr(shares, name)):
            raise DataError(
                f"the {name} share of {data.name} would hold nothing: the training set has {len(data.train)} examples, "
                f"the test set {len(data.test)}",
                hint=f"raise the fraction of {name} or bring more data",
            )
    return shares


def stratified(
    labels: Tensor, fractions: Sequence[float], generator: torch.Generator, *, groups: Tensor | None = None
) -> list[Tensor]:
    """Indices, ascending, of one share for each of `fractions`, and last of the rest; together every index once.

    labels: (N,) int64. groups: (N,) int64; examples of the same group (>= 0) stay together, -1 stands alone. Each
    class is divided by the same fractions, to half an example (to half a group where there are groups).

    >>> train, rest = stratified(torch.tensor([0, 0, 0, 0, 1, 1]), [0.5], torch.Generator().manual_seed(0))
    >>> len(train), len(rest)
    (3, 3)
    """
    count = len(labels)
    alone = torch.arange(count)
    if groups is not None:
        top = int(groups.max()) + 1 if count else 0
        alone = torch.where(groups >= 0, groups, alone + top)
    units, unit_of = torch.unique(alone, return_inverse=True)
    sizes = torch.bincount(unit_of, minlength=len(units))
    first = torch.full((len(units),), count).scatter_reduce(0, unit_of, torch.arange(count), "amin")
    stratum = labels[first]
    bounds = torch.tensor(list(fractions), dtype=torch.float64).cumsum(0)
    share_of_unit = torch.zeros(len(units), dtype=torch.int64)
    for label in torch.unique(stratum):
        members = torch.nonzero(stratum == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        ends = sizes[members].cumsum(0)
        middles = (ends - sizes[members] / 2).double() / ends[-1]
        share_of_unit[members] = torch.searchsorted(bounds, middles, right=True)
    share = share_of_unit[unit_of]
    return [torch.nonzero(share == k).flatten() for k in range(len(bounds) + 1)]


def _check_fractions(fractions: dict[str, float], *, whole: str, rest_needed: bool) -> None:
    for name, fraction in fractions.items():
        if not (math.isfinite(fraction) and 0 < fraction <= 1):
            raise ConfigurationError(f"{name} must be above 0 and at most 1, not {fraction!r}")
    total = sum(fractions.values())
    if total > 1 + 1e-9:
        raise ConfigurationError(f"{' + '.join(fractions)} = {total:g} is more than the whole {whole}")
    if rest_needed and total > 1 - 1e-9:
        raise ConfigurationError(f"{' + '.join(fractions)} = {total:g} leaves nothing of the {whole} for evaluation")
