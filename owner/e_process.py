"""One contributor's p-values over time: an e-process against slow poisoning.

A submission that is a little worse than most honest ones passes, and so does the next. What no single p-value shows, their
sequence may. Each conformal p-value becomes the pay-off of a bet that p-values are small, and the wealth E_t of a gambler who
plays them one after the other is large only where they are smaller than chance makes them:

    e_k(p) = c_k k p^(k - 1),   k in BETS    (calibrator of Vovk and Wang, "E-values: calibration, combination and
                                              applications", Ann. Statist. 2021; c_k makes its mean over 1/(K+1), ..., 1 one)
    E_t = mean over k of  w_1 e_k(p_1) ... e_k(p_t)  +  sum over later starts s of  w_s e_k(p_s) ... e_k(p_t)

with w_1 = 1/2 and the other half spread over starts 2 to n; a start to come holds its stake. So it finds who poisons from
the first submission on, and who was honest first. Independent honest p-values have mean E_t at most 1, at every t.

They are not independent: those of one guard share its references, and where these came out low by chance, all are small. The
bound of Ville's inequality (1/level) then fails. So thresholds come from simulation, over the draw of the references too: ranks
of exchangeable scores do not depend on how the scores are distributed, which makes the simulation exact, not a model. A
first half of it finds, for each t, how rare a wealth is; the second half how rare the rarest of n may be, which keeps the
false-alarm rate over n honest submissions at or below the level, on average over the draw of the simulation (a Monte-Carlo
test, whatever the number of simulations). One draw, which the fixed seed is, lies some tenths of a point above or below.

K may change from one submission to the next, and no single K's thresholds then hold: few references make the largest
wealth there is a common one, which many pass by with ease. So the K simulated are those of the history itself, and later ones are
taken to be like the newest. When K changes, the thresholds until then stand, and those after it share what they have left of
the level. The same simulated submissions serve before and after, ranked among as many references as K is then. (Drawn anew at
each change, those that raise an alarm early are now more, now fewer than the level allows for, and alarms too many cannot be taken
back: measured, that spends more than the level. The price is that the Monte-Carlo test is no longer exact after a change: its second
half has had a part in the thresholds until then, one number for each change among all its runs.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigurationError
from owner.honest_ranks import HonestSet, Ranks

Floats = NDArray[np.float64]
Spans = tuple[tuple[int, int], ...]
"""Successive submissions that are judged by as many references each: K, and how many of them."""

BETS: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
SIMULATIONS: Final = 10_000
"""Of each half."""
LONGEST: Final = 100
"""Submissions a history may look back on: the wealth of more could exceed what a float holds."""
_SEED: Final = 20_210_519
_ROUNDING: Final = 1 + 1e-9


@dataclass(frozen=True)
class HistoryRule:
    """level: false alarms over `submissions` honest ones, at most, up to the simulation's chance (above). submissions: n, how many the newest of a contributor are
    looked at together. per_guard: how many successive ones are assumed to be compared with the same references.

    Raises ConfigurationError.
    """

    level: float = 0.05
    submissions: int = 50
    per_guard: int = 50

    def __post_init__(self) -> None:
        if not 0.001 <= self.level <= 0.5:
            raise ConfigurationError(f"the level of a history must be from 0.001 to 0.5, not {self.level:g}")
        if not 2 <= self.submissions <= LONGEST:
            raise ConfigurationError(f"a history looks back on 2 to {LONGEST} submissions, not {self.submissions}")
        if self.per_guard < 1:
            raise ConfigurationError(f"at least one submission is judged by a guard, not {self.per_guard}")

    def thresholds(self, references: Sequence[int]) -> tuple[float, ...]:
        """The largest wealth without an alarm after 1, 2, ..., n submissions; infinite where no wealth is rare enough.

        references: K of each submission so far, at most n of them and at least one; those to come are like the last.
        Simulated once a process (half a second for each K, and a tenth for each change of it, anew when a full window moves past
        one), by a fixed seed.
        """
        return _thresholds(_spans(references, self.submissions), self.level, min(self.per_guard, self.submissions))


@dataclass(frozen=True)
class Judged:
    """One submission as a history keeps it: its overall p-value, over K references."""

    p_value: float
    references: int


@dataclass(frozen=True)
class HistoryFinding:
    """value: wealth after the newest submission. threshold: the largest without an alarm. submissions: how many were looked
    at. references: the fewest that judged one of them."""

    value: float
    threshold: float
    submissions: int
    references: int

    @property
    def alarm(self) -> bool:
        return self.value > self.threshold * _ROUNDING

    def to_json(self) -> dict[str, Any]:
        """An infinite threshold, or wealth, is null: JSON has no word for it."""
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
            "submissions": self.submissions,
            "references": self.references,
            "alarm": self.alarm,
        }


def judge_history(history: Sequence[Judged], rule: HistoryRule) -> HistoryFinding:
    """The wealth after the newest of `history` (oldest first), over the last n of it.

    Raises ConfigurationError for an empty history.

    >>> finding = judge_history([Judged(0.01, 99)] * 6, HistoryRule())
    >>> finding.alarm, judge_history([Judged(0.5, 99)] * 6, HistoryRule()).alarm
    (True, False)
    """
    if not history:
        raise ConfigurationError("a history without a submission cannot be judged")
    newest = history[-rule.submissions :]
    steps = np.array([calibrators(one.references)[:, _rank(one)] for one in newest])
    value = float(wealth(steps[:, :, None], rule.submissions)[0, -1])
    references = [one.references for one in newest]
    return HistoryFinding(value, rule.thresholds(references)[len(newest) - 1], len(newest), min(references))


def _rank(one: Judged) -> int:
    """#{k: S_k >= S}, which p = (1 + #) / (K + 1) tells."""
    return min(max(round(one.p_value * (one.references + 1)) - 1, 0), one.references)


