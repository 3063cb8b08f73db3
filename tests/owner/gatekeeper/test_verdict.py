"""Verdicts: how checks add up, what a contributor sees, and that they are JSON."""

from __future__ import annotations

import json
import math

import pytest

from common.errors import ManifestError
from owner.gatekeeper import Check, Decision, Verdict
from owner.gatekeeper.decision import conclude, interrupted
from owner.gatekeeper.rules import judge_by_references


def check(decision: str, code: str | None = None) -> Check:
    return Check("some", Decision(decision), 0.1, code=code)


@pytest.mark.parametrize(
    ("decisions", "outcome"),
    [
        (["accepted", "accepted"], "accepted"),
        (["accepted", "quarantined"], "quarantined"),
        (["quarantined", "rejected", "accepted"], "rejected"),
    ],
)
def test_a_verdict_is_as_grave_as_its_gravest_check(decisions: list[str], outcome: str) -> None:
    assert conclude([check(d) for d in decisions], seconds=1.0).decision == outcome


def test_codes_are_those_of_checks_that_did_not_pass_in_order_and_once() -> None:
    checks = [
        check("accepted", "ROOT_DRIFT"),
        check("rejected", "B"),
        check("quarantined", "A"),
        check("rejected", "B"),
    ]
    assert conclude(checks, seconds=1.0).codes == ("B", "A")


def test_the_smallest_p_value_of_the_detectors_is_the_verdicts() -> None:
    references = [float(s) for s in range(19)]
    judged = [judge_by_references(s, references, reject=0.05, quarantine=0.1) for s in (3.0, 30.0)]
    verdict = conclude([], seconds=1.0, judgements=judged)
    assert (verdict.p_value, verdict.resolution) == (0.05, 0.05)
    assert verdict.fpr_bound_95 == pytest.approx(0.146, abs=1e-3)


@pytest.mark.parametrize(
    ("codes", "public"),
    [
        (("NON_FINITE",), "format"),
        (("NONFINITE_ACTIVATION",), "format"),
        (("MAGNITUDE",), "format"),
        (("UTILITY_ACCURACY", "UTILITY_RECALL"), "utility"),
        (("ACTIVATION_AUTOENCODER",), "review"),
        (("ACTIVATION_AUTOENCODER", "UTILITY_RECALL"), "review"),
        (("VETTING_TIMEOUT",), "review"),
        ((), "review"),
    ],
)
def test_a_contributor_sees_one_coarse_code(codes: tuple[str, ...], public: str) -> None:
    assert Verdict(Decision.REJECTED, codes=codes).public_code == public


def test_an_accepted_submission_has_no_public_code() -> None:
    assert Verdict(Decision.ACCEPTED, codes=()).public_code == ""


def test_a_verdict_survives_json() -> None:
    verdict = Verdict(
        Decision.QUARANTINED,
        (Check("a", Decision.QUARANTINED, 0.5, 1.0, 2.0, 0.1, "A", "why"), check("accepted")),
        ("A",),
        0.1,
        0.05,
        0.146,
        1.5,
        {"calibration": {"accuracy": 0.9, "recall": [1.0, None]}},
    )
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json(), allow_nan=False))) == verdict


def test_numbers_that_are_not_finite_become_null() -> None:
    worst = Check("a", Decision.REJECTED, score=math.nan, threshold=math.inf)
    verdict = Verdict(Decision.REJECTED, (worst,), measurements={"errors": [1.0, -math.inf, (math.nan,)]})
    written = json.dumps(verdict.to_json(), allow_nan=False)
    assert json.loads(written)["measurements"] == {"errors": [1.0, None, [None]]}


@pytest.mark.parametrize(
    "broken", [{}, {"decision": "clean"}, {"decision": "accepted", "extra": 1}, {"checks": 3}, [], None]
)
def test_what_is_no_verdict_is_refused(broken: object) -> None:
    with pytest.raises(ManifestError) as caught:
        Verdict.from_json(broken)  # type: ignore[arg-type]
    assert caught.value.code == "VERDICT_MALFORMED"


def test_vetting_without_an_answer_waits_for_a_person() -> None:
    verdict = interrupted("VETTING_TIMEOUT", "too long", seconds=3.0)
    assert (verdict.decision, verdict.codes, verdict.seconds) == (Decision.QUARANTINED, ("VETTING_TIMEOUT",), 3.0)
