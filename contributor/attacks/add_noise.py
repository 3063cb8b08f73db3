"""Additive noise: Gaussian noise on every trained weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.poisoning import add_noise
from common.specs import in_range
from common.weights import Weights
from contributor.attacks.base import Attack


@dataclass(frozen=True)
class AddNoise(Attack):
    """deviation: standard deviation of the noise.
    buffers: add it to BatchNorm statistics too.
    """

    name = "add-noise"
    paper = "Li et al. 2020 (arXiv 2002.00211), additive noise attack, N(0, 0.3^2)"

    deviation: float = 0.3
    buffers: bool = False

    def __post_init__(self) -> None:
        in_range(self.name, "deviation", self.deviation, 0, 1e6)

    def corrupt(self, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        return add_noise(tuned, generator, deviation=self.deviation, buffers=self.buffers)
