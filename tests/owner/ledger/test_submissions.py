from __future__ import annotations

import math

import pytest

from common.errors import IdentityError, LedgerError, ManifestError, QuotaError, RevokedError, WireError
from common.identity.keys import Domain
from common.receipts import verify_receipt
from owner.ledger import GuardState, SubmissionQuota, SubmissionState
from owner.ledger.states import DecidedMeanwhileError
from tests.owner.ledger.world import submission_manifest

S = SubmissionState


def test_a_submission_that_is_begun_twice_is_the_same_submission(busy_world):
    first = busy_world.begin("ada", "one")
    assert first.state is S.UPLOADING
    assert busy_world.begin("ada", "one") == first
    assert len(busy_world.store.submissions()) == 1


def test_a_submission_begun_again_after_its_decision_is_shown_as_decided(busy_world):
    decided = busy_world.decided("ada", "one", S.REJECTED)
    assert busy_world.begin("ada", "one", base=decided.base_release) == decided


def test_a_nonce_used_by_another_submission_is_a_replay(busy_world):
    busy_world.begin("ada", "one")
    with pytest.raises(WireError) as caught:
        busy_world.begin("ada", "one", weights_bytes=2000)
    assert caught.value.code == "REPLAY"


def test_two_contributors_may_happen_on_one_nonce(busy_world):
    assert busy_world.begin("ada", "one").id != busy_world.begin("bob", "one").id


def test_a_manifest_in_someone_elses_name_is_refused(busy_world):
    data = busy_world.begin("ada", "one").manifest
    with pytest.raises(WireError) as caught:
        busy_world.store.begin(data, bytes(64), "bob")
    assert caught.value.code == "WRONG_CONTRIBUTOR"


def test_a_submission_on_a_release_nobody_made_is_refused(busy_world):
    with pytest.raises(WireError) as caught:
        busy_world.begin("ada", "one", base="ab" * 32)
    assert caught.value.code == "BASE_UNKNOWN"


def test_bytes_that_are_no_manifest_are_refused(busy_world):
    with pytest.raises(ManifestError):
        busy_world.store.begin(b"{}", bytes(64), "ada")


def test_a_revoked_contributor_cannot_begin(busy_world):
    busy_world.store.revoke("ada")
    with pytest.raises(RevokedError):
        busy_world.begin("ada", "one")


def test_a_commit_gives_a_receipt_that_verifies_and_comes_again(busy_world):
    begun = busy_world.begin("ada", "one")
    submission, receipt = busy_world.store.committed(begun.id)
    verify_receipt(receipt, busy_world.owner.public_key)
    entry = busy_world.store.entries(kind="submission")[0]
    assert (receipt.index, receipt.entry_hash, receipt.subject) == (entry.index, entry.hash, begun.id)
    assert submission.state is S.RECEIVED
    assert busy_world.store.committed(begun.id) == (submission, receipt)
    assert len(busy_world.store.entries(submission=begun.id)) == 1


def test_submissions_are_claimed_in_the_order_they_were_handed_in(busy_world):
    late, early = busy_world.begin("ada", "begun first"), busy_world.begin("bob", "handed in first")
    busy_world.store.committed(early.id)
    busy_world.store.committed(late.id)
    claimed = [busy_world.store.claim(), busy_world.store.claim()]
    assert [one.id for one in claimed if one] == [early.id, late.id]
    assert busy_world.store.claim() is None


def test_what_was_vetted_when_the_owner_crashed_is_claimed_again(busy_world):
    handed_in = busy_world.hand_in("ada", "one")
    busy_world.store.claim()
    store = busy_world.reopen()
    assert store.requeue_interrupted() == 1
    claimed = store.claim()
    assert claimed is not None
    assert claimed.id == handed_in.id


def test_a_submission_waits_for_the_guard_of_its_base(world):
    world.enrol("ada")
    release = world.publish(guard=GuardState.FITTING)
    handed_in = world.hand_in("ada", "one")
    assert world.store.claim() is None
    assert world.store.waiting() == [release.id]
    assert world.store.await_guard(handed_in.id).state is S.AWAITING_GUARD
    assert world.store.waiting() == [release.id]
    world.store.set_guard_state(release.id, GuardState.READY)
    assert world.store.waiting() == []
    claimed = world.store.claim()
    assert claimed is not None
    assert claimed.id == handed_in.id


def test_nobody_waits_for_a_guard_that_became_ready_meanwhile(busy_world):
    assert busy_world.store.await_guard(busy_world.hand_in("ada", "one").id).state is S.RECEIVED


