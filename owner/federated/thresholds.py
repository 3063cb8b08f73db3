"""Where a round is cut into clients that are kept and clients that are dropped, from their scores; higher is worse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """dropped: one per score, in their order. threshold: what was compared with; None where nothing was.
    rule: in words, for people.
    """

    dropped: tuple[bool, ...]
    threshold: float | None
    rule: str


def round_mean(scores: Sequence[float], *, inclusive: bool = False, factor: float = 1.0) -> Cut:
    """Drops whoever scores above the round's mean (Li et al. 2020), or at it as well (`inclusive`; Gu & Yang 2021).

    factor: what the mean is multiplied by before it is compared; 1 in both papers.

    A score that is not finite is dropped and left out of the mean. Where all finite scores are equal, and so for a client
    alone, nobody is dropped: nothing tells them apart, and the inclusive rule would drop them all.

    >>> round_mean([1.0, 1.0, 4.0]).dropped
    (False, False, True)
    >>> round_mean([2.0], inclusive=True).dropped
    (False,)
    """
    finite = [score for score in scores if math.isfinite(score)]
    mean = factor * sum(finite) / len(finite) if finite else None
    alike = mean is None or min(finite) == max(finite)
    times = "" if factor == 1 else f"{factor:g} times "
    rule = f"score {'at or above' if inclusive else 'above'} {times}the round's mean"

    def drops(score: float) -> bool:
        if not math.isfinite(score):
            return True
        return not alike and mean is not None and (score >= mean if inclusive else score > mean)

    return Cut(tuple(drops(score) for score in scores), mean, rule)


def first_gap(scores: Sequence[float], *, share: float) -> Cut:
    """Keeps clients by ascending score up to the first gap that exceeds `share` of the round's range (FedCLEAN, arXiv
    2501.12123: trust propagation, lambda = share).

    threshold: the largest score that is kept. A score that is not finite is dropped and no part of the range.

    >>> first_gap([0.10, 0.90, 0.12, 0.15], share=0.3).dropped
    (False, True, False, False)
    """
    ordered = sorted(score for score in scores if math.isfinite(score))
    rule = f"beyond the first gap of more than {share:g} of the round's range"
    if not ordered:
        return Cut(tuple(True for _ in scores), None, rule)
    widest = share * (ordered[-1] - ordered[0])
    last = next((a for a, b in itertools.pairwise(ordered) if b - a > widest), ordered[-1])
    return Cut(tuple(not math.isfinite(score) or score > last for score in scores), last, rule)
