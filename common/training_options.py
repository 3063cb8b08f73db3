"""How a model is trained: the options an owner recommends, a contributor declares, and the training loop obeys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from common.errors import ConfigurationError, UnknownNameError

Optimiser = Literal["sgd", "adam", "adamw"]
Schedule = Literal["one-cycle", "constant"]
Augmentation = Literal["none", "crop", "crop-flip"]


@dataclass(frozen=True)
class TrainingOptions:
    """epochs: passes over the data.
    learning_rate: peak of the one-cycle schedule, or the constant rate.
    batch_size: examples a step.
    optimiser: sgd (Nesterov momentum), adam or adamw.
    momentum, weight_decay: of the optimiser; momentum is for sgd alone.
    schedule: one-cycle or constant.
    label_smoothing: mass taken from the true class, in [0, 1); of cross-entropy alone.
    augmentation: none, crop (shift by up to an eighth of the side) or crop-flip.
    frozen_layers: so many first layers with parameters are not trained.
    reinitialise_head: start the classification head anew, in the same shape.
    seed: of data order, augmentation and the new head.

    Raises ConfigurationError for a value out of range and UnknownNameError for a name that is not one of those above.
    """

    epochs: int = 20
    learning_rate: float = 0.05
    batch_size: int = 128
    optimiser: Optimiser = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "one-cycle"
    label_smoothing: float = 0.0
    augmentation: Augmentation = "none"
    frozen_layers: int = 0
    reinitialise_head: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("optimiser", Optimiser), ("schedule", Schedule), ("augmentation", Augmentation)):
            if getattr(self, name) not in get_args(kind):
                raise UnknownNameError(name, str(getattr(self, name)), get_args(kind))
        for name, low, high in _RANGES:
            value = getattr(self, name)
            whole = isinstance(low, int)
            kinds = (int,) if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                sort = "a whole number" if whole else "a number"
                raise ConfigurationError(f"{name} must be {sort} from {low:g} to {high:g}, not {value!r}")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingOptions:
        """Raises UnknownNameError for a field that does not exist, ConfigurationError for a value out of range."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in data:
            if name not in known:
                raise UnknownNameError("training option", str(name), known)
        return cls(**data)


_RANGES = (
    ("epochs", 0, 100_000),
    ("learning_rate", 0.0, 1e3),
    ("batch_size", 1, 1 << 20),
    ("momentum", 0.0, 1.0),
    ("weight_decay", 0.0, 1e3),
    ("label_smoothing", 0.0, 0.999),
    ("frozen_layers", 0, 100_000),
    ("seed", 0, (1 << 63) - 1),
)
