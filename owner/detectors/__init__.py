"""Detectors: each fits on a release and scores a candidate; higher is worse. They share one forward pass, the `Evidence`."""

from __future__ import annotations

import re
from typing import TypeVar

from common.errors import ConfigurationError, UnknownNameError
from owner.detectors.activation_autoencoder import ActivationAutoEncoder, AutoEncoderOptions
from owner.detectors.base import Detector, DetectorState, Evidence, ImageDetector, reason_code

LONGEST_NAME = 64

DETECTORS: dict[str, type[Detector]] = {ActivationAutoEncoder.name: ActivationAutoEncoder}
"""By name: what a guard on disk may hold. A new detector is one module here and one entry; one from elsewhere, `register`."""

_Kind = TypeVar("_Kind", bound=type[Detector])


def register(detector_class: _Kind) -> _Kind:
    """Let guards be loaded that hold detectors of this class; usable as a decorator. Returns the class.

    A guard on disk names its detectors and never the code to import for them, so the process that loads it registers them
    first. Fitting and vetting in one process need no registration.

    Raises ConfigurationError for a name that is not lower case with dashes, or that another class has.
    """
    name = check_name(detector_class.name)
    if DETECTORS.get(name, detector_class) is not detector_class:
        raise ConfigurationError(
            f"the detector name {name!r} belongs to {DETECTORS[name].__qualname__}", hint="give yours another name"
        )
    DETECTORS[name] = detector_class
    return detector_class


def check_name(name: str) -> str:
    """`name`, where it can be a detector's: it goes into file names and reason codes. Raises ConfigurationError."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > LONGEST_NAME:
        raise ConfigurationError(
            f"{name!r} is no name for a detector", hint=f"lower case with dashes, up to {LONGEST_NAME} characters"
        )
    return name


def restore(name: str, state: DetectorState) -> Detector:
    """The fitted detector that `state` was taken from. Raises UnknownNameError, GuardError."""
    if name not in DETECTORS:
        error = UnknownNameError("detector", name, DETECTORS)
        error.hint += "; for one of your own call owner.detectors.register(its class) first"
        raise error
    return DETECTORS[name].from_state(state)


__all__ = [
    "DETECTORS",
    "ActivationAutoEncoder",
    "AutoEncoderOptions",
    "Detector",
    "DetectorState",
    "Evidence",
    "ImageDetector",
    "check_name",
    "reason_code",
    "register",
    "restore",
]
