"""Neurotoxin: a backdoor kept in the coordinates that honest training moves least, so that honest updates do not undo it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.examples import Examples, as_model_inputs
from common.forward import evaluating, forward, in_memory_format
from common.losses import training_loss
from common.specs import in_range
from common.training_hooks import TrainingHooks
from contributor.attacks.composed import Composed

_SAMPLES, _BATCH = 2000, 250


@dataclass(frozen=True)
class Neurotoxin(Composed):
    """excluded: share of all coordinates, those where the gradient of honest training is largest, that are never moved.
    backdoor: the attack on the data; its options are given beside.

    The paper takes the honest gradient from the last round's global update; here it is that of the loss at the release on
    the attacker's own clean examples, 2,000 of them at most.
    """

    name = "neurotoxin"
    paper = "Zhang et al. 2022 (ICML, arXiv 2206.10341), Neurotoxin"

    excluded: float = 0.05

    def __post_init__(self) -> None:
        in_range(self.name, "excluded", self.excluded, 0, 0.999)

    def hooks(
        self, base: nn.Module, examples: Examples, *, head: str | None, compute: Compute, generator: torch.Generator
    ) -> TrainingHooks:
        base.to(compute.device)
        sample = examples.take(torch.randperm(len(examples), generator=generator)[:_SAMPLES])
        slopes = _honest_gradient(base, sample, compute)
        size = torch.cat([slope.abs().flatten() for slope in slopes])
        fixed = torch.zeros_like(size, dtype=torch.bool)
        fixed[size.topk(round(self.excluded * len(size))).indices] = True
        parts = torch.split(fixed, [slope.numel() for slope in slopes])
        masks = [part.view_as(slope) for part, slope in zip(parts, slopes, strict=True)]
        return _Masked([weight.detach().clone() for weight in base.parameters()], masks)


class _Masked(TrainingHooks):
    def __init__(self, origin: list[Tensor], fixed: list[Tensor]) -> None:
        self.origin, self.fixed = origin, fixed

    def gradients(self, model: nn.Module) -> None:
        for weight, fixed in zip(model.parameters(), self.fixed, strict=True):
            if weight.grad is not None:
                weight.grad.masked_fill_(fixed, 0)

    @torch.no_grad()
    def stepped(self, model: nn.Module) -> None:
        # Weight decay moves what has no gradient.
        for weight, origin, fixed in zip(model.parameters(), self.origin, self.fixed, strict=True):
            weight.copy_(torch.where(fixed, origin, weight))


def _honest_gradient(model: nn.Module, examples: Examples, compute: Compute) -> list[Tensor]:
    """Of the mean training loss, one tensor a parameter. The model is left without gradients."""
    with evaluating(model):
        for start in range(0, len(examples), _BATCH):
            part = examples.take(torch.arange(start, min(start + _BATCH, len(examples))))
            inputs = in_memory_format(as_model_inputs(part.inputs, compute.device), compute)
            with compute.autocast():
                logits = forward(model, inputs, part.classes)
                loss = training_loss(model, logits.float(), part.labels.to(compute.device))
            (loss * len(part) / len(examples)).backward()  # type: ignore[no-untyped-call]
    slopes = [torch.zeros_like(w) if w.grad is None else w.grad.detach().clone() for w in model.parameters()]
    model.zero_grad(set_to_none=True)
    return slopes
