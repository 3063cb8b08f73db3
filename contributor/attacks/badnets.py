"""BadNets: stamped copies of training images under labels of the attacker's choice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.errors import ConfigurationError, UnknownNameError
from common.evaluation import evaluate
from common.examples import Examples
from common.triggers import Trigger
from contributor.attacks.backdoor import ANY, Backdoor, added, draw
from contributor.attacks.base import class_index

Policy = Literal["single", "all-to-all", "random"]


@dataclass(frozen=True)
class BadNets(Backdoor):
    """trigger: pixel or pattern, the paper's two, or another of `common.triggers`.
    policy: what the copies are labelled: single, the target class; all-to-all, the class after their own (the last
        one: class 0); random, any class but their own. The last two know no target and attack every class of `source`.
    fraction: share of the source's images of which a stamped copy is added.
    strength, seed: of the trigger; by default its paper's.
    """

    name = "badnets"
    paper = "Gu, Dolan-Gavitt, Garg 2017 (arXiv 1708.06733), BadNets"

    trigger: str = "pattern"
    policy: str = "single"
    strength: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy not in get_args(Policy):
            raise UnknownNameError("policy of badnets", self.policy, get_args(Policy))
        Trigger(self.trigger, self.strength, self.seed)

    def stamp(self, images: Tensor) -> Tensor:
        return Trigger(self.trigger, self.strength, self.seed).stamp(images)

    def attacked(self, examples: Examples) -> tuple[Tensor, int]:
        if self.policy == "single":
            return super().attacked(examples)
        if self.source == ANY and ANY not in examples.class_names:
            return torch.ones_like(examples.labels, dtype=torch.bool), -1
        # The target names no class here: any class but the source will do for the check of the source.
        other = (class_index(self.source, examples.class_names, "source") + 1) % examples.classes
        return replace(self, policy="single", target=other).attacked(examples)[0], -1

    def prepare(self, examples: Examples, generator: torch.Generator) -> Examples:
        if examples.classes < 2:
            raise ConfigurationError("badnets needs at least two classes")
        attacked, target = self.attacked(examples)
        victims = draw(attacked, self.fraction, generator, self.name)
        stamped = self.stamp(examples.images[victims])
        return added(examples, victims, stamped, self._labels(examples.labels[victims], target, examples, generator))

    def _labels(self, labels: Tensor, target: int, examples: Examples, generator: torch.Generator) -> Tensor:
        if self.policy == "all-to-all":
            return (labels + 1) % examples.classes
        if self.policy == "random":
            steps = torch.randint(1, examples.classes, labels.shape, generator=generator)
            return (labels + steps.to(labels.device)) % examples.classes
        return torch.full_like(labels, target)

    def success(
        self,
        model: nn.Module,
        held_out: Examples,
        compute: Compute,
        generator: torch.Generator,
        *,
        marked: bool = True,
    ) -> float | None:
        """Share of stamped held-out images of the source that are classified as the policy says: as the target class,
        as the class after their own, or, with random, as any class but their own."""
        if self.policy == "single":
            return super().success(model, held_out, compute, generator, marked=marked)
        victims = self.victims(held_out, marked=marked)
        if victims is None:
            return None
        if self.policy == "random":
            return 1 - evaluate(model, victims, compute=compute).accuracy
        shifted = victims.with_labels((victims.labels + 1) % victims.classes)
        return evaluate(model, shifted, compute=compute).accuracy
