"""Honest histories, simulated: how an honest contributor's scores rank among the references that they are compared with.

Ranks of exchangeable scores do not depend on how the scores are distributed. So scores are drawn uniformly, and how many references
fall between two neighbouring submissions is multinomial: K costs nothing. Of different K within one set the fewer are among the
more, which makes the ranks depend on each other most; which of the more they are is hypergeometric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int32]


def honest_ranks(generator: np.random.Generator, runs: int, references: Sequence[int], per_guard: int) -> Ranks:
    """(runs, n): how many of its K references score as high as an honest submission, a fresh set each `per_guard`."""
    out = np.empty((runs, len(references)), dtype=np.int32)
    for first in range(0, len(references), per_guard):
        ks = np.array(references[first : first + per_guard])
        drawn = HonestSet.of(generator, runs, len(ks))
        for count in np.unique(ks):
            drawn = drawn.among(generator, int(count))
            here = np.flatnonzero(ks == count)
            out[:, first + here] = drawn.ranks[int(count)][here].T
    return out


@dataclass(frozen=True)
class HonestSet:
    """Submissions that one set of references judges, in many runs, and their ranks among the first K of them.

    order: (runs, n), the submissions by score, lowest first. gaps: (runs, n + 1), between neighbouring scores, which are in [0, 1].
    ranks: of each K that was asked for, (n, runs).
    """

    order: NDArray[np.int64]
    gaps: NDArray[np.float64]
    ranks: Mapping[int, Ranks] = field(default_factory=dict)

    @classmethod
    def of(cls, generator: np.random.Generator, runs: int, submissions: int) -> Self:
        scores = generator.random((runs, submissions))
        order = np.argsort(scores, axis=1)
        gaps = np.diff(np.take_along_axis(scores, order, axis=1), axis=1, prepend=0.0, append=1.0)
        return cls(order, gaps)

    def among(self, generator: np.random.Generator, count: int) -> Self:
        """With the ranks among `count` references, drawn given those there are."""
        if count in self.ranks:
            return self
        fewer = max((one for one in self.ranks if one < count), default=0)
        more = min((one for one in self.ranks if one > count), default=None)
        between = self._between(fewer)
        if more is None:
            between += generator.multinomial(count - fewer, self.gaps)
        else:
            between += _some_of(generator, self._between(more) - between, count - fewer)
        above = between[:, ::-1].cumsum(axis=1)[:, -2::-1]
        ranks = np.empty(self.order.shape, dtype=np.int32)
        np.put_along_axis(ranks, self.order, above.astype(np.int32), axis=1)
        return type(self)(self.order, self.gaps, {**self.ranks, count: np.ascontiguousarray(ranks.T)})

    def _between(self, count: int) -> NDArray[np.int64]:
        """(runs, n + 1): how many of the first `count` references fall into each gap."""
        if not count:
            return np.zeros(self.gaps.shape, dtype=np.int64)
        above = np.take_along_axis(self.ranks[count].T, self.order, axis=1).astype(np.int64)
        return -np.diff(above, axis=1, prepend=count, append=0)


def _some_of(generator: np.random.Generator, between: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """How many of `count` references, chosen blindly among those in the gaps, come from each."""
    out = np.empty_like(between)
    others, wanted = between.sum(axis=1), np.full(len(between), count)
    for gap in range(between.shape[1]):
        others -= between[:, gap]
        out[:, gap] = generator.hypergeometric(between[:, gap], others, wanted)
        wanted -= out[:, gap]
    return out
