"""Two models that a search follows gradients through, step by step: what the escalation tier runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.errors import GuardError
from common.forward import evaluating, in_memory_format
from owner.detectors.base import Evidence

TOGETHER = 512
"""Images in one forward pass with a graph, at most: classes beyond it are searched in groups, so that memory is bounded."""


@dataclass(frozen=True)
class Network:
    model: nn.Module
    compute: Compute

    def run(self, images: Tensor) -> Tensor:
        """Logits (N, C) on the CPU, of float images in [0, 1], with a graph to them."""
        with self.compute.autocast():
            (laid_out,) = in_memory_format((images.to(self.compute.device),), self.compute)
            logits: Tensor = self.model(laid_out)
        return logits.cpu()


@dataclass(frozen=True)
class Pair:
    candidate: Network
    release: Network

    @classmethod
    def of(cls, detector: str, evidence: Evidence, release: Evidence) -> Pair:
        """Raises GuardError where a model is not at hand."""
        if evidence.network is None or release.network is None:
            raise GuardError(
                f"{detector} needs gradients, and the evidence holds no model",
                hint="set its `network` in both evidences",
            )
        compute = evidence.compute or Compute(torch.device("cpu"), torch.float32)
        for network in (evidence.network, release.network):
            network.to(compute.device)
        return cls(Network(evidence.network, compute), Network(release.network, compute))

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Both models in evaluation mode, their weights without gradients; afterwards as they were."""
        weights = [p for network in (self.candidate, self.release) for p in network.model.parameters()]
        wanted = [p.requires_grad for p in weights]
        for parameter in weights:
            parameter.requires_grad_(False)
        try:
            with evaluating(self.candidate.model), evaluating(self.release.model):
                yield
        finally:
            for parameter, required in zip(weights, wanted, strict=True):
                parameter.requires_grad_(required)


def are_images(inputs: tuple[Tensor, ...]) -> bool:
    """Whether the inputs are images, one a piece: in a text or a table there is no pixel to change a little."""
    return len(inputs) == 1 and inputs[0].ndim == 4


def class_groups(classes: int, images_each: int) -> tuple[Tensor, ...]:
    """Class indices in groups of at most `TOGETHER` images.

    >>> [len(group) for group in class_groups(43, 60)]
    [8, 8, 8, 8, 8, 3]
    """
    return torch.split(torch.arange(classes), max(1, TOGETHER // images_each))


def unit(images: Tensor) -> Tensor:
    """As float32 in [0, 1], whether they are stored as bytes or as that already."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
