"""Calibrating the escalation tier: the first K honest fine-tunes of the guard made again, and each looked at by gradients.

The guard keeps their scores and not their weights, which would be 160 MB a release for the paper's CNN and 3 GB for a wide
ResNet, kept for a tier that most releases never need. Made again they cost so many fine-tunes, once, when the first submission
needs them. From their seeds they come out as they were, bit for bit, on the same machine with as many threads only; elsewhere, and
where the guard's own were transplanted from an earlier release, they are others of their kind. Nothing compares the two. But they are
conditioned on the same: whom the tier looks at has passed utility, and a fine-tune that fails it here is drawn again.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from common.activations import observe
from common.errors import GuardError
from common.progress import progress_bar
from owner.detectors import ESCALATION, Detector, Evidence, measures_of
from owner.detectors.comparison import is_finite
from owner.gatekeeper.drawing import Draws, Outcome, draw
from owner.gatekeeper.escalation import Escalation, escalation_key, gradient_evidence
from owner.gatekeeper.fine_tunes import FineTunes
from owner.gatekeeper.finished import FinishedReferences
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.protection import OnReference
from owner.gatekeeper.references import Reference


def calibrate(
    guard: Guard,
    fine_tunes: FineTunes,
    *,
    directory: Path | None = None,
    known: Escalation | None = None,
    progress: bool | None = None,
    on_reference: OnReference | None = None,
) -> Escalation:
    """The tier that `guard` asks for.

    fine_tunes: those that the guard was calibrated with. directory: where finished ones are kept, so that what was interrupted
    goes on. known: a tier of the same guard with another K, whose references are taken over.

    Raises GuardError where the guard asks for none, hardly a fine-tune passes utility, or one cannot be looked at; StorageError.
    """
    names, count = guard.options.escalation_names, guard.options.escalation_references
    if not names:
        raise GuardError("this guard has no escalation tier", hint="set guard.escalation, and fit the guard again")
    key = escalation_key(guard)
    taken = known.references if known is not None and known.key == key else ()
    work = FinishedReferences(directory and directory / key[:16], {"escalating": taken})
    release = gradient_evidence(guard, copy.deepcopy(fine_tunes.model), guard.release_calibration)
    detectors: dict[str, Detector] = {name: ESCALATION[name]().fit(release) for name in names}
    references = []
    with progress_bar("escalation references", count, shown=progress) as advance:
        for k in range(count):
            result = work.read("escalating", k) or work.write(
                "escalating", k, _look(k, guard, fine_tunes, detectors, release, work.path)
            )
            references.append(result)
            advance(1, f"{k + 1} of {count}")
            if on_reference:
                on_reference(k + 1, count, result.scores)
    for name in names:
        if count > 1 and len({one.scores[name] for one in references}) == 1:
            raise GuardError(
                f"{name} scores all {count} honest fine-tunes alike: it sees nothing in this model, and would accept anything",
                hint="set escalation to another detector, or to off",
            )
    return Escalation(key, detectors, tuple(references))


def _look(
    k: int,
    guard: Guard,
    fine_tunes: FineTunes,
    detectors: Mapping[str, Detector],
    release: Evidence,
    directory: Path | None,
) -> Reference:
    head, compute, useful = guard.head, guard.compute, guard.usefulness

    def looked(model: nn.Module, plan: dict[str, Any]) -> Outcome:
        seen = observe(model, guard.calibration.inputs, head=head, compute=compute)
        if not (is_finite(seen.features) and is_finite(seen.logits)):
            return None
        if useful is not None:
            failed = useful.failed(
                model,
                fine_tunes.model,
                guard.release_evaluation_logits,
                guard.evaluation,
                head=head,
                compute=compute,
            )
            if failed:
                return failed
        evidence = gradient_evidence(guard, model, seen, release)
        started = time.perf_counter()
        scores = _scores(k, detectors, evidence)
        seconds = round(time.perf_counter() - started, 3)
        accuracy = float((seen.logits.argmax(1) == guard.calibration.labels).double().mean())
        return Reference(plan | {"escalation_seconds": seconds}, scores, accuracy, {})

    first = int(guard.references[k].plan["attempt"])
    return draw(fine_tunes, k, looked, Draws(), head=head, directory=directory, first=first)


def _scores(k: int, detectors: Mapping[str, Detector], evidence: Evidence) -> dict[str, float]:
    try:
        scores = {n: score for detector in detectors.values() for n, score in measures_of(detector, evidence).items()}
    except RuntimeError as error:  # of torch, where the model hands no gradient on
        raise GuardError(f"the escalation tier cannot follow gradients through this model: {error}") from error
    if not all(math.isfinite(score) for score in scores.values()):
        raise GuardError(
            f"the escalation tier finds honest fine-tune {k} not finite, and can judge nobody by it",
            hint="use float32 (model.precision), or recommend a lower learning rate",
        )
    return scores
