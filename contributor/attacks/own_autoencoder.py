"""An attacker's own copy of the guard's idea: an auto-encoder of the release's activations on images of his."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.errors import ModelError
from common.randomness import random_state

HIDDEN, LATENT = 256, 64
_EPOCHS, _RATE, _BATCH = 60, 1e-3, 128


def fit(features: Tensor, generator: torch.Generator) -> nn.Sequential:
    """Fitted to reproduce `features` ((N, d) float32, CPU) by mean squared error, then frozen: the layers and epochs that
    El Moadine et al. 2022 publish, d-256-64-256-d and 60. The owner's has other images and another seed.

    Raises ModelError where the features are not finite.
    """
    if not bool(torch.isfinite(features).all()):
        raise ModelError("the release's activations on the attacker's images are not finite")
    width = features.shape[1]
    seed = int(torch.randint(1 << 62, (), generator=generator))
    with random_state(seed):
        network = nn.Sequential(
            nn.Linear(width, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, LATENT),
            nn.ReLU(),
            nn.Linear(LATENT, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, width),
        )
    optimiser = torch.optim.Adam(network.parameters(), lr=_RATE, fused=True)
    for _ in range(_EPOCHS):
        order = torch.randperm(len(features), generator=generator)
        for start in range(0, len(order), _BATCH):
            batch = features[order[start : start + _BATCH]]
            optimiser.zero_grad(set_to_none=True)
            errors(network, batch).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return network.requires_grad_(False)


def errors(network: nn.Module, features: Tensor) -> Tensor:
    """(n,) mean squared error of each row."""
    rebuilt: Tensor = network(features)
    return (rebuilt - features).square().mean(dim=1)