@lru_cache(maxsize=64)
def calibrators(references: int) -> Floats:
    """(bets, K + 1) e-values of p = 1/(K+1), 2/(K+1), ..., 1; each bet's mean over these is 1.

    >>> [round(float(e), 3) for e in calibrators(3).mean(1)]
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    p = np.arange(1, references + 2) / (references + 1)
    bets = np.array(BETS)[:, None]
    values = bets * p ** (bets - 1)
    return np.asarray(values / values.mean(1, keepdims=True))


def wealth(steps: Iterable[Floats], horizon: int) -> Floats:
    """E_1 ... E_t (runs, t) of t <= horizon e-values `steps`, each (bets, runs).

    >>> wealth(np.full((1, 5, 1), 3.0), 50).tolist()
    [[2.0]]
    """
    first, later, staked = (np.empty(0) for _ in range(3))
    out = []
    for t, step in enumerate(steps):
        # In place: most of the time would go into fetching memory anew.
        if t:
            first *= step
            later += 1.0
            later *= step
        else:
            first, later, staked = step.copy(), np.zeros_like(step), np.empty_like(step)
        np.add(later, horizon - 1 - t, out=staked)
        staked /= horizon - 1
        staked += first
        out.append(0.5 * staked.mean(0))
    return np.array(out).T


def wealth_of_ranks(ranks: Ranks, references: Sequence[int]) -> Floats:
    """(runs, n) from (runs, n) and the K of each of the n, the horizon being n."""
    steps = (calibrators(count).take(column, axis=1) for count, column in zip(references, ranks.T, strict=True))
    return wealth(steps, ranks.shape[1])


def _spans(references: Iterable[int], submissions: int) -> Spans:
    """Of so many submissions, those to come being like the last.

    >>> _spans([19, 19, 99], 50)
    ((19, 2), (99, 48))
    """
    found = [(count, sum(1 for _ in same)) for count, same in groupby(references)]
    before = sum(length for _, length in found[:-1])
    return (*found[:-1], (found[-1][0], submissions - before))


@lru_cache(maxsize=512)
def _thresholds(spans: Spans, level: float, per_guard: int) -> tuple[float, ...]:
    references = [count for count, length in spans for _ in range(length)]
    submissions, changed = len(references), len(references) - spans[-1][1]
    # As they stood while K had not changed yet.
    until = _thresholds(_spans(references[:changed], submissions), level, per_guard)[:changed] if changed else ()
    scale, test = (
        wealth_of_ranks(_ranks_of(half, references, per_guard), references).T
        for half in _halves(tuple(dict.fromkeys(references)), submissions, per_guard)
    )
    alarmed = (test[:changed] > np.array(until)[:, None] * _ROUNDING).any(0)
    # Alarm: fewer of the first half are as large than at the r-th rarest of the second. At most r of N + 1 exchangeable
    # runs can come before that one, which is at most the level.
    rank = math.floor(level * (SIMULATIONS + 1))
    # It is among the 2 r largest at some t unless there are many ties: about r runs are among the r largest at any t.
    for tail in (2 * rank, SIMULATIONS):
        largest = np.sort(np.partition(scale[changed:], -tail, axis=1)[:, -tail:], axis=1)
        rarest = np.where(alarmed, 0, SIMULATIONS)
        for ordered, values in zip(largest, test[changed:] / _ROUNDING, strict=True):
            rare = np.flatnonzero(values > ordered[0])
            # How many of the first half are as large; a tie counts as one, whatever the last bit says.
            rarest[rare] = np.minimum(rarest[rare], tail - np.searchsorted(ordered, values[rare]))
        allowed = int(np.partition(rarest, rank - 1)[rank - 1]) - 1
        if allowed < tail:
            break
    if allowed < 0:
        return (*until, *(math.inf,) * (submissions - changed))
    return (*until, *(float(value) for value in largest[:, -1 - allowed]))


@lru_cache(maxsize=4)
def _halves(counts: tuple[int, ...], submissions: int, per_guard: int) -> tuple[tuple[HonestSet, ...], ...]:
    """Both halves of the simulation, each a set after the other, with the ranks among each of `counts` references. These are in the
    order in which the history came to them: what is drawn for the first does not depend on those to come."""
    *before, count = counts
    halves = []
    for half in (0, 1):
        generator = np.random.default_rng([_SEED, half, *counts, submissions, per_guard])
        sets: Iterable[HonestSet]
        if before:
            sets = _halves(tuple(before), submissions, per_guard)[half]
        else:
            lengths = (min(per_guard, submissions - first) for first in range(0, submissions, per_guard))
            sets = (HonestSet.of(generator, SIMULATIONS, length) for length in lengths)
        halves.append(tuple(one.among(generator, count) for one in sets))
    return tuple(halves)


def _ranks_of(sets: Sequence[HonestSet], references: Sequence[int], per_guard: int) -> Ranks:
    """(runs, n), each submission's among its K references."""
    return np.array([sets[t // per_guard].ranks[count][t % per_guard] for t, count in enumerate(references)]).T
