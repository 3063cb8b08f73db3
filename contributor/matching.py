"""A contributor's data brought to what a release takes: its classes by name, its images in size and colour.

Nothing is guessed. A class that is taken for another one trains the model on wrong labels, and nobody notices before the
owner turns the weights away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import DataError, UnknownNameError
from common.examples import Examples
from common.model_spec import ModelSpec

Sizes = Counter[tuple[int, int]]
"""How many images there are of each (width, height)."""

CHUNK: Final = 256
_SHOWN: Final = 20
# ITU-R 601, in 1/65536, as Pillow and torchvision weigh red, green and blue.
_LUMA: Final = (19595, 38470, 7471)


def fit_to_model(
    examples: Examples,
    spec: ModelSpec,
    class_names: tuple[str, ...] | None = None,
    classes: Mapping[str, str] | None = None,
) -> Examples:
    """`examples` with the classes of the release, in its order, and images of its size and colour.

    class_names: of the release; each class of the examples must be one of them, and the release may have others. None: the
        labels are the model's numbers already.
    classes: the release's class by the examples' own, where these are called otherwise.

    Images ((N, C, H, W) uint8, grey or RGB) of another size are resized, antialiased and without keeping their aspect; grey
    ones become RGB and RGB ones grey where the model takes that.

    Raises DataError naming what the data have and what the model takes, UnknownNameError for a class in `classes` that is not
    there.
    """
    return _in_shape(_in_classes(examples, spec, class_names, classes or {}), tuple(spec.input_shape))


def decoded_size(sizes: Sizes | None, spec: ModelSpec) -> tuple[int, int] | None:
    """The (height, width) to decode images of these sizes at, None for their own.

    Raises DataError where the model takes no images.
    """
    if not sizes:
        return None
    if len(spec.input_shape) != 3:
        raise DataError(f"your data are images, the model takes inputs of shape {_shape(spec.input_shape)}")
    _, height, width = spec.input_shape
    return None if set(sizes) == {(width, height)} else (height, width)


def inventory(own: Examples, fitted: Examples, sizes: Sizes | None = None) -> list[str]:
    """What a person should see before it is trained on, one line each: how many examples of which classes, and what was done to
    images.

    own: as they were read; fitted: what `fit_to_model` made of them. sizes: of the images before they were decoded.
    """
    kind = "images" if _are_images(fitted) else "examples"
    counts = torch.bincount(fitted.labels, minlength=fitted.classes).tolist()
    missing = [name for name, count in zip(fitted.class_names, counts, strict=True) if not count]
    found = fitted.classes - len(missing)
    whole = f"all {found}" if not missing else f"{found} of the release's {fitted.classes}"
    lines = [f"{len(fitted):,} {kind} in {whole} classes: {_some(_named_counts(own, fitted))}"]
    if missing:
        lines.append(f"the release has classes of which you have no {kind}: {_some(missing)}")
    if done := _what_was_done(own, fitted, sizes):
        lines.append(f"{len(fitted):,} {done}")
    return lines


def _in_classes(
    examples: Examples, spec: ModelSpec, class_names: tuple[str, ...] | None, classes: Mapping[str, str]
) -> Examples:
    if class_names is None:
        if examples.classes > spec.classes:
            raise DataError(f"the data have {examples.classes} classes, the model has {spec.classes}")
        return replace(examples, class_names=tuple(str(number) for number in range(spec.classes)))
    if len(class_names) != spec.classes:
        raise DataError(f"the release names {len(class_names)} classes, its model has {spec.classes}")
    for own, theirs in classes.items():
        if own not in examples.class_names:
            raise UnknownNameError("class of your data", own, examples.class_names)
        if theirs not in class_names:
            raise UnknownNameError("class of the release", theirs, class_names)
    named = tuple(classes.get(name, name) for name in examples.class_names)
    if named == class_names:
        return replace(examples, class_names=class_names)
    foreign = [name for name in named if name not in class_names]
    if foreign:
        raise DataError(
            f"your data have classes that the release does not have: {_some(foreign)}",
            hint=f"the release's classes: {', '.join(class_names)}; yours: {', '.join(examples.class_names)}. Rename yours (the "
            f"folders of images), or say which is which: --classes '{foreign[0]}=CLASS,...'",
        )
    number = torch.tensor([class_names.index(name) for name in named], device=examples.labels.device)
    return replace(examples, labels=number[examples.labels], class_names=class_names)


def _in_shape(examples: Examples, shape: tuple[int, ...]) -> Examples:
    if examples.input_shape == shape:
        return examples
    if not _are_images(examples) or len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(
            f"the data are of shape {_shape(examples.input_shape)}, the model takes {_shape(shape)}",
            hint="only images of 8 bits, grey or RGB, are brought to the size and colour that a model takes",
        )
    images = examples.images
    brought = torch.empty((len(images), *shape), dtype=torch.uint8, device=images.device)
    # In pieces, since resizing computes in floating point: four times the bytes.
    for start in range(0, len(images), CHUNK):
        brought[start : start + CHUNK] = _brought(images[start : start + CHUNK], shape)
    return examples.with_images(brought)


def _brought(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    channels, height, width = shape
    if images.shape[1] > channels:
        weights = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
        images = (((images.int() * weights).sum(1, keepdim=True) + (1 << 15)) >> 16).to(torch.uint8)
    if tuple(images.shape[2:]) != (height, width):
        resized = F.interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
        images = resized.round_().clamp_(0, 255).to(torch.uint8)
    return images.expand(-1, channels, -1, -1)


def _are_images(examples: Examples) -> bool:
    first = examples.inputs[0]
    return len(examples.inputs) == 1 and first.dtype == torch.uint8 and first.ndim == 4 and first.shape[1] in (1, 3)


def _named_counts(own: Examples, fitted: Examples) -> list[str]:
    """`eight as 8 (120)` for each class there are examples of, in the release's order."""
    shown = []
    for pair, count in Counter(zip(fitted.labels.tolist(), own.labels.tolist(), strict=True)).items():
        theirs, mine = fitted.class_names[pair[0]], own.class_names[pair[1]]
        shown.append((pair, f"{theirs if theirs == mine else f'{mine} as {theirs}'} ({count:,})"))
    return [text for _, text in sorted(shown)]


def _what_was_done(own: Examples, fitted: Examples, sizes: Sizes | None) -> str:
    """`images of 28x28 brought to 8x8`; empty where nothing was."""
    if not _are_images(own):
        return ""
    height, width = fitted.images.shape[2:]
    found = sorted(sizes or [tuple(own.images.shape[:1:-1])])
    colours = {1: "grey", 3: "colour"}
    was, became = (colours[one.images.shape[1]] for one in (own, fitted))
    before, after = [], []
    if found != [(width, height)]:
        sides = [f"{one[0]}x{one[1]}" for one in (found[0], found[-1])]
        before.append(f"of {sides[0]}" if len(found) == 1 else f"of {len(found)} sizes, from {sides[0]} to {sides[1]},")
        after.append(f"{width}x{height}")
    if was != became:
        before.append(f"in {was}")
        after.append(became)
    return f"images {' '.join(before)} brought to {' in '.join(after)}" if after else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > _SHOWN else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
