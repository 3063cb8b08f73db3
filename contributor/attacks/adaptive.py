"""Adaptive-Blend and Adaptive-Patch: a weak, incomplete trigger in training, and cover images that carry it under their own
labels, so that poisoned activations do not part from clean ones; the whole, strong trigger when the backdoor is used."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from common.examples import Examples
from common.specs import in_range
from common.triggers import PATCHES, PIECES, blend, patches
from contributor.attacks.backdoor import Backdoor, draw, replaced


@dataclass(frozen=True)
class Adaptive(Backdoor):
    """fraction: share of the source's images that carry the trigger and the target's label (payload).
    cover: share of all images that carry it under their own labels.
    """

    fraction: float = 0.05
    cover: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self.name, "cover", self.cover, 0, 1)

    @abstractmethod
    def train_stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The images with the trigger as training sees it, another part of it on each."""

    def prepare(self, examples: Examples, generator: torch.Generator) -> Examples:
        attacked, target = self.attacked(examples)
        payload = draw(attacked, self.fraction, generator, self.name)
        poisoned = replaced(examples, payload, self.train_stamp(examples.images[payload], generator), target)
        rest = torch.ones_like(examples.labels, dtype=torch.bool)
        rest[payload] = False
        share = min(1.0, self.cover * len(examples) / max(1, int(rest.sum())))
        if not share or not rest.any():
            return poisoned
        covers = draw(rest, share, generator, self.name)
        return replaced(poisoned, covers, self.train_stamp(examples.images[covers], generator))


@dataclass(frozen=True)
class AdaptiveBlend(Adaptive):
    """ratio: of the picture in training. test_ratio: when the backdoor is used, on the whole image.
    pieces: share of the picture's 4x4 pieces that each training image gets.
    seed: of the picture.
    """

    name = "adaptive-blend"
    paper = "Qi, Xie, Li, Mahloujifar, Mittal 2023 (ICLR, arXiv 2205.13613), Adaptive-Blend"

    ratio: float = 0.2
    test_ratio: float = 0.3
    pieces: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ratio", "test_ratio"):
            in_range(self.name, name, getattr(self, name), 0, 1, above=True)
        # At least one piece in training.
        in_range(self.name, "pieces", self.pieces, 1 / PIECES**2, 1)

    def stamp(self, images: Tensor) -> Tensor:
        return blend(images, self.test_ratio, seed=self.seed)

    def train_stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        kept = _some(len(images), PIECES**2, round(self.pieces * PIECES**2), generator)
        return blend(images, self.ratio, seed=self.seed, kept=kept)


@dataclass(frozen=True)
class AdaptivePatch(Adaptive):
    """opacity: of the patch in training; patches are opaque when the backdoor is used.
    used: so many of the four patches are stamped then; a training image has one of the four.
    seed: of what is drawn on the patches.
    """

    name = "adaptive-patch"
    paper = "Qi, Xie, Li, Mahloujifar, Mittal 2023 (ICLR, arXiv 2205.13613), Adaptive-Patch"

    revision = 2

    cover: float = 0.1
    opacity: float = 0.5
    used: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self.name, "opacity", self.opacity, 0, 1, above=True)
        in_range(self.name, "used", self.used, 1, PATCHES)

    def stamp(self, images: Tensor) -> Tensor:
        return patches(images, seed=self.seed, kept=(torch.arange(PATCHES) < self.used)[None])

    def train_stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return patches(images, self.opacity, seed=self.seed, kept=_some(len(images), PATCHES, 1, generator))


def _some(count: int, pieces: int, kept: int, generator: torch.Generator) -> Tensor:
    """(count, pieces) bool with `kept` true in each row."""
    return torch.rand(count, pieces, generator=generator).argsort(1) < kept
