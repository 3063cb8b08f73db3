"""Synthetic(alpha, beta), generated: 60 numbers, 10 classes, and clients who differ as much as alpha and beta say.

Li et al. 2018 (FedProx, arXiv 1812.06127, section 5.1; also in LEAF, arXiv 1812.01097). Client k labels x by
argmax(W_k x + b_k) with W_k, b_k ~ N(u_k, 1), u_k ~ N(0, alpha), and draws x ~ N(v_k, Sigma), Sigma_jj = j^-1.2,
v_k ~ N(B_k, 1), B_k ~ N(0, beta). The paper leaves open whether alpha and beta are variances; its authors' program takes them as
standard deviations, and so is it done here, as are its client sizes: 50 + exp(N(4, 2)), rounded down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from common.datasets.dataset import DataSet, hold_out
from common.examples import Examples
from common.specs import from_options, in_range, split_spec

NAME = "synthetic"
DIMENSION = 60
CLASSES = 10
LARGEST_CLIENT = 100_000
"""Examples of one client; a log-normal size has no upper end."""


@dataclass(frozen=True)
class Synthetic:
    """alpha: how much the clients' labelling differs. beta: how much their inputs differ. clients: how many there are.
    seed: of all of it: two data sets of the same specification are the same.

    Raises ConfigurationError naming field and limit.
    """

    alpha: float = 1.0
    beta: float = 1.0
    clients: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        in_range(NAME, "alpha", self.alpha, 0, 1e3)
        in_range(NAME, "beta", self.beta, 0, 1e3)
        in_range(NAME, "clients", self.clients, 1, 10_000)
        in_range(NAME, "seed", self.seed, 0, (1 << 63) - 1)

    @property
    def name(self) -> str:
        """What papers call it.

        >>> Synthetic(0.5, 0.5).name
        'Synthetic(0.5, 0.5)'
        """
        return f"Synthetic({self.alpha:g}, {self.beta:g})"


def parse_synthetic(text: str) -> Synthetic:
    """`synthetic`, or with options: `synthetic:alpha=0.5,beta=0.5`.

    >>> parse_synthetic("synthetic:alpha=0")
    Synthetic(alpha=0.0, beta=1.0, clients=30, seed=0)

    Raises UnknownNameError for an unknown option, ConfigurationError for a value out of range.
    """
    return from_options(Synthetic, split_spec(text, "data set")[1], f"data set {NAME}")


def generate(spec: Synthetic) -> Examples:
    """All examples, (N, 60) float32, client after client; `clients` numbers them from 0.

    >>> generate(Synthetic(clients=2)).input_shape
    (60,)
    """
    draws = np.random.default_rng(spec.seed)
    sizes = np.minimum(draws.lognormal(4, 2, spec.clients).astype(np.int64) + 50, LARGEST_CLIENT)
    shifts = draws.normal(0, spec.alpha, spec.clients)
    centres = draws.normal(0, spec.beta, spec.clients)
    spread = np.arange(1, DIMENSION + 1) ** -0.6  # the root of j^-1.2
    inputs, labels = [], []
    for size, shift, centre in zip(sizes, shifts, centres, strict=True):
        mean = draws.normal(centre, 1, DIMENSION)
        weights, bias = draws.normal(shift, 1, (DIMENSION, CLASSES)), draws.normal(shift, 1, CLASSES)
        rows = mean + spread * draws.standard_normal((size, DIMENSION))
        inputs.append(rows.astype(np.float32))
        labels.append((rows @ weights + bias).argmax(1))
    return Examples(
        (torch.from_numpy(np.concatenate(inputs)),),
        torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        tuple(str(number) for number in range(CLASSES)),
        torch.from_numpy(np.repeat(np.arange(spec.clients, dtype=np.int64), sizes)),
    )


def load_synthetic(spec: Synthetic, *, seed: int) -> DataSet:
    """The generated examples; a quarter of each class, by `seed`, is the test set."""
    return hold_out(spec.name, generate(spec), seed=seed)
