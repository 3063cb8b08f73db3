"""Honest updates made on public data: what VAE and CVAE learn before the federation begins.

The owner plays the federation by itself: shares of its public data are contributors, all honest, drawn as the gate's references are,
and the mean of a round's updates is the base of the next.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.errors import GuardError
from common.examples import Examples
from common.progress import progress_bar
from common.training import train
from common.training_options import TrainingOptions
from common.weights import Weights, weights_of
from owner.gatekeeper.references import FIRST_FITTING, plan_reference
from owner.population import HonestPopulation


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
    population: HonestPopulation,
    progress: bool | None = None,
) -> HonestRounds:
    """Rounds of honest training on public data, from the weights that `model` has; `model` is left as it is.

    options: what contributors are asked to do in a round. population: how they differ; their shares overlap, for public data are few.
    progress: show a bar; None shows it on a terminal.

    Raises GuardError for no rounds, fewer than two contributors or too few examples; ModelError where training diverges.
    """
    if rounds < 1 or contributors < 2:
        raise GuardError(f"honest rounds need at least 1 round of 2 contributors, not {rounds} of {contributors}")
    if not len(public):
        raise GuardError("there are no public examples to make honest updates of")
    base = weights_of(model)
    found: list[tuple[Weights, ...]] = []
    with progress_bar("honest updates on public data", rounds * contributors, shown=progress) as advance:
        for number in range(1, rounds + 1):
            updates: list[Weights] = []
            samples: list[int] = []
            for contributor in range(contributors):
                # Other ones than those that calibrate.
                k = FIRST_FITTING + (number - 1) * contributors + contributor
                plan = plan_reference(k, pool=public, recommended=options, population=population, seed=seed)
                worker = copy.deepcopy(model)
                worker.load_state_dict(base)
                train(worker, plan.examples(public), plan.options, compute=compute, progress=False)
                updates.append(weights_of(worker))
                samples.append(len(plan.indices))
                advance(1, f"round {number} of {rounds}")
            found.append(tuple(updates))
            base = mean_of(updates, samples)
    return HonestRounds(tuple(found))


def mean_of(models: Sequence[Mapping[str, Tensor]], samples: Sequence[int]) -> Weights:
    """The mean of floating tensors, weighted by `samples` as FedAvg does; other tensors are the first model's, for a mean of counters means
    nothing.

    >>> mean_of([{"w": torch.tensor([1.0]), "n": torch.tensor(3)}, {"w": torch.tensor([2.0]), "n": torch.tensor(9)}], [30, 10])
    {'w': tensor([1.2500]), 'n': tensor(3)}
    """
    share = torch.tensor(samples, dtype=torch.float64) / sum(samples)
    return {
        name: torch.tensordot(share, torch.stack([m[name].double() for m in models]), dims=1).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in models[0].items()
    }
