"""The combined score of a guard with several detectors, and that of each family; fitted on the fitting references alone.

Utility stays apart: losing accuracy is judged by the utility check, on other images, by one limit for everybody. Were the drop
part of the overall score too, it would count twice, and a contributor with few classes, who costs accuracy honestly, would be
told of suspicion instead of usefulness. Its family is scored beside the others, for people to read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from owner.detectors import Combination
from owner.detectors.combination import Method, Scores, family_of

APART = "utility"


@dataclass(frozen=True)
class CombinedScore:
    """overall: of every family but `utility`. apart: of utility; None where no detector belongs to it.

    Where nothing but utility is measured, it is the overall score.
    """

    overall: Combination
    apart: Combination | None

    @classmethod
    def fit(cls, method: Method, references: Sequence[Scores], *, given_size: bool = False) -> Self:
        """references: the scores of fine-tunes that calibrate nothing. Raises ConfigurationError for fewer than two."""
        names = _distinct(references)
        apart = tuple(name for name in names if family_of(name) == APART)
        rest = tuple(name for name in names if name not in apart)
        overall = Combination(method, rest or apart, given_size).fit(references)
        return cls(overall, Combination(method, apart).fit(references) if rest and apart else None)

    def score(self, scores: Scores) -> float:
        """Infinite where one of its scores is not finite."""
        return self.overall.score(scores)

    def families(self, scores: Scores) -> dict[str, float]:
        return self.overall.families(scores) | (self.apart.families(scores) if self.apart else {})

    def contributions(self, scores: Scores) -> list[dict[str, Any]]:
        """`score`, `family`, `z` of everything in the overall score, the most suspicious first."""
        z = self.overall.z(scores)
        order = sorted(z, key=lambda name: (-z[name], name))
        return [{"score": name, "family": family_of(name), "z": z[name]} for name in order]


def _distinct(references: Sequence[Mapping[str, float]]) -> list[str]:
    """The scores by name, without those measures that repeat their detector's headline: each number counts once."""
    names = list(dict.fromkeys(name for scores in references for name in scores))

    def repeats(name: str) -> bool:
        detector, measure = name.partition("/")[::2]
        return bool(measure) and all(s.get(name) == s.get(detector) for s in references)

    return [name for name in names if not repeats(name)]
