"""Detectors: each fits on a release and scores a candidate; higher is worse. They share one forward pass, the `Evidence`."""

from __future__ import annotations

import re
from typing import TypeVar

from common.errors import ConfigurationError, GuardError, UnknownNameError
from owner.detectors.activation_autoencoder import ActivationAutoEncoder, AutoEncoderOptions
from owner.detectors.activation_vae import ActivationCVAE, ActivationVAE, CVAEOptions, VAEOptions
from owner.detectors.base import (
    Detector,
    DetectorState,
    Evidence,
    ImageDetector,
    MeasuringDetector,
    measures_of,
    reason_code,
)
from owner.detectors.combination import Combination
from owner.detectors.comparison import Comparison, ReleaseComparison
from owner.detectors.extrapolation import Extrapolation
from owner.detectors.features import CKA, DriftConcentration, FeatureDrift, FeatureSpectrum
from owner.detectors.gathering import gather_evidence
from owner.detectors.input_gradients import InputGradientDrift
from owner.detectors.inversion import TriggerInversion
from owner.detectors.maximum_margin import MaximumMargin
from owner.detectors.noise_drift import PredictionNoiseDrift
from owner.detectors.paired_autoencoder import PairedAutoEncoder
from owner.detectors.predictions import AccuracyDrop, ConfusionDrift, RecallDrop
from owner.detectors.probe_bank import ProbeBank
from owner.detectors.weights import BatchNormDrift, ChannelLipschitz, HeadDrift, UpdateNorm, UpdateSpectrum

LONGEST_NAME = 64

_STANDARD: tuple[type[Detector], ...] = (
    ActivationAutoEncoder,
    ActivationVAE,
    ActivationCVAE,
    PairedAutoEncoder,
    FeatureDrift,
    DriftConcentration,
    CKA,
    FeatureSpectrum,
    ConfusionDrift,
    AccuracyDrop,
    RecallDrop,
    ProbeBank,
    PredictionNoiseDrift,
    Extrapolation,
    InputGradientDrift,
    HeadDrift,
    BatchNormDrift,
    ChannelLipschitz,
    UpdateNorm,
    UpdateSpectrum,
)

DETECTORS: dict[str, type[Detector]] = {kind.name: kind for kind in _STANDARD}
"""By name: what a guard on disk may hold. A new detector is one module here and one entry; one from elsewhere, `register`."""

ESCALATION: dict[str, type[Detector]] = {kind.name: kind for kind in (MaximumMargin, TriggerInversion)}
"""Those of the escalation tier, by name: they follow gradients, and need the models themselves in the evidence (`network`)."""


def standard_detectors(autoencoder: AutoEncoderOptions | None = None) -> tuple[Detector, ...]:
    """All but the escalation tier, unfitted and with their defaults; the two auto-encoder ones with these options, sharing one fit.

    They need evidence of both models with `inputs`, `weights`, `forward` and `network`.

    >>> len(standard_detectors())
    20
    """
    with_options = (ActivationAutoEncoder(autoencoder), PairedAutoEncoder(autoencoder))
    chosen = {detector.name: detector for detector in with_options}
    return tuple(chosen[kind.name] if kind.name in chosen else kind() for kind in _STANDARD)


_Kind = TypeVar("_Kind", bound=type[Detector])


def register(detector_class: _Kind) -> _Kind:
    """Let guards be loaded that hold detectors of this class; usable as a decorator. Returns the class.

    A guard on disk names its detectors and never the code to import for them, so the process that loads it registers them
    first. Fitting and vetting in one process need no registration.

    Raises ConfigurationError for a name that is not lower case with dashes, or that another class has.
    """
    name = check_name(detector_class.name)
    taken = {**ESCALATION, **DETECTORS}.get(name, detector_class)
    if taken is not detector_class:
        raise ConfigurationError(
            f"the detector name {name!r} belongs to {taken.__qualname__}", hint="give yours another name"
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
    """The fitted detector that `state` was taken from. Raises UnknownNameError, GuardError, also for an option that is missing."""
    known = {**ESCALATION, **DETECTORS}
    if name not in known:
        error = UnknownNameError("detector", name, known)
        error.hint += "; for one of your own call owner.detectors.register(its class) first"
        raise error
    found = known[name].from_state(state)
    if missing := sorted(set(found.state().options) - set(state.options)):
        raise GuardError(f"the stored {name} lacks {', '.join(missing)}", hint="fit the guard again")
    return found


__all__ = [
    "CKA",
    "DETECTORS",
    "ESCALATION",
    "AccuracyDrop",
    "ActivationAutoEncoder",
    "ActivationCVAE",
    "ActivationVAE",
    "AutoEncoderOptions",
    "BatchNormDrift",
    "CVAEOptions",
    "ChannelLipschitz",
    "Combination",
    "Comparison",
    "ConfusionDrift",
    "Detector",
    "DetectorState",
    "DriftConcentration",
    "Evidence",
    "Extrapolation",
    "FeatureDrift",
    "FeatureSpectrum",
    "HeadDrift",
    "ImageDetector",
    "InputGradientDrift",
    "MaximumMargin",
    "MeasuringDetector",
    "PairedAutoEncoder",
    "PredictionNoiseDrift",
    "ProbeBank",
    "RecallDrop",
    "ReleaseComparison",
    "TriggerInversion",
    "UpdateNorm",
    "UpdateSpectrum",
    "VAEOptions",
    "check_name",
    "gather_evidence",
    "measures_of",
    "reason_code",
    "register",
    "restore",
    "standard_detectors",
]
