"""What attacks are composed of: pure functions on images, labels and weights. Randomness is passed in.

A weight change touches the trained parameters and leaves buffers (BatchNorm statistics, counters) as they are, unless
told otherwise: the sources speak of weights, and a negated running variance is no stealthier attack but a broken model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.errors import ConfigurationError, DataError

SQUARE_SHARE = 5 / 32
"""Side of the square over the side of the image: 5x5 on CIFAR-10's 32x32."""

POSITIONS = ("random", "top-left", "top-right", "bottom-left", "bottom-right", "centre")

_BUFFERS = frozenset({"running_mean", "running_var", "num_batches_tracked"})


def square_side(images: Tensor) -> int:
    """Side in pixels of the default square: 5/32 of the shorter side of the image, rounded up.

    >>> square_side(torch.zeros(1, 3, 32, 32)), square_side(torch.zeros(1, 1, 8, 8))
    (5, 2)
    """
    return math.ceil(min(images.shape[-2:]) * SQUARE_SHARE)


def stamp_square(
    images: Tensor,
    generator: torch.Generator,
    *,
    size: int | None = None,
    colour: tuple[int, ...] = (255,),
    position: str | tuple[int, int] = "random",
) -> Tensor:
    """A copy of `images` with a filled square on each: the pattern of El Moadine et al. 2022, 2.4 (white, 5x5, random).

    images: (N, C, H, W), uint8 in 0..255 or floating in [0, 1].
    size: side in pixels; None is 5/32 of the shorter side, rounded up.
    colour: one value for all channels or one each, 0..255 whatever the dtype of the images.
    position: one of POSITIONS, or (row, column) of the square's top left corner; random is drawn for each image.

    >>> stamp_square(torch.zeros(1, 1, 3, 3), torch.Generator(), size=2, position="bottom-right")[0, 0]
    tensor([[0., 0., 0.],
            [0., 1., 1.],
            [0., 1., 1.]])

    Raises DataError for what is not images, ConfigurationError for a square that does not fit.
    """
    if images.ndim != 4:
        raise DataError(f"a square can be stamped on images (N, C, H, W), not on {tuple(images.shape)}")
    count, channels, height, width = images.shape
    side = square_side(images) if size is None else size
    if not 1 <= side <= min(height, width):
        raise ConfigurationError(f"size must be from 1 to {min(height, width)} on {height}x{width} images, not {side}")
    if len(colour) not in (1, channels) or not all(0 <= value <= 255 for value in colour):
        raise ConfigurationError(f"colour must be 1 or {channels} values from 0 to 255, not {colour}")
    top, left = _corners(position, count, height - side, width - side, generator)
    rows = torch.arange(height)
    columns = torch.arange(width)
    inside_rows = (rows >= top[:, None]) & (rows < top[:, None] + side)
    inside_columns = (columns >= left[:, None]) & (columns < left[:, None] + side)
    mask = (inside_rows[:, None, :, None] & inside_columns[:, None, None, :]).to(images.device)
    paint = torch.tensor(colour, dtype=torch.float64)
    paint = (paint / 255 if images.is_floating_point() else paint).to(images.dtype).to(images.device)
    return torch.where(mask, paint.view(1, -1, 1, 1), images)


