"""The classification auto-encoder (Razmi & Xiong 2021, arXiv 2108.04206): poisoned examples are rebuilt or classified badly.

CAE: an auto-encoder whose latent vector is also classified. CAE+: a CAE for the classification, and beside it a plain auto-encoder
(RAE) for what is rebuilt: where the training data are poisoned, wrong labels spoil the latent vector that a CAE rebuilds from.
An example's score is alpha e / |e| + (1 - alpha) c / |c|, e the mean absolute error of what is rebuilt of it, c the cross-entropy of the
label it came with, |.| the norm over all examples judged together. Two Gaussians fitted to the scores part poisoned from clean.

From the abstract: that reconstruction and classification errors are combined, and that CAE+ needs no clean data. From the authors' code
(github.com/Emory-AIMS/CAE: models.py, train_2classes_conditional.py, test_moduls.py, evaluators.py): that CAE+ is this pair, which error
comes of which network, both norms, alpha = 0.66, the mixture, and the loss: mean squared error plus cross-entropy, of equal weight
whatever alpha is, and for RAE the first alone. Ours: fully connected layers where theirs are convolutions of three channels, and 40
epochs of AdamW for both networks (theirs: at most 100 of Adam, 300 for RAE).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import DataError, ModelError
from common.randomness import generator, random_state
from common.specs import in_range
from owner.data_poisoning.mixture import TwoGaussians, fit_two_gaussians


@dataclass(frozen=True)
class CaeOptions:
    """alpha: weight of reconstruction in the score, from 0 to 1. hidden: width of the layer on either side of the latent one,
    `latent` wide. epochs, learning_rate, batch_size, weight_decay: of AdamW. seed: of initial weights and order.

    Raises ConfigurationError naming field and limit.
    """

    alpha: float = 0.66
    hidden: int = 256
    latent: int = 32
    epochs: int = 40
    learning_rate: float = 1e-3
    batch_size: int = 64
    weight_decay: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("CAE", "alpha", self.alpha, 0, 1)
        in_range("CAE", "hidden", self.hidden, 1, 1 << 20)
        in_range("CAE", "latent", self.latent, 1, 1 << 20)
        in_range("CAE", "epochs", self.epochs, 1, 1_000_000)
        in_range("CAE", "learning_rate", self.learning_rate, 1e-12, 1e3)
        in_range("CAE", "batch_size", self.batch_size, 1, 1 << 20)
        in_range("CAE", "weight_decay", self.weight_decay, 0, 1e3)


class ClassificationAutoencoder(nn.Module):
    """Inputs (N, width) in [0, 1] to what is rebuilt of them, (N, width), and logits (N, classes)."""

    def __init__(self, width: int, classes: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, latent), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Sigmoid())
        self.classifier = nn.Linear(latent, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.encoder(x)
        return self.decoder(latent), self.classifier(latent)


def combine(rebuilt: Tensor, classified: Tensor, alpha: float) -> Tensor:
    """alpha e / |e| + (1 - alpha) c / |c|. rebuilt, classified: e and c, (N,). (N,), higher is worse; errors that are all 0 add 0.

    >>> combine(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]), 0.5)
    tensor([0.8000, 0.4000])
    """
    return alpha * F.normalize(rebuilt, dim=0) + (1 - alpha) * F.normalize(classified, dim=0)


class _Detector(ABC):
    """`score` and `flag` from two errors."""

    def __init__(self, options: CaeOptions | None = None) -> None:
        self.options = options or CaeOptions()

    @abstractmethod
    def errors(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Per example the mean absolute error of what is rebuilt and the cross-entropy of its label in nats, both (N,) float64.

        Raises ModelError before `fit`, DataError for a label or a width that training did not have.
        """

    def score(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """(N,) float64, higher is worse; relative to the other examples judged in the same call."""
        return combine(*self.errors(inputs, labels), self.options.alpha)

    def flag(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, TwoGaussians]:
        """Which of these examples count as poisoned, (N,) bool, and the mixture fitted to their scores."""
        scores = self.score(inputs, labels)
        mixture = fit_two_gaussians(scores)
        return scores >= mixture.threshold, mixture


class CaeDetector(_Detector):
    """CAE: `fit` on examples, `score` others or the same, `flag` those that the mixture calls poisoned.

    >>> x, y = torch.rand(40, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    >>> CaeDetector(CaeOptions(epochs=1)).fit(x, y).score(x, y).shape
    torch.Size([40])
    """

    def fit(self, inputs: Tensor, labels: Tensor) -> Self:
        """inputs: (N, d) floating in [0, 1]; labels: (N,) int64 from 0. The global random state is left as it was.

        Raises DataError for inputs of another kind, ModelError where training diverges.
        """
        x = _checked(inputs, labels)
        self.width_, self.classes_ = x.shape[1], int(labels.max()) + 1
        self.network_ = _trained(x, labels, self.options, classify=True)
        return self

    def errors(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(self, "network_"):
            raise ModelError("the classification auto-encoder is not fitted", hint="call fit first")
        x = _checked(inputs, labels)
        if x.shape[1] != self.width_ or int(labels.max()) >= self.classes_:
            raise DataError(f"this auto-encoder was fitted on {self.width_} inputs and {self.classes_} classes")
        with torch.no_grad():
            rebuilt, logits = self.network_(x)
            return _missed(x, rebuilt), F.cross_entropy(logits.double(), labels, reduction="none")


class CaePlusDetector(_Detector):
    """CAE+: used like CaeDetector. `cae_`: the CAE in it, which is whole and can be asked by itself.

    >>> x, y = torch.rand(40, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    >>> detector = CaePlusDetector(CaeOptions(epochs=1)).fit(x, y)
    >>> torch.equal(detector.errors(x, y)[1], detector.cae_.errors(x, y)[1])
    True
    """

    def fit(self, inputs: Tensor, labels: Tensor) -> Self:
        """As CaeDetector.fit; two networks are trained."""
        self.cae_ = CaeDetector(self.options).fit(inputs, labels)
        self.rae_ = _trained(inputs.float(), labels, self.options, classify=False)
        return self

    def errors(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(self, "rae_"):
            raise ModelError("the pair of auto-encoders is not fitted", hint="call fit first")
        _, classified = self.cae_.errors(inputs, labels)
        x = inputs.float()
        with torch.no_grad():
            return _missed(x, self.rae_(x)[0]), classified


def _trained(x: Tensor, labels: Tensor, options: CaeOptions, *, classify: bool) -> ClassificationAutoencoder:
    """Without `classify` labels are not looked at and the classifier stays as it began: a plain auto-encoder."""
    o = options
    with random_state(o.seed):
        network = ClassificationAutoencoder(x.shape[1], int(labels.max()) + 1, o.hidden, o.latent)
    optimiser = torch.optim.AdamW(network.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay)
    draws = generator(o.seed, "order")
    for _ in range(o.epochs):
        order = torch.randperm(len(x), generator=draws)
        for start in range(0, len(x), o.batch_size):
            chosen = order[start : start + o.batch_size]
            rebuilt, logits = network(x[chosen])
            loss = F.mse_loss(rebuilt, x[chosen])
            if classify:
                loss = loss + F.cross_entropy(logits, labels[chosen])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
        raise ModelError("the classification auto-encoder diverged", hint="lower its learning_rate")
    return network.eval().requires_grad_(False)


def _missed(x: Tensor, rebuilt: Tensor) -> Tensor:
    return (x.double() - rebuilt.double()).abs().mean(1)


def _checked(inputs: Tensor, labels: Tensor) -> Tensor:
    if inputs.ndim != 2 or not inputs.is_floating_point() or len(inputs) != len(labels) or not len(labels):
        raise DataError(
            f"a classification auto-encoder takes rows of floating numbers with a label each, not {inputs.dtype} "
            f"{tuple(inputs.shape)} with {len(labels)} labels"
        )
    if not bool(((inputs >= 0) & (inputs <= 1)).all()):
        raise DataError("a classification auto-encoder takes inputs in [0, 1]", hint="divide pixels by 255")
    return inputs.float()
