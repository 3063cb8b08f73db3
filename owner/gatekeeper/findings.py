"""What a person is told about a candidate beyond the score that decides: every detector, every family, what stands out most.

All of it is measured in the same way for everybody, and none of it decides: a contributor who is looked at through twenty
p-values has a small one among them by chance alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from owner.detectors import ActivationAutoEncoder, Evidence, ImageDetector, ProbeBank
from owner.detectors.combination import detector_of
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.pictures import as_png
from owner.gatekeeper.rules import Judgement
from owner.gatekeeper.verdict import Decision

LEADING = 5
"""How many of the scores that stand out most a verdict names."""


def describe(guard: Guard, evidence: Evidence, deciding: Sequence[tuple[float, Judgement]]) -> dict[str, Any]:
    """Measurements for the verdict, JSON-ready: `detectors`, and with a combined score `gate`.

    deciding: the scores and judgements that decide, as `Guard.judgements` gave them.
    """
    if not guard.combined:
        thresholds = [judgement.threshold for _, judgement in deciding]
        pairs = zip(guard.detectors, deciding, thresholds, strict=True)
        return {
            "detectors": {
                name: {"score": score, "threshold": threshold} | _explained(guard, name, evidence)
                for name, (score, _), threshold in pairs
            }
        }
    ((score, judgement),) = deciding
    scores = guard.measure(evidence)
    detectors = {
        name: {"score": scores[name], "p_value": guard.detector_p_value(name, scores[name])}
        | _explained(guard, name, evidence)
        for name in guard.detectors
    }
    return {"detectors": detectors, "gate": _gate(guard, evidence, score, judgement, detectors)}


def _explained(guard: Guard, name: str, evidence: Evidence) -> dict[str, Any]:
    detector = guard.detectors[name]
    found: dict[str, Any] = {"explanation": detector.explain(evidence)}
    # The paper's Fig. 5; of the other auto-encoders among many, nobody would look at one.
    if isinstance(detector, ImageDetector) and (not guard.combined or name == ActivationAutoEncoder.name):
        found["histogram"] = guard.histograms(name, detector.image_scores(evidence))
    return found


def _gate(
    guard: Guard, evidence: Evidence, score: float, judgement: Judgement, detectors: dict[str, Any]
) -> dict[str, Any]:
    scores = guard.measure(evidence)
    leading = guard.combination.contributions(scores)[:LEADING]
    stands_out = judgement.decision is not Decision.ACCEPTED
    return {
        "method": guard.options.combination,
        "score": score,
        "threshold": judgement.threshold,
        "p_value": judgement.p_value,
        "resolution": judgement.resolution,
        "fpr_bound_95": judgement.fpr_bound_95,
        "references": len(guard.references),
        "fitting_references": len(guard.fitting),
        "families": guard.family_p_values(scores),
        "leading": leading,
        "judged": True,
        "conditioning": guard.conditioning,
        "suspected": _suspected(guard, detectors, leading) if stands_out else None,
        "picture": _picture(guard, evidence) if stands_out else None,
    }


def _suspected(guard: Guard, detectors: Mapping[str, Any], leading: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Source and target class, the class that moved most, and the probe, as those detectors name them that stand out most."""
    order = dict.fromkeys(detector_of(str(one["score"])) for one in leading)
    order |= dict.fromkeys(sorted(detectors, key=lambda name: (detectors[name]["p_value"], name)))
    told: dict[str, Mapping[str, Any]] = {name: detectors[name]["explanation"] for name in order}
    aiming = next((name for name, one in told.items() if one.get("target") is not None), None)
    target = None if aiming is None else told[aiming]["target"]
    # Some name a target and never a source.
    sources = (n for n, one in told.items() if one.get("source") is not None and one.get("target") == target)
    sourced = None if target is None else next(sources, None)
    moving = next((name for name, one in told.items() if isinstance(one.get("class"), int)), None)
    stamping = next((name for name, one in told.items() if one.get("probe") is not None), None)

    def class_name(detector: str | None, key: str) -> str | None:
        index = None if detector is None else told[detector].get(key)
        return None if index is None else guard.calibration.class_names[index]

    return {
        "source": class_name(sourced, "source"),
        "target": class_name(aiming, "target"),
        "moved_class": class_name(moving, "class"),
        "probe": told[stamping]["probe"] if stamping else None,
        "kind": told[stamping]["kind"] if stamping else None,
        "by": {"target": aiming, "moved_class": moving, "probe": stamping},
    }


def _picture(guard: Guard, evidence: Evidence) -> dict[str, Any] | None:
    """The mark that a probe bank suspects, on a clean image; None where there is no such bank, or no image."""
    bank = next((detector for detector in guard.detectors.values() if isinstance(detector, ProbeBank)), None)
    marked = None if bank is None else bank.suspected_trigger(evidence)
    return None if marked is None else as_png(marked)
