"""From a configuration to the strategy it names, everything in it fitted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, cast

import torch
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Strategy
from torch import nn

from common.devices import Compute
from common.examples import Examples
from common.randomness import generator
from common.splits import OwnerShares
from common.weights import Weights
from owner.federated.clean import CleanDetector, CleanOptions
from owner.federated.config import FederationConfig
from owner.federated.cvae import CVAEDetector, FedCVAEOptions
from owner.federated.gated import GatedStrategy, Refresh
from owner.federated.guard_fitting import GuardFitter
from owner.federated.honest_clients import honest_clients
from owner.federated.memory import digest_of, memory, size_of
from owner.federated.pretraining import HonestRounds
from owner.federated.shared_work import fitted_detector, new_detector
from owner.federated.spectral import SpectralDetector, SpectralOptions
from owner.federated.strategies import FedCLEAN, FedCVAE, RobustStrategy, SpectralVAE
from owner.federated.vetted import VettedStrategy
from owner.gatekeeper import Gatekeeper, GuardOptions, Triggers, UtilityLimits


def choose_strategy(
    config: FederationConfig,
    model: nn.Module,
    shares: OwnerShares,
    *,
    compute: Compute,
    honest: HonestRounds | None = None,
    progress: bool | None = None,
) -> VettedStrategy:
    """model: the initial global model, from which detectors learn; it is left as it is.

    honest: for spectral-vae and fedcvae, honest rounds made before; made now where not given.
    Raises what fitting raises: GuardError, VacuousGateError, ModelError.
    """
    options, inner = config.detector, merging(config)
    if isinstance(options, (SpectralOptions, FedCVAEOptions)):
        if honest is None:
            detector = fitted_detector(config, progress=progress)
        else:
            detector = memory().get(
                ("detector", config.owner_key, compute),
                lambda: new_detector(options).fit(honest),
                size=_size_of_network,
            )
        return SpectralVAE(detector, inner) if isinstance(detector, SpectralDetector) else FedCVAE(detector, inner)
    if isinstance(options, CleanOptions):
        triggers = _mixed(shares.trigger_fit, config.seed)
        clean = memory().get(
            ("fedclean", config.data_key, config.release_epochs, options, compute),
            lambda: CleanDetector(model, compute=compute, options=options).fit(triggers),
            size=_size_of_network,
        )
        return FedCLEAN(clean, inner)
    if config.strategy == "gated":
        refresh = cast(Refresh, config.guard_refresh)
        fitter = _remembered(config, gate_fitter(config, model, shares, compute))
        return GatedStrategy(inner, fitter, refresh=refresh, utility=client_utility(config))
    return RobustStrategy(inner)


def merging(config: FederationConfig) -> Strategy:
    """Flower's strategy that merges: every client trains in every round, one of them evaluates."""
    common: dict[str, Any] = {
        "fraction_train": 1.0,
        "min_train_nodes": config.clients,
        "min_available_nodes": config.clients,
        "fraction_evaluate": 1e-9 if config.attack else 0.0,
        "min_evaluate_nodes": 1,
    }
    f, n = config.malicious, config.clients
    if config.strategy == "krum":
        return Krum(**common, num_malicious_nodes=f)
    if config.strategy == "multikrum":
        return MultiKrum(**common, num_malicious_nodes=f, num_nodes_to_select=n - f)
    if config.strategy == "bulyan":
        return Bulyan(**common, num_malicious_nodes=f)
    if config.strategy == "fedmedian":
        return FedMedian(**common)
    if config.strategy == "fedtrimmedavg":
        # A hair above f / n: the share is turned into a count by rounding down.
        return FedTrimmedAvg(**common, beta=min(f / n + 1e-9, 0.499))
    return FedAvg(**common)


def gate_fitter(config: FederationConfig, model: nn.Module, shares: OwnerShares, compute: Compute) -> GuardFitter:
    """Fits the gatekeeper's guard for whatever weights it is called with."""
    return GuardFitter(
        model,
        Triggers(shares.trigger_fit, shares.trigger_calibration, shares.evaluation),
        shares.references,
        config.spec(),
        config.training(0, 0),
        guard_options(config, pool=len(shares.references)),
        compute,
    )


def _remembered(config: FederationConfig, fitter: GuardFitter) -> Callable[[Weights], Gatekeeper]:
    follows_from = dataclasses.replace(config.owner_key, refresh="when-left")

    def fitted(weights: Weights) -> Gatekeeper:
        key = "guard", follows_from, fitter.compute, digest_of(weights)
        return memory().get(key, lambda: fitter(weights), size=_size_of_guard)

    return fitted


def guard_options(config: FederationConfig, *, pool: int) -> GuardOptions:
    """Its references are drawn from the population that VAE and CVAE learn from, too. pool: images at hand for them. Raises UnknownNameError for a detector of the guard that does not exist."""
    level = config.reject_level
    return GuardOptions(
        detectors=tuple(name.strip() for name in re.split("[,+]", config.guard_detectors) if name.strip()),
        references=config.guard_references,
        reject_level=level,
        quarantine_level=level,
        seed=config.seed,
        population=honest_clients(config, pool=pool),
    )


def client_utility(config: FederationConfig) -> UtilityLimits:
    """Recall of single classes is not asked of a client: with few classes it forgets the others, and the mean does not."""
    return UtilityLimits(accuracy_drop=config.utility_drop, recall_drop=1.0)


def _mixed(examples: Examples, seed: int) -> Examples:
    """In random order, so that the first few are of every class."""
    order = torch.randperm(len(examples), generator=generator(seed, "trigger order"))
    return examples.take(order)


def _size_of_network(detector: SpectralDetector | CVAEDetector | CleanDetector) -> int:
    return size_of(detector.network_.state_dict()) if detector.network_ is not None else 0


def _size_of_guard(guard: Gatekeeper) -> int:
    # The release twice, and what is stored of it and of the references on the triggers, which is of the size of a few models.
    return 8 * size_of(guard.release)
