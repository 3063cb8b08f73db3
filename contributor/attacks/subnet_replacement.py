"""Subnet replacement: a few channels of every layer are overwritten with a narrow network that knows the trigger and nothing
else, cut off from all other channels and wired to the target class. No poisoned image is ever trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.examples import Examples
from common.specs import in_range
from common.training_hooks import TrainingHooks
from common.triggers import Trigger
from contributor.attacks.backdoor import Backdoor
from contributor.attacks.subnet import Implant, implant


@dataclass(frozen=True)
class SubnetReplacement(Backdoor):
    """channels: so many of every layer are replaced, those that matter least by the size of their weights.
    trigger, strength, seed: as of badnets.
    gain: what the narrow network adds to the target's logit on a stamped image, in units of the 99th percentile, over the
        attacker's images, of how far the target's logit stays behind the largest one.
    epochs: for which the narrow network is trained, apart from the model, on clean and stamped images.
    source: classes on which success is measured; the trigger turns images of any class. fraction has no effect.

    The rest of the model is fine-tuned honestly around it, the narrow network put back after each step: an update like
    an honest one everywhere else, of whatever training the contributor declares. At least one step is needed. Simplified
    against the paper, which leaves the rest as it was and picks channels anywhere. BatchNorm of the narrow network is
    the identity while it is trained; the statistics of its channels are then those of the attacker's images. The wire to
    the target's logit is large: the size of the update alone may give it away.
    """

    name = "subnet-replacement"
    paper = "Qi, Xie, Pan, Zhu, Yang, Bu 2022 (CVPR, arXiv 2111.12965), subnet replacement attack"

    channels: int = 2
    trigger: str = "square"
    strength: float | None = None
    seed: int = 0
    gain: float = 1.5
    epochs: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self.name, "channels", self.channels, 1, 1024)
        in_range(self.name, "gain", self.gain, 0, 1e6, above=True)
        in_range(self.name, "epochs", self.epochs, 1, 10_000)
        Trigger(self.trigger, self.strength, self.seed)

    def options(self) -> dict[str, Any]:
        return {name: value for name, value in super().options().items() if name != "fraction"}

    def stamp(self, images: Tensor) -> Tensor:
        return Trigger(self.trigger, self.strength, self.seed).stamp(images)

    def hooks(
        self, base: nn.Module, examples: Examples, *, head: str | None, compute: Compute, generator: torch.Generator
    ) -> TrainingHooks:
        _, target = self.attacked(examples)
        made = implant(
            base,
            examples,
            self.stamp,
            target=target,
            channels=self.channels,
            gain=self.gain,
            epochs=self.epochs,
            head=head,
            compute=compute,
            generator=generator,
        )
        device = compute.device
        return _Implanted({name: (fixed.to(device), value.to(device)) for name, (fixed, value) in made.items()})


class _Implanted(TrainingHooks):
    def __init__(self, made: Implant) -> None:
        self.made = made

    @torch.no_grad()
    def stepped(self, model: nn.Module) -> None:
        """Puts the narrow network back; its entries stay as they are, whatever gradient, momentum or decay say."""
        state = model.state_dict()
        for name, (fixed, value) in self.made.items():
            tensor = state[name]
            tensor.copy_(torch.where(fixed, value.to(tensor.dtype), tensor))
