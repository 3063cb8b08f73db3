"""Sign flip: every trained weight is returned negated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.poisoning import sign_flip
from common.weights import Weights
from contributor.attacks.base import Attack


@dataclass(frozen=True)
class SignFlip(Attack):
    """update_only: flip the update (base - (w - base)) and not the weights themselves.
    buffers: flip BatchNorm statistics too, which the admission checks see as negative variances.
    """

    name = "sign-flip"
    paper = "Li et al. 2020 (arXiv 2002.00211), sign-flipping attack, weights times -1"

    update_only: bool = False
    buffers: bool = False

    def corrupt(self, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        return sign_flip(base, tuned, update_only=self.update_only, buffers=self.buffers)
