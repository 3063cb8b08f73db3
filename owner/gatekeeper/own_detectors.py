"""Detectors that somebody else wrote, held to the protocol: a mistake in one is told by its name, where it is made."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError, GuardError, PortierError
from owner.detectors import Detector, Evidence, measures_of

_PROTOCOL = ("name", "fit", "score", "explain", "state", "from_state")


def is_ours(detector: Detector) -> bool:
    """Whether it is one of Portier's."""
    return type(detector).__module__.startswith("owner.detectors.")


def own_code(detectors: Mapping[str, Detector]) -> dict[str, str]:
    """SHA-256 (hex) of the module of each that is not Portier's, by name, as it is at the first call: what it scored compares only
    with what the same code scores. "" for one that was typed in: of that nobody knows when it changes."""
    return {name: _source_digest(type(detector)) for name, detector in detectors.items() if not is_ours(detector)}


@functools.cache
def _source_digest(kind: type[Detector]) -> str:
    try:
        path = inspect.getsourcefile(kind)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
    except (TypeError, OSError):
        return ""


def check_protocol(detector: object) -> None:
    """Raises ConfigurationError for what is no detector, naming what it lacks."""
    if isinstance(detector, type):
        raise ConfigurationError(
            f"{detector.__name__} is a class, and a guard takes detectors", hint=f"write {detector.__name__}()"
        )
    _check_parts(detector, type(detector).__name__)


def check_class(kind: type) -> None:
    """Raises ConfigurationError for the class of what is no detector, naming what it lacks."""
    _check_parts(kind, kind.__name__)


def made(kind: type[Detector]) -> Detector:
    """An unfitted one with its defaults, as settings and options name it. Raises ConfigurationError where it has none."""
    try:
        return kind()
    except TypeError as error:
        raise ConfigurationError(
            f"the detector {kind.name} cannot be made: {error}",
            hint=f"chosen by name it has its defaults: {kind.__name__}() must do",
        ) from error


def _check_parts(detector: object, name: str) -> None:
    lacking = [what for what in _PROTOCOL if not hasattr(detector, what)]
    if lacking:
        raise ConfigurationError(
            f"{name} is no detector: it lacks {', '.join(lacking)}",
            hint="the protocol is owner.detectors.Detector; one that learns nothing derives from owner.detectors.ReleaseComparison, "
            "which has most of it",
        )


def fitted(detector: Detector, release: Evidence) -> Detector:
    """The detector, when it has learnt from `release`. Raises GuardError where its `fit` does not return it, and what `fit` does."""
    with _named(detector):
        found = detector.fit(release)
    if not isinstance(found, type(detector)):
        raise GuardError(
            f"`fit` of the detector {detector.name} gives a {type(found).__name__} and not the detector itself",
            hint="end it with `return self`",
        )
    return found


def measured(detector: Detector, evidence: Evidence) -> dict[str, float]:
    """`measures_of`, as floats: a number of numpy or torch is one too, but has no JSON. Raises GuardError for what is no number."""
    with _named(detector):
        found = measures_of(detector, evidence)
    return {name: _number(name, value) for name, value in found.items()}


@contextmanager
def _named(detector: Detector) -> Iterator[None]:
    """What somebody else's detector raises stays what it is, and says whose it is."""
    try:
        yield
    except PortierError:
        raise
    except Exception as error:
        if not is_ours(detector):
            error.add_note(f"raised by the detector {detector.name} ({type(detector).__module__})")
        raise


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(value, "shape", None)
        what = type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
        raise GuardError(
            f"the detector {name} gives a {what} and not one number", hint="return a float, higher is worse"
        ) from None
