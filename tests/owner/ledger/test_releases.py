from __future__ import annotations

import pytest

from common.errors import LedgerError, ManifestError
from owner.ledger import GuardState, ReleaseStatus, Store, SubmissionState
from tests.owner.ledger.world import release_manifest


def test_before_the_first_release_there_is_no_current_one(world):
    assert world.store.releases() == []
    for ask in (world.store.current, world.store.root):
        with pytest.raises(LedgerError, match="no release yet"):
            ask()


def test_a_published_release_becomes_the_current_one(world):
    first, second = world.publish(), world.publish()
    assert world.store.current() == world.store.release(second.id[:10])
    assert world.store.root().id == first.id
    assert [one.status for one in world.store.releases()] == [ReleaseStatus.PAST, ReleaseStatus.CURRENT]
    assert second.parent == first.id


def test_publishing_the_same_release_again_changes_nothing(world):
    signed = world.signed_release()
    first, head = world.store.publish(*signed), world.store.head()
    assert world.store.publish(*signed) == first
    assert world.store.head() == head


def test_the_first_release_has_no_parent_and_later_ones_have_the_current_one(world):
    with pytest.raises(LedgerError, match="the current release is nothing"):
        world.store.publish(release_manifest(0, "ab" * 32).to_bytes(), bytes(64))
    root = world.publish()
    world.publish()
    with pytest.raises(LedgerError, match="is made from") as caught:
        world.store.publish(release_manifest(2, root.id).to_bytes(), bytes(64))
    assert "moved" in caught.value.hint


def test_numbers_have_no_gaps(world):
    root = world.publish()
    with pytest.raises(LedgerError, match="number 7, the next one is 1"):
        world.store.publish(release_manifest(7, root.id).to_bytes(), bytes(64))


def test_bytes_that_are_no_release_manifest_are_refused(world):
    with pytest.raises(ManifestError):
        world.store.publish(b"[]", bytes(64))


def test_a_release_cannot_claim_a_submission_that_was_not_accepted(busy_world):
    handed_in = busy_world.hand_in("ada", "one")
    with pytest.raises(LedgerError, match="not an accepted submission"):
        busy_world.store.publish(*busy_world.signed_release(), submission_id=handed_in.id)


def test_a_release_made_of_a_submission_is_not_published_again_as_the_owners_own(busy_world):
    handed_in = busy_world.hand_in("ada", "one")
    busy_world.store.claim()
    release = busy_world.signed_release()
    busy_world.store.decide(handed_in.id, SubmissionState.ACCEPTED, {}, release=release)
    with pytest.raises(LedgerError, match="has been published already"):
        busy_world.store.publish(*release)


def test_a_rollback_restores_a_release_and_takes_back_all_later_ones(world):
    first, second, third = world.publish(), world.publish(), world.publish()
    restored = world.store.rollback(first.id, "the last two were poisoned")
    assert restored == world.store.current()
    assert (restored.id, restored.guard_state) == (first.id, GuardState.READY)
    assert [one.status for one in world.store.releases()] == ["current", "rolled-back", "rolled-back"]
    body = world.store.entries(kind="rollback")[0].body
    assert body["rolled_back"] == [second.id, third.id]
    assert world.store.verify().ok


def test_after_a_rollback_the_line_goes_on_from_the_restored_release(world):
    first, second = world.publish(), world.publish()
    world.store.rollback(first.id, "")
    third = world.publish(note="grown from the first")
    assert (third.parent, third.number) == (first.id, 2)
    assert world.store.allowed_bases(5) == [third.id, first.id]
    with pytest.raises(LedgerError, match="not offered again"):
        world.store.rollback(second.id, "")
    assert world.store.verify().ok


def test_rolling_back_to_the_current_release_is_refused(world):
    with pytest.raises(LedgerError, match="current one already"):
        world.store.rollback(world.publish().id, "")


def test_allowed_bases_are_the_newest_and_at_most_so_many(world):
    ids = [world.publish().id for _ in range(4)]
    assert world.store.allowed_bases(2) == [ids[3], ids[2]]
    assert world.store.allowed_bases(1) == [ids[3]]


def test_a_guard_goes_through_its_states_and_two_of_them_are_entries(world):
    release = world.publish(guard=GuardState.FITTING)
    assert world.store.release(release.id).guard_state is GuardState.FITTING
    for state in (GuardState.FAILED, GuardState.FITTING, GuardState.READY, GuardState.READY):
        world.store.set_guard_state(release.id, state)
        assert world.store.release(release.id).guard_state is state
    assert [entry.body["state"] for entry in world.store.entries(kind="guard")] == ["failed", "ready"]


def test_every_change_a_watcher_cares_about_moves_the_counter_of_every_store(busy_world):
    def steps():
        begun = busy_world.begin("ada", "one")
        yield "begun"
        busy_world.store.committed(begun.id)
        yield "committed"
        busy_world.store.claim()
        yield "claimed"
        busy_world.store.requeue_interrupted()
        yield "requeued"
        busy_world.store.claim()
        yield "claimed again"
        busy_world.store.decide(begun.id, SubmissionState.QUARANTINED, {})
        yield "quarantined"
        busy_world.store.set_guard_state(busy_world.store.current().id, GuardState.FITTING)
        yield "guard"
        busy_world.store.expire_upload(busy_world.begin("bob", "two").id, "UPLOAD_ABANDONED", "")
        yield "expired"
        busy_world.store.revoke("bob")
        yield "revoked"

    with Store.open(busy_world.url, busy_world.owner, clock=busy_world.clock) as other:
        seen = other.change_counter()
        for step in steps():
            counter = other.change_counter()
            assert counter > seen, step
            seen = counter


def test_looking_does_not_move_the_counter(busy_world):
    before = busy_world.store.change_counter()
    busy_world.store.claim()
    busy_world.store.submissions()
    busy_world.store.verify()
    busy_world.reopen()
    assert busy_world.store.change_counter() == before
