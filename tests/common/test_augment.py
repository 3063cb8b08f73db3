from __future__ import annotations

import pytest
import torch

from common.augment import augment
from common.errors import ConfigurationError, UnknownNameError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_variants(image: torch.Tensor, pad: int) -> list[torch.Tensor]:
    """Every shift of `image` (C, H, W), each as it is and mirrored."""
    _, height, width = image.shape
    variants = []
    for picture in (image, image.flip(-1)):
        padded = torch.nn.functional.pad(picture, (pad, pad, pad, pad))
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                variants.append(padded[:, top : top + height, left : left + width])
    return variants


def test_each_image_is_a_shift_of_itself_and_mirrored_about_half_the_time() -> None:
    image = torch.randint(1, 256, (3, 16, 16), generator=seeded(1), dtype=torch.uint8)
    variants = all_variants(image, 2)
    (moved,) = augment((image.expand(200, 3, 16, 16),), "crop-flip", seeded())
    found = [next(i for i, variant in enumerate(variants) if torch.equal(variant, picture)) for picture in moved]
    assert 60 < sum(i >= 25 for i in found) < 140
    assert len(set(found)) > 40


def test_crop_alone_mirrors_nothing() -> None:
    image = torch.randint(1, 256, (1, 8, 8), generator=seeded(1), dtype=torch.uint8)
    shifts = all_variants(image, 1)[:9]
    (moved,) = augment((image.expand(50, 1, 8, 8),), "crop", seeded())
    assert all(any(torch.equal(shift, picture) for shift in shifts) for picture in moved)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (4, 1, 28, 20), (4, 2, 4, 9), (1, 1, 1, 1)])
def test_shape_and_dtype_stay(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    (moved,) = augment((torch.ones(shape, dtype=dtype),), "crop-flip", seeded())
    assert moved.shape == shape
    assert moved.dtype == dtype


def test_the_same_seed_moves_images_the_same_way_in_every_memory_format() -> None:
    images = torch.rand(8, 3, 16, 16, generator=seeded(1))
    (plain,) = augment((images,), "crop-flip", seeded(7))
    (last,) = augment((images.contiguous(memory_format=torch.channels_last),), "crop-flip", seeded(7))
    assert torch.equal(plain, last)
    assert not torch.equal(plain, augment((images,), "crop-flip", seeded(8))[0])


def test_the_views_of_a_two_view_image_move_apart_and_other_inputs_not_at_all() -> None:
    images, table = torch.rand(20, 1, 16, 16, generator=seeded(1)), torch.arange(40.0).view(20, 2)
    first, second, same = augment((images, images, table), "crop", seeded())
    assert not torch.equal(first, second)
    assert same is table


def test_none_changes_nothing() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert augment((images,), "none", seeded())[0] is images


def test_augmenting_a_table_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is for images"):
        augment((torch.rand(4, 7),), "crop", seeded())


def test_an_unknown_augmentation_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        augment((torch.rand(1, 1, 8, 8),), "crop-flips", seeded())  # type: ignore[arg-type]
    assert "did you mean crop-flip?" in caught.value.hint
