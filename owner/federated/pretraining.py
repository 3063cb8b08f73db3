"""Honest updates made on public data: what VAE and CVAE learn before the federation begins.

The owner plays the federation by itself: shares of its public data are contributors, all honest, and the mean of a round's
updates is the base of the next.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.errors import GuardError
from common.examples import Examples
from common.progress import progress_bar
from common.randomness import derived_seed, generator
from common.training import train
from common.training_options import TrainingOptions
from common.weights import Weights, weights_of


@dataclass(frozen=True)
class HonestRounds:
    """rounds: one a round, the weights each honest contributor returned in it."""

    rounds: tuple[tuple[Weights, ...], ...]

    @property
    def updates(self) -> list[Weights]:
        """Of all rounds, one after the other."""
        return [weights for updates in self.rounds for weights in updates]


def honest_rounds(
    model: nn.Module,
    public: Examples,
    options: TrainingOptions,
    *,
    rounds: int,
    contributors: int,
    seed: int,
    compute: Compute,
    share: float = 0.5,
    progress: bool | None = None,
) -> HonestRounds:
    """Rounds of honest training on public data, from the weights that `model` has; `model` is left as it is.

    options: what contributors are asked to do in a round. share: of the public data that one contributor has, at random;
        shares overlap, for public data are few.
    progress: show a bar; None shows it on a terminal.

    Raises GuardError for no rounds, fewer than two contributors or too few examples; ModelError where training diverges.
    """
    if rounds < 1 or contributors < 2:
        raise GuardError(f"honest rounds need at least 1 round of 2 contributors, not {rounds} of {contributors}")
    size = round(share * len(public))
    if not 0 < size <= len(public):
        raise GuardError(f"a share of {share:g} of {len(public)} public examples is nobody's data")
    base = weights_of(model)
    found: list[tuple[Weights, ...]] = []
    with progress_bar("honest updates on public data", rounds * contributors, shown=progress) as advance:
        for number in range(1, rounds + 1):
            updates: list[Weights] = []
            for contributor in range(contributors):
                purpose = f"honest round {number} contributor {contributor}"
                chosen = torch.randperm(len(public), generator=generator(seed, purpose))[:size]
                worker = copy.deepcopy(model)
                worker.load_state_dict(base)
                mine = dataclasses.replace(options, seed=derived_seed(seed, purpose))
                train(worker, public.take(chosen), mine, compute=compute, progress=False)
                updates.append(weights_of(worker))
                advance(1, f"round {number} of {rounds}")
            found.append(tuple(updates))
            base = mean_of(updates)
    return HonestRounds(tuple(found))


def mean_of(models: Sequence[Mapping[str, Tensor]]) -> Weights:
    """The mean of floating tensors; other tensors are the first model's, for a mean of counters means nothing.

    >>> mean_of([{"w": torch.tensor([1.0]), "n": torch.tensor(3)}, {"w": torch.tensor([2.0]), "n": torch.tensor(9)}])
    {'w': tensor([1.5000]), 'n': tensor(3)}
    """
    return {
        name: torch.stack([m[name].double() for m in models]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in models[0].items()
    }
