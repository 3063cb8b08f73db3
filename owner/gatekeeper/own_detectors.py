"""Detectors that somebody else wrote, held to the protocol: a mistake in one is told by its name, where it is made."""

from __future__ import annotations

from typing import Any

from common.errors import ConfigurationError, GuardError
from owner.detectors import Detector, Evidence, measures_of

_PROTOCOL = ("name", "fit", "score", "explain", "state", "from_state")


def check_protocol(detector: object) -> None:
    """Raises ConfigurationError for what is no detector, naming what it lacks."""
    if isinstance(detector, type):
        raise ConfigurationError(
            f"{detector.__name__} is a class, and a guard takes detectors", hint=f"write {detector.__name__}()"
        )
    lacking = [what for what in _PROTOCOL if not hasattr(detector, what)]
    if lacking:
        raise ConfigurationError(
            f"{type(detector).__name__} is no detector: it lacks {', '.join(lacking)}",
            hint="the protocol is owner.detectors.Detector; one that learns nothing derives from owner.detectors.ReleaseComparison, "
            "which has most of it",
        )


def fitted(detector: Detector, release: Evidence) -> Detector:
    """The detector, when it has learnt from `release`. Raises GuardError where its `fit` does not return it, and what `fit` does."""
    found = detector.fit(release)
    if not isinstance(found, type(detector)):
        raise GuardError(
            f"`fit` of the detector {detector.name} gives a {type(found).__name__} and not the detector itself",
            hint="end it with `return self`",
        )
    return found


def measured(detector: Detector, evidence: Evidence) -> dict[str, float]:
    """`measures_of`, as floats: a number of numpy or torch is one too, but has no JSON. Raises GuardError for what is no number."""
    return {name: _number(name, value) for name, value in measures_of(detector, evidence).items()}


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(value, "shape", None)
        what = type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
        raise GuardError(
            f"the detector {name} gives a {what} and not one number", hint="return a float, higher is worse"
        ) from None
