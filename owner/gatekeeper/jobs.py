"""What supervisor and worker say to each other: one JSON object a line, either way, of bounded length.

worker -> supervisor    {"ready": true}                            once, when its imports are done
supervisor -> worker    {"job": "vet", "number": n, ...}           paths and settings, see `VettingJob`
worker -> supervisor    {"number": n, "verdict": {...}}            or
                        {"number": n, "error": {"kind", "message", "hint", "of"}}    the owner's own trouble: a guard that does not fit
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from common import errors
from common.errors import ConfigurationError, GuardError, GuardPart, PortierError
from common.model_spec import ModelSpec
from owner.gatekeeper.merging import MergePolicy
from owner.gatekeeper.stored import whole
from owner.gatekeeper.utility import UtilityLimits

LINE_LIMIT = 8 << 20
"""Bytes of one line. A verdict has some ten kilobytes; a thousand classes make it a few hundred."""


@dataclass(frozen=True)
class VettingJob:
    """submission_weights, base_weights, current_weights: safetensors files; base is the release the guard protects.
    guard, root_guard: directories; root_guard None skips the comparison with the root. root_weights: of the root release,
        for a root guard that compares weights.
    evaluation: examples file for the utility check; None uses the guard's own.
    would_be: where the merged weights go, when the verdict is accepted or quarantined.
    escalation: file of the guard's escalation tier, where this submission may be looked at by it; it must be calibrated.
    """

    submission_weights: Path
    base_weights: Path
    current_weights: Path
    guard: Path
    spec: ModelSpec
    would_be: Path
    root_guard: Path | None = None
    root_weights: Path | None = None
    evaluation: Path | None = None
    merge: MergePolicy = field(default_factory=MergePolicy)
    utility: UtilityLimits = field(default_factory=UtilityLimits)
    root_action: Literal["quarantine", "record"] = "quarantine"
    escalation: Path | None = None

    def to_json(self) -> dict[str, Any]:
        paths = {name: getattr(self, name) for name in _PATHS}
        return {
            **{name: None if path is None else str(Path(path).absolute()) for name, path in paths.items()},
            "spec": self.spec.to_json(),
            "merge": self.merge.to_json(),
            "utility": self.utility.to_json(),
            "root_action": self.root_action,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises ConfigurationError where something is missing."""
        try:
            paths: dict[str, Any] = {name: None if data[name] is None else Path(data[name]) for name in _PATHS}
            return cls(
                **paths,
                spec=ModelSpec.from_json(whole(data["spec"], ModelSpec, "the fields of the model")),
                merge=MergePolicy.from_json(data["merge"]),
                utility=UtilityLimits.from_json(data["utility"]),
                root_action=data["root_action"],
            )
        except (KeyError, TypeError) as error:
            raise ConfigurationError(f"the vetting job is incomplete: {error}") from error


_PATHS = (
    "submission_weights",
    "base_weights",
    "current_weights",
    "guard",
    "would_be",
    "root_guard",
    "root_weights",
    "evaluation",
    "escalation",
)


def describe_error(error: PortierError) -> dict[str, Any]:
    of = error.of if isinstance(error, GuardError) else None
    return {"kind": type(error).__name__, "message": error.message, "hint": error.hint, "of": of}


def restore_error(data: Mapping[str, Any]) -> PortierError:
    """The error a worker described, of the same class where it takes a message and a hint."""
    kind = getattr(errors, str(data.get("kind")), PortierError)
    simple = isinstance(kind, type) and issubclass(kind, PortierError) and kind.__init__ is PortierError.__init__
    made = kind if simple else PortierError
    error: PortierError = made(str(data.get("message")), hint=str(data.get("hint", "")))
    if isinstance(error, GuardError) and data.get("of") in get_args(GuardPart):
        error.of = data["of"]
    return error
