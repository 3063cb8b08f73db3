"""FedCLEAN (Ben Ghali, Bellafqira, Coatrieux 2025, arXiv 2501.12123): a CVAE on clients' activations of a trigger set, given the
class, and trust that spreads by ascending error until a gap.

It follows the released code (github.com/BGhali-Latim/FedCLEAN_, Defenses/FedCAMServer_dev.py, by its README the final version): what
all hidden layers give before their nonlinearity, 22464 numbers an image in its configuration, which are those of Models/CNN.py; the
network, its loss and its training; the owner's fine-tuning. As it is stored there the server calls an ablation that takes one layer's
512 numbers, which do not fit that configuration. Portier departs from the code where
- the code rebuilds from one sampled z, in scoring too; here a score is that of the latent mean, so that one model has one score;
- the code has the sigmoid at the decoder's end commented out; here it is there, for an output that starts at 0 where all rows lie around
  0.5 ends, on a CNN of MNIST, with twice the error of their mean (1.9e-3, their variance is 0.93e-3);
- maps of larger models are averaged down (`CleanOptions.width`), and a model without hidden convolutions or linear layers is looked at
  where its head is;
- the code's 0.5 * (epochs // 10) before the KL term is 0.5 at its 15 epochs and nothing below ten; here `kl_weight` is what it is;
- the code decays biases, too, by 1e-5 in the owner's fine-tuning;
- the code puts a score that is not finite at the round's largest; here it is dropped before trust spreads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from common.activations import activations_depend_on_parameters, find_head
from common.devices import Compute
from common.errors import ConfigurationError, GuardError, VacuousGateError
from common.examples import Examples
from common.randomness import derived_seed
from common.training import train
from common.training_options import TrainingOptions
from common.weights import Weights
from owner.detectors.variational import Variational
from owner.federated.activation_maps import ActivationMaps
from owner.federated.gram_median import gram_geometric_median
from owner.federated.learning import errors_of, learn, made
from owner.federated.spectral import check_network
from owner.federated.thresholds import Cut, first_gap

_MEDIAN_ITERATIONS = 200


@dataclass(frozen=True)
class CleanOptions:
    """images: of the trigger set. width: numbers of an image beyond which maps are averaged down; 22464 is the released network's.
    warm_up: steps of the owner's own fine-tuning, each on all triggers, before the first snapshot.
    snapshots: of activations, one a step after that. snapshot_rate: of that fine-tuning's Adam.
    hidden, latent: of the CVAE. kl_weight: of the KL, summed over a batch, beside the squared error, averaged over batch and features, as
        in the released code: nearly all of the loss.
    epochs, learning_rate: of the CVAE's Adam; a batch is one snapshot.
    gap: lambda; trust stops at the first gap of more than gap x range, 0.2 to 0.3 in the paper.
    seed: of the fine-tuning, the initial weights and the latent noise.
    """

    images: int = 250
    width: int = 22464
    warm_up: int = 10
    snapshots: int = 10
    snapshot_rate: float = 1e-3
    hidden: int = 100
    latent: int = 8
    kl_weight: float = 0.5
    epochs: int = 15
    learning_rate: float = 1e-2
    gap: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_network("fedclean", (self.hidden,), self.latent, self.epochs, self.learning_rate, 1)
        if min(self.images, self.snapshots, self.width) < 1 or self.warm_up < 0:
            raise ConfigurationError("fedclean: images, snapshots and width must be at least 1, warm_up at least 0")
        if not 0 < self.snapshot_rate < 10:
            raise ConfigurationError(f"fedclean: snapshot_rate must be above 0 and below 10, not {self.snapshot_rate}")
        if not 0 < self.gap < 1:
            raise ConfigurationError(f"fedclean: gap must be above 0 and below 1, not {self.gap}")


class CleanDetector:
    """score = mean squared error of x = sigmoid(g(t) - geometric median over clients), over triggers t and the numbers g(t) that all hidden
    layers give.

    model: of the federated architecture; copied, its weights are the release that the owner fine-tunes.
    """

    name: ClassVar[str] = "fedclean"

    def __init__(
        self, model: nn.Module, *, compute: Compute, head: str | None = None, options: CleanOptions | None = None
    ) -> None:
        self.options = options or CleanOptions()
        self.network_: Variational | None = None
        self.maps_: ActivationMaps | None = None
        self._model, self._compute, self._head = copy.deepcopy(model), compute, head
        self._triggers: Examples | None = None

    def fit(self, triggers: Examples) -> Self:
        """Fine-tune the release on `triggers` (the first `images` of them), and learn the activations after each step.

        Raises GuardError for no triggers, a fit that diverges or layers too large to look at; VacuousGateError where activations do not
        depend on weights (logistic regression, a linear SVM); ModelError.
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
        self.maps_ = ActivationMaps(self._model, first, head=head, width=options.width)
        snapshots = self._snapshots(self.maps_, triggers)
        centre = gram_geometric_median(snapshots, iterations=_MEDIAN_ITERATIONS)
        rows = torch.cat([_centred(snapshot, centre) for snapshot in snapshots])
        network = made(
            lambda: Variational(
                rows.shape[1], triggers.classes, (options.hidden,), options.latent, nn.Tanh, sigmoid=True
            ),
            options.seed,
        )
        self.network_ = learn(
            network,
            rows,
            self._condition().repeat(len(snapshots), 1),
            latent=options.latent,
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            batch_size=len(triggers),
            # From a mean error and a summed KL to a summed error and a mean KL.
            kl_weight=options.kl_weight * len(triggers) * rows.shape[1],
            seed=options.seed,
            name=self.name,
            shuffle=False,
        )
        return self

    def scores(self, number: int, updates: Sequence[Weights]) -> list[float]:
        """One a client, higher is worse; infinite for activations that are not finite. number: of the round, not looked at.

        Raises GuardError before `fit`, ModelError for weights of another architecture.
        """
        return self.scores_of(number, self.seen(updates))

    def seen(self, updates: Sequence[Weights]) -> list[Tensor]:
        """What it looks at of each client, whoever the others are: (triggers, d) float32. Raises as `scores` does."""
        if self.maps_ is None or self._triggers is None:
            raise self._unfitted()
        found = []
        for weights in updates:
            self._model.load_state_dict(dict(weights))
            found.append(self.maps_.of(self._model, self._triggers.inputs, compute=self._compute))
        return found

    def scores_of(self, number: int, seen: Sequence[Tensor]) -> list[float]:
        """`scores` of the clients that this was seen of. Raises GuardError before `fit`."""
        if self.network_ is None:
            raise self._unfitted()
        scores = [float("inf")] * len(seen)
        finite = [i for i, maps in enumerate(seen) if bool(torch.isfinite(maps).all())]
        if not finite:
            return scores
        condition = self._condition()
        centre = gram_geometric_median([seen[i] for i in finite], iterations=_MEDIAN_ITERATIONS)
        for i in finite:
            squared, _ = errors_of(self.network_, _centred(seen[i], centre), condition)
            scores[i] = float(squared.mean()) / seen[i].shape[1]
        return scores

    def cut(self, scores: Sequence[float]) -> Cut:
        return first_gap(scores, share=self.options.gap)

    def _snapshots(self, maps: ActivationMaps, triggers: Examples) -> list[Tensor]:
        """Activations (triggers, d) after each of the last steps of one fine-tuning."""
        options, seen = self.options, list[Tensor]()
        tuned = copy.deepcopy(self._model)

        def look(step: int, _loss: float) -> None:
            if step > options.warm_up:
                seen.append(maps.of(tuned, triggers.inputs, compute=self._compute))

        how = TrainingOptions(
            epochs=options.warm_up + options.snapshots,
            learning_rate=options.snapshot_rate,
            batch_size=len(triggers),
            optimiser="adam",
            weight_decay=1e-5,
            schedule="constant",
            seed=derived_seed(options.seed, "snapshots"),
        )
        train(tuned, triggers, how, compute=self._compute, head=self._head, progress=False, on_epoch=look)
        return seen

    def _unfitted(self) -> GuardError:
        return GuardError(f"the {self.name} has not been fitted", hint="call fit(triggers) first")

    def _condition(self) -> Tensor:
        assert self._triggers is not None  # noqa: S101 - for the type checker: fitted
        return nn.functional.one_hot(self._triggers.labels, self._triggers.classes).float()


def _centred(maps: Tensor, centre: Tensor) -> Tensor:
    """sigmoid(maps - centre), each (N, d)."""
    return (maps - centre).sigmoid_()
