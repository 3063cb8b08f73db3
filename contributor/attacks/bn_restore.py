"""A backdoor returned with the release's own BatchNorm statistics, for gates that compare those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.poisoning import restore_statistics
from common.weights import Weights
from contributor.attacks.composed import Composed


@dataclass(frozen=True)
class BnRestore(Composed):
    """backdoor: the attack on the data; its options are given beside. A model without BatchNorm has nothing to put back: the
    attack is then the backdoor alone.
    """

    name = "bn-restore"
    paper = "ours: answers gates on BatchNorm statistics, such as Zheng et al. 2022 (NeurIPS), BNP"

    def corrupt(self, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        return restore_statistics(base, super().corrupt(base, tuned, generator))
