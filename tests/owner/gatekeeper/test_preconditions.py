"""What a fitting is told about its data before anything is trained."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from common.examples import Examples
from owner.gatekeeper import GuardOptions, HonestPopulation
from owner.gatekeeper.preconditions import warn_of_range

UNIT = torch.rand((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))


def pool(inputs: Tensor) -> Examples:
    return Examples((inputs,), torch.tensor([0, 1, 0, 1]), ("zero", "one"))


@pytest.mark.parametrize("images", [255 * UNIT, (UNIT - 0.5) / 0.3], ids=["0 to 255", "standardised"])
def test_floating_images_beyond_the_unit_interval_are_warned_of_with_the_way_out(images: Tensor) -> None:
    with pytest.warns(UserWarning, match="give uint8 images of 0 to 255") as told:
        warn_of_range(pool(images), GuardOptions())
    assert len(told) == 1


@pytest.mark.parametrize(
    ("inputs", "other_images"),
    [(UNIT, 0.15), ((255 * UNIT).to(torch.uint8), 0.15), (100 * UNIT.flatten(1), 0.15), (255 * UNIT, 0.0)],
    ids=["in [0, 1]", "bytes", "a table", "nobody has another device"],
)
def test_what_the_references_can_be_made_of_is_not_warned_of(inputs: Tensor, other_images: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_range(pool(inputs), GuardOptions(population=HonestPopulation(other_images=other_images)))
