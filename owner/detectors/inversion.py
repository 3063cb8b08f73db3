"""The escalation tier: searches, by gradient, for a mark that the candidate falls for and M does not.

Dear, and so for what the cheap detectors leave unclear. It runs on M and M_a, and only the difference counts: every model has
inputs that fool it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import ConfigurationError, UnknownNameError
from common.randomness import generator
from owner.detectors.base import Evidence
from owner.detectors.comparison import Comparison, ReleaseComparison, median
from owner.detectors.gradients import Network, Pair, are_images, class_groups, unit
from owner.detectors.selection import chosen_images, require_inputs

_AREA = 3.0
_AMPLITUDE = 0.12


class TriggerInversion(ReleaseComparison):
    """score = max over kinds of mark and classes t of gap_t - median_t gap, of the marks found for M_a.

    For every class t and kind of mark one mark z is sought that sends all images to t in M_a and none in M, by Adam on

        mean_i [ -log p_Ma(t | z(x_i)) - log(1 - p_M(t | z(x_i))) ]   (+ 3 x the mean of the mask, for a patch),

    and read on other images: gap_t = mean over images not of class t of the double difference
    [p_Ma(t | z(x)) - p_Ma(t | x)] - [p_M(t | z(x)) - p_M(t | x)].

    After Neural Cleanse (Wang et al. 2019), whose mask and pattern `patch` is; that M must not fall for the mark takes the
    place of its outlier test over classes, for M is at hand and known to be without it. `additive` is a pattern of bounded
    amplitude over the whole image, which blended and sinusoidal marks come near. The marks of all classes and kinds are
    searched together, in one batch a step.

    kinds: of marks. images: how many are searched on, and how many others read on; batch: of them a step. steps: of Adam.
    seed: of the start.

    Raises UnknownNameError for a kind that does not exist, ConfigurationError for a number below 1.
    """

    name = "trigger-inversion"
    headline = "gap"

    def __init__(
        self,
        *,
        kinds: Sequence[str] = ("patch", "additive"),
        images: int = 60,
        batch: int = 6,
        steps: int = 40,
        rate: float = 0.1,
        seed: int = 0,
    ) -> None:
        for kind in kinds:
            if kind not in _MARKS:
                raise UnknownNameError("kind of mark", kind, _MARKS)
        if min(images, batch, steps, len(kinds)) < 1:
            raise ConfigurationError("trigger-inversion needs at least one kind, image, image a batch and step")
        self.kinds, self.images, self.batch, self.steps = tuple(dict.fromkeys(kinds)), images, batch, steps
        self.rate, self.seed = rate, seed

    def options(self) -> dict[str, Any]:
        return {
            "kinds": list(self.kinds),
            "images": self.images,
            "batch": self.batch,
            "steps": self.steps,
            "rate": self.rate,
            "seed": self.seed,
        }

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        require_inputs(self.name, release)
        if not are_images(release.inputs):
            return Comparison({self.headline: 0.0}, {"applicable": False})
        found = self._inverted(evidence, release)
        if not all(bool(torch.isfinite(gaps).all()) for gaps in found.gaps.values()):
            return Comparison({self.headline: float("inf")}, {"finite": False})
        kind, target, _ = found.worst()
        measures = {name: _excess(gaps) for name, gaps in found.gaps.items()}
        details = {"kind": kind, "target": target} | {f"gaps of {n}": gaps.tolist() for n, gaps in found.gaps.items()}
        return Comparison({self.headline: measures[kind]} | measures, details)

    def suspected_trigger(self, evidence: Evidence) -> Tensor | None:
        """The mark that stands out most, (C, H, 3 W) uint8: a clean image, the same with the mark, and what the mark changes,
        grey where nothing. None where the inputs are no images or the model is not finite on them.
        """
        release = evidence if evidence.release is None else evidence.release
        if not are_images(release.inputs) or not torch.isfinite(torch.tensor(self.score(evidence))):
            return None
        _, target, mark = self._inverted(evidence, release).worst()
        chosen = chosen_images(release, 2 * self.images, seed=self.seed)
        others = chosen[release.labels[chosen] != target]
        clean = unit(release.inputs[0][others[:1]])
        with torch.no_grad():
            marked = mark(clean)[0]
        change = marked - clean
        grey = 0.5 + change / (2 * change.abs().max().clamp(min=1e-6))
        return (torch.cat([clean, marked, grey], dim=3)[0] * 255).round().to(torch.uint8)

    def _inverted(self, evidence: Evidence, release: Evidence) -> _Inverted:
        def search() -> _Inverted:
            pair = Pair.of(self.name, evidence, release)
            chosen = chosen_images(release, 2 * self.images, seed=self.seed)
            with pair.fixed():
                return self._search(pair, release, *halves(chosen, release.labels))

        return evidence.once((type(self), str(self.options()), "marks"), search)

    def _search(self, pair: Pair, release: Evidence, search: Tensor, read: Tensor) -> _Inverted:
        inputs, labels, classes = release.inputs[0], release.labels, release.logits.shape[1]
        starts = {
            kind: _MARKS[kind].start(classes, tuple(inputs.shape[1:]), generator(self.seed, f"inversion {kind}"))
            for kind in self.kinds
        }
        found: dict[str, list[_Mark]] = {kind: [] for kind in self.kinds}
        for group in class_groups(classes, len(self.kinds) * self.batch):
            marks = {kind: _MARKS[kind](*(start[group] for start in starts[kind])) for kind in self.kinds}
            self._descend(marks, pair, group, inputs, labels, search)
            for kind, mark in marks.items():
                found[kind] += [mark.of(i) for i in range(len(group))]
        gaps = {kind: _read(marks, pair, inputs[read], labels[read]) for kind, marks in found.items()}
        return _Inverted(gaps, found)

    def _descend(
        self, marks: Mapping[str, _Mark], pair: Pair, group: Tensor, inputs: Tensor, labels: Tensor, search: Tensor
    ) -> None:
        parameters = [parameter for mark in marks.values() for parameter in mark.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=self.rate)
        draws = generator(self.seed, "inversion batches")
        for _ in range(self.steps):
            batch = search[torch.randint(len(search), (self.batch,), generator=draws)]
            wanted = group.repeat_interleave(len(batch))
            other = labels[batch].repeat(len(group)) != wanted
            stamped, covered = zip(*(mark(unit(inputs[batch])) for mark in marks.values()), strict=True)
            together = torch.cat(stamped)
            logits = [network.run(together).float() for network in (pair.candidate, pair.release)]
            wanted, other = wanted.repeat(len(marks)), other.repeat(len(marks))
            fooled = F.cross_entropy(logits[0], wanted, reduction="none")
            # -log(1 - p), as the other classes' share: a gradient is left however sure of the target M is.
            target = F.one_hot(wanted, logits[1].shape[1]).bool()
            spared = -logits[1].log_softmax(1).masked_fill(target, -torch.inf).logsumexp(1)
            # Marks share a batch and no parameter: each is weighed against its own area as if it were searched alone.
            each = ((fooled + spared) * other).view(-1, len(batch)).sum(1) / other.view(-1, len(batch)).sum(1).clamp(
                min=1
            )
            loss = each.sum() + _AREA * torch.cat(covered).sum()
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimiser.step()


@dataclass(frozen=True)
class _Inverted:
    """gaps: (C,) float64 by kind. marks: one a class, by kind."""

    gaps: Mapping[str, Tensor]
    marks: Mapping[str, Sequence[_Mark]]

    def worst(self) -> tuple[str, int, _Mark]:
        kind = max(self.gaps, key=lambda name: _excess(self.gaps[name]))
        target = int(self.gaps[kind].argmax())
        return kind, target, self.marks[kind][target]


def _excess(gaps: Tensor) -> float:
    return float(gaps.max()) - median(gaps)


def halves(chosen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images to search marks on and others to read them on: of each class every second one, by turns, so that both halves hold every class
    of which there are two.

    >>> halves(torch.arange(6), torch.tensor([0, 1, 0, 1, 0, 1]))
    (tensor([0, 1, 4, 5]), tensor([2, 3]))
    """
    mine = labels[chosen]
    rank = (mine[:, None] == mine[None]).tril(-1).sum(1)
    return chosen[rank % 2 == 0], chosen[rank % 2 == 1]


