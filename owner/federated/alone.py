"""Judging a submission that comes alone: what the detectors of federated rounds need for it, and what they then say.

Such a detector scores clients beside each other (round means, medians over clients), and a submission has nobody beside it. The
one adaptation made here: the owner puts it into a round with K honest references, fine-tunes of the release that the owner made
itself, and compares its score with theirs (p = (1 + #{k: S_k >= S}) / (K + 1)). What the detector's own rule says of the same
round is recorded beside it, and decides nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from common.activations import find_head
from common.devices import Compute
from common.errors import GuardError
from common.examples import Examples
from common.progress import progress_bar
from common.training_options import TrainingOptions
from common.weights import Weights, weights_of
from owner.federated.thresholds import Cut
from owner.gatekeeper import GuardOptions
from owner.gatekeeper.fine_tunes import FineTunes
from owner.gatekeeper.rules import conformal_threshold, p_value

ADAPTATION = "p-value over K honest references that the owner adds to the round"

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Finding:
    """What is said of one submission.

    score: higher is worse; None where nobody is scored. reason: why it is dropped, "" where it is kept.
    threshold: the largest score that is kept; None where there is none.
    own_rule_drops: what the detector's own rule says; None where it has no other.
    """

    reason: str = ""
    score: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    own_rule_drops: bool | None = None
    seconds: float = 0.0


class Scorer(Protocol):
    """What scores the clients of one round and cuts it; see `SpectralDetector`."""

    def seen(self, updates: Sequence[Weights]) -> list[Tensor]: ...

    def scores_of(self, number: int, seen: Sequence[Tensor]) -> list[float]: ...

    def cut(self, scores: Sequence[float]) -> Cut: ...


class AgainstReferences:
    """A detector of federated rounds, asked about one submission at a time.

    references: weights of K honest fine-tunes, other ones than the detector has learnt from; it looks at them once. level: p at most
        this drops.
    Raises GuardError for no references, or where the detector cannot look at one of them.
    """

    def __init__(self, detector: Scorer, references: Sequence[Weights], *, level: float) -> None:
        if not references:
            raise GuardError("a submission that comes alone is judged against at least one honest reference, not none")
        self.detector, self.level = detector, level
        self._references = detector.seen(references)
        self.rule = f"p at most {level:g} over {len(references)} honest references"

    def judge(self, submission: Weights) -> Finding:
        """Raises GuardError where a reference has no finite score."""
        started = time.perf_counter()
        *honest, score = self.detector.scores_of(1, [*self._references, *self.detector.seen([submission])])
        p = p_value(score, honest)
        dropped = p <= self.level + _ROUNDING or not math.isfinite(score)
        return Finding(
            f"p = {p:.3g} over {len(honest)} honest references" if dropped else "",
            score,
            conformal_threshold(honest, self.level),
            p,
            self.detector.cut([*honest, score]).dropped[-1],
            time.perf_counter() - started,
        )


def honest_references(
    model: nn.Module,
    pool: Examples,
    options: GuardOptions,
    finetuning: TrainingOptions,
    *,
    numbers: Sequence[int],
    compute: Compute,
    progress: bool | None = None,
) -> list[Weights]:
    """Honest fine-tunes of `model`, drawn from `options.population` as the activation guard draws its own.

    numbers: which; the same number, options and pool give the same fine-tune. Numbers below `options.references` are those the
    guard calibrates with. Raises ModelError where one diverges.
    """
    tunes = FineTunes(model, pool, options, finetuning, compute)
    head = find_head(model, tuple(tensor[:1] for tensor in pool.inputs))
    made = []
    with progress_bar("honest references", len(numbers), shown=progress) as advance:
        for number in numbers:
            tuned, _, _ = tunes.make(number, head=head)
            made.append(weights_of(tuned))
            advance(1, "")
    return made
