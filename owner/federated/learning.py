"""Training a variational network on rows, on the CPU, reproducibly: what the federated detectors share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.errors import GuardError
from common.randomness import generator, random_state
from owner.detectors.sums import squared_distances
from owner.detectors.variational import Variational


def learn(
    network: Variational,
    rows: Tensor,
    condition: Tensor,
    *,
    latent: int,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    kl_weight: float,
    seed: int,
    name: str,
    shuffle: bool = True,
) -> Variational:
    """Adam on summed squared error + kl_weight * KL, mean over a batch; the network comes back frozen, in evaluation mode.

    shuffle: whether each epoch takes the rows in a new order, or in their own.
    rows: (N, d) float32, finite. condition: (N, c) float32. Raises GuardError where training diverges.
    """
    draws = generator(seed, "latent noise")
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    loss = torch.zeros(())
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(rows), generator=draws) if shuffle else torch.arange(len(rows))
            for start in range(0, len(rows), batch_size):
                chosen = order[start : start + batch_size]
                noise = torch.randn(len(chosen), latent, generator=draws)
                optimiser.zero_grad(set_to_none=True)
                rebuilt, kl = network(rows[chosen], condition[chosen], noise)
                loss = ((rows[chosen] - rebuilt).double().square().sum(1) + kl_weight * kl).mean()
                loss.backward()
                optimiser.step()
    finite = all(bool(torch.isfinite(p).all()) for p in network.parameters())
    if not finite or not bool(torch.isfinite(loss)):
        raise GuardError(f"the {name} diverged on the honest updates", hint="lower its learning_rate")
    return network.eval().requires_grad_(False)


def starting_at_mean(network: Variational, rows: Tensor) -> Variational:
    """`network`, of sigmoid output, as it is, but that it begins by rebuilding every row as the rows' mean.

    Few rows and steps do not bring an output that starts at 0.5 everywhere to where the rows are: the error would be the distance to
    an arbitrary point.

    rows: (N, d), values in [0, 1].
    """
    last = [layer for layer in network.decoder if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        # Of the first errors a hundred times the initial weights would be the larger part, and small ones still learn.
        last.weight.mul_(0.01)
        last.bias.copy_(torch.logit(rows.mean(0), eps=1e-3))
    return network


def errors_of(network: Variational, rows: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Summed squared error (n,) and KL (n,) in nats, float64, from the latent mean: one model has one score.

    A row that is not finite has an infinite error.
    """
    finite = torch.isfinite(rows).all(1)
    with torch.inference_mode():
        rebuilt, kl = network(torch.where(finite[:, None], rows, 0.0), condition, None)
        squared = squared_distances(rows, rebuilt).double()
    squared = torch.where(finite & torch.isfinite(squared), squared, torch.inf)
    return squared.clone(), kl.double().clone()


def made(build: Callable[[], Variational], seed: int) -> Variational:
    """The network as `seed` initialises it; the global random state is left as it was."""
    with random_state(seed):
        return build()
