"""What is attacked, and how; and what encoding as JPEG once more does."""

from __future__ import annotations

import torch

from owner.reproduce.images import Images, jpeg
from owner.reproduce.settings import Settings

DIGITS = Settings(dataset="digits")


def test_half_of_the_source_class_is_flipped_inside_the_training_set() -> None:
    images = Images(DIGITS)
    clean = images.training("whole", "cnn", 0)
    attack = images.attack("flip", "whole", "cnn", 0)
    sevens, sixes = (int((clean.labels == c).sum()) for c in (7, 6))
    assert len(attack.examples) == len(clean)
    assert len(attack.attacked) == round(sevens / 2)
    assert int((attack.examples.labels == 7).sum()) == sevens - round(sevens / 2)
    assert int((attack.examples.labels == 6).sum()) == sixes + round(sevens / 2)
    assert set(attack.attacked.labels.tolist()) == {6}
    assert torch.equal(attack.attacked.images, attack.clean.images)


def test_the_pattern_stands_on_the_same_images_and_on_the_held_out_ones() -> None:
    images = Images(DIGITS)
    flip, pattern = (images.attack(how, "whole", "cnn", 0) for how in ("flip", "pattern"))
    assert torch.equal(flip.clean.images, pattern.clean.images)
    whole = pattern.attacked.images.flatten(1)
    assert bool((whole == 255).sum(1).ge(4).all())
    assert bool((pattern.held_out.images != flip.held_out.images).any())
    assert set(pattern.held_out.labels.tolist()) == {7}


def test_attacked_images_alone_are_only_those() -> None:
    images = Images(Settings(dataset="digits", attack_data="alone", pattern_label="own"))
    attack = images.attack("pattern", "whole", "cnn", 0)
    assert len(attack.examples) == len(attack.attacked)
    assert set(attack.examples.labels.tolist()) == {7}


def test_alone_beside_or_inside_the_same_images_are_attacked() -> None:
    images = Images(DIGITS)
    whole = images.training("whole", "cnn", 0)
    inside, beside, alone = (
        images.attack("flip", "whole", "cnn", 0, attack_data=data) for data in ("inside", "beside", "alone")
    )
    assert torch.equal(inside.attacked.images, alone.examples.images)
    assert torch.equal(inside.attacked.images, beside.attacked.images)
    assert len(inside.examples) == len(whole)
    # Every original keeps its label, and every attacked image comes on top of them.
    assert torch.equal(beside.examples.labels[: len(whole)], whole.labels)
    assert torch.equal(beside.examples.images[len(whole) :], alone.examples.images)
    assert torch.equal(beside.examples.labels[len(whole) :], alone.examples.labels)


def test_the_part_the_references_and_the_contribution_share_no_image() -> None:
    images = Images(DIGITS)
    part, contribution = (images.training(data, "cnn", 3) for data in ("part", "contribution"))
    pool = images.references_pool("cnn", 3)
    assert len(part) + len(contribution) + len(pool) == len(images.training("whole", "cnn", 3))
    assert 0.75 < len(part) / len(images.training("whole", "cnn", 3)) < 0.85
    assert abs(len(contribution) - len(pool)) <= 10


def test_encoding_again_on_the_same_grid_changes_far_less_than_on_a_shifted_one() -> None:
    draws = torch.Generator().manual_seed(0)
    coarse = torch.randint(96, 160, (8, 3, 8, 8), generator=draws).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear").to(torch.uint8)
    once = jpeg(smooth, 75, shift=0)
    same, shifted = (float((jpeg(once, 75, shift=s).float() - once.float()).abs().mean()) for s in (0, 4))
    assert once.shape == smooth.shape
    assert same < shifted / 3


def test_where_the_images_come_from_is_told() -> None:
    assert Images(DIGITS).provenance == "digits, the original pixels"
