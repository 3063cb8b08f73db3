"""Detectors: each fits on a release and scores a candidate; higher is worse. They share one forward pass, the `Evidence`."""

from __future__ import annotations

from common.errors import UnknownNameError
from owner.detectors.activation_autoencoder import ActivationAutoEncoder, AutoEncoderOptions
from owner.detectors.base import Detector, DetectorState, Evidence, ImageDetector, reason_code

DETECTORS: dict[str, type[Detector]] = {ActivationAutoEncoder.name: ActivationAutoEncoder}
"""By name: what a guard on disk may hold. A new detector is one module here and one entry."""


def restore(name: str, state: DetectorState) -> Detector:
    """The fitted detector that `state` was taken from. Raises UnknownNameError, GuardError."""
    if name not in DETECTORS:
        raise UnknownNameError("detector", name, DETECTORS)
    return DETECTORS[name].from_state(state)


__all__ = [
    "DETECTORS",
    "ActivationAutoEncoder",
    "AutoEncoderOptions",
    "Detector",
    "DetectorState",
    "Evidence",
    "ImageDetector",
    "reason_code",
    "restore",
]
