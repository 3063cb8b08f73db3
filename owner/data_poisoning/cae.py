"""The classification auto-encoder (Razmi & Xiong 2021, arXiv 2108.04206): poisoned examples are rebuilt or classified badly.

An auto-encoder whose latent vector is also classified, by a linear layer, learns alpha |x - x'|^2 + (1 - alpha) CE. An example's
score is alpha |x - x'| + (1 - alpha) CE(label given), and two Gaussians fitted to the scores of all examples part poisoned ones from
clean ones. alpha = 1 is a plain auto-encoder, alpha = 0 a plain classifier.

It is trained on clean data, or, as the paper's CAE+, on the very data that are to be judged. Widths of the layers, and what else of
CAE+ goes beyond that, we have from no text of the authors'; they are ours.
"""

from __future__ import annotations

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
    """alpha: weight of reconstruction, from 0 to 1. hidden: width of the layer on either side of the latent one, `latent` wide.
    epochs, learning_rate, batch_size, weight_decay: of AdamW. seed: of initial weights and order.

    Raises ConfigurationError naming field and limit.
    """

    alpha: float = 0.5
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


class CaeDetector:
    """`fit` on examples, `score` others or the same, `flag` those that the mixture calls poisoned.

    >>> x, y = torch.rand(40, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    >>> CaeDetector(CaeOptions(epochs=1)).fit(x, y).score(x, y).shape
    torch.Size([40])
    """

    def __init__(self, options: CaeOptions | None = None) -> None:
        self.options = options or CaeOptions()

    def fit(self, inputs: Tensor, labels: Tensor) -> Self:
        """inputs: (N, d) floating in [0, 1]; labels: (N,) int64 from 0. The global random state is left as it was.

        Raises DataError for inputs of another kind, ModelError where training diverges.
        """
        x = _checked(inputs, labels)
        o = self.options
        self.width_, self.classes_ = x.shape[1], int(labels.max()) + 1
        with random_state(o.seed):
            network = ClassificationAutoencoder(self.width_, self.classes_, o.hidden, o.latent)
        optimiser = torch.optim.AdamW(network.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay)
        draws = generator(o.seed, "order")
        for _ in range(o.epochs):
            order = torch.randperm(len(x), generator=draws)
            for start in range(0, len(x), o.batch_size):
                chosen = order[start : start + o.batch_size]
                rebuilt, logits = network(x[chosen])
                squared = (x[chosen] - rebuilt).square().sum(1)
                classified = F.cross_entropy(logits, labels[chosen], reduction="none")
                loss = (o.alpha * squared + (1 - o.alpha) * classified).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
            raise ModelError("the classification auto-encoder diverged", hint="lower its learning_rate")
        self.network_ = network.eval().requires_grad_(False)
        return self

    def errors(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Per example |x - x'| and the cross-entropy of its label in nats, both (N,) float64.

        Raises ModelError before `fit`, DataError for a label or a width that training did not have.
        """
        if not hasattr(self, "network_"):
            raise ModelError("the classification auto-encoder is not fitted", hint="call fit first")
        x = _checked(inputs, labels)
        if x.shape[1] != self.width_ or int(labels.max()) >= self.classes_:
            raise DataError(f"this auto-encoder was fitted on {self.width_} inputs and {self.classes_} classes")
        with torch.inference_mode():
            rebuilt, logits = self.network_(x)
            lengths = (x.double() - rebuilt.double()).norm(dim=1)
            classified = F.cross_entropy(logits.double(), labels, reduction="none")
        return lengths.clone(), classified.clone()

    def score(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """(N,) float64, higher is worse."""
        lengths, classified = self.errors(inputs, labels)
        return self.options.alpha * lengths + (1 - self.options.alpha) * classified

    def flag(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, TwoGaussians]:
        """Which of these examples count as poisoned, (N,) bool, and the mixture fitted to their scores."""
        scores = self.score(inputs, labels)
        mixture = fit_two_gaussians(scores)
        return scores >= mixture.threshold, mixture


def _checked(inputs: Tensor, labels: Tensor) -> Tensor:
    if inputs.ndim != 2 or not inputs.is_floating_point() or len(inputs) != len(labels) or not len(labels):
        raise DataError(
            f"a classification auto-encoder takes rows of floating numbers with a label each, not {inputs.dtype} "
            f"{tuple(inputs.shape)} with {len(labels)} labels"
        )
    if not bool(((inputs >= 0) & (inputs <= 1)).all()):
        raise DataError("a classification auto-encoder takes inputs in [0, 1]", hint="divide pixels by 255")
    return inputs.float()
