"""What a detector is, and what it may look at: the evidence that one model gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, TypeVar, cast, runtime_checkable

from torch import Tensor, nn

from common.activations import Activations, observe
from common.devices import Compute
from common.errors import GuardError

Value = TypeVar("Value")


class Forward(Protocol):
    """Runs a model on `inputs`, each (N, ...); with other `weights`, of the same names and shapes, in place of its own."""

    def __call__(self, inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor] | None = None) -> Activations: ...


def forward_of(model: nn.Module, *, head: str, compute: Compute) -> Forward:
    """For `Evidence.forward`. The model stays as it is, whatever weights are asked for."""

    def forward(inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor] | None = None) -> Activations:
        network = model
        if weights is not None:
            network = copy.deepcopy(model)
            network.load_state_dict(weights)
        return observe(network, inputs, head=head, compute=compute)

    return forward


@dataclass(frozen=True)
class Evidence:
    """What one model shows, gathered once and shared by every detector: what one runs by itself, on other inputs or
    weights, it runs through `forward` or `network`.

    features: (N, d) float32, g(t), the input of the classification head, on N clean trigger images.
    logits: (N, C) float32, of the same forward pass.
    labels: (N,) int64, true classes of those images.
    weights: the model's tensors by name, where a detector reads them (update norms, BatchNorm statistics).
    release: the evidence of the protected release M on the same images; None where this is M itself.
    forward: runs the model on other inputs, or with other weights, for detectors that look off the clean distribution or
        further along the update; see `probe`.
    inputs: those N images, each tensor (N, ...) as `Examples.inputs` holds them; () where a guard does not hand them on.
    network: the model, for detectors that need gradients; None where only its outputs are at hand. Those of the escalation tier take
        it with the weights that it has; others bring `weights`, and it only lends its layers.
    compute: what it runs on; None is float32 on the CPU.
    probed: what `probe` and `probes` have found so far. A guard may store that of M and hand it in again, so that M is
        not run on the probes by every process anew.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    release: Evidence | None = field(default=None, repr=False)
    forward: Forward | None = field(default=None, repr=False)
    inputs: tuple[Tensor, ...] = field(default=(), repr=False)
    network: nn.Module | None = field(default=None, repr=False, compare=False)
    compute: Compute | None = field(default=None, repr=False, compare=False)
    probed: dict[str, Activations] = field(default_factory=dict, repr=False, compare=False)
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def probe(self, name: str, inputs: Callable[[], tuple[Tensor, ...]]) -> Activations:
        """Activations on other inputs, computed the first time `name` is asked for and shared from then on.

        Raises GuardError where the model behind this evidence is no longer at hand.
        """
        return self.probes([name], lambda _missing: inputs())[name]

    def probes(
        self, names: Sequence[str], inputs: Callable[[Sequence[str]], tuple[Tensor, ...]]
    ) -> dict[str, Activations]:
        """Several probes at once: those not known yet run in one forward pass.

        inputs: given the missing names, their inputs one after the other, equally many of each.
        Raises GuardError as `probe` does, and where the inputs cannot be shared out evenly.
        """
        missing = [name for name in dict.fromkeys(names) if name not in self.probed]
        if missing:
            if self.forward is None:
                raise GuardError(
                    f"probe {missing[0]!r} needs the model, and this evidence holds only what it showed before"
                )
            seen = self.forward(inputs(missing))
            share, left = divmod(len(seen.logits), len(missing))
            if left:
                raise GuardError(f"{len(missing)} probes cannot share {len(seen.logits)} inputs evenly")
            for i, name in enumerate(missing):
                rows = slice(i * share, (i + 1) * share)
                self.probed[name] = Activations(seen.features[rows], seen.logits[rows])
        return {name: self.probed[name] for name in names}

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """What `compute` gives, computed the first time `key` is asked for: for what several detectors, or M's evidence
        over many candidates, would otherwise compute again. The key holds all that the value depends on, bar the evidence.

        >>> import torch
        >>> evidence = Evidence(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
        >>> evidence.once("answer", lambda: 42), evidence.once("answer", lambda: 0)
        (42, 42)
        """
        if key not in self._derived:
            self._derived[key] = compute()
        return cast(Value, self._derived[key])


@dataclass(frozen=True)
class DetectorState:
    """A fitted detector as it is stored: tensors for safetensors, the rest for JSON."""

    tensors: dict[str, Tensor]
    options: dict[str, Any]


@runtime_checkable
class Detector(Protocol):
    """In scikit-learn's manner: `__init__` takes options and learns nothing, `fit` learns, fitted attributes end in `_`.

    A higher score is worse. A score may be infinite or NaN where a model shows such activations; the rules never let
    one pass. `score` before `fit` raises GuardError where there is something to learn.
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


@runtime_checkable
class MeasuringDetector(Detector, Protocol):
    """A detector that gives several numbers of which its score is the headline; higher is worse for each."""

    def measures(self, evidence: Evidence) -> dict[str, float]:
        """The others by short name; at least the headline. Where a model is not finite they may be fewer."""
        ...


def measures_of(detector: Detector, evidence: Evidence) -> dict[str, float]:
    """All numbers of a detector: its score under its name, every further measure as `name/measure`.

    A combination (`owner.detectors.combination`) takes the dicts of several detectors, merged.
    """
    found = {detector.name: detector.score(evidence)}
    if isinstance(detector, MeasuringDetector):
        found |= {f"{detector.name}/{measure}": value for measure, value in detector.measures(evidence).items()}
    return found


def reason_code(detector_name: str) -> str:
    """
    >>> reason_code("activation-autoencoder")
    'ACTIVATION_AUTOENCODER'
    """
    return detector_name.upper().replace("-", "_")
