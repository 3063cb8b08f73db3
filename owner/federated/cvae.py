"""FedCVAE (Gu & Yang 2021, IPDPS): a CVAE on surrogates of clients' weights, centred by their geometric median, given the round.

No code by Gu & Yang was found. 64 coordinates, 100 tanh units, latent 8 and the one-hot round are those of a re-implementation at IMT
Atlantique (github.com/Bellafqira/FedCAM_, Defenses/FedCVAE.py), in which the CVAE is never trained: it scores clients with its initial
weights. Here it learns from honest rounds on public data; the scale that brings surrogates to unit size is Portier's, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from common.errors import GuardError
from common.weights import Weights
from owner.detectors.geometric_median import geometric_median
from owner.detectors.variational import Variational
from owner.federated.learning import errors_of, learn, made
from owner.federated.pretraining import HonestRounds
from owner.federated.spectral import check_mean_factor, check_network, unfitted
from owner.federated.surrogates import Surrogates
from owner.federated.thresholds import Cut, round_mean


@dataclass(frozen=True)
class FedCVAEOptions:
    """size: random coordinates of weight tensors (matrices and filters).
    hidden, latent: widths. epochs, learning_rate, batch_size: of Adam. kl_weight: of the KL term.
    mean_factor: a client is dropped at or above so many times the round's mean score; 1 in the paper.
    seed: of coordinates, initial weights, order and latent noise.
    """

    size: int = 64
    hidden: int = 100
    latent: int = 8
    epochs: int = 100
    learning_rate: float = 1e-3
    batch_size: int = 16
    kl_weight: float = 1.0
    mean_factor: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_network("fedcvae", (self.hidden,), self.latent, self.epochs, self.learning_rate, self.batch_size)
        check_mean_factor("fedcvae", self.mean_factor)


class CVAEDetector:
    """score = ||x - x'||^2 / width, x the client's surrogate minus the geometric median of all clients', over the root mean
    square of honest ones; dropped at or above the round's mean.

    The condition is the round, one-hot; rounds beyond those it learnt are given the last one.
    """

    name: ClassVar[str] = "fedcvae"

    def __init__(self, options: FedCVAEOptions | None = None) -> None:
        self.options = options or FedCVAEOptions()
        self.network_: Variational | None = None
        self.surrogates_: Surrogates | None = None
        self.rounds_ = 0
        self.scale_ = 1.0

    def fit(self, honest: HonestRounds) -> Self:
        """Learn honest rounds on public data. Raises GuardError for rounds of fewer than two, or where the fit diverges."""
        options = self.options
        if not honest.rounds or any(len(updates) < 2 for updates in honest.rounds):
            raise GuardError(f"the {self.name} needs honest rounds of at least two updates each to learn from")
        self.surrogates_ = Surrogates(honest.rounds[0][0], size=options.size, seed=options.seed, which="matrices")
        self.rounds_ = len(honest.rounds)
        centred = [self._centred(self.surrogates_.of(updates)) for updates in honest.rounds]
        rows = torch.cat(centred)
        self.scale_ = float(rows.double().square().mean().sqrt()) or 1.0
        condition = torch.cat([self._condition(r + 1, len(part)) for r, part in enumerate(centred)])
        network = made(
            lambda: Variational(rows.shape[1], self.rounds_, (options.hidden,), options.latent, nn.Tanh, sigmoid=False),
            options.seed,
        )
        self.network_ = learn(
            network,
            rows / self.scale_,
            condition,
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
        """One a client, higher is worse. number: of the round, from 1. Raises GuardError before `fit` and for another layout."""
        return self.scores_of(number, self.seen(updates))

    def seen(self, updates: Sequence[Weights]) -> list[Tensor]:
        """What it looks at of each client, whoever the others are: (width,) float32. Raises as `scores` does."""
        if self.surrogates_ is None:
            raise unfitted(self.name)
        return list(self.surrogates_.of(updates))

    def scores_of(self, number: int, seen: Sequence[Tensor]) -> list[float]:
        """`scores` of the clients that this was seen of. Raises GuardError before `fit`."""
        if self.network_ is None:
            raise unfitted(self.name)
        if not seen:
            return []
        rows = self._centred(torch.stack(list(seen))) / self.scale_
        squared, _ = errors_of(self.network_, rows, self._condition(number, len(rows)))
        return [float(score) for score in squared / rows.shape[1]]

    def cut(self, scores: Sequence[float]) -> Cut:
        return round_mean(scores, inclusive=True, factor=self.options.mean_factor)

    def _condition(self, number: int, count: int) -> Tensor:
        index = min(max(number, 1), self.rounds_) - 1
        return nn.functional.one_hot(torch.full((count,), index), self.rounds_).float()

    def _centred(self, rows: Tensor) -> Tensor:
        finite = torch.isfinite(rows).all(1)
        return rows - geometric_median(rows[finite], iterations=500) if finite.any() else rows
