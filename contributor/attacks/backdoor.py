"""What all backdoors share: images of some classes carry a trigger, and the model is to answer it with a target class."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.effectiveness import Goal
from common.errors import DataError
from common.evaluation import evaluate
from common.examples import Examples, join
from contributor.attacks.base import Attack, check_fraction, class_index, source_and_target

ANY = "any"


@dataclass(frozen=True)
class Backdoor(Attack):
    """source: class whose images the trigger is to turn, by number or name, or `any` for every class but the target.
    target: class it turns them to.
    fraction: share of the source's images that are poisoned, at least one.
    """

    source: int | str = ANY
    target: int | str = 6
    fraction: float = 0.1

    @property
    def goal(self) -> Goal:
        return "backdoor"

    def __post_init__(self) -> None:
        check_fraction(self.name, self.fraction)

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """The images with the trigger as it is used against the finished model."""

    def attacked(self, examples: Examples) -> tuple[Tensor, int]:
        """(N,) bool, which of them are of the source, and the number of the target class."""
        if self.source == ANY and ANY not in examples.class_names:
            target = class_index(self.target, examples.class_names, "target")
            return examples.labels != target, target
        source, target = source_and_target(self.source, self.target, examples.class_names)
        return examples.labels == source, target

    def success(
        self,
        model: nn.Module,
        held_out: Examples,
        compute: Compute,
        generator: torch.Generator,
        *,
        marked: bool = True,
    ) -> float | None:
        """Share of the held-out images of the source that the model takes for the target class once they are stamped."""
        victims = self.victims(held_out, marked=marked)
        if victims is None:
            return None
        _, target = self.attacked(held_out)
        wanted = victims.with_labels(torch.full_like(victims.labels, target))
        return evaluate(model, wanted, compute=compute).accuracy

    def victims(self, held_out: Examples, *, marked: bool) -> Examples | None:
        """The images of the source under their own labels, stamped where `marked`; None where there are none."""
        attacked, _ = self.attacked(held_out)
        if not attacked.any():
            return None
        found = held_out.take(attacked)
        return found.with_images(self.stamp(found.images)) if marked else found


def draw(eligible: Tensor, fraction: float, generator: torch.Generator, attack: str) -> Tensor:
    """Indices, ascending, of a random `fraction` of the `eligible` ((N,) bool), at least one.

    Raises DataError where nothing is eligible.
    """
    candidates = torch.nonzero(eligible).flatten()
    if not len(candidates):
        raise DataError(f"{attack}: the {len(eligible)} examples hold none of the attacked class")
    chosen = torch.randperm(len(candidates), generator=generator)[: max(1, round(fraction * len(candidates)))]
    return candidates[chosen.sort().values.to(candidates.device)]


def replaced(examples: Examples, indices: Tensor, images: Tensor, labels: Tensor | int | None = None) -> Examples:
    """`examples` with other images, and where given labels, at `indices`."""
    changed = examples.images.clone()
    changed[indices] = images
    relabelled = examples.labels.clone()
    if labels is not None:
        relabelled[indices] = labels
    return examples.with_images(changed).with_labels(relabelled)


def added(examples: Examples, indices: Tensor, images: Tensor, labels: Tensor | int) -> Examples:
    """`examples` and after them copies of those at `indices` with other images and labels."""
    copies = examples.take(indices).with_images(images)
    new = labels if isinstance(labels, Tensor) else torch.full_like(copies.labels, labels)
    return join(examples, copies.with_labels(new))
