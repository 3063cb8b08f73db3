"""A contributor's history in the ledger: what counts, what it leads to, and how a person's decision ends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from common.config import load as load_settings
from owner.assessment import accept, settle, vet, with_check, with_history
from owner.e_process import HistoryRule
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.jobs import VettingJob
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.histories import earlier, standing
from owner.ledger.records import Submission, SubmissionState
from owner.operations import people
from owner.operations.opening import Office
from owner.settings import OwnerSettings
from tests.owner.people import QUICK, Contributor, InProcess, negated, slightly_changed


class Scores(InProcess):
    """A worker that vets as ever, and then says that the p-value was another: K = 99, level 1 %."""

    def __init__(self, p_value: float) -> None:
        super().__init__()
        self.p_value = p_value

    def vet(self, job: VettingJob) -> Verdict:
        decision = Decision.REJECTED if self.p_value <= 0.01 else Decision.ACCEPTED
        codes = ("GATE",) if decision is Decision.REJECTED else ()
        super().vet(job)
        checks = (Check("said", decision, p_value=self.p_value, code=codes[0] if codes else None),)
        return Verdict(decision, checks, codes, p_value=self.p_value, resolution=0.01)


Says = Callable[[Contributor, float], tuple[Submission, Verdict]]


@pytest.fixture
def judge(office: Office) -> Says:
    """Hands in one submission that gets this p-value, and settles it."""

    def one(contributor: Contributor, p_value: float, **changes: object) -> tuple[Submission, Verdict]:
        settings = load_settings(OwnerSettings, None, {**QUICK, **changes}, environment={})
        # Always the root: nothing but histories is looked at here, and it is the one that has a guard.
        handed_in = contributor.hand_in(slightly_changed, base=office.store.root())
        submission = office.store.claim()
        assert submission is not None
        assert submission.id == handed_in.id
        current = office.store.current()
        worker: InProcess = Scores(p_value)
        verdict = vet(office.workspace, office.store, settings, worker, submission, current, allow_old_base=True)  # type: ignore[arg-type]
        settle(office.workspace, office.store, office.signing_key, settings, submission, current, verdict)
        return office.store.submission(submission.id), verdict

    return one


def test_the_verdict_holds_value_threshold_and_length_of_the_history(ada: Contributor, judge: Says) -> None:
    submission, _ = judge(ada, 0.4)
    recorded = (submission.verdict or {})["measurements"]["history"]
    assert (recorded["references"], recorded["submissions"]) == (99, 1)
    assert recorded["rule"] == {"level": 0.05, "submissions": 50, "per_guard": 50}
    assert recorded["value"] < recorded["threshold"]
    assert recorded["alarm"] is False


def test_p_values_that_each_pass_are_held_for_a_person_together(office: Office, ada: Contributor, judge: Says) -> None:
    states = [judge(ada, 0.05)[0].state for _ in range(3)]
    assert states[0] is SubmissionState.ACCEPTED
    assert states[-1] is SubmissionState.QUARANTINED
    last = office.store.submissions(contributor="ada")[-1].verdict or {}
    assert last["codes"] == ["HISTORY"]
    assert last["public_code"] == "review"


def test_a_history_never_rejects_and_never_softens_a_rejection(ada: Contributor, judge: Says) -> None:
    for _ in range(2):
        _, verdict = judge(ada, 0.01)
        assert verdict.decision is Decision.REJECTED
    check = next(check for check in verdict.checks if check.name == "history")
    assert check.decision is Decision.QUARANTINED


def test_everybody_has_a_history_of_their_own(office: Office, ada: Contributor, judge: Says) -> None:
    bob = Contributor(office, "bob")
    for _ in range(3):
        judge(ada, 0.05)
    submission, _ = judge(bob, 0.05)
    assert submission.state is SubmissionState.ACCEPTED
    assert len(earlier(office.store, "bob", 50)) == 1


def test_recorded_only_a_history_holds_nobody(office: Office, ada: Contributor, judge: Says) -> None:
    for _ in range(3):
        submission, verdict = judge(ada, 0.05, **{"history.action": "record"})  # type: ignore[call-arg]
    assert submission.state is SubmissionState.ACCEPTED
    assert verdict.checks[-1].code == "HISTORY"


def test_vetting_again_counts_the_submission_once(office: Office, ada: Contributor, judge: Says) -> None:
    judge(ada, 0.3)
    submission, _ = judge(ada, 0.2)
    assert [one.p_value for one in earlier(office.store, "ada", 50)] == [0.3, 0.2]
    assert [one.p_value for one in earlier(office.store, "ada", 50, before=submission)] == [0.3]


def test_a_history_is_read_back_as_far_as_it_is_needed(office: Office, ada: Contributor) -> None:
    for p_value in (0.1, 0.2, 0.3, None, None):
        submission = ada.hand_in()
        office.store.claim()
        verdict = Verdict(Decision.REJECTED, p_value=p_value, resolution=0.01)
        office.store.decide(submission.id, SubmissionState.REJECTED, verdict.to_json())
    # The last two without a p-value fill more than one look, whichever number is asked for.
    for newest, wanted in ((1, [0.3]), (2, [0.2, 0.3]), (5, [0.1, 0.2, 0.3])):
        assert [one.p_value for one in earlier(office.store, "ada", newest)] == wanted


def test_promoting_what_was_held_begins_a_new_history(office: Office, ada: Contributor, judge: Says) -> None:
    while (held := judge(ada, 0.05)[0]).state is SubmissionState.ACCEPTED:
        pass
    found = standing(office.store, office.settings, "ada")
    assert found is not None
    assert found.alarm
    # As `promote` does it, with a worker that says what it said before.
    current = office.store.current()
    again = vet(office.workspace, office.store, office.settings, Scores(0.05), held, current, allow_old_base=True)  # type: ignore[arg-type]
    promoted = with_check(again, Check("person", Decision.ACCEPTED, detail="promoted; asked about the data"))
    accept(office.workspace, office.store, office.signing_key, office.settings, held, current, promoted)
    assert standing(office.store, office.settings, "ada") is None
    submission, _ = judge(ada, 0.05)
    assert submission.state is SubmissionState.ACCEPTED


def test_a_vetting_without_an_answer_leaves_the_history_alone(office: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)
    silent = Verdict(Decision.QUARANTINED, (), ("VETTING_TIMEOUT",))
    assert with_history(silent, office.store, office.settings, submission) == silent


@pytest.mark.parametrize("conditioned", [True, False])
def test_what_fails_utility_enters_no_history_where_the_references_pass_it(
    office: Office, ada: Contributor, conditioned: bool
) -> None:
    current, worker = office.store.current(), InProcess()
    if not conditioned:
        path = office.workspace.release(current.id).guard
        guard = Guard.load(path)
        assert guard.usefulness is not None
        dataclasses.replace(guard, usefulness=None).save(path)
    submission = ada.hand_in(negated)
    office.store.claim()
    verdict = vet(office.workspace, office.store, office.settings, worker, submission, current)  # type: ignore[arg-type]
    settle(office.workspace, office.store, office.signing_key, office.settings, submission, current, verdict)
    assert "UTILITY_ACCURACY" in verdict.codes
    assert ("history" in {check.name for check in verdict.checks}) is not conditioned
    assert len(earlier(office.store, "ada", 50)) == (0 if conditioned else 1)


def test_contributors_are_listed_with_their_e_value(office: Office, ada: Contributor, judge: Says) -> None:
    (newcomer,) = people.standings(office)
    assert newcomer.history is None
    judge(ada, 0.05)
    (after,) = people.standings(office)
    assert after.history is not None
    assert after.history.threshold == HistoryRule().thresholds([99])[0]
    assert after.to_json()["history"] == dataclasses.asdict(after.history) | {"alarm": False}