def test_guard_ready_wakes_the_submissions_on_that_release_alone(world):
    world.enrol("ada")
    first = world.publish(guard=GuardState.FAILED)
    one = world.store.await_guard(world.hand_in("ada", "one").id)
    second = world.publish(guard=GuardState.MISSING)
    two = world.store.await_guard(world.hand_in("ada", "two").id)
    assert world.store.waiting() == [first.id, second.id]
    assert world.store.guard_ready(first.id) == 1
    assert world.store.submission(one.id).state is S.RECEIVED
    assert world.store.submission(two.id).state is S.AWAITING_GUARD


def test_nobody_waits_for_the_guard_of_a_release_that_was_rolled_back(world):
    world.enrol("ada")
    root = world.publish()
    world.publish(guard=GuardState.FITTING)
    waits = world.store.await_guard(world.hand_in("ada", "one").id)
    world.store.rollback(root.id, "")
    assert world.store.waiting() == []
    assert world.store.await_guard(waits.id).state is S.RECEIVED
    claimed = world.store.claim()
    assert claimed is not None
    assert claimed.id == waits.id


def test_an_accepted_submission_and_its_release_come_in_one_step(busy_world):
    before = busy_world.store.current()
    handed_in = busy_world.hand_in("ada", "one")
    busy_world.store.claim()
    manifest, signature = busy_world.signed_release()
    verdict = {"decision": "accepted", "p_value": 0.4, "codes": [], "measurements": {"accuracy": 0.9}}
    submission, release, receipt = busy_world.store.decide(
        handed_in.id, S.ACCEPTED, verdict, release=(manifest, signature)
    )
    assert release == busy_world.store.current()
    assert release.parent == before.id
    assert release.submission_id == handed_in.id
    assert (submission.state, submission.release_id, submission.verdict) == (S.ACCEPTED, release.id, verdict)
    assert [entry.kind for entry in busy_world.store.entries(submission=handed_in.id)] == [
        "submission",
        "verdict",
        "release",
    ]
    verify_receipt(receipt, busy_world.owner.public_key)
    assert receipt.head_index == busy_world.store.head().index
    assert submission.verdict_receipt == receipt


def test_the_same_decision_again_gives_the_same_answer_and_no_entry(busy_world):
    handed_in = busy_world.hand_in("ada", "one")
    busy_world.store.claim()
    release = busy_world.signed_release()
    first = busy_world.store.decide(handed_in.id, S.ACCEPTED, {"p_value": 0.4}, release=release)
    head = busy_world.store.head()
    assert busy_world.store.decide(handed_in.id, S.ACCEPTED, {"p_value": 0.4}, release=release) == first
    assert busy_world.store.head() == head


def test_a_decision_whose_release_cannot_be_published_leaves_no_trace(busy_world):
    handed_in = busy_world.hand_in("ada", "one")
    busy_world.store.claim()
    stale = busy_world.signed_release(note="made before somebody published another")
    busy_world.publish(note="another")
    head = busy_world.store.head()
    with pytest.raises(LedgerError, match="current release is"):
        busy_world.store.decide(handed_in.id, S.ACCEPTED, {"p_value": 0.4}, release=stale)
    assert busy_world.store.head() == head
    assert busy_world.store.submission(handed_in.id).state is S.VETTING
    assert busy_world.store.verify().ok


@pytest.mark.parametrize("state", [S.ACCEPTED, S.REJECTED, S.QUARANTINED])
def test_a_release_goes_with_acceptance_and_with_nothing_else(busy_world, state):
    handed_in = busy_world.hand_in("ada", "one")
    busy_world.store.claim()
    release = None if state is S.ACCEPTED else busy_world.signed_release()
    with pytest.raises(LedgerError, match="a release goes with"):
        busy_world.store.decide(handed_in.id, state, {}, release=release)


def test_a_quarantined_submission_can_be_promoted(busy_world):
    quarantined = busy_world.decided("ada", "one", S.QUARANTINED)
    promoted, release, _ = busy_world.store.decide(
        quarantined.id, S.ACCEPTED, {"promoted_by": "a person"}, release=busy_world.signed_release()
    )
    assert release == busy_world.store.current()
    assert promoted.verdict == {"promoted_by": "a person"}
    assert busy_world.store.verify().ok


