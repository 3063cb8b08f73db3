"""What one and the same small change of every image would do to a candidate's logits, and would not do to M's."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.errors import ConfigurationError, GuardError, ModelError
from common.examples import as_model_inputs
from common.forward import evaluating, forward, in_memory_format
from owner.detectors.base import DetectorState, Evidence
from owner.detectors.comparison import Comparison, ReleaseComparison
from owner.detectors.extrapolation import checked_factors, extrapolated
from owner.detectors.selection import chosen_images, require_inputs

MOST_CLASSES = 200
"""Each class costs one pass backwards; of models with more nothing is measured."""


class InputGradientDrift(ReleaseComparison):
    """score = max_t ||s_t(M_f) - s_t(M)||_1, s_t = mean of dr_t/dx over images x not of class t, M_f = M + f (M_a - M): ours.

    r is the logits less their mean over classes, in spreads of M's; x lies in [0, 1]. Times e, to first order, the score is what the
    worst change of every pixel by at most e, the same for all images, adds to one class in M_f and does not in M. A change that works on
    all images is a universal perturbation (Moosavi-Dezfooli et al., CVPR 2017); a backdoor is one that was trained into the model. No kind of
    mark is assumed. The update is taken f times for the reason that `Extrapolation` gives.

    The measure of the first factor is `push`; of each further one, `push-f`. The images are some of T_ae, whose s_t(M) are learnt with `fit`:
    M is never run again. What is not differentiable (tokens), recurrent, or has more than `MOST_CLASSES` classes scores 0.

    factors: f. images: how many, evenly over classes. seed: of their choice.
    Raises ConfigurationError for factors that are equal or below 1, and for no images.
    """

    name = "input-gradient-drift"
    headline = "push"
    reads_weights = True

    def __init__(self, *, factors: Sequence[float] = (2.0, 4.0), images: int = 20, seed: int = 0) -> None:
        self.factors = checked_factors(self.name, factors)
        if images < 1:
            raise ConfigurationError(f"input-gradient-drift needs an image, not {images}")
        self.images, self.seed = images, seed
        self.learnt_: _Learnt | None = None

    def options(self) -> dict[str, Any]:
        return {"factors": list(self.factors), "images": self.images, "seed": self.seed}

    def fit(self, release: Evidence) -> Self:
        """Raises GuardError where M's evidence lacks images or the model."""
        require_inputs(self.name, release)
        chosen = chosen_images(release, self.images, seed=self.seed)
        inputs, labels = tuple(t[chosen].clone() for t in release.inputs), release.labels[chosen]
        logits = release.logits[chosen].double()
        spread = (logits - logits.mean(1, keepdim=True)).std(correction=0).clamp(min=1e-12)
        slopes = None
        if logits.shape[1] <= MOST_CLASSES:
            slopes = mean_slopes(*_model_of(release), release.weights, inputs, labels)
        # What cannot be followed is not kept either.
        kept = (inputs, labels) if slopes is not None else ((), labels[:0])
        self.learnt_ = _Learnt(*kept, spread, slopes)
        return self

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        learnt = self._fitted()
        names = [self.headline if i == 0 else f"{self.headline}-{f:g}" for i, f in enumerate(self.factors)]
        if learnt.slopes is None:
            return Comparison(dict.fromkeys(names, 0.0), {"applicable": False})
        if evidence is release:  # there is no update to take further, and of a loaded guard no model to run
            return Comparison(dict.fromkeys(names, 0.0), {"target": None})
        measures, targets = {}, {}
        for name, factor in zip(names, self.factors, strict=True):
            found = mean_slopes(
                *_model_of(evidence), extrapolated(evidence, release, factor), learnt.inputs, learnt.labels
            )
            if found is None or not bool(torch.isfinite(found).all()):
                return Comparison({self.headline: math.inf}, {"finite": False, "factor": factor})
            pushes = (found - learnt.slopes).abs().sum(1, dtype=torch.float64) / learnt.spread
            measures[name], targets[name] = float(pushes.max()), int(pushes.argmax())
        return Comparison(measures, {"target": targets[self.headline], "classes": targets})

    def state(self) -> DetectorState:
        return DetectorState(self._fitted().tensors(), self.options())

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        """Raises GuardError for options or tensors of another detector."""
        detector = super().from_state(state)
        detector.learnt_ = _Learnt.of(state.tensors)
        return detector

    def _compared(self, evidence: Evidence) -> Comparison:
        # What was learnt is part of the answer: two guards may look at one submission, with the same options.
        learnt = self._fitted()
        return evidence.once((type(self), str(self.options()), learnt), lambda: self._compare(evidence))

    def _fitted(self) -> _Learnt:
        if self.learnt_ is None:
            raise GuardError(f"{self.name} has not been fitted", hint="call fit(evidence_of_the_release) first")
        return self.learnt_