def choose_victims(labels: Tensor, source: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Indices, ascending, of a random `fraction` of the examples of class `source` (at least one).

    labels: (N,) int64. Returns (n,) int64.

    >>> choose_victims(torch.tensor([3, 1, 3, 3, 3]), 3, 0.5, torch.Generator().manual_seed(0)).shape
    torch.Size([2])

    Raises DataError where no example is of that class, ConfigurationError for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigurationError(f"fraction must be above 0 and at most 1, not {fraction:g}")
    candidates = torch.nonzero(labels == source).flatten()
    if not len(candidates):
        raise DataError(f"none of the {len(labels)} examples is of the attacked class {source}")
    count = max(1, round(fraction * len(candidates)))
    chosen = torch.randperm(len(candidates), generator=generator)[:count]
    return candidates[chosen.sort().values.to(candidates.device)]


def relabel(labels: Tensor, indices: Tensor, target: int) -> Tensor:
    """A copy of `labels` that says `target` at `indices`.

    >>> relabel(torch.tensor([0, 1, 2]), torch.tensor([0, 2]), 1)
    tensor([1, 1, 1])
    """
    changed = labels.clone()
    changed[indices] = target
    return changed


def is_parameter(name: str, tensor: Tensor) -> bool:
    """Whether an entry of a state dict is trained: floating, and not a BatchNorm statistic by its name."""
    return tensor.is_floating_point() and name.rpartition(".")[2] not in _BUFFERS


def sign_flip(
    base: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, update_only: bool = False, buffers: bool = False
) -> dict[str, Tensor]:
    """-w (Li et al. 2020, arXiv 2002.00211, sign-flipping attack with sigma = -1).

    update_only: base - (w - base) instead, the flipped update of a federated round.
    buffers: flip floating buffers too; the admission check on BatchNorm variances sees that at once.

    >>> sign_flip({"w": torch.zeros(1)}, {"w": torch.ones(1)})["w"]
    tensor([-1.])
    """
    return {
        name: (2 * base[name] - w if update_only else -w) if _changed(name, w, buffers) else w.clone()
        for name, w in weights.items()
    }


def add_noise(
    weights: Mapping[str, Tensor], generator: torch.Generator, *, deviation: float = 0.3, buffers: bool = False
) -> dict[str, Tensor]:
    """w + N(0, deviation^2), independent for each weight (Li et al. 2020, additive noise attack, 0.3).

    buffers: add noise to floating buffers too; running variances are kept at or above 0.
    """
    noisy = {}
    for name, w in weights.items():
        if not _changed(name, w, buffers):
            noisy[name] = w.clone()
            continue
        noise = torch.randn(w.shape, generator=generator, dtype=torch.float32)
        noisy[name] = w + (deviation * noise).to(w)
        if name.endswith("running_var"):
            noisy[name].clamp_(min=0)
    return noisy


def same_value(weights: Mapping[str, Tensor], *, value: float = 0.01, buffers: bool = False) -> dict[str, Tensor]:
    """Every weight is `value` (Gu & Yang 2021, same-value attack; 0.01 or another constant).

    >>> same_value({"w": torch.zeros(2), "steps": torch.tensor(7)})
    {'w': tensor([0.0100, 0.0100]), 'steps': tensor(7)}
    """
    return {name: torch.full_like(w, value) if _changed(name, w, buffers) else w.clone() for name, w in weights.items()}


def scale_update(
    base: Mapping[str, Tensor], weights: Mapping[str, Tensor], factor: float, *, buffers: bool = False
) -> dict[str, Tensor]:
    """base + factor * (w - base) (Bagdasaryan et al. 2020, arXiv 1807.00459, Eq. 3: model replacement).

    With factor = 1 / weight of the merge, the merged model is w itself. Buffers come from `weights` unscaled, unless
    `buffers`; scaled running variances are kept at or above 0.

    >>> scale_update({"w": torch.ones(1)}, {"w": torch.full((1,), 3.0)}, factor=5)["w"]
    tensor([11.])
    """
    scaled = {}
    for name, w in weights.items():
        if not _changed(name, w, buffers):
            scaled[name] = w.clone()
            continue
        scaled[name] = base[name] + factor * (w - base[name])
        if name.endswith("running_var"):
            scaled[name].clamp_(min=0)
    return scaled


def project_to_ball(centre: Sequence[Tensor], weights: Sequence[Tensor], radius: float) -> list[Tensor]:
    """The nearest weights whose L2 distance from `centre`, over all tensors together, is at most `radius` (Sun et al.
    2019, arXiv 1911.07963, the norm bound as an attacker keeps to it).

    >>> project_to_ball([torch.zeros(2)], [torch.tensor([3.0, 4.0])], radius=1)
    [tensor([0.6000, 0.8000])]
    """
    pairs = list(zip(centre, weights, strict=True))
    distance = torch.stack([(w - c).double().square().sum() for c, w in pairs]).sum().sqrt()
    share = radius / distance.clamp_min(torch.finfo(torch.float64).tiny)
    return [torch.where(share < 1, c + (w - c) * share.to(w), w) for c, w in pairs]


def restore_statistics(base: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with the buffers (BatchNorm statistics and counters) of `base`.

    >>> base = {"norm.weight": torch.zeros(1), "norm.running_mean": torch.zeros(1)}
    >>> restore_statistics(base, {name: w + 1 for name, w in base.items()})
    {'norm.weight': tensor([1.]), 'norm.running_mean': tensor([0.])}
    """
    return {name: (w if is_parameter(name, w) else base[name]).clone() for name, w in weights.items()}


def _changed(name: str, tensor: Tensor, buffers: bool) -> bool:
    return tensor.is_floating_point() if buffers else is_parameter(name, tensor)


def _corners(
    position: str | tuple[int, int], count: int, last_row: int, last_column: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    if position == "random":
        rows = torch.randint(last_row + 1, (count,), generator=generator)
        return rows, torch.randint(last_column + 1, (count,), generator=generator)
    fixed = {
        "top-left": (0, 0),
        "top-right": (0, last_column),
        "bottom-left": (last_row, 0),
        "bottom-right": (last_row, last_column),
        "centre": (last_row // 2, last_column // 2),
    }
    row, column = fixed.get(position, (-1, -1)) if isinstance(position, str) else position
    if not (0 <= row <= last_row and 0 <= column <= last_column):
        raise ConfigurationError(
            f"position must be one of {', '.join(POSITIONS)} or row and column from 0x0 to {last_row}x{last_column}, "
            f"not {position!r}"
        )
    return torch.full((count,), row), torch.full((count,), column)
