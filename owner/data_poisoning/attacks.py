"""Attacks on the training set of a support vector machine: on labels, on inputs, on both.

The attacker holds some of the training examples and knows the rest, the victim and a validation set.

flipping: the labels of its examples are the other class's.
optimal: and their inputs go up the gradient of the victim's validation loss, through the victim's training (Biggio, Nelson, Laskov
    2012, arXiv 1206.6389), anywhere in [0, 1].
semi-optimal: the inputs alone do; the labels stay the true ones.

The abstract of Razmi & Xiong 2021 (arXiv 2108.04206) has attacks on features, on labels and on both. The three names and what each
attack changes are read in the authors' code (github.com/Emory-AIMS/CAE: attack.py, c_attack_poisoning.py, assess_detectors.py), where
semi-optimal is opt_notlabel. Its attacker adds examples, copies of training examples to begin with in the optimal attack and validation examples
in the others, and moves one after the other; it knows a fourth attack, mixed, a third of each. Here the attacker changes training
examples that it holds, and moves all of them in each step: that is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from common.errors import DataError, UnknownNameError
from common.specs import in_range
from owner.data_poisoning.victim import Svm, fit_svm, signs, solve_hessian, with_one

ATTACKS: Final = ("flipping", "optimal", "semi-optimal")


@dataclass(frozen=True)
class AttackOptions:
    """kind: one of ATTACKS. fraction: of the training set that the attacker holds.
    steps: of gradient ascent. step: how far each point moves in one, Euclidean, over the root of the number of inputs.
    cost: C of the victim.

    Raises UnknownNameError, ConfigurationError naming field and limit.
    """

    kind: str = "flipping"
    fraction: float = 0.1
    steps: int = 20
    step: float = 0.03
    cost: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ATTACKS:
            raise UnknownNameError("attack on data", self.kind, ATTACKS)
        in_range("attack", "fraction", self.fraction, 0, 1)
        in_range("attack", "steps", self.steps, 0, 100_000)
        in_range("attack", "step", self.step, 0, 1)


@dataclass(frozen=True)
class Poisoned:
    """inputs: (N, d); labels: (N,) of 0 and 1. poisoned: (N,) bool, which examples the attacker changed. Of a semi-optimal attack these
    can be fewer than it holds: an example beyond the victim's margin has no gradient, and nothing tells one that never moved from a
    clean one. losses: of the victim on the validation set, before each step of the ascent and after the last; one for flipping."""

    inputs: Tensor
    labels: Tensor
    poisoned: Tensor
    losses: tuple[float, ...]


def poison(
    inputs: Tensor,
    labels: Tensor,
    validation: tuple[Tensor, Tensor],
    options: AttackOptions,
    generator: torch.Generator,
) -> Poisoned:
    """The training set with the attacker's examples in it, chosen at random. Of an ascent, the step that hurt the most is kept.

    inputs: (N, d) floating in [0, 1]. labels: (N,) of 0 and 1. validation: inputs and labels that the attacker aims at.
    Raises DataError where the attacker would hold nothing.
    """
    count = round(options.fraction * len(inputs))
    if not count:
        raise DataError(f"{options.fraction:g} of {len(inputs)} examples is none that an attacker could hold")
    held = torch.zeros(len(inputs), dtype=torch.bool)
    held[torch.randperm(len(inputs), generator=generator)[:count]] = True
    given = labels if options.kind == "semi-optimal" else torch.where(held, 1 - labels, labels)
    unit = inputs.shape[1] ** 0.5
    moved, current = inputs.double().clone(), inputs[held].double()
    victim = fit_svm(moved, given, cost=options.cost)
    losses = [victim.loss(*validation)]
    best = current
    for _ in range(options.steps if options.kind != "flipping" else 0):
        slopes = validation_gradient(victim, moved, given, held, validation)
        lengths = slopes.norm(dim=1, keepdim=True)
        current = (current + options.step * unit * torch.where(lengths > 0, slopes / lengths, 0.0)).clamp(0, 1)
        moved[held] = current
        victim = fit_svm(moved, given, cost=options.cost, start=victim.weights)
        losses.append(victim.loss(*validation))
        if losses[-1] == max(losses):
            best = current
    moved[held] = best
    ended = moved.to(inputs.dtype)
    return Poisoned(ended, given, (ended != inputs).any(1) | (given != labels), tuple(losses))


def validation_gradient(
    victim: Svm, inputs: Tensor, labels: Tensor, held: Tensor, validation: tuple[Tensor, Tensor]
) -> Tensor:
    """(n, d) float64: how the victim's mean validation loss changes with the inputs of the examples in `held`, when the victim is
    trained anew.

    By the implicit function theorem: with v = H^-1 grad L_val, H the Hessian of the training objective, and slack m = 1 - y w.x,
    the gradient is 2 C (y m v - w v.x) for a point with slack, and 0 for the others.
    """
    rows, y, w, cost = with_one(inputs), signs(labels), victim.weights, victim.cost
    slack = 1 - y * (rows @ w)
    tests, wanted = with_one(validation[0]), signs(validation[1])
    missed = (1 - wanted * (tests @ w)).clamp_min(0)
    loss_gradient = -2 * tests.T @ (wanted * missed) / len(tests)
    v = solve_hessian(rows[slack > 0], cost, loss_gradient)
    m, mine = slack[held].clamp_min(0), rows[held]
    slopes = 2 * cost * ((y[held] * m)[:, None] * v - (mine @ v)[:, None] * w)
    return torch.where((m > 0)[:, None], slopes, 0.0)[:, :-1]
