"""WaNet: the trigger is a smooth bending of the image, and the same bending shaken is taught to mean nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.examples import Examples
from common.specs import in_range
from common.triggers import UNIT, warp
from contributor.attacks.backdoor import Backdoor, draw, replaced


@dataclass(frozen=True)
class WaNet(Backdoor):
    """fraction: share of the source's images that are warped and labelled as the target.
    noise_ratio: so many times as many further images, of all classes, are warped with a field shaken at random and keep
        their labels (the paper's noise mode: 2); 0 switches it off. The shaking is the paper's whatever the strength,
        half a pixel: at 0.5 it makes another image of it, at 6 one that differs by a sixth of what the warp changes.
    strength: mean displacement at the field's control points, in half pixels of a 32-pixel image. The paper trains from
        nothing with 0.5, which is too faint for a fine-tuning of a few epochs.
    cells: control points a side. seed: of the field.
    """

    name = "wanet"
    paper = "Nguyen, Tran 2021 (ICLR, arXiv 2102.10369), WaNet"

    fraction: float = 0.1
    noise_ratio: float = 1.0
    strength: float = 4.0
    cells: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self.name, "noise_ratio", self.noise_ratio, 0, 100)
        in_range(self.name, "strength", self.strength, 0, UNIT, above=True)
        in_range(self.name, "cells", self.cells, 2, 64)

    def stamp(self, images: Tensor) -> Tensor:
        return warp(images, self.strength, seed=self.seed, cells=self.cells)

    def prepare(self, examples: Examples, generator: torch.Generator) -> Examples:
        attacked, target = self.attacked(examples)
        victims = draw(attacked, self.fraction, generator, self.name)
        poisoned = replaced(examples, victims, self.stamp(examples.images[victims]), target)
        rest = torch.ones_like(examples.labels, dtype=torch.bool)
        rest[victims] = False
        wanted = min(round(self.noise_ratio * len(victims)), int(rest.sum()))
        if not wanted:
            return poisoned
        covers = draw(rest, wanted / int(rest.sum()), generator, self.name)
        shaken = warp(examples.images[covers], self.strength, seed=self.seed, cells=self.cells, noise=generator)
        return replaced(poisoned, covers, shaken)
