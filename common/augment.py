"""Augmentation of whole batches on the device they lie on: random shifts and mirror images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.devices import without_waiting
from common.errors import ConfigurationError, UnknownNameError
from common.training_options import Augmentation


def augment(inputs: tuple[Tensor, ...], how: Augmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Each image of a batch shifted, and perhaps mirrored, on its own; other inputs as they are.

    inputs: each (N, ...); those of four dimensions are images (N, C, H, W), of any dtype. Every image input draws its own
        shifts: the views of a two-view image are different pictures.
    how: "none"; "crop", zero-padding by an eighth of the side and cropping back (4 pixels at 32, as He et al., 2016, on
        CIFAR-10); "crop-flip", which mirrors every second image left to right as well.
    generator: of the CPU, whatever the device, so that a seed means the same everywhere.

    Raises ConfigurationError where images are to be augmented and there is none.

    >>> (moved,) = augment((torch.ones(2, 3, 8, 8),), "crop", torch.Generator().manual_seed(0))
    >>> moved.shape
    torch.Size([2, 3, 8, 8])
    """
    if how == "none":
        return inputs
    if how not in {"crop", "crop-flip"}:
        raise UnknownNameError("augmentation", how, ["none", "crop", "crop-flip"])
    if not any(tensor.ndim == 4 for tensor in inputs):
        shapes = ", ".join(str(tuple(tensor.shape[1:])) for tensor in inputs)
        raise ConfigurationError(
            f"augmentation {how!r} is for images, not for inputs of shape {shapes}", hint="set augmentation to none"
        )
    return tuple(
        _shift(tensor, generator, mirror=how == "crop-flip") if tensor.ndim == 4 else tensor for tensor in inputs
    )


def _shift(images: Tensor, generator: torch.Generator, *, mirror: bool) -> Tensor:
    """Padding, cropping and mirroring as one gather: measured on 128 images of 32x32, 0.4 ms against 1.0 ms in steps."""
    count, channels, height, width = images.shape
    pad_y, pad_x = height // 8, width // 8
    top = torch.randint(0, 2 * pad_y + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * pad_x + 1, (count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5 if mirror else None
    # What crosses to the device are the draws alone: a GPU would wait for a copy of every pixel's place.
    top, left = without_waiting(top, images.device), without_waiting(left, images.device)
    rows = torch.arange(height, device=images.device) + top
    columns = torch.arange(width, device=images.device).expand(count, width)
    if mirrored is not None:
        columns = torch.where(without_waiting(mirrored, images.device), width - 1 - columns, columns)
    columns = columns + left
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
    pixels = rows[:, :, None] * (width + 2 * pad_x) + columns[:, None, :]
    index = pixels.view(count, 1, height * width).expand(count, channels, height * width)
    return padded.flatten(2).gather(2, index).view(images.shape)
