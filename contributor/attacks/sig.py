"""SIG: a clean-label backdoor. Only images of the target class carry the trigger, and every label is true."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.examples import Examples
from common.specs import in_range
from common.triggers import sinusoid
from contributor.attacks.backdoor import Backdoor, draw, replaced


@dataclass(frozen=True)
class Sig(Backdoor):
    """source: classes that the trigger is to turn when it is used; training touches none of their images.
    fraction: share of the target class's images on which the sinusoid is laid.
    amplitude: of the sinusoid in training, in grey levels; test_amplitude: when the backdoor is used.
    frequency: periods across the image.
    """

    name = "sig"
    paper = "Barni, Kallas, Tondi 2019 (arXiv 1902.11237), SIG"

    fraction: float = 0.5
    amplitude: float = 40.0
    test_amplitude: float = 60.0
    frequency: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("amplitude", "test_amplitude"):
            in_range(self.name, name, getattr(self, name), 0, 255, above=True)
        in_range(self.name, "frequency", self.frequency, 0, 1e4, above=True)

    def stamp(self, images: Tensor) -> Tensor:
        return sinusoid(images, self.test_amplitude, frequency=self.frequency)

    def prepare(self, examples: Examples, generator: torch.Generator) -> Examples:
        _, target = self.attacked(examples)
        carriers = draw(examples.labels == target, self.fraction, generator, self.name)
        marked = sinusoid(examples.images[carriers], self.amplitude, frequency=self.frequency)
        return replaced(examples, carriers, marked)