def test_a_second_look_that_quarantines_again_is_a_verdict_of_its_own_in_the_place_of_the_first(busy_world):
    first = busy_world.decided("ada", "one", S.QUARANTINED)
    again = {"decision": "quarantined", "looked": "again"}
    second, _, receipt = busy_world.store.decide(first.id, S.QUARANTINED, again, instead_of=first.verdict_receipt)
    assert (second.verdict, second.verdict_receipt) == (again, receipt)
    assert receipt.index > first.verdict_receipt.index
    assert len(busy_world.store.entries(kind="verdict")) == 2
    with pytest.raises(DecidedMeanwhileError, match="decided anew meanwhile"):
        busy_world.store.decide(first.id, S.REJECTED, {}, instead_of=first.verdict_receipt)
    assert busy_world.store.submission(first.id) == second


@pytest.mark.parametrize("quarantined", [False, True], ids=["while vetted", "while quarantined"])
def test_what_a_revoked_contributor_handed_in_is_not_accepted_any_more(busy_world, quarantined):
    if quarantined:
        submission = busy_world.decided("ada", "one", S.QUARANTINED)
    else:
        submission = busy_world.hand_in("ada", "one")
        busy_world.store.claim()
    release = busy_world.signed_release()
    busy_world.store.revoke("ada")
    before = busy_world.store.current()
    with pytest.raises(RevokedError):
        busy_world.store.decide(submission.id, S.ACCEPTED, {}, release=release)
    assert busy_world.store.current() == before
    assert busy_world.store.decide(submission.id, S.REJECTED, {"codes": ["REVOKED"]})[0].state is S.REJECTED


def test_a_rejection_is_final(busy_world):
    rejected = busy_world.decided("ada", "one", S.REJECTED)
    with pytest.raises(LedgerError) as caught:
        busy_world.store.decide(rejected.id, S.ACCEPTED, {}, release=busy_world.signed_release())
    assert "rejected and cannot become accepted" in str(caught.value)


@pytest.mark.parametrize("verdict", [{"score": math.nan}, {"score": math.inf}, {1: "a key that is no string"}])
def test_a_verdict_that_is_not_json_is_refused_before_anything_is_written(busy_world, verdict):
    handed_in = busy_world.hand_in("ada", "one")
    busy_world.store.claim()
    with pytest.raises(LedgerError, match="cannot be kept"):
        busy_world.store.decide(handed_in.id, S.REJECTED, verdict)
    assert busy_world.store.submission(handed_in.id).state is S.VETTING


def test_a_verdict_of_more_than_4_mib_is_refused_before_anything_is_written(busy_world):
    handed_in = busy_world.hand_in("ada", "one")
    busy_world.store.claim()
    with pytest.raises(LedgerError, match="the limit is 4194304"):
        busy_world.store.decide(handed_in.id, S.REJECTED, {"detail": "x" * (4 << 20)})
    assert busy_world.store.submission(handed_in.id).state is S.VETTING


def test_an_expired_upload_cannot_be_committed_and_is_still_a_try(busy_world):
    begun = busy_world.begin("ada", "one")
    base = begun.base_release
    assert busy_world.store.tries("ada", base) == 1
    assert busy_world.store.expire_upload(begun.id, "UPLOAD_ABANDONED", "").state is S.EXPIRED
    assert busy_world.store.tries("ada", base) == 1
    with pytest.raises(LedgerError, match="expired and cannot become received"):
        busy_world.store.committed(begun.id)


def test_an_expired_upload_remembers_why(busy_world):
    begun = busy_world.begin("ada", "one")
    assert begun.expiry is None
    busy_world.store.expire_upload(begun.id, "DIGEST_MISMATCH", "other bytes\x1b[2J than declared" + "!" * 1000)
    busy_world.store.expire_upload(begun.id, "UPLOAD_ABANDONED", "a second time")
    expiry = busy_world.reopen().submission(begun.id).expiry
    assert expiry is not None
    assert expiry.code == "DIGEST_MISMATCH"
    assert expiry.detail.startswith("other bytes\ufffd[2J than declared!")
    assert len(expiry.detail) == 501


def test_announcing_and_sending_rubbish_cannot_go_on_for_ever(busy_world):
    quota = SubmissionQuota(open_submissions=1, tries_per_release=2)
    base = busy_world.store.current().id

    def announce(nonce):
        manifest = submission_manifest("ada", base, nonce).to_bytes()
        return busy_world.store.begin(manifest, bytes(64), "ada", quota=quota)

    for nonce in ("one", "two"):
        busy_world.store.expire_upload(announce(nonce).id, "UPLOAD_ABANDONED", "")
    with pytest.raises(QuotaError, match="has used its 2 tries"):
        announce("three")


def test_only_undecided_submissions_count_as_open_bytes(busy_world):
    busy_world.begin("ada", "one", weights_bytes=100)
    assert busy_world.store.open_bytes("ada") == 100
    busy_world.decided("ada", "two", S.QUARANTINED)
    assert busy_world.store.open_bytes("ada") == 1100
    busy_world.decided("ada", "three", S.REJECTED)
    assert busy_world.store.open_bytes("ada") == 1100
    assert busy_world.store.open_bytes("bob") == 0


