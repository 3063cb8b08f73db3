"""What every detector that compares with the release shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import GuardError
from owner.detectors import FeatureDrift
from owner.detectors.comparison import median
from tests.owner.detectors.material import shown


@pytest.mark.parametrize("values", [[3.0], [1.0, 2.0], [5.0, 1.0, 2.0], [9.0, 1.0, 2.0, 4.0]])
def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two(values: list[float]) -> None:
    assert median(torch.tensor(values)) == np.median(values)


@pytest.mark.parametrize("other", [(3, 4, 2), (4, 5, 2), (4, 4, 3)], ids=["images", "width", "classes"])
def test_a_release_seen_on_other_images_is_refused(other: tuple[int, int, int]) -> None:
    def of(images: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.ones(images, width), torch.zeros(images, classes), torch.arange(images) % 2

    with pytest.raises(GuardError, match="on the same images"):
        FeatureDrift().score(shown(*of(4, 4, 2), shown(*of(*other))))
