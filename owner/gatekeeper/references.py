"""The honest references: fine-tunes of M as contributors would make them, against which a submission is compared.

A p-value over references is honest about contributors only as far as the references behave like contributors. What is
assumed of them stands in `HonestPopulation`, is stored in the guard, and centres on the options the owner recommends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.examples import Examples
from common.training_options import Augmentation, Optimiser, TrainingOptions
from owner.gatekeeper.corruptions import KINDS, corrupt
from owner.population import HonestPopulation

FIRST_FITTING = 10_000
"""Number of the first fine-tune that fits a combination's scales: beyond the largest K, so that none of them ever calibrates."""
POPULATION_VERSION = 2
"""To be raised with every change of what a plan draws, or of what is done with its images: references of two versions are of two
populations, and do not calibrate together."""


@dataclass(frozen=True)
class Reference:
    """One honest fine-tune, scored.

    plan: how it was made, as JSON. scores: by detector, and `detector/measure` of those that give several.
    accuracy: on the calibration triggers.
    image_errors: by detector, (N,) float64 on the calibration triggers, of detectors that give them.
    """

    plan: Mapping[str, Any]
    scores: Mapping[str, float]
    accuracy: float
    image_errors: Mapping[str, Tensor] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return {"plan": dict(self.plan), "scores": dict(self.scores), "accuracy": self.accuracy}


@dataclass(frozen=True)
class ReferencePlan:
    """One honest contributor to be played: which images, how trained.

    indices: (n,) int64 into the reference pool. alpha: of its class mix, None for the pool's own.
    wrong_labels: (n,) bool, whose label is replaced by a random other class.
    corruption: kind and strength of what its device does to its images (see `corruptions`), None for nothing.
    """

    indices: Tensor
    alpha: float | None
    wrong_labels: Tensor
    options: TrainingOptions
    corruption: tuple[str, float] | None = None

    def examples(self, pool: Examples) -> Examples:
        chosen = pool.take(self.indices)
        generator = torch.Generator().manual_seed(self.options.seed)
        shift = torch.randint(1, pool.classes, (len(chosen),), generator=generator)
        labels = torch.where(self.wrong_labels, (chosen.labels + shift) % pool.classes, chosen.labels)
        if self.corruption:
            kind, strength = self.corruption
            changed = tuple(
                corrupt(tensor, kind, strength, generator) if tensor.ndim == 4 else tensor for tensor in chosen.inputs
            )
            chosen = dataclasses.replace(chosen, inputs=changed)
        return chosen.with_labels(labels)

    def to_json(self) -> dict[str, Any]:
        return {
            "images": len(self.indices),
            "alpha": self.alpha,
            "wrong_labels": int(self.wrong_labels.sum()),
            "corruption": list(self.corruption) if self.corruption else None,
            "options": self.options.to_json(),
        }


def plan_reference(
    k: int, *, pool: Examples, recommended: TrainingOptions, population: HonestPopulation, seed: int, attempt: int = 0
) -> ReferencePlan:
    """The k-th honest contributor: a function of (seed, k, attempt), whatever was drawn before."""
    random = np.random.default_rng([seed, k, attempt])
    low, high = population.sizes or (max(len(pool) // 8, 1), max(len(pool) // 2, 1))
    size = min(round(_log_uniform(random, (low, high))), len(pool))
    alpha = None if random.random() < population.iid else _log_uniform(random, population.alpha)
    options = _vary(recommended, population, random, images=pool.inputs[0].ndim == 4)
    indices = _draw_images(random, pool.labels.numpy(), pool.classes, size, alpha)
    noise = random.random() * population.label_noise if random.random() < population.noisy else 0.0
    wrong = torch.from_numpy(random.random(len(indices)) < noise)
    corruption = None
    if any(tensor.ndim == 4 for tensor in pool.inputs) and random.random() < population.other_images:
        corruption = (str(random.choice(KINDS)), float(random.random() * population.corruption))
    if random.random() < population.frozen:
        options = dataclasses.replace(options, frozen_layers=max(1, options.frozen_layers))
    return ReferencePlan(torch.from_numpy(indices), alpha, wrong, options, corruption)


def plan_owner_finetune(pool: Examples, recommended: TrainingOptions, *, seed: int) -> ReferencePlan:
    """M_f of Eq. 4: M fine-tuned by the owner as recommended, on the whole reference pool."""
    options = dataclasses.replace(recommended, seed=seed)
    return ReferencePlan(torch.arange(len(pool)), None, torch.zeros(len(pool), dtype=torch.bool), options)


def _log_uniform(random: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(random.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def _vary(
    recommended: TrainingOptions, population: HonestPopulation, random: np.random.Generator, *, images: bool
) -> TrainingOptions:
    rate = recommended.learning_rate * _log_uniform(random, population.learning_rate)
    epochs = max(1, round(recommended.epochs * _log_uniform(random, population.epochs)))
    optimiser: Optimiser = recommended.optimiser
    if random.random() < population.other_optimiser:
        optimiser = "adamw" if recommended.optimiser == "sgd" else "sgd"
        rate *= 0.1 if recommended.optimiser == "sgd" else 10.0
    augmentation: Augmentation = recommended.augmentation
    if images and random.random() < population.other_augmentation:
        augmentation = "crop" if recommended.augmentation == "none" else "none"
    seed = int(random.integers(1 << 62))
    return dataclasses.replace(
        recommended, learning_rate=rate, epochs=epochs, optimiser=optimiser, augmentation=augmentation, seed=seed
    )


def _draw_images(
    random: np.random.Generator, labels: np.ndarray[Any, Any], classes: int, size: int, alpha: float | None
) -> np.ndarray[Any, Any]:
    """`size` different images of the pool, or somewhat fewer where a class that is wanted often runs out."""
    if alpha is None:
        return np.sort(random.permutation(len(labels))[:size])
    mix = random.dirichlet(np.full(classes, alpha))
    available = np.bincount(labels, minlength=classes)
    wanted = np.zeros(classes, dtype=np.int64)
    for _ in range(10):
        share = np.where(wanted < available, mix, 0.0)
        if wanted.sum() >= size or not share.sum() > 0:
            break
        wanted = np.minimum(wanted + random.multinomial(size - wanted.sum(), share / share.sum()), available)
    chosen = [random.permutation(np.flatnonzero(labels == c))[: wanted[c]] for c in range(classes)]
    return np.sort(np.concatenate(chosen))