@pytest.mark.parametrize(
    ("quota", "word", "setting"),
    [
        (SubmissionQuota(open_submissions=1), "uploading", "quotas.open_submissions"),
        (SubmissionQuota(tries_per_release=1), "tries", "quotas.tries_per_release"),
        (SubmissionQuota(upload_bytes=1999), "bytes", "quotas.upload_bytes"),
    ],
)
def test_a_quota_stops_the_next_submission_and_not_the_same_one_again(busy_world, quota, word, setting):
    first = busy_world.begin("ada", "one")
    key = busy_world.keys["ada"]
    again = busy_world.store.begin(first.manifest, first.signature, "ada", quota=quota)
    assert again == first
    second = first.manifest.replace(first.weights_sha256.encode(), b"ab" * 32)
    second = second.replace(b'"nonce":"', b'"nonce":"0')
    start = second.index(b'"nonce":"') + 9
    second = second[: start + 32] + second[start + 33 :]
    with pytest.raises(QuotaError, match=word) as caught:
        busy_world.store.begin(second, key.sign(Domain.SUBMISSION, second), "ada", quota=quota)
    assert caught.value.setting == setting


def test_submissions_are_found_by_a_unique_prefix(busy_world):
    begun = busy_world.begin("ada", "one")
    assert busy_world.store.submission(begun.id[:12]) == begun
    with pytest.raises(LedgerError, match="there is no submission"):
        busy_world.store.submission("f" * 64)
    with pytest.raises(LedgerError, match="not a submission id"):
        busy_world.store.submission("%")


def test_an_ambiguous_prefix_names_two_of_those_it_could_be(busy_world):
    for number in range(17):
        busy_world.begin("ada", str(number))
    digits = [one.id[0] for one in busy_world.store.submissions()]
    shared = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(LedgerError, match="several submissions begin with"):
        busy_world.store.submission(shared)


def test_submissions_are_listed_by_state_contributor_and_base(busy_world):
    rejected = busy_world.decided("ada", "one", S.REJECTED)
    begun = busy_world.begin("bob", "two")
    assert busy_world.store.submissions(state=S.REJECTED) == [rejected]
    assert busy_world.store.submissions(contributor="bob") == [begun]
    assert {one.id for one in busy_world.store.submissions(base=begun.base_release)} == {rejected.id, begun.id}
    assert busy_world.store.submissions(base="ab" * 32) == []


def test_a_list_with_a_limit_holds_the_newest_first(busy_world):
    for nonce in ("one", "two", "three"):
        busy_world.begin("ada", nonce)
        busy_world.clock.forward(seconds=1)
    busy_world.begin("bob", "four")
    in_order = busy_world.store.submissions(contributor="ada")
    assert busy_world.store.submissions(contributor="ada", limit=2) == in_order[:0:-1]
    assert busy_world.store.submissions(limit=0) == []


def test_weights_are_pruned_after_the_decision_and_not_before(busy_world):
    handed_in = busy_world.hand_in("ada", "one")
    with pytest.raises(LedgerError, match="still needed"):
        busy_world.store.mark_pruned(handed_in.id)
    busy_world.store.claim()
    busy_world.store.decide(handed_in.id, S.REJECTED, {})
    pruned = busy_world.store.mark_pruned(handed_in.id)
    assert pruned.pruned is not None
    assert busy_world.store.mark_pruned(handed_in.id) == pruned
    assert len(busy_world.store.entries(kind="pruned")) == 1


def test_weights_that_a_person_may_still_promote_are_not_pruned(busy_world):
    quarantined = busy_world.decided("ada", "one", S.QUARANTINED)
    with pytest.raises(LedgerError, match="quarantined: its weights are still needed"):
        busy_world.store.mark_pruned(quarantined.id)


def test_what_is_left_of_an_expired_upload_is_pruned_without_an_entry(busy_world):
    begun = busy_world.begin("ada", "one")
    busy_world.store.expire_upload(begun.id, "UPLOAD_ABANDONED", "")
    assert busy_world.store.mark_pruned(begun.id).pruned is not None
    assert busy_world.store.entries(kind="pruned") == []
    assert busy_world.store.verify().ok


def test_a_submission_by_a_stranger_is_refused(busy_world):
    busy_world.keys["eve"] = busy_world.keys["ada"]
    with pytest.raises(IdentityError, match="nobody called 'eve'"):
        busy_world.begin("eve", "one")
