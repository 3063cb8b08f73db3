"""Encoded images into one uint8 tensor: bounded, and naming the image that cannot be read.

Pillow decodes. torchvision's decoder is three times as fast on small JPEGs, but it is deprecated, and on damaged files it
takes the process down with a segmentation fault where Pillow raises.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from common.datasets.dataset import ONE_SIZE
from common.errors import ConfigurationError, DataError
from common.progress import Advance, progress_bar

MAX_PIXELS = 1 << 26
"""Pixels one image may have (8192 x 8192): a small file may claim any size."""

MAX_FILE_BYTES = 1 << 28
"""Bytes one encoded image may have (256 MiB)."""

CHUNK = 256
BAR_FROM = 5_000
THREADS_PAY_FROM = 10_000
"""Pixels from which decoding in threads is faster; below it they only wait for each other."""

_ORIENTATION = 0x0112
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
"""Values of that EXIF tag by which width and height are exchanged."""

_Read = TypeVar("_Read")

Source = tuple[str, Callable[[], bytes]]
"""What to call an image in an error, and where its bytes come from."""


def decode_images(sources: Iterable[Source], count: int, *, size: int | tuple[int, int] | None = None) -> Tensor:
    """All images as (count, C, H, W) uint8; C is 1 where every image is grey, else 3.

    size: side, or (height, width), that every image is resized to (antialiased, aspect not kept); None wants all
        images of one size.

    Raises DataError naming the image that is corrupt, too large, or of another size than the first; ConfigurationError
    for an impossible `size`.
    """
    target = _checked_size(size)
    with warnings.catch_warnings():
        # Pillow warns of large images, which our own limit is for, and of oddities in metadata that nobody reads.
        warnings.simplefilter("ignore")
        with progress_bar("decoding images", count, shown=None if count >= BAR_FROM else False) as advance:
            return _gathered(_decoded(iter(sources), target), count, advance)


def image_sizes(sources: Iterable[Source], count: int) -> Counter[tuple[int, int]]:
    """How many images there are of each (width, height), by their headers alone: what is behind them is not decoded.

    Raises DataError naming the image that is no image or too large.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        with progress_bar("looking at images", count, shown=None if count >= BAR_FROM else False) as advance:
            for number, (name, fetch) in enumerate(sources, 1):
                sizes[_guarded(_size_of, fetch(), name)] += 1
                if number % CHUNK == 0:
                    advance(CHUNK, "")
    return sizes


def _gathered(decoded: Iterator[tuple[str, Tensor]], count: int, advance: Advance) -> Tensor:
    images: Tensor | None = None
    filled = 0
    first = ""
    for name, image in decoded:
        if images is None:
            images, first = _allocate(count, image), name
        if image.shape[1:] != images.shape[2:]:
            raise DataError(
                f"{name} is {image.shape[2]}x{image.shape[1]} pixels, {first} is {images.shape[3]}x{images.shape[2]}",
                hint=ONE_SIZE,
            )
        if image.shape[0] > images.shape[1]:
            images = images.expand(-1, image.shape[0], -1, -1).clone()
        images[filled] = image
        filled += 1
        if filled % CHUNK == 0:
            advance(CHUNK, "")
    if images is None:
        raise DataError("there are no images")
    return images[:filled]


def _decode_one(data: bytes, name: str, size: tuple[int, int] | None = None) -> Tensor:
    """One image as (1 or 3, H, W) uint8. Raises DataError calling it `name`."""
    return _guarded(partial(_through_pillow, size=size), data, name)


def _guarded(read: Callable[[bytes, str], _Read], data: bytes, name: str) -> _Read:
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{name} has {len(data)} bytes, at most {MAX_FILE_BYTES} are read")
    try:
        return read(data, name)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 Pillow raises whatever it likes on corrupt bytes: struct.error, SyntaxError ...
        raise DataError(f"{name} is not a readable image: {_first_line(error)}") from None


def _decoded(sources: Iterator[Source], size: tuple[int, int] | None) -> Iterator[tuple[str, Tensor]]:
    def read(source: Source) -> tuple[str, Tensor]:
        name, fetch = source
        return name, _decode_one(fetch(), name, size)

    head = next(sources, None)
    if head is None:
        return
    yield (opened := read(head))
    if size is None and opened[1][0].numel() < THREADS_PAY_FROM:
        yield from map(read, sources)
        return
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        while chunk := list(islice(sources, CHUNK)):
            yield from pool.map(read, chunk)


def _size_of(data: bytes, name: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as opened:
        _check_pixels(name, *opened.size)
        width, height = opened.size
        return (height, width) if opened.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE else (width, height)


def _through_pillow(data: bytes, name: str, size: tuple[int, int] | None) -> Tensor:
    with Image.open(io.BytesIO(data)) as opened:
        _check_pixels(name, *opened.size)
        turned = opened.getexif().get(_ORIENTATION, 1) != 1
        image: Image.Image = ImageOps.exif_transpose(opened) if turned else opened
        if image.mode in ("I", "F") and opened.format != "PNG":
            values = np.asarray(image)
            low, high = float(values.min()), float(values.max())
            if not 0 <= low <= high <= 255:
                raise DataError(
                    f"{name} has values from {low:g} to {high:g}",
                    hint="images of 8 bits are read: bring it to 0 to 255 yourself",
                )
        grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
        if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PNG"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.has_transparency_data:  # what is drawn in the alpha channel alone would be lost
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if grey else "RGB")
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _check_pixels(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{name} claims {width}x{height} pixels, at most {MAX_PIXELS} are decoded")


def _allocate(count: int, example: Tensor) -> Tensor:
    needed = count * example.numel()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise DataError(
            f"{count} images of {tuple(example.shape)} take {needed / 2**30:.1f} GiB, this machine has "
            f"{memory / 2**30:.1f} GiB of memory",
            hint="bring fewer images or smaller ones; an owner makes them smaller by data.size, in Python load(..., size=)",
        )
    return torch.empty((count, *example.shape), dtype=torch.uint8)


def _checked_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ConfigurationError(f"size must be a side or (height, width) from 1 pixel up, not {size!r}")
    return height, width


def _first_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:200]
