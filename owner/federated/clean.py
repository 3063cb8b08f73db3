"""FedCLEAN (Ben Ghali, Bellafqira, Coatrieux 2025, arXiv 2501.12123): a CVAE on clients' activations of a trigger set, given the
class, and trust that spreads by ascending error until a gap."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from common.activations import activations_depend_on_parameters, find_head, observe
from common.devices import Compute
from common.errors import ConfigurationError, GuardError, VacuousGateError
from common.examples import Examples
from common.randomness import derived_seed
from common.training import train
from common.training_options import TrainingOptions
from common.weights import Weights
from owner.detectors.geometric_median import geometric_median
from owner.detectors.variational import Variational
from owner.federated.learning import errors_of, learn, made
from owner.federated.spectral import check_network
from owner.federated.thresholds import Cut, first_gap


@dataclass(frozen=True)
class CleanOptions:
    """images: of the trigger set. warm_up: epochs of the owner's own fine-tuning before the first snapshot.
    snapshots: of activations, one an epoch after that.
    hidden, latent, kl_weight: of the CVAE. epochs, learning_rate: of Adam; a batch is of the size of one snapshot.
    gap: lambda; trust stops at the first gap of more than gap x range, 0.2 to 0.3 in the paper.
    seed: of the fine-tuning, the initial weights and the latent noise.
    """

    images: int = 250
    warm_up: int = 10
    snapshots: int = 10
    hidden: int = 100
    latent: int = 8
    kl_weight: float = 0.5
    epochs: int = 10
    learning_rate: float = 1e-2
    gap: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_network("fedclean", (self.hidden,), self.latent, self.epochs, self.learning_rate, 1)
        if self.images < 1 or self.snapshots < 1 or self.warm_up < 0:
            raise ConfigurationError("fedclean: images and snapshots must be at least 1, warm_up at least 0")
        if not 0 < self.gap < 1:
            raise ConfigurationError(f"fedclean: gap must be above 0 and below 1, not {self.gap}")


class CleanDetector:
    """score = mean squared error of x = sigmoid(g(t) - geometric median over clients), over triggers t and features.

    model: of the federated architecture; copied, its weights are the release that the owner fine-tunes.
    """

    name: ClassVar[str] = "fedclean"

    def __init__(
        self, model: nn.Module, *, compute: Compute, head: str | None = None, options: CleanOptions | None = None
    ) -> None:
        self.options = options or CleanOptions()
        self.network_: Variational | None = None
        self._model, self._compute, self._head = copy.deepcopy(model), compute, head
        self._triggers: Examples | None = None

    def fit(self, triggers: Examples, finetuning: TrainingOptions) -> Self:
        """Fine-tune the release on `triggers` (the first `images` of them), and learn the activations after each epoch.

        finetuning: optimiser, rate and batch size; a snapshot is one epoch of it.
        Raises GuardError for no triggers or a fit that diverges; VacuousGateError where activations do not depend on weights
        (logistic regression, a linear SVM); ModelError.
        """
        options = self.options
        if not len(triggers):
            raise GuardError("fedclean needs trigger images")
        self._triggers = triggers = triggers.take(torch.arange(min(options.images, len(triggers))))
        first = triggers.take(torch.arange(1)).inputs
        self._head = head = find_head(self._model, first, self._head)
        if not activations_depend_on_parameters(self._model, head, first):
            raise VacuousGateError(
                f"the input of the head {head!r} does not depend on the model's weights: FedCLEAN has nothing to look at",
                hint="federate a model with at least one layer before its head, or choose spectral-vae or fedcvae",
            )
        tuned, seen = copy.deepcopy(self._model), []
        for epoch in range(options.warm_up + options.snapshots):
            seed = derived_seed(options.seed, f"snapshot {epoch}")
            train(
                tuned,
                triggers,
                dataclasses.replace(finetuning, epochs=1, schedule="constant", seed=seed),
                compute=self._compute,
                head=head,
                progress=False,
            )
            if epoch >= options.warm_up:
                seen.append(observe(tuned, triggers.inputs, head=head, compute=self._compute).features)
        maps = _centred(torch.stack(seen))
        network = made(
            lambda: Variational(
                maps.shape[2], triggers.classes, (options.hidden,), options.latent, nn.Tanh, sigmoid=True
            ),
            options.seed,
        )
        self.network_ = learn(
            network,
            maps.flatten(0, 1),
            self._condition().repeat(len(maps), 1),
            latent=options.latent,
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            batch_size=len(triggers),
            kl_weight=options.kl_weight,
            seed=options.seed,
            name=self.name,
        )
        return self

    def scores(self, number: int, updates: Sequence[Weights]) -> list[float]:
        """One a client, higher is worse; infinite for activations that are not finite. number: of the round, not looked at.

        Raises GuardError before `fit`, ModelError for weights of another architecture.
        """
        if self.network_ is None or self._triggers is None:
            raise GuardError(f"the {self.name} has not been fitted", hint="call fit(triggers, finetuning) first")
        if not updates:
            return []
        maps = torch.stack([self._activations(weights) for weights in updates])
        finite = torch.isfinite(maps).flatten(1).all(1)
        scores = [float("inf")] * len(maps)
        if not finite.any():
            return scores
        condition = self._condition()
        for client, x in zip(torch.nonzero(finite).flatten().tolist(), _centred(maps[finite]), strict=True):
            squared, _ = errors_of(self.network_, x, condition)
            scores[client] = float(squared.mean()) / x.shape[1]
        return scores

    def cut(self, scores: Sequence[float]) -> Cut:
        return first_gap(scores, share=self.options.gap)

    def _activations(self, weights: Mapping[str, Tensor]) -> Tensor:
        assert self._triggers is not None  # noqa: S101 - for the type checker: fitted
        assert self._head is not None  # noqa: S101
        self._model.load_state_dict(dict(weights))
        return observe(self._model, self._triggers.inputs, head=self._head, compute=self._compute).features

    def _condition(self) -> Tensor:
        assert self._triggers is not None  # noqa: S101 - for the type checker: fitted
        return nn.functional.one_hot(self._triggers.labels, self._triggers.classes).float()


def _centred(maps: Tensor) -> Tensor:
    """sigmoid(maps - geometric median), (n, N, d); the median is over the n whole activation maps."""
    flat = maps.flatten(1)
    return (flat - geometric_median(flat, iterations=200)).sigmoid().view_as(maps)
