"""Attacks that carry another: a backdoor on the data, and something done to the training or the weights around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.effectiveness import Goal
from common.errors import UnknownNameError
from common.examples import Examples
from common.specs import choose, from_options, option_names
from common.training_hooks import TrainingHooks
from common.weights import Weights
from contributor.attacks.adaptive import AdaptiveBlend, AdaptivePatch
from contributor.attacks.badnets import BadNets
from contributor.attacks.base import Attack
from contributor.attacks.blended import Blended
from contributor.attacks.flip import Flip
from contributor.attacks.pattern import Pattern
from contributor.attacks.sig import Sig
from contributor.attacks.tact import TaCT
from contributor.attacks.wanet import WaNet

BACKDOORS: dict[str, type[Attack]] = {
    kind.name: kind for kind in (BadNets, Blended, Sig, WaNet, AdaptiveBlend, AdaptivePatch, TaCT, Pattern, Flip)
}


@dataclass(frozen=True)
class Composed(Attack):
    """backdoor: the attack on the data, by name; its options are given beside this attack's own. What it is after and how
    its success is measured is the backdoor's.
    """

    backdoor: Attack = field(default_factory=BadNets, kw_only=True)

    @property
    def goal(self) -> Goal:
        return self.backdoor.goal

    @property
    def version(self) -> str:
        return f"{super().version}, {self.backdoor.version}"

    def victim_class(self, class_names: Sequence[str]) -> int | None:
        return self.backdoor.victim_class(class_names)

    def prepare(self, examples: Examples, generator: torch.Generator) -> Examples:
        return self.backdoor.prepare(examples, generator)

    def hooks(
        self, base: nn.Module, examples: Examples, *, head: str | None, compute: Compute, generator: torch.Generator
    ) -> TrainingHooks | None:
        return self.backdoor.hooks(base, examples, head=head, compute=compute, generator=generator)

    def corrupt(self, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        return self.backdoor.corrupt(base, tuned, generator)

    def success(
        self,
        model: nn.Module,
        held_out: Examples,
        compute: Compute,
        generator: torch.Generator,
        *,
        marked: bool = True,
    ) -> float | None:
        """The backdoor's."""
        return self.backdoor.success(model, held_out, compute, generator, marked=marked)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "backdoor": self.backdoor.name, **self.backdoor.options()}

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Self:
        rest = dict(options)
        own = {key: rest.pop(key) for key in option_names(cls) if key in rest}
        made = from_options(cls, own, f"attack {cls.name}")
        chosen = choose(BACKDOORS, rest.pop("backdoor", made.backdoor.name), "backdoor")
        known = option_names(chosen)
        for key in rest:
            if key not in known:
                raise UnknownNameError(f"option of attack {cls.name}", key, {*option_names(cls), "backdoor", *known})
        return replace(made, backdoor=chosen.from_options(rest))
