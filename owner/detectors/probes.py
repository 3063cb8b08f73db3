"""Probes: what a bank stamps on clean inputs to look off the clean distribution. Canonical marks, chosen without any attack
at hand: this module shares neither code nor parameters with the attacks it is meant to find.

Images are (N, C, H, W), any number of channels, uint8 in 0..255 or floating; floating images that leave [0, 1] (standardised
ones) are taken in the range they span. Everything scales with the side of the image. Inputs that are no images (tables,
token sequences) get noise probes only, and of a model with several inputs every image is stamped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from common.randomness import generator

Stamp = Callable[[Tensor, torch.Generator], Tensor]
"""Images (n, C, H, W) float32 in [0, 1], and a source of randomness, to the same with the mark, not yet clamped."""


@dataclass(frozen=True)
class Probe:
    """kind: the family of marks it stands for; a bank can be built without one."""

    name: str
    kind: str
    stamp: Stamp


def _colour(channels: int, odd: float, even: float) -> Tensor:
    """(C, 1, 1): even channels one value, odd ones another; grey images take the first."""
    return torch.tensor([even if c % 2 == 0 else odd for c in range(channels)]).view(-1, 1, 1)


def _pixels(images: Tensor, share: float, least: int = 1) -> int:
    return max(least, round(share * min(images.shape[-2:])))


def _square(share: float, row: float, column: float, odd: float, even: float) -> Stamp:
    """A filled square with its corner at (row, column), as shares of the free space."""

    def stamp(images: Tensor, _generator: torch.Generator) -> Tensor:
        side = _pixels(images, share, 2)
        top, left = round(row * (images.shape[2] - side)), round(column * (images.shape[3] - side))
        marked = images.clone()
        marked[:, :, top : top + side, left : left + side] = _colour(images.shape[1], odd, even)
        return marked

    return stamp


def _roaming_square(images: Tensor, source: torch.Generator) -> Tensor:
    side = _pixels(images, 0.14, 2)
    tops = torch.randint(images.shape[2] - side + 1, (len(images),), generator=source).tolist()
    lefts = torch.randint(images.shape[3] - side + 1, (len(images),), generator=source).tolist()
    marked, colour = images.clone(), _colour(images.shape[1], 0.92, 0.98)
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        marked[i, :, top : top + side, left : left + side] = colour
    return marked


def _dots(images: Tensor, _source: torch.Generator) -> Tensor:
    """Four bright dots, as on a die, near the lower right corner."""
    size, marked = _pixels(images, 0.03), images.clone()
    bottom, right = images.shape[2] - 3 * size, images.shape[3] - 3 * size
    for row, column in ((0, 0), (0, 3), (3, 0), (3, 3)):
        top, left = max(bottom - row * size, 0), max(right - column * size, 0)
        marked[:, :, top : top + size, left : left + size] = 0.96
    return marked


def _single_dot(images: Tensor, _source: torch.Generator) -> Tensor:
    size, marked = _pixels(images, 0.04), images.clone()
    marked[:, :, -4 * size : -3 * size, -4 * size : -3 * size] = 0.97
    return marked


def _board(height: int, width: int, cell: int) -> Tensor:
    """(H, W) of 0 and 1."""
    rows, columns = torch.arange(height) // cell, torch.arange(width) // cell
    return ((rows[:, None] + columns) % 2).float()


def _corner_board(images: Tensor, _source: torch.Generator) -> Tensor:
    side, marked = _pixels(images, 0.2, 3), images.clone()
    marked[:, :, :side, -side:] = 0.03 + 0.94 * _board(side, side, max(1, side // 4))
    return marked


def _fine_board(images: Tensor, _source: torch.Generator) -> Tensor:
    return images + 0.09 * (2 * _board(images.shape[2], images.shape[3], _pixels(images, 0.03)) - 1)


def _cross(images: Tensor, _source: torch.Generator) -> Tensor:
    side, thick, marked = _pixels(images, 0.22, 3), _pixels(images, 0.04), images.clone()
    middle = (side - thick) // 2
    low = images.shape[2] - side
    marked[:, :, low + middle : low + middle + thick, :side] = 0.93
    marked[:, :, low:, middle : middle + thick] = 0.93
    return marked


def _noise_blend(images: Tensor, source: torch.Generator) -> Tensor:
    picture = torch.rand(1, *images.shape[1:], generator=source)
    return 0.83 * images + 0.17 * picture


def _smooth_picture(shape: tuple[int, ...], cells: int, source: torch.Generator) -> Tensor:
    """(C, H, W) in [0, 1], coarse noise interpolated."""
    coarse = torch.rand(1, shape[0], cells, cells, generator=source)
    return F.interpolate(coarse, size=shape[1:], mode="bicubic", align_corners=True)[0].clamp(0, 1)


def _smooth_blend(images: Tensor, source: torch.Generator) -> Tensor:
    return 0.74 * images + 0.26 * _smooth_picture(tuple(images.shape[1:]), 4, source)


def _waves(down: float, across: float, amplitude: float) -> Stamp:
    """A sinusoid of so many periods over the height and the width."""

    def stamp(images: Tensor, _generator: torch.Generator) -> Tensor:
        rows = torch.arange(images.shape[2]) / images.shape[2]
        columns = torch.arange(images.shape[3]) / images.shape[3]
        return images + amplitude * torch.sin(2 * math.pi * (down * rows[:, None] + across * columns) + 0.7)

    return stamp


def _warp(cells: int, share: float) -> Stamp:
    """A smooth displacement field, the same for all images, of at most `share` of the side."""

    def stamp(images: Tensor, source: torch.Generator) -> Tensor:
        height, width = images.shape[2:]
        coarse = 2 * torch.rand(1, 2, cells, cells, generator=source) - 1
        field = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
        field = 2 * share * field / field.abs().max()
        identity = torch.stack(
            torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")[::-1], -1
        )
        grid = (identity + field[0].permute(1, 2, 0)).expand(len(images), -1, -1, -1)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)

    return stamp


def _salt(images: Tensor, source: torch.Generator) -> Tensor:
    """Bright and dark specks on the same 4 % of places in every image."""
    places = torch.rand(images.shape[2:], generator=source)
    return torch.where(places < 0.02, 0.98, torch.where(places > 0.98, 0.02, images))


def _grain(images: Tensor, source: torch.Generator) -> Tensor:
    return images + 0.09 * torch.randn(images.shape, generator=source)


def _colour_cast(images: Tensor, _source: torch.Generator) -> Tensor:
    return images * _colour(images.shape[1], 0.78, 1.05) + _colour(images.shape[1], 0.0, 0.1)


def _paste(images: Tensor, _source: torch.Generator) -> Tensor:
    """The middle of one other image of the batch, at the upper middle edge of all."""
    side = _pixels(images, 0.28, 2)
    top, left = (images.shape[2] - side) // 2, (images.shape[3] - side) // 2
    marked = images.clone()
    marked[:, :, :side, left : left + side] = images[0, :, top : top + side, left : left + side]
    return marked


IMAGE_PROBES: Mapping[str, Probe] = {
    probe.name: probe
    for probe in (
        Probe("bright-square", "square", _square(0.18, 0.95, 0.95, 0.95, 0.95)),
        Probe("roaming-square", "square", _roaming_square),
        Probe("dots", "pixel", _dots),
        Probe("corner-checkerboard", "pattern", _corner_board),
        Probe("noise-blend", "blend", _noise_blend),
        Probe("smooth-blend", "blend", _smooth_blend),
        Probe("vertical-waves", "sinusoid", _waves(0, 7, 0.1)),
        Probe("diagonal-waves", "sinusoid", _waves(4, 3, 0.11)),
        Probe("smooth-warp", "warp", _warp(3, 0.045)),
        Probe("salt", "noise", _salt),
        Probe("colour-cast", "colour", _colour_cast),
        Probe("paste", "paste", _paste),
        Probe("colour-square", "square", _square(0.22, 0.5, 0.1, 0.1, 0.9)),
        Probe("dark-square", "square", _square(0.17, 0.05, 0.05, 0.04, 0.04)),
        Probe("single-dot", "pixel", _single_dot),
        Probe("cross", "pattern", _cross),
        Probe("fine-checkerboard", "pattern", _fine_board),
        Probe("slow-waves", "sinusoid", _waves(2, 0, 0.13)),
        Probe("fine-warp", "warp", _warp(7, 0.03)),
        Probe("grain", "noise", _grain),
        Probe("occlusion", "occlusion", _square(0.36, 0.5, 0.5, 0.5, 0.5)),
    )
}
"""For images, by name; the first twelve are a bank's default."""

