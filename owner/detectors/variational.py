"""The network under every variational detector: of activations, and of weights in a federation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Variational(nn.Module):
    """Encoder to mean and log-variance, decoder; a condition (one-hot, possibly empty) enters both.

    width, condition: of the input and its condition. hidden: widths from the input inwards; the decoder mirrors them.
    latent: dimensions of z. activation: of hidden layers. sigmoid: bounds the output to (0, 1).
    """

    def __init__(
        self,
        width: int,
        condition: int,
        hidden: Sequence[int],
        latent: int,
        activation: type[nn.Module],
        *,
        sigmoid: bool,
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_layers([width + condition, *hidden], activation))
        self.mean = nn.Linear(hidden[-1], latent)
        self.log_variance = nn.Linear(hidden[-1], latent)
        # The output layer is made before the hidden ones: stored guards and their seeds know this order.
        out: list[nn.Module] = [nn.Linear(hidden[0], width)]
        self.decoder = nn.Sequential(
            *_layers([latent + condition, *reversed(hidden)], activation), *out, *([nn.Sigmoid()] if sigmoid else [])
        )

    def forward(self, x: Tensor, condition: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rebuilt (N, width), KL to N(0, I) in nats (N,); with noise None, from the latent mean."""
        hidden = self.encoder(torch.cat([x, condition], 1))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden).clamp(-20, 20)
        latent = mean if noise is None else mean + noise * (0.5 * log_variance).exp()
        return self.decoder(torch.cat([latent, condition], 1)), kl_to_standard_normal(mean, log_variance)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats, (N,), of diagonal Gaussians (N, latent).

    >>> kl_to_standard_normal(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    tensor([0.5000], dtype=torch.float64)
    """
    return -0.5 * (1 + log_variance - mean.double().square() - log_variance.exp()).sum(1)


def _layers(widths: Sequence[int], activation: type[nn.Module]) -> list[nn.Module]:
    made: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        made += [nn.Linear(into, out), activation()]
    return made