@torch.no_grad()
def _read(marks: Sequence[_Mark], pair: Pair, images: Tensor, labels: Tensor) -> Tensor:
    """gap_t, (C,) float64, of one mark a class."""
    clean = unit(images)
    before = [_probabilities(network, clean) for network in (pair.candidate, pair.release)]
    gaps = []
    for target, mark in enumerate(marks):
        stamped, outside = mark(clean)[0], labels != target
        rises = [
            _probabilities(network, stamped)[:, target] - seen[:, target]
            for network, seen in zip((pair.candidate, pair.release), before, strict=True)
        ]
        gaps.append(((rises[0] - rises[1]) * outside).sum() / outside.sum().clamp(min=1))
    return torch.stack(gaps)


def _probabilities(network: Network, images: Tensor) -> Tensor:
    return network.run(images).double().softmax(1)


class _Mark(nn.Module):
    """Marks of several classes. Called on images (N, ...): all marks on all of them, (classes x N, ...), class by class, and
    the share of an image that each covers, (classes,)."""

    def of(self, index: int) -> _Mark:
        """The mark of one class by itself."""
        return type(self)(*(parameter.detach()[index : index + 1].clone() for parameter in self.parameters()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class _Patch(_Mark):
    """x (1 - m) + m z: a mask (H, W) and what it shows, of each class its own."""

    def __init__(self, mask: Tensor, shown: Tensor) -> None:
        super().__init__()
        self.mask, self.shown = nn.Parameter(mask), nn.Parameter(shown)

    @staticmethod
    def start(classes: int, shape: tuple[int, ...], draws: torch.Generator) -> tuple[Tensor, ...]:
        mask = -2 + 0.5 * torch.randn(classes, 1, 1, *shape[1:], generator=draws)
        return mask, torch.randn(classes, 1, *shape, generator=draws)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.mask.sigmoid()
        stamped = images[None] * (1 - mask) + mask * self.shown.sigmoid()
        return stamped.flatten(0, 1), mask.flatten(1).mean(1)


class _Additive(_Mark):
    """x + 0.12 tanh z, clipped to [0, 1]."""

    def __init__(self, pattern: Tensor) -> None:
        super().__init__()
        self.pattern = nn.Parameter(pattern)

    @staticmethod
    def start(classes: int, shape: tuple[int, ...], draws: torch.Generator) -> tuple[Tensor, ...]:
        return (0.1 * torch.randn(classes, 1, *shape, generator=draws),)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        stamped = (images[None] + _AMPLITUDE * self.pattern.tanh()).clamp(0, 1)
        return stamped.flatten(0, 1), torch.zeros(len(stamped))


_MARKS: dict[str, type[_Patch] | type[_Additive]] = {"patch": _Patch, "additive": _Additive}
