"""What a candidate would become if it went on the way it went: its update, taken several times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.errors import ConfigurationError, GuardError
from owner.detectors.base import Evidence
from owner.detectors.comparison import Comparison, ReleaseComparison, class_sums, is_finite, median
from owner.detectors.noise_drift import noise
from owner.detectors.selection import chosen_images, require_inputs
from owner.detectors.weights import update


class Extrapolation(ReleaseComparison):
    """The model M_f = M + f (M_a - M), f >= 1, on clean images and on noise: ours.

    Fine-tuning moves a model almost linearly, and what an honest one learns of many classes balances. A backdoor is one direction:
    taken f times it shows without its trigger, on clean images and on noise, as one class that takes over; a flip as one class that
    goes to another. With p the softmax and r the logits less their mean over classes, in spreads of M's:

        logit   max_t of mean r_t(M_f) - r_t(M) over clean images
        rise    max_t of mean p_t(M_f) - p_t(M) over clean images that are not of class t
        cell    max_{s != t} of mean p_t(M_f) - p_t(M) over clean images of class s
        noise   max_t (n_t - median n) / 1.4826 MAD n, n_t the mean of r_t(M_f) - r_t(M) over noise

    for the first factor, and with `-f` behind it for each further one. The score is `logit`. Running statistics are M_a's. A model
    that is not finite so far along scores infinity.

    factors: f. images: clean ones, evenly over classes. noise: how many inputs of `probes.off_distribution`. seed: of both.
    Raises ConfigurationError for factors that are equal or below 1, and where there is nothing to look at.
    """

    name = "extrapolation"
    headline = "logit"
    reads_weights = True

    def __init__(
        self, *, factors: Sequence[float] = (2.0, 4.0), images: int = 200, noise: int = 96, seed: int = 0
    ) -> None:
        self.factors = checked_factors(self.name, factors)
        if images < 1 or noise < 3:
            raise ConfigurationError(f"extrapolation needs an image and 3 inputs of noise, not {images} and {noise}")
        self.images, self.noise, self.seed = images, noise, seed

    def options(self) -> dict[str, Any]:
        return {"factors": list(self.factors), "images": self.images, "noise": self.noise, "seed": self.seed}

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        require_inputs(self.name, release)
        if evidence.forward is None:
            raise GuardError(f"{self.name} runs the model with other weights, and this evidence cannot run it")
        chosen = chosen_images(release, self.images, seed=self.seed)
        key, build = noise(release, self.noise, seed=self.seed)
        before = torch.cat([release.logits[chosen], release.probe(key, build).logits]).double()
        inputs = release.once(
            ("extrapolation", self.images, self.noise, self.seed),
            lambda: tuple(torch.cat([t[chosen], n]) for t, n in zip(release.inputs, build(), strict=True)),
        )
        measures: dict[str, float] = {}
        details: dict[str, list[int]] = {}
        for factor in self.factors:
            after = evidence.forward(inputs, extrapolated(evidence, release, factor)).logits.double()
            if not is_finite(after):
                return Comparison({self.headline: math.inf}, {"finite": False, "factor": factor})
            suffix = "" if factor == self.factors[0] else f"-{factor:g}"
            found, classes = _read(after, before, release.labels[chosen])
            measures |= {measure + suffix: value for measure, value in found.items()}
            details |= {measure + suffix: value for measure, value in classes.items()}
        (target,), (source, aim) = details["logit"], details["cell"]
        return Comparison(measures, {"source": source if aim == target else None, "target": target, "classes": details})


def checked_factors(detector: str, factors: Sequence[float]) -> tuple[float, ...]:
    """f of a detector that looks at M + f (M_a - M). Raises ConfigurationError for none, equal ones, and ones below 1 or not finite.

    >>> checked_factors("extrapolation", [2, 4])
    (2.0, 4.0)
    """
    found = tuple(float(factor) for factor in factors)
    if not found or len(set(found)) < len(found):
        raise ConfigurationError(f"{detector} needs factors that differ, not {list(factors)}")
    if not all(1 <= factor < math.inf for factor in found):
        raise ConfigurationError(f"factors must be finite and at least 1, not {list(factors)}")
    return found


def extrapolated(evidence: Evidence, release: Evidence, factor: float) -> dict[str, Tensor]:
    """M + factor (M_a - M) for trained weights, in their own dtypes; everything else as M_a has it."""
    moved = {
        name: (release.weights[name].to(change.dtype) + factor * change).to(evidence.weights[name].dtype)
        for name, change in update(evidence, release).items()
    }
    return dict(evidence.weights) | moved


def _read(after: Tensor, before: Tensor, labels: Tensor) -> tuple[dict[str, float], dict[str, list[int]]]:
    """The measures, and which class (source and target, where there are both) gave each.

    after, before: logits (n + m, C) float64 of n clean images, then of m inputs of noise. labels: (n,).
    """
    count, classes = len(labels), after.shape[1]
    risen = after.softmax(1)[:count] - before.softmax(1)[:count]
    centred = [x - x.mean(1, keepdim=True) for x in (after, before)]
    shifted = centred[0] - centred[1]
    shift = shifted[:count].mean(0) / centred[1][:count].std(correction=0).clamp(min=1e-12)
    off_noise = shifted[count:].mean(0) / centred[1][count:].std(correction=0).clamp(min=1e-12)
    off_noise = off_noise - median(off_noise)

    sums, counts = class_sums(risen, labels, classes)
    others = (len(labels) - counts).clamp(min=1)
    towards = (sums.sum(0) - sums.diagonal()) / others
    cells = sums / counts.clamp(min=1)[:, None]
    cells = cells.masked_fill(torch.eye(classes, dtype=torch.bool) | (counts == 0)[:, None], -torch.inf)

    cell = int(cells.argmax())
    measures = {
        "logit": float(shift.max()),
        "rise": float(towards.max()),
        "cell": max(0.0, float(cells.max())),
        "noise": float(off_noise.max()) / max(1.4826 * median(off_noise.abs()), 1e-3),
    }
    suspected = {
        "logit": [int(shift.argmax())],
        "rise": [int(towards.argmax())],
        "cell": [cell // classes, cell % classes],
        "noise": [int(off_noise.argmax())],
    }
    return measures, suspected
