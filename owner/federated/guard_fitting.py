"""Fitting a guard for whatever the global model is now: what refreshing a guard within a federation takes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from common.devices import Compute, choose_compute
from common.errors import DataError, GuardMismatchError
from common.examples import Examples
from common.model_spec import ModelSpec
from common.training_options import TrainingOptions
from owner.gatekeeper import Gatekeeper, GuardOptions, Triggers
from owner.gatekeeper.triggers import split_triggers


@dataclass(frozen=True)
class GuardFitter:
    """Called with weights, it fits a guard for them: `GatedStrategy(inner, GuardFitter(...), refresh="when-left")`.

    model: of the federated architecture; copied for each fit, its own weights do not matter.
    triggers, references_pool: clean data of the owner's, see `Gatekeeper.protect`.
    finetuning: what clients do in a round. options: of the guard. compute: None is the fastest of this machine.
    """

    model: nn.Module
    triggers: Triggers | Examples
    references_pool: Examples
    spec: ModelSpec
    finetuning: TrainingOptions
    options: GuardOptions = dataclasses.field(default_factory=GuardOptions)
    compute: Compute | None = None

    def __call__(self, weights: Mapping[str, Tensor]) -> Gatekeeper:
        """Raises GuardMismatchError where the weights are not of the model's architecture, and what `Gatekeeper.protect` raises."""
        model = copy.deepcopy(self.model)
        try:
            model.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise GuardMismatchError(
                f"the guard is to be fitted for a {type(model).__name__}, and the federated model is another: "
                f"{str(error).splitlines()[-1].strip()}",
                hint="give the guard fitter the model that is federated",
            ) from None
        return Gatekeeper.protect(
            model,
            self.triggers,
            references_pool=self.references_pool,
            spec=self.spec,
            finetuning=self.finetuning,
            options=self.options,
            compute=self.compute or choose_compute(),
            # What a client's update does to utility by itself matters little: the mean of many is merged.
            utility=None,
            progress=False,
        )

    @classmethod
    def from_batches(
        cls,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        epochs: int = 1,
        learning_rate: float = 0.01,
        batch_size: int = 32,
        momentum: float = 0.9,
        options: GuardOptions | None = None,
        compute: Compute | None = None,
        seed: int = 0,
    ) -> Self:
        """From a DataLoader of clean data that no client has: half become triggers, half train the honest references.

        batches: of (inputs, labels), or of dicts with a `label` and one tensor of inputs, as flwr-datasets gives them.
        epochs, learning_rate, batch_size, momentum: of the clients' SGD in a round.
        Raises DataError for batches of another kind; GuardError for too few images.
        """
        examples = _examples(batches)
        halves = split_in_two(examples, seed=seed)
        finetuning = TrainingOptions(
            epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, momentum=momentum, schedule="constant"
        )
        kind = type(model)
        spec = ModelSpec(f"{kind.__module__}:{kind.__qualname__}", examples.input_shape, examples.classes)
        triggers = split_triggers(halves[0], seed=seed)
        return cls(model, triggers, halves[1], spec, finetuning, options or GuardOptions(seed=seed), compute)


def split_in_two(examples: Examples, *, seed: int) -> tuple[Examples, Examples]:
    """Two disjoint halves, each class in proportion."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.zeros(len(examples), dtype=torch.bool)
    for label in torch.unique(examples.labels):
        members = torch.nonzero(examples.labels == label).flatten()
        first[members[torch.randperm(len(members), generator=generator)[: (len(members) + 1) // 2]]] = True
    return examples.take(first), examples.take(~first)


def _examples(batches: Iterable[Any]) -> Examples:
    inputs, labels = [], []
    for batch in batches:
        x, y = _pair(batch)
        inputs.append(x.detach().cpu())
        labels.append(y.detach().cpu().long())
    if not inputs:
        raise DataError("the batches hold no examples to fit a guard on")
    every = torch.cat(labels)
    return Examples((torch.cat(inputs),), every, tuple(str(c) for c in range(int(every.max()) + 1)))


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping):
        label = next((name for name in ("label", "labels", "fine_label", "target", "y") if name in batch), None)
        rest = [
            value for name, value in batch.items() if name != label and isinstance(value, Tensor) and value.ndim > 1
        ]
        if label is not None and len(rest) == 1:
            return rest[0], torch.as_tensor(batch[label])
    elif isinstance(batch, (list, tuple)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    raise DataError(
        "a guard is fitted on batches of (inputs, labels) or of dicts with a label and one tensor of inputs, not on "
        f"{type(batch).__name__}",
        hint="build the GuardFitter from Examples instead",
    )
