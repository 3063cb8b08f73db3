"""Pictures of suspected marks: small, whatever the images are."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image

from owner.gatekeeper.pictures import LARGEST_SIDE, as_png
from owner.suspicions import PICTURE_LIMIT, png_bytes


def opened(image: torch.Tensor) -> Image.Image:
    content = png_bytes(as_png(image))
    assert content is not None
    return Image.open(io.BytesIO(content))


def test_a_small_picture_keeps_every_pixel() -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shown = opened(image)
    assert (shown.mode, shown.size) == ("RGB", (7, 5))
    assert shown.getpixel((6, 4)) == tuple(image[:, 4, 6].tolist())


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (4, "L")])
def test_of_other_channels_the_first_is_shown(channels: int, mode: str) -> None:
    assert opened(torch.full((channels, 4, 4), 9, dtype=torch.uint8)).mode == mode


def test_the_worst_picture_fits_its_bound() -> None:
    noise = torch.randint(0, 256, (3, 600, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert max(opened(noise).size) <= LARGEST_SIDE
    square = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert len(as_png(square)["png"]) <= PICTURE_LIMIT


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"png": 3},
        {"png": "no base64!"},
        {"png": base64.b64encode(b"GIF89a").decode()},
        {"png": "A" * 200_000},
    ],
)
def test_what_is_no_picture_is_none(given: object) -> None:
    assert png_bytes(given) is None
