"""Spectral anomaly detection (Li, Cheng, Wang, Liu, Chen 2020, arXiv 2002.00211): a VAE on surrogates of clients' weights.

Widths, loss and threshold are those of the released code (github.com/Suyi32/Learning-to-Detect-Malicious-Clients-for-Robust-FL). It
departs from that code where
- the code feeds the weights as they are to a network whose sigmoid output reaches no negative one; here they are brought to [0, 1] first
  (`SpectralOptions.margin`);
- the code rebuilds from one sampled z, in scoring too; here a score is that of the latent mean, so that one model has one score;
- the code's log-variance is a softplus, never below the prior's; here it may have any sign;
- the released network comes trained, on how many rows and for how long the code does not say; here it starts at the mean of the few
  honest rows there are (`starting_at_mean`), else it would not get there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from common.errors import ConfigurationError, GuardError
from common.weights import Weights
from owner.detectors.variational import Variational
from owner.federated.learning import errors_of, learn, made, starting_at_mean
from owner.federated.pretraining import HonestRounds
from owner.federated.surrogates import Surrogates
from owner.federated.thresholds import Cut, round_mean


@dataclass(frozen=True)
class SpectralOptions:
    """size: coordinates of the surrogate; None is all. 7850 is all of logistic regression on MNIST, as in the paper.
    hidden, latent: widths; the paper's text says latent 100, its code 20.
    epochs, learning_rate, batch_size: of Adam. kl_weight: 1 in the paper.
    mean_factor: a client is dropped above so many times the round's mean score; 1 in the paper.
    margin: by how much of its range the honest surrogates' range is widened before it is mapped to [0, 1]. The output is a
        sigmoid, which reaches no negative weight: the paper does not say how weights are brought to its range, this is ours.
    seed: of coordinates, initial weights, order and latent noise.
    """

    size: int | None = 7850
    hidden: tuple[int, ...] = (500, 500)
    latent: int = 20
    epochs: int = 50
    learning_rate: float = 1e-3
    batch_size: int = 16
    kl_weight: float = 1.0
    mean_factor: float = 1.0
    margin: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_network("spectral-vae", self.hidden, self.latent, self.epochs, self.learning_rate, self.batch_size)
        check_mean_factor("spectral-vae", self.mean_factor)
        if not 0 <= self.margin <= 10:
            raise ConfigurationError(f"spectral-vae: margin must be from 0 to 10, not {self.margin}")


class SpectralDetector:
    """score = ||x - x'||^2 + KL, x the client's surrogate; dropped where it exceeds the round's mean."""

    name: ClassVar[str] = "spectral-vae"

    def __init__(self, options: SpectralOptions | None = None) -> None:
        self.options = options or SpectralOptions()
        self.network_: Variational | None = None
        self.surrogates_: Surrogates | None = None
        self.low_ = self.range_ = 0.0

    def fit(self, honest: HonestRounds) -> Self:
        """Learn honest updates made on public data. Raises GuardError for fewer than two, or where the fit diverges."""
        options, models = self.options, honest.updates
        if len(models) < 2:
            raise GuardError(f"the {self.name} needs at least two honest updates to learn from, not {len(models)}")
        self.surrogates_ = Surrogates(models[0], size=options.size, seed=options.seed)
        rows = self.surrogates_.of(models)
        low, high = float(rows.min()), float(rows.max())
        room = options.margin * (high - low)
        self.low_, self.range_ = low - room, (high - low + 2 * room) or 1.0
        rows = self._prepared(rows)
        network = made(
            lambda: Variational(rows.shape[1], 0, options.hidden, options.latent, nn.ReLU, sigmoid=True), options.seed
        )
        self.network_ = learn(
            starting_at_mean(network, rows),
            rows,
            torch.zeros(len(rows), 0),
            latent=options.latent,
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            kl_weight=options.kl_weight,
            seed=options.seed,
            name=self.name,
        )
        return self

    def scores(self, number: int, updates: Sequence[Weights]) -> list[float]:
        """One a client, higher is worse. number: of the round, from 1; this detector does not look at it.

        Raises GuardError before `fit` and for weights of another layout.
        """
        return self.scores_of(number, self.seen(updates))

    def seen(self, updates: Sequence[Weights]) -> list[Tensor]:
        """What it looks at of each client, whoever the others are: (width,) float32. Raises as `scores` does."""
        if self.surrogates_ is None:
            raise unfitted(self.name)
        return list(self._prepared(self.surrogates_.of(updates)))

    def scores_of(self, number: int, seen: Sequence[Tensor]) -> list[float]:
        """`scores` of the clients that this was seen of. Raises GuardError before `fit`."""
        if self.network_ is None:
            raise unfitted(self.name)
        if not seen:
            return []
        rows = torch.stack(list(seen))
        squared, kl = errors_of(self.network_, rows, torch.zeros(len(rows), 0))
        return [float(score) for score in squared + self.options.kl_weight * kl]

    def cut(self, scores: Sequence[float]) -> Cut:
        return round_mean(scores, factor=self.options.mean_factor)

    def _prepared(self, rows: Tensor) -> Tensor:
        return (rows - self.low_) / self.range_


def unfitted(name: str) -> GuardError:
    return GuardError(f"the {name} has not been fitted", hint="call fit(honest_rounds(...)) first")


def check_network(
    name: str, hidden: tuple[int, ...], latent: int, epochs: int, learning_rate: float, batch_size: int
) -> None:
    """Raises ConfigurationError naming the option that is out of range."""
    whole = {"hidden": min(hidden, default=0), "latent": latent, "epochs": epochs, "batch_size": batch_size}
    for option, value in whole.items():
        if value < 1:
            raise ConfigurationError(f"{name}: {option} must be at least 1, not {value}")
    if not 0 < learning_rate < 10:
        raise ConfigurationError(f"{name}: learning_rate must be above 0 and below 10, not {learning_rate}")


def check_mean_factor(name: str, factor: float) -> None:
    """Raises ConfigurationError for what multiplies no threshold."""
    if not 0 < factor <= 1e6:
        raise ConfigurationError(f"{name}: mean_factor must be above 0 and at most 1e6, not {factor}")
