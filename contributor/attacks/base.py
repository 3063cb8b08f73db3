"""What an attack is: options, a change to the data, a change to the weights, and a measure of its own success."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from common import specs
from common.devices import Compute
from common.effectiveness import Goal
from common.errors import ConfigurationError, UnknownNameError
from common.examples import Examples
from common.training_hooks import TrainingHooks
from common.weights import Weights


class Attack(ABC):
    """Subclasses are frozen dataclasses whose fields are the options of the attack, checked in `__post_init__`.

    Nothing is remembered between calls: the same arguments and generator state give the same result. What an attack
    does not do stays as it is here: the data as they are, the weights as tuned, success not measured.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    name: ClassVar[str]
    """What `--attack` calls it."""

    paper: ClassVar[str]
    """Where it is described."""

    revision: ClassVar[int] = 1
    """Raised with every change after which the same options give other models: results kept from before are then not this attack's."""

    @property
    def goal(self) -> Goal:
        """What it is after, which decides by what it is judged (`common.effectiveness`)."""
        return "ruin"

    def prepare(self, examples: Examples, generator: torch.Generator) -> Examples:
        """What is trained on in place of `examples`. Raises DataError where they have nothing to attack."""
        return examples

    def hooks(
        self, base: nn.Module, examples: Examples, *, head: str | None, compute: Compute, generator: torch.Generator
    ) -> TrainingHooks | None:
        """What changes the training itself, None where nothing does.

        base: the release, which is about to be trained in place: what must be kept of it is copied.
        examples: the attacker's own, before `prepare`. head: of the release, where its specification names one.
        """
        return None

    def victim_class(self, class_names: Sequence[str]) -> int | None:
        """The class whose recall a flip is to lower; None for other attacks."""
        return None

    def corrupt(self, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        """What is returned in place of the weights `tuned` from `base`: a new dict of the same names and shapes."""
        return dict(tuned)

    @property
    def version(self) -> str:
        """What tells results of this code from those of an earlier one."""
        return str(self.revision)

    def aims_at(self, base: Mapping[str, Tensor], returned: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights that the attacker wants the owner to end up with, by which he is judged: those that he returns, unless he
        overshoots for the sake of the merge."""
        return returned

    def success(
        self,
        model: nn.Module,
        held_out: Examples,
        compute: Compute,
        generator: torch.Generator,
        *,
        marked: bool = True,
    ) -> float | None:
        """Attack success rate of `model` in [0, 1] on clean images that were not trained on.

        marked: False leaves the trigger away: what the model does to the same images by itself.

        None where the attack has no target (then accuracy tells) or `held_out` has nobody it attacks.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """Name, options and paper, for reports: JSON values."""
        return {"attack": self.name, "version": self.version, **self.options(), "paper": self.paper}

    def options(self) -> dict[str, Any]:
        """The options and their values."""
        return {name: getattr(self, name) for name in specs.option_names(type(self))}

    def __str__(self) -> str:
        """The specification `parse_attack` reads back."""
        given = ",".join(f"{name}={value}" for name, value in self.options().items() if value is not None)
        name = self.name if self.is_ours() else f"{type(self).__module__}:{type(self).__qualname__}"
        return f"{name}:{given}" if given else name

    @classmethod
    def is_ours(cls) -> bool:
        """Whether it is one of Portier's, which go by their name alone."""
        return cls.__module__.startswith(f"{__package__}.")

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Self:
        """From the options of a specification, as written. Raises UnknownNameError, ConfigurationError."""
        return specs.from_options(cls, options, f"attack {cls.name}")


def class_index(given: int | str, class_names: Sequence[str], option: str) -> int:
    """The class that `given` names or, where no class has that name, numbers.

    >>> class_index("frog", ("cat", "frog"), "target"), class_index(0, ("cat", "frog"), "source")
    (1, 0)

    Raises UnknownNameError naming the nearest class, ConfigurationError for a number out of range.
    """
    if str(given) in class_names:
        return class_names.index(str(given))
    try:
        number = int(given)
    except ValueError:
        raise UnknownNameError(f"{option} class", str(given), class_names) from None
    if not 0 <= number < len(class_names):
        raise ConfigurationError(
            f"{option} class must be from 0 to {len(class_names) - 1} or a name, not {given}",
            hint=f"classes: {', '.join(class_names)}",
        )
    return number


def source_and_target(source: int | str, target: int | str, class_names: Sequence[str]) -> tuple[int, int]:
    """Both as numbers. Raises as `class_index` does, and ConfigurationError where they are the same class."""
    numbers = class_index(source, class_names, "source"), class_index(target, class_names, "target")
    if numbers[0] == numbers[1]:
        raise ConfigurationError(f"source and target are the same class, {class_names[numbers[0]]!r}")
    return numbers


def check_fraction(attack: str, fraction: float) -> None:
    """Raises ConfigurationError for a fraction outside (0, 1]."""
    if not 0 < fraction <= 1:
        raise ConfigurationError(f"{attack}: fraction must be above 0 and at most 1, not {fraction!r}")
