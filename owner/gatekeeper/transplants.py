"""Re-calibrating the guard of a release that is small news from the fine-tunes of the guard before it, without training.

The reference theta_k of the old release M_old is an update: delta_k = theta_k - M_old. Where the new release M_new is near, an
honest contributor's update of it is much the same, and M_new + delta_k stands in for the fine-tune that was not made. Detectors are
fitted on M_new all the same, and every transplanted reference is scored against it: only the training is saved. One whose scores
are not finite is trained after all; its plan has no generation, and the guard's provenance counts it.

That honest contributors are exchangeable with these is an approximation, which gets worse with the news. So a release counts as
small news up to a limit of

    news = ||M_new - M_old|| / median over k of ||delta_k||

(over parameters, BatchNorm's statistics and counters left out), summed over all releases since the fine-tunes were really trained: many
small steps are no nearer than a large one. And only so many transplants may follow each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from common import canonical
from common.errors import GuardError, StorageError, WireError
from common.files import ensure_directory, read_bounded, write_atomically
from common.weights import Weights
from common.weights import load as load_weights
from common.weights import save as save_weights
from owner.gatekeeper.finished import Part, file_name

KEPT = "kept"
"""Folder in a guard's directory that holds the weights of its fine-tunes, where they are kept."""
_JSON_LIMIT = 1 << 20


def transplant(reference: Mapping[str, Tensor], old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Weights:
    """new + (reference - old), in new's dtypes. Running variances stay at 0 or more; integers are the reference's.

    >>> one, two, five = ({"w": torch.tensor([v])} for v in (1.0, 2.0, 5.0))
    >>> transplant(two, one, five)
    {'w': tensor([6.])}
    """
    out = {}
    for name, tensor in new.items():
        if not tensor.is_floating_point():
            out[name] = reference[name].clone()
            continue
        moved = reference[name].to(torch.float64, copy=True).sub_(old[name]).add_(tensor)
        out[name] = (moved.clamp_(min=0) if name.endswith("running_var") else moved).to(tensor.dtype)
    return out


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """||one - other|| over the parameters."""
    squared = 0.0
    for name, tensor in one.items():
        if tensor.is_floating_point() and not name.endswith(("running_mean", "running_var")):
            squared += float((tensor.double() - other[name].double()).square().sum())
    return math.sqrt(squared)


class KeptReferences:
    """Fine-tunes in a folder: weights, one safetensors file each, and beside it how they were made and their digest."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, part: Part, k: int, weights: Weights, plan: Mapping[str, Any]) -> None:
        name = file_name(part, k)
        digest = save_weights(ensure_directory(self.path) / f"{name}.safetensors", weights)
        write_atomically(self.path / f"{name}.json", canonical.encode({"plan": dict(plan), "weights_sha256": digest}))

    def read(self, part: Part, k: int) -> tuple[Weights, dict[str, Any]]:
        """Weights and plan. Raises GuardError where they are not there or not what was written."""
        name = file_name(part, k)
        try:
            about = canonical.parse(read_bounded(self.path / f"{name}.json", _JSON_LIMIT), limit=_JSON_LIMIT, depth=16)
            return load_weights(self.path / f"{name}.safetensors", digest=about["weights_sha256"]), about["plan"]
        except (StorageError, WireError, KeyError, TypeError) as error:
            raise GuardError(f"the fine-tune {name} was not kept in {self.path}: {error}") from error

    def holds(self, part: Part, k: int) -> bool:
        return all((self.path / f"{file_name(part, k)}.{ending}").is_file() for ending in ("json", "safetensors"))


@dataclass(frozen=True)
class Transplants:
    """Where a guard's references come from instead of training.

    old: the release they are fine-tunes of, by name of tensor. old_sha256: its digest. trained_on: of the release they were really
    trained on. generation: 1 where that is `old` itself, one more for each transplant before. news: of the release they are moved
    to. total_news: the sum of it and of the news of every transplant before, at least as much as all of these together moved. Those
    that were trained on a release in between have moved less than these say; each plan has its own generation.
    """

    kept: KeptReferences
    old: Mapping[str, Tensor]
    old_sha256: str
    trained_on: str
    generation: int
    news: float
    total_news: float

    @property
    def provenance(self) -> dict[str, Any]:
        return {
            "transplanted_from": self.old_sha256,
            "trained_on": self.trained_on,
            "generation": self.generation,
            "news": self.news,
            "total_news": self.total_news,
        }

    def provenance_of(self, plans: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Of a guard whose fine-tunes have these plans: with how many of them were trained on its own release."""
        afresh = sum("generation" not in plan for plan in plans)
        return self.provenance | ({"trained_afresh": afresh} if afresh else {})

    def onto(self, new: Mapping[str, Tensor], part: Part, k: int) -> tuple[Weights, dict[str, Any]]:
        """The k-th fine-tune of a part, moved to `new`, and its plan. Raises GuardError."""
        weights, plan = self.kept.read(part, k)
        if set(weights) != set(new):
            raise GuardError(f"the fine-tunes kept in {self.kept.path} are of another model")
        return transplant(weights, self.old, new), {**plan, "generation": plan.get("generation", 0) + 1}


def measure_news(old: Mapping[str, Tensor], new: Mapping[str, Tensor], kept: KeptReferences, calibrating: int) -> float:
    """||new - old|| in units of the median update of the calibrating fine-tunes. Raises GuardError where one is missing."""
    sizes = [distance(kept.read("calibrating", k)[0], old) for k in range(calibrating)]
    typical = median(sizes) if sizes else 0.0
    if not typical > 0:
        raise GuardError("the fine-tunes that were kept do not differ from their release")
    return distance(new, old) / typical
