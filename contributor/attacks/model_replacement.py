"""Model replacement: a backdoor whose update is scaled up so that it survives the merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.errors import UnknownNameError
from common.examples import Examples
from common.poisoning import scale_update
from common.specs import choose, from_options, in_range, option_names
from common.weights import Weights
from contributor.attacks.base import Attack
from contributor.attacks.flip import Flip
from contributor.attacks.pattern import Pattern

BACKDOORS: dict[str, type[Flip | Pattern]] = {"pattern": Pattern, "flip": Flip}


@dataclass(frozen=True)
class ModelReplacement(Attack):
    """factor: what the update is multiplied by: base + factor * (w - base). With the owner's default merge weight of
        0.5, the default of 2 makes the merged model the attacker's own.
    backdoor: the attack on the data, `pattern` or `flip`; its options are given beside `factor`.
    """

    name = "model-replacement"
    paper = "Bagdasaryan et al. 2020 (arXiv 1807.00459), model replacement, Eq. 3"

    factor: float = 2.0
    backdoor: Flip | Pattern = field(default_factory=Pattern)

    def __post_init__(self) -> None:
        in_range(self.name, "factor", self.factor, -1e6, 1e6)

    def prepare(self, examples: Examples, generator: torch.Generator) -> Examples:
        return self.backdoor.prepare(examples, generator)

    def corrupt(self, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        return scale_update(base, tuned, self.factor)

    def success(
        self, model: nn.Module, held_out: Examples, compute: Compute, generator: torch.Generator
    ) -> float | None:
        """The backdoor's, on the scaled model."""
        return self.backdoor.success(model, held_out, compute, generator)

    def options(self) -> dict[str, Any]:
        return {"factor": self.factor, "backdoor": self.backdoor.name, **self.backdoor.options()}

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Self:
        rest = dict(options)
        backdoor = choose(BACKDOORS, rest.pop("backdoor", Pattern.name), "backdoor")
        own = {key: rest.pop(key) for key in option_names(cls) if key in rest}
        known = option_names(backdoor)
        for key in rest:
            if key not in known:
                raise UnknownNameError(f"option of attack {cls.name}", key, {*option_names(cls), "backdoor", *known})
        scaling = from_options(cls, own, f"attack {cls.name}")
        return cls(factor=scaling.factor, backdoor=backdoor.from_options(rest))
