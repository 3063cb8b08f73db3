"""Federated fine-tuning of a release on Flower: the gatekeeper and the parameter-based baselines as strategies.

The detectors (`surrogates`, `spectral`, `cvae`, `clean`, `thresholds`, `pretraining`) need torch alone. The strategies need
Flower, and are loaded when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from owner.federated.clean import CleanDetector, CleanOptions
    from owner.federated.config import STRATEGIES, FederationConfig
    from owner.federated.cvae import CVAEDetector, FedCVAEOptions
    from owner.federated.gated import GatedStrategy
    from owner.federated.guard_fitting import GuardFitter
    from owner.federated.pretraining import HonestRounds, honest_rounds
    from owner.federated.records import ClientRecord, RoundRecord
    from owner.federated.results import FederationResult, RoundResult
    from owner.federated.running import run_federation
    from owner.federated.spectral import SpectralDetector, SpectralOptions
    from owner.federated.strategies import FedCLEAN, FedCVAE, RobustStrategy, SpectralVAE
    from owner.federated.vetted import VettedStrategy

__all__ = [
    "STRATEGIES",
    "CVAEDetector",
    "CleanDetector",
    "CleanOptions",
    "ClientRecord",
    "FedCLEAN",
    "FedCVAE",
    "FedCVAEOptions",
    "FederationConfig",
    "FederationResult",
    "GatedStrategy",
    "GuardFitter",
    "HonestRounds",
    "RobustStrategy",
    "RoundRecord",
    "RoundResult",
    "SpectralDetector",
    "SpectralOptions",
    "SpectralVAE",
    "VettedStrategy",
    "honest_rounds",
    "run_federation",
]

_HOMES = {
    "clean": ("CleanDetector", "CleanOptions"),
    "config": ("STRATEGIES", "FederationConfig"),
    "cvae": ("CVAEDetector", "FedCVAEOptions"),
    "gated": ("GatedStrategy",),
    "guard_fitting": ("GuardFitter",),
    "pretraining": ("HonestRounds", "honest_rounds"),
    "records": ("ClientRecord", "RoundRecord"),
    "results": ("FederationResult", "RoundResult"),
    "running": ("run_federation",),
    "spectral": ("SpectralDetector", "SpectralOptions"),
    "strategies": ("FedCLEAN", "FedCVAE", "RobustStrategy", "SpectralVAE"),
    "vetted": ("VettedStrategy",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads the module that holds `name`, so that the detectors come without Flower and the command line without both."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
