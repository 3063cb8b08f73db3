"""Detectors that compare a candidate with M on the same images and learn nothing: their common ground."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from common.errors import GuardError
from owner.detectors.base import DetectorState, Evidence
from owner.detectors.sums import squared_distances


@dataclass(frozen=True)
class Comparison:
    """measures: by short name, higher is worse. details: JSON-ready, for a person."""

    measures: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


class ReleaseComparison(ABC):
    """A detector whose `fit` has nothing to learn: all it needs is M's evidence, which every candidate's evidence carries.

    M's own evidence is compared with itself. A model that is not finite where the detector looks scores infinity.
    Subclasses give `name`, `headline` (the measure that is the score) and `compare`.
    """

    name: ClassVar[str]
    headline: ClassVar[str]
    reads_weights: ClassVar[bool] = False

    def fit(self, release: Evidence) -> Self:
        return self

    @abstractmethod
    def compare(self, evidence: Evidence, release: Evidence) -> Comparison: ...

    def options(self) -> dict[str, Any]:
        """The keyword arguments that make this detector again, JSON-ready."""
        return {}

    def score(self, evidence: Evidence) -> float:
        return self._compared(evidence).measures[self.headline]

    def measures(self, evidence: Evidence) -> dict[str, float]:
        return dict(self._compared(evidence).measures)

    def explain(self, evidence: Evidence) -> dict[str, Any]:
        found = self._compared(evidence)
        return found.measures | found.details

    def state(self) -> DetectorState:
        return DetectorState({}, self.options())

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        """Raises GuardError for options of another detector."""
        try:
            return cls(**state.options)
        except TypeError as error:
            raise GuardError(f"the stored {cls.name} does not fit its options: {error}") from error

    def _compared(self, evidence: Evidence) -> Comparison:
        key = (type(self), json.dumps(self.options(), sort_keys=True))
        return evidence.once(key, lambda: self._compare(evidence))

    def _compare(self, evidence: Evidence) -> Comparison:
        release = evidence if evidence.release is None else evidence.release
        if self.reads_weights and not (evidence.weights and release.weights):
            raise GuardError(
                f"{self.name} compares the weights of a model with the release's, and the evidence lacks them",
                hint="give both evidences their weights",
            )
        if not (weights_are_finite(evidence) if self.reads_weights else outputs_are_finite(evidence)):
            return Comparison({self.headline: float("inf")}, {"finite": False})
        if evidence.features.shape != release.features.shape or evidence.logits.shape != release.logits.shape:
            raise GuardError(
                f"{self.name} needs the release on the same images: {tuple(evidence.logits.shape)} logits against "
                f"{tuple(release.logits.shape)}"
            )
        return self.compare(evidence, release)


def is_finite(tensor: Tensor) -> bool:
    """Whether every entry is; NaN is handed on by aminmax, so that two numbers tell.

    >>> is_finite(torch.tensor([0.0, float("nan"), 1.0])), is_finite(torch.zeros(0))
    (False, True)
    """
    return not tensor.numel() or all(math.isfinite(float(value)) for value in torch.aminmax(tensor))


def outputs_are_finite(evidence: Evidence) -> bool:
    return evidence.once("outputs are finite", lambda: is_finite(evidence.features) and is_finite(evidence.logits))


def weights_are_finite(evidence: Evidence) -> bool:
    return evidence.once(
        "weights are finite",
        lambda: all(is_finite(t) for t in evidence.weights.values() if t.is_floating_point()),
    )


def class_sums(values: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums (C, ...) float64 of `values` (N, ...) over the images of each class, and how many (C,) float64 there are.

    >>> class_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2]), 3)
    (tensor([1., 0., 6.], dtype=torch.float64), tensor([1., 0., 2.], dtype=torch.float64))
    """
    sums = torch.zeros(classes, *values.shape[1:], dtype=torch.float64).index_add_(0, labels, values.double())
    return sums, torch.bincount(labels, minlength=classes).double()


def softmax(evidence: Evidence) -> Tensor:
    """(N, C) float64, of the evidence's logits."""
    return evidence.once("softmax", lambda: evidence.logits.double().softmax(1))


def energies(evidence: Evidence) -> Tensor:
    """||g(t)||^2, (N,) float64."""
    return evidence.once("energies", lambda: squared_distances(evidence.features))


def per_class(values: Tensor, counts: Tensor) -> list[float | None]:
    """For `explain`: a number per class, None for one without images."""
    return [float(v) if n else None for v, n in zip(values, counts, strict=True)]


def median(values: Tensor) -> float:
    """The middle value, of an even number of values the mean of the middle two."""
    return float(values.double().quantile(0.5))
