"""The owner's own decisions: promote, roll back, vet a file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import (
    DeclinedError,
    GuardError,
    LedgerError,
    StorageError,
    WeightsError,
)
from common.weights import load, save
from owner.gatekeeper.verdict import Decision, Verdict
from owner.ledger.records import GuardState, ReleaseStatus, SubmissionState
from owner.operations import deciding
from owner.operations.deciding import promote, rollback, vet_file, vet_files, weights_files
from owner.operations.opening import Office
from tests.owner.people import Contributor, InProcess, negated, quarantined, slightly_changed, vet_and_settle


class Worker(InProcess):
    """In place of the vetting process that `promote` and `vet` start; may change what it finds."""

    amend: Any = staticmethod(lambda verdict: verdict)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def vet(self, job: Any) -> Verdict:
        verdict: Verdict = self.amend(super().vet(job))
        return verdict


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    made = Worker()
    monkeypatch.setattr(deciding, "VettingWorker", lambda **_: made)
    return made


def test_a_promoted_submission_becomes_the_current_release(office: Office, ada: Contributor, worker: Worker) -> None:
    submission = quarantined(office, ada.hand_in(slightly_changed))
    promotion = promote(office, submission.id[:10], reason="asked them")
    assert office.store.current().submission_id == submission.id
    assert not promotion.forced
    person = promotion.verdict.checks[-1]
    assert (person.name, person.decision) == ("person", Decision.ACCEPTED)
    assert "asked them" in person.detail
    kept = office.store.submission(submission.id)
    assert kept.state is SubmissionState.ACCEPTED
    assert Verdict.from_json(kept.verdict or {}) == promotion.verdict
    assert office.store.verify().ok


def test_promotion_merges_onto_the_release_of_that_moment(office: Office, ada: Contributor, worker: Worker) -> None:
    submission = quarantined(office, ada.hand_in(slightly_changed))
    vet_and_settle(office, ada.hand_in(slightly_changed))
    second = office.store.current()
    assert second.number == 1
    assert promote(office, submission.id).release.parent == second.id


def test_promoting_what_is_rejected_by_now_needs_force(office: Office, ada: Contributor, worker: Worker) -> None:
    submission = quarantined(office, ada.hand_in(negated))
    before = office.store.current()
    with pytest.raises(DeclinedError, match="UTILITY_ACCURACY") as caught:
        promote(office, submission.id)
    assert "--force" in caught.value.hint
    assert office.store.current().id == before.id
    promotion = promote(office, submission.id, force=True)
    assert promotion.forced
    assert "overruling UTILITY_ACCURACY" in promotion.verdict.checks[-1].detail
    merged = load(office.workspace.release(promotion.release.id).weights)
    assert all(float(t.abs().max()) == 0 for t in merged.values() if t.is_floating_point())  # (w + -w) / 2


def test_no_force_accepts_what_admission_refuses(office: Office, ada: Contributor, worker: Worker) -> None:
    submission = quarantined(office, ada.hand_in(slightly_changed))
    office.store.revoke("ada", "left")
    with pytest.raises(DeclinedError, match="REVOKED"):
        promote(office, submission.id, force=True)
    assert office.store.submission(submission.id).state is SubmissionState.QUARANTINED


def test_no_force_accepts_weights_that_are_not_finite(office: Office, ada: Contributor, worker: Worker) -> None:
    def poisoned(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: torch.full_like(tensor, torch.inf) for name, tensor in weights.items()}

    submission = quarantined(office, ada.hand_in(poisoned))
    with pytest.raises(DeclinedError, match="NON_FINITE"):
        promote(office, submission.id, force=True)


def test_a_vetting_without_an_answer_cannot_be_promoted(office: Office, ada: Contributor, worker: Worker) -> None:
    submission = quarantined(office, ada.hand_in(slightly_changed))
    worker.amend = lambda _: Verdict(Decision.QUARANTINED, (), ("VETTING_TIMEOUT",))
    with pytest.raises(DeclinedError, match="no answer") as caught:
        promote(office, submission.id, force=True)
    assert "vetting.timeout_seconds" in caught.value.hint


def test_only_a_quarantined_submission_can_be_promoted(office: Office, ada: Contributor, worker: Worker) -> None:
    submission = vet_and_settle(office, ada.hand_in(slightly_changed))
    with pytest.raises(LedgerError, match="is accepted; only a quarantined"):
        promote(office, submission.id)


def test_a_rollback_restores_release_and_guard_together(office: Office, ada: Contributor) -> None:
    root = office.store.current()
    vet_and_settle(office, ada.hand_in(slightly_changed))
    restored = rollback(office, root.id[:8], "a bad batch")
    assert (restored.id, restored.guard_state) == (root.id, GuardState.READY)
    assert office.store.releases()[-1].status is ReleaseStatus.ROLLED_BACK
    assert office.store.entries(kind="rollback")[-1].body["reason"] == "a bad batch"


def test_a_rollback_to_a_damaged_release_is_refused(office: Office, ada: Contributor) -> None:
    root = office.store.current()
    vet_and_settle(office, ada.hand_in(slightly_changed))
    weights = office.workspace.release(root.id).weights
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError):
        rollback(office, root.id, "back")
    assert office.store.current().id != root.id


def test_a_guard_that_was_pruned_is_missing_after_a_rollback(office: Office, ada: Contributor) -> None:
    root = office.store.current()
    vet_and_settle(office, ada.hand_in(slightly_changed))
    shutil.rmtree(office.workspace.release(root.id).guard)
    assert rollback(office, root.id, "back").guard_state is GuardState.MISSING


def test_weights_that_came_by_other_ways_are_vetted_without_a_trace(
    office: Office, tmp_path: Path, worker: Worker
) -> None:
    current = office.store.current()
    head = office.store.head().index
    save(tmp_path / "theirs.safetensors", slightly_changed(load(office.workspace.release(current.id).weights)))
    assert vet_file(office, tmp_path / "theirs.safetensors").accepted
    assert office.store.head().index == head
    assert office.store.submissions() == []
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert not vet_file(office, tmp_path / "junk.safetensors", base=current.id[:9]).accepted


def test_nothing_of_several_files_is_vetted_where_one_is_missing(
    office: Office, tmp_path: Path, worker: Worker
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=r"holds no \.safetensors file"):
        weights_files([tmp_path / "empty"])
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("of the junk")
    assert weights_files([tmp_path]) == [tmp_path / "junk.safetensors"]
    absent = [tmp_path / "junk.safetensors", tmp_path / "one", tmp_path / "two"]
    with pytest.raises(StorageError, match=r"there is no file .*one, .*two"):
        vet_files(office, absent)  # before the first verdict is asked for


def test_vetting_a_file_needs_the_file_and_a_guard(office: Office, tmp_path: Path, worker: Worker) -> None:
    with pytest.raises(StorageError, match="there is no file"):
        vet_file(office, tmp_path / "none.safetensors")
    office.store.set_guard_state(office.store.current().id, GuardState.MISSING)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(GuardError, match="has no guard yet"):
        vet_file(office, tmp_path / "junk")