@dataclass(frozen=True, eq=False)
class _Learnt:
    """inputs, labels: of the images, none where there is nothing to follow. spread: () float64. slopes: s_t(M), (C, D) float32, or None."""

    inputs: tuple[Tensor, ...]
    labels: Tensor
    spread: Tensor
    slopes: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        found = {f"inputs.{i}": tensor for i, tensor in enumerate(self.inputs)}
        found |= {"labels": self.labels, "spread": self.spread}
        return found if self.slopes is None else found | {"slopes": self.slopes}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        try:
            count = sum(name.startswith("inputs.") for name in tensors)
            inputs = tuple(tensors[f"inputs.{i}"] for i in range(count))
            return cls(inputs, tensors["labels"], tensors["spread"], tensors.get("slopes"))
        except KeyError as error:
            raise GuardError(
                f"the stored {InputGradientDrift.name} lacks {error}", hint="fit the guard again"
            ) from error


def mean_slopes(
    network: nn.Module, compute: Compute, weights: Mapping[str, Tensor], inputs: tuple[Tensor, ...], labels: Tensor
) -> Tensor | None:
    """(C, D) float32 on the CPU: for each class t the mean of dr_t/dx over the inputs that are not of class t, D all numbers of one example.

    network: lends its layers; a copy of it runs with `weights`, in evaluation mode. None where its logits do not follow from the inputs by
    gradients: of whole numbers that are no bytes of an image, through recurrent layers (cuDNN has no gradient of them in evaluation mode),
    through what has no derivative, or where the model itself cuts the graph.
    """
    whole = any(not t.is_floating_point() and t.dtype != torch.uint8 for t in inputs)
    if whole or any(isinstance(module, nn.RNNBase) for module in network.modules()):
        return None
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in
        running = copy.deepcopy(network).to(compute.device).requires_grad_(False)
        running.load_state_dict(weights)
        given = tuple(t.clone().requires_grad_() for t in as_model_inputs(inputs, compute.device))
        passed = tuple(t.clone() for t in given)  # a model may work on its inputs in place
        try:
            with evaluating(running), compute.autocast():
                logits = forward(running, in_memory_format(passed, compute))
            return _slopes(logits.float(), given, labels.to(compute.device)) if logits.requires_grad else None
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ModelError):
            return None  # something on the way has no derivative: that the model runs, others have seen


def _slopes(logits: Tensor, inputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    found = []
    for target in range(logits.shape[1]):
        others = (labels != target).float()
        rise = centred[:, target] @ (others / others.sum().clamp(min=1))
        gradients = torch.autograd.grad(rise, inputs, retain_graph=True, materialize_grads=True)
        found.append(torch.cat([gradient.sum(0).flatten() for gradient in gradients]).cpu())
    return torch.stack(found)


def _model_of(evidence: Evidence) -> tuple[nn.Module, Compute]:
    if evidence.network is None:
        raise GuardError(
            f"{InputGradientDrift.name} needs gradients, and the evidence holds no model", hint="set its `network`"
        )
    return evidence.network, evidence.compute or Compute(torch.device("cpu"), torch.float32)