DEFAULT_PROBES: tuple[str, ...] = tuple(IMAGE_PROBES)[:12]

OTHER_PROBES: Mapping[str, str] = {"mix": "noise", "scramble": "noise", "jitter": "noise"}
"""For inputs that are no images, kind by name: a fifth, or half, of the entries taken from another example; noise."""


def is_image(tensor: Tensor) -> bool:
    return (
        tensor.ndim == 4 and (tensor.dtype == torch.uint8 or tensor.is_floating_point()) and min(tensor.shape[-2:]) >= 4
    )


def stamp(inputs: tuple[Tensor, ...], name: str, *, seed: int) -> tuple[Tensor, ...]:
    """The inputs with the mark of one probe on them, in their own dtype and range. Deterministic by seed and name.

    >>> stamp((torch.zeros(1, 1, 8, 8, dtype=torch.uint8),), "single-dot", seed=0)[0].max()
    tensor(247, dtype=torch.uint8)
    """
    if name in IMAGE_PROBES:
        return tuple(_stamp_images(t, IMAGE_PROBES[name], seed) if is_image(t) else t for t in inputs)
    return tuple(_disturbed(t, name, generator(seed, f"probe {name} {i}")) for i, t in enumerate(inputs))


def _stamp_images(images: Tensor, probe: Probe, seed: int) -> Tensor:
    low, high = image_range(images)
    unit = (images.float() - low) / (high - low)
    marked = probe.stamp(unit, generator(seed, f"probe {probe.name}")).clamp(0, 1)
    if images.dtype == torch.uint8:
        return (marked * 255).round().to(torch.uint8)
    # Only what the mark touched changes: a round trip through [0, 1] would move every pixel by a rounding error.
    return torch.where(marked == unit, images, (marked * (high - low) + low).to(images.dtype))


