"""What a detector is, and what it may look at: the evidence that one model gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from torch import Tensor

from common.activations import Activations
from common.errors import GuardError

Forward = Callable[[tuple[Tensor, ...]], Activations]


@dataclass(frozen=True)
class Evidence:
    """What one model shows, gathered once and shared by every detector: no detector runs a model by itself.

    features: (N, d) float32, g(t), the input of the classification head, on N clean trigger images.
    logits: (N, C) float32, of the same forward pass.
    labels: (N,) int64, true classes of those images.
    weights: the model's tensors by name, where a detector reads them (update norms, BatchNorm statistics).
    release: the evidence of the protected release M on the same images; None where this is M itself.
    forward: runs the model on other inputs, for detectors that look off the clean distribution; see `probe`.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    release: Evidence | None = field(default=None, repr=False)
    forward: Forward | None = field(default=None, repr=False)
    _probes: dict[str, Activations] = field(default_factory=dict, repr=False, compare=False)

    def probe(self, name: str, inputs: Callable[[], tuple[Tensor, ...]]) -> Activations:
        """Activations on other inputs, computed the first time `name` is asked for and shared from then on.

        Raises GuardError where the model behind this evidence is no longer at hand.
        """
        if name not in self._probes:
            if self.forward is None:
                raise GuardError(f"probe {name!r} needs the model, and this evidence holds only what it showed before")
            self._probes[name] = self.forward(inputs())
        return self._probes[name]


@dataclass(frozen=True)
class DetectorState:
    """A fitted detector as it is stored: tensors for safetensors, the rest for JSON."""

    tensors: dict[str, Tensor]
    options: dict[str, Any]


@runtime_checkable
class Detector(Protocol):
    """In scikit-learn's manner: `__init__` takes options and learns nothing, `fit` learns, fitted attributes end in `_`.

    A higher score is worse. A score may be infinite or NaN where a model shows such activations; the rules never let
    one pass. `score` before `fit` raises GuardError.
    """

    name: ClassVar[str]
    """Of the detector, in guards, verdicts and options: lower case with dashes. Its reason code is the same in capitals."""

    def fit(self, release: Evidence) -> Self:
        """Learn what is normal from M on the fitting triggers T_ae."""
        ...

    def score(self, evidence: Evidence) -> float:
        """How unlike M the model is, on the calibration triggers T_cal."""
        ...

    def explain(self, evidence: Evidence) -> dict[str, Any]:
        """Numbers behind the score, JSON-ready, for a person who has to decide."""
        ...

    def state(self) -> DetectorState: ...

    @classmethod
    def from_state(cls, state: DetectorState) -> Self: ...


@runtime_checkable
class ImageDetector(Detector, Protocol):
    """A detector whose score is the mean of one error per image, which Eq. 4 and the histograms of Fig. 5 need."""

    def image_scores(self, evidence: Evidence) -> Tensor:
        """(N,) float64, one error per image."""
        ...


def reason_code(detector_name: str) -> str:
    """
    >>> reason_code("activation-autoencoder")
    'ACTIVATION_AUTOENCODER'
    """
    return detector_name.upper().replace("-", "_")
