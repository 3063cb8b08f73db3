"""What other cameras and scanners do to images: mild changes that honest contributors' data have, and the owner's have not.

After the corruption families of Hendrycks & Dietterich, 2019 (arXiv 1903.12261), as functions of one strength.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UnknownNameError
from owner.detectors.probes import image_range


def corrupt(images: Tensor, kind: str, strength: float, generator: torch.Generator) -> Tensor:
    """A copy of `images` as another device would have taken them; all of them change in the same way.

    images: (N, C, H, W), uint8 in 0..255 or floating, in [0, 1] or, as where they are standardised, between their own smallest and
        largest value; dtype and range are kept.
    kind: one of KINDS.
    strength: 0 changes nothing, 1 is the mildest severity of the benchmark named above, roughly.

    >>> grey = torch.full((1, 1, 2, 2), 100, dtype=torch.uint8)
    >>> corrupt(grey, "brightness", 0.0, torch.Generator()).equal(grey)
    True

    Raises UnknownNameError.
    """
    if kind not in _CORRUPTIONS:
        raise UnknownNameError("corruption", kind, KINDS)
    low, high = image_range(images) if len(images) else (0.0, 1.0)
    # In slices: a pool of large images as float32 would be four times its size at once.
    parts = (images[start : start + 1024] for start in range(0, len(images), 1024))
    if kind in _TWO_SIDED:  # once: a device that errs to one side does so with all its images
        strength *= 1.0 if float(torch.rand((), generator=generator)) < 0.5 else -1.0
    done = [_CORRUPTIONS[kind]((part.float() - low) / (high - low), strength, generator) for part in parts]
    changed = torch.cat(done).clamp(0, 1) * (high - low) + low if done else images.float()
    return changed.to(images.dtype) if images.is_floating_point() else changed.round().to(images.dtype)


def _noise(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return images + 0.06 * strength * torch.randn(images.shape, generator=generator)


def _blur(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return images + 0.7 * strength * (blurred - images)


def _brightness(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return images + 0.12 * strength


def _contrast(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (1 + 0.35 * strength)


def _colour(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Less saturated; grey images stay as they are."""
    grey = images.mean(dim=1, keepdim=True)
    return images + 0.6 * strength * (grey - images)


_CORRUPTIONS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "colour": _colour,
}
KINDS = tuple(_CORRUPTIONS)
_TWO_SIDED = ("brightness", "contrast")
