"""The three parts of a trigger set."""

from __future__ import annotations

import pytest
import torch

from common.errors import GuardError
from common.examples import Examples
from owner.gatekeeper import Triggers
from owner.gatekeeper.triggers import split_triggers


def numbered(n: int, classes: int = 4) -> Examples:
    """Examples whose one pixel is their own number."""
    pixels = torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1)
    return Examples((pixels,), torch.arange(n) % classes, tuple(f"class {c}" for c in range(classes)))


def test_a_split_is_disjoint_and_complete() -> None:
    split = split_triggers(numbered(400), seed=0)
    seen = torch.cat([part.images.flatten() for part in split.parts.values()])
    assert seen.sort().values.tolist() == list(range(400))


def test_a_split_keeps_each_class_in_proportion() -> None:
    split = split_triggers(numbered(400), seed=0)
    assert {name: torch.bincount(part.labels).tolist() for name, part in split.parts.items()} == {
        "fit": [30] * 4,
        "calibration": [30] * 4,
        "evaluation": [40] * 4,
    }


def test_the_seed_decides_the_split() -> None:
    one, again, other = (split_triggers(numbered(400), seed=s) for s in (1, 1, 2))
    assert torch.equal(one.fit.images, again.fit.images)
    assert not torch.equal(one.fit.images, other.fit.images)


def test_too_few_images_are_refused_by_number() -> None:
    with pytest.raises(GuardError, match="fit part of the trigger set holds 28 images, at least 32"):
        split_triggers(numbered(96), seed=0)


def test_a_single_class_is_refused() -> None:
    only = numbered(400).take(torch.arange(0, 400, 4))
    with pytest.raises(GuardError, match="one class only"):
        Triggers(only, only, only)


def test_a_class_that_is_missing_from_the_calibration_part_is_named() -> None:
    whole = numbered(400)
    without = whole.take(whole.labels != 2)
    with pytest.raises(GuardError, match="calibration part of the trigger set holds no image of class 2"):
        Triggers(whole, without, whole)


def test_parts_of_other_classes_or_shapes_are_refused() -> None:
    whole = numbered(400)
    with pytest.raises(GuardError, match="evaluation triggers have other classes"):
        Triggers(whole, whole, numbered(400, classes=5))
    with pytest.raises(GuardError, match="calibration triggers have inputs of another shape"):
        Triggers(whole, whole.with_images(torch.zeros(400, 1, 2, 2)), whole)
