"""What it takes to build a model, as plain values: it travels in manifests, so it is read without loading torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from common.errors import ModelError, UnknownNameError

ARCHITECTURES: Final = (
    "badnet-cnn",
    "cnn",
    "gru",
    "linear-svm",
    "logistic",
    "mlp",
    "resnet152",
    "resnet18",
    "vgg19",
    "wrn-28-10",
)
"""The names that `common.models.build` knows."""

_MAX_INPUT_ELEMENTS = 1 << 26
_MAX_CLASSES = 1 << 20


@dataclass(frozen=True)
class ModelSpec:
    """What it takes to build a model: everything but its weights.

    architecture: a name out of `architectures()`, or `package.module:factory`.
    input_shape: of one example, without N: (channels, height, width) for images.
    classes: length of the output.
    head: dotted name of the classification head, where it is not the last nn.Linear of the forward pass.

    Raises ModelError for a shape or class count out of range, UnknownNameError for an unknown architecture.

    >>> ModelSpec("cnn", (3, 32, 32), 10).to_json()
    {'architecture': 'cnn', 'input_shape': [3, 32, 32], 'classes': 10, 'head': None}
    """

    architecture: str
    input_shape: tuple[int, ...]
    classes: int
    head: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.architecture, str):
            raise ModelError(f"architecture must be a name, not {self.architecture!r}")
        if not self.is_factory and self.architecture not in ARCHITECTURES:
            raise UnknownNameError("model", self.architecture, ARCHITECTURES)
        if any(not _whole(side) or side < 1 for side in self.input_shape):
            raise ModelError(f"input_shape must hold whole numbers from 1, not {self.input_shape!r}")
        if math.prod(self.input_shape) > _MAX_INPUT_ELEMENTS:
            raise ModelError(f"input_shape {self.input_shape} holds more than {_MAX_INPUT_ELEMENTS:,} numbers")
        if not _whole(self.classes) or not 2 <= self.classes <= _MAX_CLASSES:
            raise ModelError(f"classes must be a whole number from 2 to {_MAX_CLASSES:,}, not {self.classes!r}")
        if self.head is not None and not isinstance(self.head, str):
            raise ModelError(f"head must be the name of a module, not {self.head!r}")

    @property
    def is_factory(self) -> bool:
        """Whether building runs code named by `architecture`: never build such a spec that came over the wire, unless the
        local configuration names the same factory."""
        return ":" in self.architecture

    def to_json(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "input_shape": list(self.input_shape),
            "classes": self.classes,
            "head": self.head,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Raises ModelError for a missing, extra or mistyped field, UnknownNameError for an unknown architecture."""
        expected = {"architecture", "input_shape", "classes", "head"}
        if set(data) - expected or {"architecture", "input_shape", "classes"} - set(data):
            raise ModelError(f"a model is described by {', '.join(sorted(expected))}, not {', '.join(sorted(data))}")
        shape = data["input_shape"]
        if not isinstance(shape, (list, tuple)):
            raise ModelError(f"input_shape must be a list, not {shape!r}")
        return cls(data["architecture"], tuple(shape), data["classes"], data.get("head"))


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
