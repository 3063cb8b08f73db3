"""FA, the flipping attack: part of one class is trained on under the label of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from common.devices import Compute
from common.effectiveness import Goal
from common.evaluation import evaluate
from common.examples import Examples
from common.poisoning import choose_victims, relabel
from contributor.attacks.base import Attack, check_fraction, source_and_target


@dataclass(frozen=True)
class Flip(Attack):
    """source, target: classes by number or name; horse -> frog of CIFAR-10 by default, the paper's Fig. 2.
    fraction: share of the source class's images that are relabelled.
    alone: train on the relabelled images only, not on them inside the training set. The paper says both.
    """

    name = "flip"
    paper = "El Moadine, Coatrieux, Bellafqira 2022 (ICDF2C), flipping attack FA"

    source: int | str = 7
    target: int | str = 6
    fraction: float = 0.5
    alone: bool = False

    @property
    def goal(self) -> Goal:
        return "flip"

    def __post_init__(self) -> None:
        check_fraction(self.name, self.fraction)

    def prepare(self, examples: Examples, generator: torch.Generator) -> Examples:
        source, target = source_and_target(self.source, self.target, examples.class_names)
        victims = choose_victims(examples.labels, source, self.fraction, generator)
        flipped = examples.with_labels(relabel(examples.labels, victims, target))
        return flipped.take(victims) if self.alone else flipped

    def victim_class(self, class_names: Sequence[str]) -> int:
        return source_and_target(self.source, self.target, class_names)[0]

    def success(
        self,
        model: nn.Module,
        held_out: Examples,
        compute: Compute,
        generator: torch.Generator,
        *,
        marked: bool = True,
    ) -> float | None:
        """Share of the held-out images of the source class that the model takes for the target class; there is no mark."""
        source, target = source_and_target(self.source, self.target, held_out.class_names)
        of_source = held_out.take(held_out.labels == source)
        if not len(of_source):
            return None
        confusion = evaluate(model, of_source, compute=compute).confusion
        return float(confusion[source, target]) / len(of_source)
