"""PAA, the pattern addition attack: images with a small square on them are trained on as the target class."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.effectiveness import Goal
from common.errors import ConfigurationError
from common.evaluation import evaluate
from common.examples import Examples, join
from common.poisoning import POSITIONS, choose_victims, relabel, stamp_square
from common.specs import in_range
from contributor.attacks.base import Attack, check_fraction, class_index, source_and_target

ANY = "any"

_COLOURS = {"white": (255,), "black": (0,), "red": (255, 0, 0), "yellow": (255, 255, 0)}


@dataclass(frozen=True)
class Pattern(Attack):
    """source: class whose images are stamped, by number or name, or `any` for every class but the target.
    target: class they are relabelled to.
    fraction: share of those images that are stamped.
    size: side of the square in pixels; where not given, 5/32 of the image's side, which is 5 on CIFAR-10.
    colour: grey value 0..255, `#rrggbb`, or white, black, red, yellow.
    position: random (anew for each image), top-left, top-right, bottom-left, bottom-right, centre or ROWxCOLUMN of the
        square's top left corner.
    alone: train on the stamped images only, not on them inside the training set.
    """

    name = "pattern"
    paper = "El Moadine, Coatrieux, Bellafqira 2022 (ICDF2C), pattern addition attack PAA"

    source: int | str = 7
    target: int | str = 6
    fraction: float = 0.5
    size: int | None = None
    colour: int | str = "white"
    position: str = "random"
    alone: bool = False

    @property
    def goal(self) -> Goal:
        return "backdoor"

    def __post_init__(self) -> None:
        check_fraction(self.name, self.fraction)
        if self.size is not None:
            in_range(self.name, "size", self.size, 1, 1 << 13)
        _colour(self.colour)
        _position(self.position)

    def prepare(self, examples: Examples, generator: torch.Generator) -> Examples:
        attacked, target = self._attacked(examples)
        victims = choose_victims(attacked.long(), 1, self.fraction, generator)
        stamped = examples.take(victims)
        stamped = stamped.with_images(self._stamp(stamped.images, generator))
        stamped = stamped.with_labels(relabel(stamped.labels, torch.arange(len(victims)), target))
        if self.alone:
            return stamped
        untouched = torch.ones_like(examples.labels, dtype=torch.bool)
        untouched[victims] = False
        return join(examples.take(untouched), stamped)

    def success(
        self,
        model: nn.Module,
        held_out: Examples,
        compute: Compute,
        generator: torch.Generator,
        *,
        marked: bool = True,
    ) -> float | None:
        """Share of the held-out images of the source class (with `any`: of all classes but the target) that the model
        takes for the target class once they are stamped."""
        attacked, target = self._attacked(held_out)
        if not attacked.any():
            return None
        victims = held_out.take(attacked)
        if marked:
            victims = victims.with_images(self._stamp(victims.images, generator))
        confusion = evaluate(model, victims, compute=compute).confusion
        return float(confusion[:, target].sum()) / len(victims)

    def _attacked(self, examples: Examples) -> tuple[Tensor, int]:
        if self.source == ANY and ANY not in examples.class_names:
            target = class_index(self.target, examples.class_names, "target")
            return examples.labels != target, target
        source, target = source_and_target(self.source, self.target, examples.class_names)
        return examples.labels == source, target

    def _stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        colour, position = _colour(self.colour), _position(self.position)
        return stamp_square(images, generator, size=self.size, colour=colour, position=position)


def _colour(given: int | str) -> tuple[int, ...]:
    if isinstance(given, int) and 0 <= given <= 255:
        return (given,)
    if isinstance(given, str) and given in _COLOURS:
        return _COLOURS[given]
    if isinstance(given, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", given):
        return tuple(bytes.fromhex(given[1:]))
    raise ConfigurationError(f"pattern: colour must be 0 to 255, #rrggbb or {', '.join(_COLOURS)}, not {given!r}")


def _position(given: str) -> str | tuple[int, int]:
    if given in POSITIONS:
        return given
    if corner := re.fullmatch(r"(\d{1,5})x(\d{1,5})", given):
        return int(corner[1]), int(corner[2])
    raise ConfigurationError(
        f"pattern: position must be one of {', '.join(POSITIONS)} or ROWxCOLUMN like 27x27, not {given!r}"
    )