def image_range(images: Tensor) -> tuple[float, float]:
    """The values of black and white.

    >>> image_range(torch.tensor([0.2, 0.7])), image_range(torch.tensor([-2.0, 2.0]))
    ((0.0, 1.0), (-2.0, 2.0))
    """
    if images.dtype == torch.uint8:
        return 0.0, 255.0
    low, high = float(images.min()), float(images.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1.0)


def _disturbed(values: Tensor, name: str, source: torch.Generator) -> Tensor:
    if name == "jitter" and values.is_floating_point():
        spread = values.std(0, correction=0, keepdim=True)
        return values + 0.5 * spread * torch.randn(values.shape, generator=source).to(values.dtype)
    share = 0.2 if name == "mix" else 0.5
    taken = torch.rand(values.shape, generator=source) < share
    return torch.where(taken, values.roll(1, 0), values)


def off_distribution(inputs: tuple[Tensor, ...], *, seed: int) -> tuple[Tensor, ...]:
    """As many inputs as given, none of which any class's image resembles.

    Images: a third uniform noise, a third coarse smooth noise, a third clean images with their pixels shuffled. Other
    inputs: each entry drawn from that position of another example, independently.
    """
    return tuple(
        _noise_images(t, generator(seed, f"noise {i}")) if is_image(t) else _shuffled(t, generator(seed, f"noise {i}"))
        for i, t in enumerate(inputs)
    )


def _noise_images(images: Tensor, source: torch.Generator) -> Tensor:
    low, high = image_range(images)
    third = math.ceil(len(images) / 3)
    shape = tuple(images.shape[1:])
    noise = torch.rand(third, *shape, generator=source)
    smooth = noise.new_zeros(min(third, len(images) - third), *shape)
    for i in range(len(smooth)):
        smooth[i] = _smooth_picture(shape, 4, source)
    rest = images[third + len(smooth) :]
    order = torch.rand(len(rest), shape[1] * shape[2], generator=source).argsort(1)
    shuffled = rest.flatten(2).gather(2, order[:, None].expand(-1, shape[0], -1)).view(rest.shape)
    made = torch.cat([noise[: len(images)], smooth]) * (high - low) + low
    made = made.round() if images.dtype == torch.uint8 else made
    return torch.cat([made.to(images.dtype), shuffled])


def _shuffled(values: Tensor, source: torch.Generator) -> Tensor:
    order = torch.rand(values.shape, generator=source).argsort(0)
    return values.gather(0, order)
