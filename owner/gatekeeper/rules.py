"""Rules: how a score becomes a decision.

`seed` is the paper's Eq. 4: one honest fine-tune gives the threshold. `conformal` compares the score with those of K honest
reference fine-tunes; the statistical unit is the model, not the image, so that the rate at which honest contributors are
turned away is what the levels say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from common.errors import GuardError
from owner.gatekeeper.verdict import Decision
from owner.levels import ROUNDING, check_levels, resolution


@dataclass(frozen=True)
class Judgement:
    """What a rule says of one score.

    threshold: the largest score that is not rejected.
    p_value, resolution, fpr_bound_95: None under the rule `seed`, which controls no error rate.
    """

    decision: Decision
    threshold: float
    p_value: float | None
    resolution: float | None
    fpr_bound_95: float | None
    detail: str


def seed_threshold(honest_errors: Tensor) -> float:
    """T_r = mean_i e_i(M_f) + std_i e_i(M_f) (the paper's Eq. 4), over the per-image errors (N,) of one honest fine-tune.

    The standard deviation is the population's (divided by N): the trigger set is all there is to describe.

    >>> import torch
    >>> seed_threshold(torch.tensor([1.0, 3.0]))
    3.0
    """
    threshold = float(honest_errors.double().mean() + honest_errors.double().std(correction=0))
    if not math.isfinite(threshold):
        raise GuardError("the errors of the honest fine-tune are not finite, so that Eq. 4 gives no threshold")
    return threshold


def judge_by_seed(score: float, threshold: float) -> Judgement:
    """Reject if E_MSE > T_r. A score that is not a finite number is rejected."""
    passes = math.isfinite(score) and score <= threshold
    detail = f"score {score:.4g} against mean + std of one honest fine-tune, {threshold:.4g} (Eq. 4; sets no false-positive rate)"
    return Judgement(Decision.ACCEPTED if passes else Decision.REJECTED, threshold, None, None, None, detail)


def p_value(score: float, references: Sequence[float]) -> float:
    """p = (1 + #{k: S_k >= S}) / (K + 1), the split-conformal p-value. Of a score that is not finite: the smallest.

    Exchangeable honest models have P(p <= a) <= a for every a.

    >>> p_value(5.0, [1.0, 2.0, 5.0])
    0.5
    """
    if not references or not all(math.isfinite(s) for s in references):
        raise GuardError("the conformal rule needs finite reference scores")
    at_least = sum(s >= score for s in references) if math.isfinite(score) else 0
    return (1 + at_least) / (len(references) + 1)


def fpr_bound_95(references: int, reject: float) -> float:
    """95 % upper bound on the false-positive rate that this set of K references realises at level `reject`, in this check alone.

    With r = floor(reject (K + 1)), a model is rejected when its score exceeds the r-th largest reference; over draws of the
    references that rate is Beta(r, K + 1 - r) (r = 1: the cut is the maximum, Beta(1, K)). Found as the x with
    P(Binomial(K, x) >= r) = 0.95, by bisection; terms by their logarithms, for K may be thousands.

    >>> [round(100 * fpr_bound_95(k, 1 / (k + 1)), 1) for k in (19, 99)]
    [14.6, 3.0]
    """
    rank = math.floor(reject * (references + 1) + ROUNDING)
    if rank < 1:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        below = math.fsum(_binomial(references, i, middle) for i in range(rank))
        low, high = (middle, high) if 1 - below < 0.95 else (low, middle)
    return high


def _binomial(n: int, k: int, probability: float) -> float:
    """P(Binomial(n, probability) = k), 0 < probability < 1."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(probability) + (n - k) * math.log1p(-probability))


def conformal_threshold(references: Sequence[float], reject: float) -> float:
    """The r-th largest reference score, r = floor(reject (K + 1)): a greater score is rejected."""
    rank = math.floor(reject * (len(references) + 1) + ROUNDING)
    return sorted(references, reverse=True)[rank - 1]


def judge_by_references(score: float, references: Sequence[float], *, reject: float, quarantine: float) -> Judgement:
    """p > quarantine accepts, reject < p <= quarantine waits for a person, p <= reject rejects; so does a non-finite score.

    Raises ResolutionError for a level finer than 1/(K + 1).
    """
    count = len(references)
    check_levels(reject, quarantine, rule="conformal", references=count)
    p = p_value(score, references)
    if p <= reject + ROUNDING or not math.isfinite(score):
        decision = Decision.REJECTED
    elif p <= quarantine + ROUNDING:
        decision = Decision.QUARANTINED
    else:
        decision = Decision.ACCEPTED
    bound = fpr_bound_95(count, reject)
    finding = "consistent" if decision is Decision.ACCEPTED else "not consistent"
    detail = (
        f"{finding} with honest fine-tuning: p = {p:.3g} over {count} references (resolution {resolution(count):.3g}; "
        f"this check rejects at most {100 * bound:.1f} % of honest submissions, with 95 % confidence)"
    )
    return Judgement(decision, conformal_threshold(references, reject), p, resolution(count), bound, detail)
