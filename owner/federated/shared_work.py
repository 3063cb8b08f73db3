"""What many federations of a comparison have in common, made once a process: the release, honest rounds on public data,
and what learns from them.

None of it depends on who attacks, how, or how clients divide the data that are left.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from torch import nn

from common.devices import Compute, choose_compute
from common.errors import GuardError
from common.federation import FederatedTask
from common.models import build
from common.randomness import derived_seed
from common.training import train
from common.weights import Weights, weights_of
from owner.federated.config import FederationConfig
from owner.federated.cvae import CVAEDetector, FedCVAEOptions
from owner.federated.honest_clients import honest_clients
from owner.federated.pretraining import HonestRounds, honest_rounds
from owner.federated.spectral import SpectralDetector, SpectralOptions
from owner.population import HonestPopulation


def initial_model(config: FederationConfig, *, compute: Compute, progress: bool | None = None) -> nn.Module:
    """The first global model: the release, where `release_epochs` says to train one, else weights as initialised."""
    model = _built(config)
    model.load_state_dict(_release(_common(config, local_epochs=1), config.release_epochs, progress))
    return model.to(compute.device)


def fitted_detector(config: FederationConfig, *, progress: bool | None = None) -> SpectralDetector | CVAEDetector:
    """The strategy's VAE or CVAE, fitted on honest rounds from the first global model. Raises GuardError, ModelError."""
    options = config.detector
    if not isinstance(options, (SpectralOptions, FedCVAEOptions)):
        raise GuardError(f"{config.strategy} learns nothing from honest rounds")
    return _detector(_honest_of(config, progress), options)


@dataclass(frozen=True)
class _Rounds:
    """What honest rounds follow from."""

    task: FederatedTask
    release_epochs: int
    rounds: int
    contributors: int
    population: HonestPopulation
    progress: bool | None


def _honest_of(config: FederationConfig, progress: bool | None) -> _Rounds:
    return _Rounds(
        _common(config, local_epochs=config.local_epochs),
        config.release_epochs,
        config.pretraining_rounds or config.rounds,
        config.pretraining_contributors,
        honest_clients(config, pool=len(config.shares().references)),
        progress,
    )


def new_detector(options: SpectralOptions | FedCVAEOptions) -> SpectralDetector | CVAEDetector:
    return SpectralDetector(options) if isinstance(options, SpectralOptions) else CVAEDetector(options)


# As many as a sweep has of one detector.
@functools.lru_cache(maxsize=16)
def _detector(rounds: _Rounds, options: SpectralOptions | FedCVAEOptions) -> SpectralDetector | CVAEDetector:
    return new_detector(options).fit(_honest(rounds))


def _common(config: FederationConfig, *, local_epochs: int) -> FederatedTask:
    return dataclasses.replace(
        config.task(), clients=1, partition="iid", attackers=0, attack="", local_epochs=local_epochs
    )


@functools.lru_cache(maxsize=4)
def _release(task: FederatedTask, epochs: int, progress: bool | None) -> Weights:
    model = _built(task)
    if epochs:
        options = dataclasses.replace(task.training(0, 0), epochs=epochs, schedule="one-cycle")
        compute = choose_compute(task.device, task.precision)
        train(model, task.shares().train, options, compute=compute, progress=progress, label="the release")
    return weights_of(model)


# One: of a large model they are hundreds of megabytes.
@functools.lru_cache(maxsize=1)
def _honest(how: _Rounds) -> HonestRounds:
    task = how.task
    model = _built(task)
    model.load_state_dict(_release(dataclasses.replace(task, local_epochs=1), how.release_epochs, how.progress))
    return honest_rounds(
        model,
        task.shares().references,
        task.training(0, 0),
        rounds=how.rounds,
        contributors=how.contributors,
        seed=task.seed,
        compute=choose_compute(task.device, task.precision),
        population=how.population,
        progress=how.progress,
    )


def _built(task: FederatedTask) -> nn.Module:
    return build(task.spec(), seed=derived_seed(task.seed, "initial weights") % (1 << 62))
