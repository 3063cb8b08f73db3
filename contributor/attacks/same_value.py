"""Same value: every trained weight is returned as one constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.poisoning import same_value
from common.specs import in_range
from common.weights import Weights
from contributor.attacks.base import Attack


@dataclass(frozen=True)
class SameValue(Attack):
    """value: the constant.
    buffers: set BatchNorm statistics to it too.
    """

    name = "same-value"
    paper = "Gu, Yang 2021 (IPDPS, FedCVAE), same-value attack, every weight 0.01 or a constant c"

    value: float = 0.01
    buffers: bool = False

    def __post_init__(self) -> None:
        in_range(self.name, "value", self.value, -1e30, 1e30)

    def corrupt(self, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        return same_value(tuned, value=self.value, buffers=self.buffers)
