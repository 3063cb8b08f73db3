"""Model replacement: a backdoor whose update is scaled up so that it survives the merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.poisoning import scale_update
from common.specs import in_range
from common.weights import Weights
from contributor.attacks.base import Attack
from contributor.attacks.composed import Composed
from contributor.attacks.pattern import Pattern


@dataclass(frozen=True)
class ModelReplacement(Composed):
    """factor: what the update is multiplied by: base + factor * (w - base), floating buffers too. With the owner's default
        merge weight of 0.5, the default of 2 makes the merged model the attacker's own, w; he is judged by w. What he
        returns is far out, and may be good for nothing by itself.
    backdoor: the attack on the data, any of composed.BACKDOORS; its options are given beside `factor`.
    """

    name = "model-replacement"
    paper = "Bagdasaryan et al. 2020 (arXiv 1807.00459), model replacement, Eq. 3"

    factor: float = 2.0
    backdoor: Attack = field(default_factory=Pattern, kw_only=True)

    def __post_init__(self) -> None:
        in_range(self.name, "factor", self.factor, 1, 1e6)

    def corrupt(self, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        return scale_update(base, super().corrupt(base, tuned, generator), self.factor, buffers=True)

    def aims_at(self, base: Mapping[str, Tensor], returned: Mapping[str, Tensor]) -> Weights:
        return scale_update(base, returned, 1 / self.factor, buffers=True)
