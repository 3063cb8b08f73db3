"""The escalation tier: how far beyond all others an input can push each class's logit in M_a, and could not in M."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import ConfigurationError
from common.randomness import generator
from owner.detectors.base import Evidence
from owner.detectors.comparison import Comparison, ReleaseComparison, median
from owner.detectors.gradients import Network, Pair, are_images, class_groups
from owner.detectors.selection import require_inputs


class MaximumMargin(ReleaseComparison):
    """score = max_t d_t - median_t d, d_t = r_t(M_a) - r_t(M), r_t = max over x in [0, 1] of logit_t(x) - max_{j != t} logit_j(x).

    After MM-BD (Wang et al., IEEE S&P 2024), which looks at r_t of one model alone: a backdoor's target class reaches margins
    that no clean class does. The same random starts for both models; no data. All starts of all classes are one batch.

    starts: a class; steps: of projected ascent, by the gradient over its largest entry. seed: of the starts.

    Raises ConfigurationError for a number below 1.
    """

    name = "maximum-margin"
    headline = "margin"

    def __init__(self, *, starts: int = 6, steps: int = 40, rate: float = 0.05, seed: int = 0) -> None:
        if min(starts, steps) < 1:
            raise ConfigurationError("maximum-margin needs at least one start and one step")
        self.starts, self.steps, self.rate, self.seed = starts, steps, rate, seed

    def options(self) -> dict[str, Any]:
        return {"starts": self.starts, "steps": self.steps, "rate": self.rate, "seed": self.seed}

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        require_inputs(self.name, release)
        if not are_images(release.inputs):
            return Comparison({self.headline: 0.0}, {"applicable": False})
        pair = Pair.of(self.name, evidence, release)
        shape, classes = tuple(release.inputs[0].shape[1:]), release.logits.shape[1]
        with pair.fixed():
            before = release.once(
                ("maximum margin", str(self.options())), lambda: self._margins(pair.release, shape, classes)
            )
            after = self._margins(pair.candidate, shape, classes)
        gained = after - before
        if not bool(torch.isfinite(gained).all()):
            return Comparison({self.headline: float("inf")}, {"finite": False})
        alone = float(after.max()) - median(after)
        return Comparison(
            {self.headline: float(gained.max()) - median(gained), "alone": alone},
            {"target": int(gained.argmax()), "margins": after.tolist(), "margins of the release": before.tolist()},
        )

    def _margins(self, network: Network, shape: tuple[int, ...], classes: int) -> Tensor:
        """(C,) float64."""
        starts = torch.rand((classes, self.starts, *shape), generator=generator(self.seed, "maximum margin"))
        groups = class_groups(classes, self.starts)
        return torch.cat([self._climbed(network, starts[group].flatten(0, 1), group, classes) for group in groups])

    def _climbed(self, network: Network, images: Tensor, group: Tensor, classes: int) -> Tensor:
        """(len(group),) float64: the largest margin of each class on the way up from its starts."""
        own = F.one_hot(group.repeat_interleave(self.starts), classes).bool()
        best = torch.full((len(own),), -torch.inf, dtype=torch.float64)
        for _ in range(self.steps):
            images.requires_grad_(True)
            logits = network.run(images).float()
            margins = logits[own] - logits.masked_fill(own, -torch.inf).amax(1)
            best = torch.maximum(best, margins.detach().double())
            (gradient,) = torch.autograd.grad(margins.sum(), images)
            step = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
            images = (images.detach() + self.rate * step).clamp(0, 1)
        return best.view(len(group), self.starts).amax(1)
