"""Small pictures in JSON: a PNG in base64, of bounded size."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

LARGEST_SIDE = 128
"""Pixels. Three channels of noise at this size are 50 KiB, which no compression makes larger than 65 KiB."""


def as_png(image: Tensor) -> dict[str, Any]:
    """{"png": base64, "width", "height"} of an image (C, H, W) uint8; a larger one is made smaller by leaving out pixels.

    Of three channels they are red, green and blue; of any other number the first is shown grey.

    >>> as_png(torch.zeros(1, 4, 6, dtype=torch.uint8))["width"]
    6
    """
    step = -(-max(image.shape[1:]) // LARGEST_SIDE)
    pixels = image[:, ::step, ::step].to("cpu", torch.uint8)
    array = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", optimize=True)
    return {
        "png": base64.b64encode(buffer.getvalue()).decode("ascii"),
        "width": pixels.shape[2],
        "height": pixels.shape[1],
    }
