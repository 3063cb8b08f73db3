"""A contributor's classes are matched by name and never guessed; its images are brought to the release's size and colour."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from common.datasets import load
from common.errors import DataError, UnknownNameError
from common.examples import Examples
from common.model_spec import ModelSpec
from contributor.matching import decoded_size, fit_to_model, inventory

ANIMALS = ("cat", "dog", "frog")
NUMBERS = ("0", "1", "2")
THREE = ModelSpec("mlp", (1, 8, 8), 3)


def examples(names: tuple[str, ...], labels: list[int]) -> Examples:
    return Examples((torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8),), torch.tensor(labels), names)


def images(seed: int, count: int, *shape: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Examples((pixels,), torch.arange(count) % 3, ANIMALS)


def test_classes_in_another_order_are_renumbered() -> None:
    fitted = fit_to_model(examples(("frog", "cat", "dog"), [0, 1, 2, 0]), THREE, ANIMALS)
    assert fitted.class_names == ANIMALS
    assert fitted.labels.tolist() == [2, 0, 1, 2]


def test_a_contributor_may_have_some_of_the_classes() -> None:
    assert fit_to_model(examples(("frog",), [0, 0]), THREE, ANIMALS).labels.tolist() == [2, 2]


def test_numbers_are_names_like_any_other() -> None:
    """Folders 1 and 2 without a folder 0: their positions are not their numbers."""
    fitted = fit_to_model(examples(("1", "2"), [0, 1, 1]), THREE, NUMBERS)
    assert fitted.labels.tolist() == [1, 2, 2]
    assert fitted.class_names == NUMBERS


@pytest.mark.parametrize(
    ("names", "model_names"),
    [(NUMBERS, ANIMALS), (ANIMALS, NUMBERS), (("0", "1"), ANIMALS), (("one", "two", "zero"), NUMBERS)],
)
def test_names_and_numbers_are_not_taken_for_each_other(names: tuple[str, ...], model_names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="classes that the release does not have") as caught:
        fit_to_model(examples(names, [1, 0]), THREE, model_names)
    said = caught.value.diagnostics()
    assert ", ".join(names) in said
    assert ", ".join(model_names) in said
    assert f"--classes '{names[0]}=CLASS,...'" in said


def test_classes_called_otherwise_are_the_ones_the_contributor_says() -> None:
    own = examples(("one", "two", "zero"), [0, 1, 2, 2])
    fitted = fit_to_model(own, THREE, NUMBERS, {"zero": "0", "one": "1", "two": "2"})
    assert fitted.labels.tolist() == [1, 2, 0, 0]
    assert inventory(own, fitted) == ["4 images in all 3 classes: zero as 0 (2), one as 1 (1), two as 2 (1)"]


def test_two_of_ones_own_classes_may_be_one_of_the_releases() -> None:
    fitted = fit_to_model(
        examples(("dog", "kitten", "tom"), [0, 1, 2]), THREE, ANIMALS, {"kitten": "cat", "tom": "cat"}
    )
    assert fitted.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("classes", "said"), [({"dig": "dog"}, "did you mean dog?"), ({"dog": "frg"}, "did you mean frog?")]
)
def test_a_class_that_is_not_there_gets_the_nearest_one(classes: dict[str, str], said: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        fit_to_model(examples(("cat", "dog"), [0]), THREE, ANIMALS, classes)
    assert said in caught.value.hint


def test_a_release_without_names_takes_labels_as_they_are() -> None:
    fitted = fit_to_model(examples(ANIMALS, [1, 0]), THREE)
    assert (fitted.labels.tolist(), fitted.class_names) == ([1, 0], NUMBERS)
    with pytest.raises(DataError, match="the data have 4 classes, the model has 3"):
        fit_to_model(examples(("0", "1", "2", "3"), [0]), THREE)


def test_a_class_the_release_lacks_is_named() -> None:
    with pytest.raises(DataError, match="the release does not have: wolf") as caught:
        fit_to_model(examples(("cat", "wolf"), [0, 1]), THREE, ANIMALS)
    assert "cat, dog, frog" in caught.value.hint


def test_what_is_trained_on_is_counted_and_what_is_missing_named() -> None:
    own = examples(("frog", "cat"), [0, 1, 0])
    assert inventory(own, fit_to_model(own, THREE, ANIMALS)) == [
        "3 images in 2 of the release's 3 classes: cat (1), frog (2)",
        "the release has classes of which you have no images: dog",
    ]


@pytest.mark.parametrize("side", [5, 13, 28])
def test_images_of_another_size_are_resized_as_pillow_would(side: int) -> None:
    own = images(1, 300, 3, 13, side)
    fitted = fit_to_model(own, ModelSpec("cnn", (3, 8, 8), 3), ANIMALS)
    picture = Image.fromarray(own.images[299].permute(1, 2, 0).numpy())
    expected = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(fitted.images[299].permute(1, 2, 0).numpy() - expected).max() <= 1
    assert fitted.images.dtype == torch.uint8


def test_colour_images_become_grey_as_pillow_would_and_grey_ones_rgb() -> None:
    own = images(2, 4, 3, 8, 8)
    grey = fit_to_model(own, THREE, ANIMALS)
    expected = np.asarray(Image.fromarray(own.images[3].permute(1, 2, 0).numpy()).convert("L"))
    assert np.array_equal(grey.images[3, 0].numpy(), expected)
    back = fit_to_model(grey, ModelSpec("cnn", (3, 8, 8), 3), ANIMALS)
    assert all(torch.equal(back.images[:, channel], grey.images[:, 0]) for channel in range(3))


@pytest.mark.parametrize(
    ("shape", "sizes", "line"),
    [
        ((1, 28, 28), None, "1,200 images of 28x28 brought to 8x8"),
        ((3, 20, 28), None, "1,200 images of 28x20 in colour brought to 8x8 in grey"),
        ((3, 8, 8), None, "1,200 images in colour brought to grey"),
        ((1, 8, 8), {(9, 9): 2, (40, 30): 5}, "1,200 images of 2 sizes, from 9x9 to 40x30, brought to 8x8"),
    ],
)
def test_what_was_done_to_images_is_told(
    shape: tuple[int, ...], sizes: dict[tuple[int, int], int] | None, line: str
) -> None:
    own = images(3, 1200, *shape)
    fitted = fit_to_model(own, THREE, ANIMALS)
    assert inventory(own, fitted, Counter(sizes) if sizes else None)[1:] == [line]


def test_nothing_is_told_of_images_that_fit() -> None:
    own = load("digits").train
    fitted = fit_to_model(own, ModelSpec("cnn", (1, 8, 8), 10), own.class_names)
    assert inventory(own, fitted)[0].startswith("1,350 images in all 10 classes: 0 (")
    assert len(inventory(own, fitted)) == 1


@pytest.mark.parametrize(
    "inputs", [torch.zeros(4, 3, 32, 32), torch.zeros(4, 2, 32, 32, dtype=torch.uint8), torch.zeros(4, 60)]
)
def test_what_is_no_image_is_refused(inputs: torch.Tensor) -> None:
    own = Examples((inputs,), torch.zeros(4, dtype=torch.int64), ANIMALS)
    with pytest.raises(DataError, match="the model takes 1x8x8"):
        fit_to_model(own, THREE, ANIMALS)


def test_images_are_decoded_at_their_own_size_where_that_is_the_models() -> None:
    assert decoded_size(Counter({(8, 8): 5}), THREE) is None
    assert decoded_size(None, THREE) is None
    assert decoded_size(Counter({(8, 8): 5, (9, 8): 1}), ModelSpec("cnn", (3, 6, 8), 3)) == (6, 8)
    with pytest.raises(DataError, match="the model takes inputs of shape 60"):
        decoded_size(Counter({(8, 8): 5}), ModelSpec("mlp", (60,), 3))
