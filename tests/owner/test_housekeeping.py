"""Pruning: what may go, and what must stay."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

from common import timestamps
from common.weights import load, save
from owner import housekeeping
from owner.gatekeeper.verdict import Decision, Verdict
from owner.guards import needed_guards
from owner.ledger.records import GuardState, SubmissionState
from owner.operations.deciding import rollback
from owner.operations.opening import Office, open_office
from tests.owner.people import Contributor, negated, quarantined, slightly_changed, vet_and_settle


def test_pruning_removes_old_rejected_weights_and_keeps_their_entries(office: Office, ada: Contributor) -> None:
    submission = vet_and_settle(office, ada.hand_in(negated))
    assert submission.state is SubmissionState.REJECTED
    files = office.workspace.submission(submission.id)
    settings, later = office.settings, timestamps.now() + timedelta(days=31)

    def prune(days: int, *, dry_run: bool = False) -> housekeeping.Pruned:
        return housekeeping.prune(
            office.workspace, office.store, settings, timedelta(days=days), clock=lambda: later, dry_run=dry_run
        )

    assert prune(40).submissions == ()
    planned = prune(30, dry_run=True)
    assert planned.submissions == (submission.id,)
    assert planned.bytes == files.weights.stat().st_size
    assert prune(30) == planned
    assert not files.weights.exists()
    assert files.manifest.exists()
    kept = office.store.submission(submission.id)
    assert kept.pruned is not None
    assert kept.verdict is not None
    assert prune(30).submissions == ()
    assert office.store.verify().ok


def test_pruning_spares_what_is_undecided_or_quarantined(office: Office, ada: Contributor) -> None:
    waits = quarantined(office, ada.hand_in(slightly_changed))
    received = ada.hand_in(slightly_changed)
    later = timestamps.now() + timedelta(days=400)
    found = housekeeping.prune(office.workspace, office.store, office.settings, timedelta(days=30), clock=lambda: later)
    assert found.submissions == ()
    assert all(office.workspace.submission(one.id).weights.is_file() for one in (waits, received))


def test_pruning_removes_guards_no_submission_can_need(root: Path) -> None:
    with open_office(root, {"merge.bases_allowed": 1}) as office:
        ada = Contributor(office, "ada")
        root_release = office.store.current()
        for _ in range(2):
            base = office.store.current()
            if base.id != root_release.id:
                shutil.copytree(
                    office.workspace.release(root_release.id).guard, office.workspace.release(base.id).guard
                )
                office.store.set_guard_state(base.id, GuardState.READY)
            vet_and_settle(
                office,
                ada.hand_in(slightly_changed, base=root_release if base is root_release else base),
                _accepted(office),
            )
        middle = office.store.releases()[1]
        later = timestamps.now() + timedelta(days=31)

        def prune() -> housekeeping.Pruned:
            month = timedelta(days=30)
            return housekeeping.prune(office.workspace, office.store, office.settings, month, clock=lambda: later)

        # Itself, and the one after it, which may take its fine-tunes over.
        for fitted in (middle, office.store.current()):
            with office.workspace.fitting(fitted.id, fitted.parent):
                found = prune()
            assert (found.guards, found.guards_in_use) == ((), (middle.id,))
        assert office.store.release(middle.id).guard_state is GuardState.READY
        assert office.workspace.release(middle.id).guard.is_dir()
        with office.workspace.fitting(root_release.id):
            found = prune()
        assert (found.guards, found.guards_in_use) == ((middle.id,), ())
        assert not list(office.workspace.locks.glob("guard-*"))
        assert not office.workspace.release(middle.id).guard.exists()
        assert office.store.release(middle.id).guard_state is GuardState.MISSING
        assert office.store.root().guard_state is GuardState.READY
        rollback(office, middle.id, "worse since")
        assert [one.id for one in needed_guards(office.store, office.settings)] == [middle.id]


def _accepted(office: Office) -> Verdict:
    """An acceptance whose merged weights lie where the vetting process would have put them."""
    (submission,) = office.store.submissions(state=SubmissionState.RECEIVED)
    files = office.workspace.submission(submission.id)
    save(files.would_be, load(files.weights))
    return Verdict(Decision.ACCEPTED)
