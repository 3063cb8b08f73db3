"""What many federations of a comparison have in common, made once a process: the release, and honest rounds on public data.

Neither depends on who attacks, how, or how clients divide the data that are left.
"""

from __future__ import annotations

import dataclasses
import functools

from torch import nn

from common.devices import Compute, choose_compute
from common.federation import FederatedTask
from common.models import build
from common.randomness import derived_seed
from common.training import train
from common.weights import Weights
from owner.federated.config import FederationConfig
from owner.federated.pretraining import HonestRounds, honest_rounds


def initial_model(config: FederationConfig, *, compute: Compute, progress: bool | None = None) -> nn.Module:
    """The first global model: the release, where `release_epochs` says to train one, else weights as initialised."""
    model = _built(config)
    model.load_state_dict(_release(_common(config, local_epochs=1), config.release_epochs, progress))
    return model.to(compute.device)


def play_honestly(config: FederationConfig, *, progress: bool | None = None) -> HonestRounds:
    """Honest rounds on public data from the first global model, as this federation's clients would train."""
    return _honest(
        _common(config, local_epochs=config.local_epochs),
        config.release_epochs,
        config.pretraining_rounds or config.rounds,
        config.pretraining_contributors,
        progress,
    )


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
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


# One: of a large model they are hundreds of megabytes.
@functools.lru_cache(maxsize=1)
def _honest(
    task: FederatedTask, release_epochs: int, rounds: int, contributors: int, progress: bool | None
) -> HonestRounds:
    model = _built(task)
    model.load_state_dict(_release(dataclasses.replace(task, local_epochs=1), release_epochs, progress))
    return honest_rounds(
        model,
        task.shares().references,
        task.training(0, 0),
        rounds=rounds,
        contributors=contributors,
        seed=task.seed,
        compute=choose_compute(task.device, task.precision),
        progress=progress,
    )


def _built(task: FederatedTask) -> nn.Module:
    return build(task.spec(), seed=derived_seed(task.seed, "initial weights") % (1 << 62))
