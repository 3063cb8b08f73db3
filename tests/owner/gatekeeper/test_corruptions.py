"""Corruptions: mild, of the same dtype and range, nothing at strength 0, unknown names refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.errors import UnknownNameError
from owner.gatekeeper.corruptions import KINDS, corrupt


def photographs(dtype: torch.dtype = torch.uint8) -> Tensor:
    images = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return images if dtype == torch.uint8 else images.to(dtype) / 255


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_strength_changes_images_from_not_at_all_to_mildly(kind: str, dtype: torch.dtype) -> None:
    images = photographs(dtype)
    span = 255 if dtype == torch.uint8 else 1
    distances = []
    for strength in (0.0, 0.5, 1.0):
        changed = corrupt(images, kind, strength, draws())
        assert changed.dtype == images.dtype
        assert changed.shape == images.shape
        assert 0 <= float(changed.min()) <= float(changed.max()) <= span
        distances.append(float((changed.float() - images.float()).abs().mean()) / span)
    assert distances[0] < 1e-6
    assert distances[0] < distances[1] < distances[2] < 0.25


def test_the_same_draws_give_the_same_images() -> None:
    assert torch.equal(corrupt(photographs(), "noise", 1.0, draws()), corrupt(photographs(), "noise", 1.0, draws()))


def test_grey_images_have_no_colour_to_lose() -> None:
    grey = photographs()[:, :1]
    assert torch.equal(corrupt(grey, "colour", 1.0, draws()), grey)


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_standardised_change_as_the_same_images_in_the_unit_interval(kind: str) -> None:
    unit = photographs().float() / 255
    unit[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # black and white are among them
    changed = corrupt((unit - 0.5) / 0.25, kind, 1.0, draws())
    assert torch.allclose(changed * 0.25 + 0.5, corrupt(unit, kind, 1.0, draws()), atol=1e-5)


def test_an_unknown_corruption_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="blur"):
        corrupt(photographs(), "blurr", 1.0, draws())


@pytest.mark.parametrize("kind", ["brightness", "contrast"])
@pytest.mark.parametrize("seed", range(4))
def test_a_device_errs_to_the_same_side_with_all_its_images(kind: str, seed: int) -> None:
    """Of more images than are changed at a time, and all of them the same."""
    images = photographs()[:1].expand(3000, -1, -1, -1)
    changed = corrupt(images, kind, 1.0, torch.Generator().manual_seed(seed))
    assert torch.equal(changed, changed[:1].expand_as(changed))
    assert not torch.equal(changed, images)
