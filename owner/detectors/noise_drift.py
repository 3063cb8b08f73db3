"""What a candidate makes of inputs that show nothing at all, against what M makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.errors import ConfigurationError
from owner.detectors.base import Evidence
from owner.detectors.comparison import Comparison, ReleaseComparison
from owner.detectors.probes import off_distribution
from owner.detectors.selection import chosen_images, require_inputs


def noise(release: Evidence, images: int, *, seed: int) -> tuple[str, Callable[[], tuple[Tensor, ...]]]:
    """The name of a probe, as `Evidence.probe` takes it, and what makes its inputs: noise of M's calibration images.

    Detectors that ask for equally many by one seed share what a model shows on it.
    """

    def build() -> tuple[Tensor, ...]:
        chosen = chosen_images(release, images, seed=seed)
        return off_distribution(tuple(t[chosen] for t in release.inputs), seed=seed)

    return f"noise, {images} images, seed {seed}", build


class PredictionNoiseDrift(ReleaseComparison):
    """score = 1/2 sum_t |h_t(M_a) - h_t(M)|, h the histogram over classes of the predictions on noise (total variation).

    The inputs are uniform noise, coarse smooth noise and shuffled images (`probes.off_distribution`). Off the clean
    distribution nothing holds a model in place but its weights, and a target class that has become easy to reach takes over.
    `soft` is the same of mean softmax; `rise` the largest rise of one class in it; `logits`, the largest rise of one class's mean
    centred logit over the spread of M's.

    images: how many noise inputs; seed: of them.
    """

    name = "prediction-noise-drift"
    headline = "histogram"

    def __init__(self, *, images: int = 96, seed: int = 0) -> None:
        if images < 3:
            raise ConfigurationError(f"images must be at least 3, one of each kind of noise, not {images}")
        self.images, self.seed = images, seed

    def options(self) -> dict[str, Any]:
        return {"images": self.images, "seed": self.seed}

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        require_inputs(self.name, release)
        key, build = noise(release, self.images, seed=self.seed)
        after, before = evidence.probe(key, build).logits.double(), release.probe(key, build).logits.double()
        if not bool(torch.isfinite(after).all()):
            return Comparison({self.headline: float("inf")}, {"finite": False})
        classes = after.shape[1]
        counted = [torch.bincount(x.argmax(1), minlength=classes).double() / len(x) for x in (after, before)]
        soft = after.softmax(1).mean(0) - before.softmax(1).mean(0)
        centred = [x - x.mean(1, keepdim=True) for x in (after, before)]
        spread = centred[1].std(correction=0).clamp(min=1e-12)
        measures = {
            "histogram": 0.5 * float((counted[0] - counted[1]).abs().sum()),
            "soft": 0.5 * float(soft.abs().sum()),
            "rise": max(0.0, float(soft.max())),
            "logits": max(0.0, float(((centred[0] - centred[1]).mean(0) / spread).max())),
        }
        return Comparison(
            measures, {"class": int(soft.argmax()), "predicted": (counted[0] * len(after)).long().tolist()}
        )
