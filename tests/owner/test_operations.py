"""What the owner's commands do, as functions: founding, people, decisions, looking."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from common import timestamps
from common.errors import (
    ConfigurationError,
    DataError,
    DeclinedError,
    GuardError,
    IdentityError,
    LedgerError,
    StorageError,
    UnknownNameError,
    WeightsError,
    WorkspaceError,
)
from common.identity.authority import Authority
from common.identity.invitation import Invitation, token_digest
from common.weights import load, save
from owner import assessment, housekeeping
from owner.addresses import hosts
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.guards import GuardKeeper, needed_guards
from owner.ledger.records import GuardState, ReleaseStatus, Submission, SubmissionState
from owner.operations import deciding, looking, people
from owner.operations.deciding import promote, rollback, vet_file
from owner.operations.founding import init, train_first
from owner.operations.guarding import calibrate, protect
from owner.operations.opening import Office, open_office, parse_overrides
from owner.releases import read_manifest
from owner.shares import load_share
from tests.owner.people import QUICK, Contributor, InProcess, negated, slightly_changed


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


def vet_and_settle(office: Office, submission: Submission, verdict: Verdict | None = None) -> Submission:
    claimed = office.store.claim()
    assert claimed is not None
    assert claimed.id == submission.id
    current = office.store.current()
    found = verdict or assessment.vet(office.workspace, office.store, office.settings, InProcess(), claimed, current)  # type: ignore[arg-type]
    assessment.settle(office.workspace, office.store, office.signing_key, office.settings, claimed, current, found)
    return office.store.submission(submission.id)


def quarantined(office: Office, submission: Submission) -> Submission:
    check = Check("activation-autoencoder", Decision.QUARANTINED, code="ACTIVATION_AUTOENCODER")
    return vet_and_settle(office, submission, Verdict(Decision.QUARANTINED, (check,), (check.code or "",)))


def write_images(root: Path, count: int, height: Callable[[int], int] = lambda _: 8) -> str:
    """An image folder of three classes; height: of the n-th image, 8 pixels wide."""
    for number in range(count):
        folder = root / f"class-{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        colour = (80 * (number % 3), number % 200, 60)
        Image.new("RGB", (8, height(number)), colour).save(folder / f"{number}.png")
    return str(root)


# Founding


def test_the_workspace_and_its_keys_are_for_their_owner_alone(root: Path) -> None:
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "keys").stat().st_mode) == 0o700
    for name in ("signing.key", "authority.key"):
        assert stat.S_IMODE((root / "keys" / name).stat().st_mode) == 0o600


def test_a_new_workspace_has_disjoint_shares_and_a_whole_ledger(office: Office) -> None:
    report = looking.verify_ledger(office)
    assert report.ok
    names = {path.stem for path in office.workspace.shares.iterdir()}
    assert names == {"train", "references", "trigger_fit", "trigger_calibration", "evaluation"}


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(WorkspaceError, match="is not empty"):
        init(tmp_path, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("overrides", "error", "hint"),
    [
        ({"data.name": "digit"}, UnknownNameError, "digits"),
        ({"model.architecture": "resnet81"}, UnknownNameError, "resnet18"),
        ({"guard.referenses": 3}, UnknownNameError, "guard.references"),
        ({"guard.references": 3, "guard.reject_level": 0.01}, ConfigurationError, ""),
        ({"data.train": 0.9, "data.references": 0.9}, ConfigurationError, ""),
    ],
    ids=["data set", "model", "setting", "level", "shares"],
)
def test_what_cannot_be_founded_leaves_nothing_behind(
    tmp_path: Path, overrides: dict[str, object], error: type[Exception], hint: str
) -> None:
    with pytest.raises(error) as caught:
        init(tmp_path / "new", {**QUICK, **overrides})
    assert hint in getattr(caught.value, "hint", "")
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_stays_where_founding_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise DataError("no data")

    monkeypatch.setattr("owner.operations.founding.save_shares", broken)
    with pytest.raises(DataError):
        init(tmp_path, QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_second_first_release_is_refused(office: Office) -> None:
    with pytest.raises(WorkspaceError, match="has its first release already"):
        train_first(office, progress=False)


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    init(tmp_path / "untrained", QUICK)
    return tmp_path / "untrained"


def test_a_model_one_has_already_becomes_the_first_release(untrained: Path, office: Office, tmp_path: Path) -> None:
    weights = load(office.workspace.release(office.store.current().id).weights)
    save(tmp_path / "mine.safetensors", weights)
    with open_office(untrained) as mine:
        trained = train_first(mine, weights=tmp_path / "mine.safetensors", progress=False)
        adopted = load(mine.workspace.release(trained.release.id).weights)
    assert all(torch.equal(adopted[name], weights[name]) for name in weights)
    assert trained.evaluation.accuracy > 0.5


def test_adopted_weights_must_fit_the_architecture(untrained: Path, tmp_path: Path) -> None:
    save(tmp_path / "other.safetensors", {"weight": torch.zeros(3)})
    with open_office(untrained) as office, pytest.raises(WeightsError, match="do not fit"):
        train_first(office, weights=tmp_path / "other.safetensors", progress=False)


def test_weights_that_do_not_fit_name_the_model_and_the_way_to_a_network_of_ones_own(
    untrained: Path, tmp_path: Path
) -> None:
    save(tmp_path / "other.safetensors", {"weight": torch.zeros(3)})
    with open_office(untrained) as office, pytest.raises(WeightsError) as caught:
        train_first(office, weights=tmp_path / "other.safetensors", progress=False)
    assert "mlp, inputs (1, 8, 8), 10 classes" in caught.value.message
    assert "--architecture NAME, or package.module:factory" in caught.value.hint


# The data, which `init` alone reads


def test_data_that_are_too_few_for_a_guard_are_refused_at_once_with_how_many_are_enough(tmp_path: Path) -> None:
    images = write_images(tmp_path / "few", 400)
    with pytest.raises(DataError) as caught:
        init(tmp_path / "new", {**QUICK, "data.name": images})
    assert "data.trigger_fit is 0.3 of 99 test images of few: 30 images" in caught.value.message
    assert "117 test images are enough" in caught.value.hint
    assert not (tmp_path / "new").exists()


def test_the_way_out_that_is_named_for_few_data_is_one(tmp_path: Path) -> None:
    images = write_images(tmp_path / "few", 400)
    thirds = {"data.trigger_fit": "0.33", "data.trigger_calibration": "0.33"}
    with pytest.raises(DataError) as caught:
        init(tmp_path / "new", {**QUICK, "data.name": images})
    for name, value in thirds.items():
        assert f"--set {name}={value}" in caught.value.hint
    shares = init(tmp_path / "new", {**QUICK, "data.name": images, **thirds}).shares
    assert min(shares["trigger_fit"], shares["trigger_calibration"], shares["evaluation"]) >= 32
    assert init(tmp_path / "more", {**QUICK, "data.name": write_images(tmp_path / "enough", 4 * 117)}).shares


def test_a_reference_pool_that_is_too_small_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.references, the reference pool, holds \d+ images"):
        init(tmp_path / "new", {**QUICK, "data.references": 0.01})


def test_images_of_many_sizes_are_brought_to_one_where_the_settings_say_so(tmp_path: Path) -> None:
    images = write_images(tmp_path / "uneven", 480, height=lambda number: 8 + number % 3)
    with pytest.raises(DataError) as caught:
        init(tmp_path / "new", {**QUICK, "data.name": images})
    assert "data.size" in caught.value.hint
    root = init(tmp_path / "new", {**QUICK, "data.name": images, "data.size": "12"}).workspace.root
    with open_office(root) as office:
        assert load_share(office.workspace, "train").input_shape == (3, 12, 12)


def test_a_size_that_data_have_no_use_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="size is 12, but digits is not read from image files"):
        init(tmp_path / "new", {**QUICK, "data.size": 12})
    assert init(tmp_path / "new", {**QUICK, "data.size": ""}).settings.data.size == 0


def test_the_division_cannot_be_changed_after_init(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"data\.trigger_fit \(--set\) cannot be changed any more"),
        open_office(root, {"data.trigger_fit": 0.4}),
    ):
        pass
    monkeypatch.setenv("PORTIER_DATA__SEED", "0")  # as init had it
    with open_office(root) as office:
        assert office.settings.data.seed == 0
    monkeypatch.setenv("PORTIER_DATA__SEED", "4")
    with pytest.raises(ConfigurationError, match=r"data\.seed \(PORTIER_DATA__SEED\)"), open_office(root):
        pass
    with open_office(root, environment={}) as office:
        assert office.settings.data.seed == 0
    monkeypatch.setenv("PORTIER_DATA__SEED", "0")
    monkeypatch.setenv("PORTIER_DATA__DIR", "/where/other/data/lie")
    with open_office(root, {"data.seed": "0"}):
        pass


def test_the_same_seed_trains_the_same_release_weights(untrained: Path, office: Office) -> None:
    with open_office(untrained) as again:
        trained = train_first(again, progress=False)
    assert trained.release.weights_sha256 == office.store.current().weights_sha256


def test_settings_given_for_one_run_are_parsed() -> None:
    assert parse_overrides(None) == {}
    assert parse_overrides(["guard.fit=eager"]) == {"guard.fit": "eager"}
    with pytest.raises(ConfigurationError, match=r"section\.field=value"):
        parse_overrides(["guard.fit"])


# Guards


def test_protecting_again_reads_the_guard_that_stands(office: Office) -> None:
    description = office.workspace.release(office.store.current().id).guard / "guard.json"
    before = description.stat().st_mtime_ns
    found = protect(office, progress=False).to_json()
    assert description.stat().st_mtime_ns == before
    assert (found["references"], found["resolution"]) == (4, pytest.approx(0.2))
    assert 0.2 < found["fpr_bound_95"] < 1
    assert found["accuracy"] > 0.5


def test_a_guard_is_fitted_by_one_process_at_a_time(office: Office) -> None:
    with office.workspace.lock("guard"), pytest.raises(WorkspaceError, match="guard lock"):
        protect(office, progress=False)


@pytest.mark.parametrize("by", ["protect", "calibrate", "serve"])
def test_while_it_is_fitted_nobody_else_uses_a_guard(office: Office, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    release, refused = office.store.current(), []

    def meanwhile(*_: object, **__: object) -> None:
        with pytest.raises(WorkspaceError, match="guard-"), office.workspace.guard_in_use(release.id):
            pass
        refused.append(release.id)
        raise GuardError("enough")

    async def never(*_: object, **__: object) -> bool:
        meanwhile()
        return False

    monkeypatch.setattr("owner.operations.guarding.fit", meanwhile)
    monkeypatch.setattr("owner.operations.guarding.fit_escalation", meanwhile)
    monkeypatch.setattr(GuardKeeper, "_run_process", never)
    keeper = GuardKeeper(office.workspace, office.settings, office.store)
    with suppress(GuardError):
        if by == "protect":
            protect(office, progress=False)
        elif by == "calibrate":
            calibrate(office, release, progress=False)
        else:
            asyncio.run(keeper._fit(release, asyncio.Event()))
    assert refused == [release.id]
    with office.workspace.guard_in_use(release.id):
        pass


# People


def test_an_invitation_names_service_authority_and_key(office: Office) -> None:
    invitation = Invitation.from_string(people.invite(office, "bob").to_string())
    workspace = office.workspace
    authority = Authority.load(workspace.authority_key, workspace.authority_certificate)
    assert invitation.addresses == ("127.0.0.1:7443",)
    assert invitation.enrolment_addresses == ("127.0.0.1:7444",)
    assert invitation.ca_spki_sha256 == authority.spki_sha256
    assert invitation.owner_key == office.signing_key.public_key
    assert office.store.check_token(invitation.token) == "bob"


def test_the_ledger_keeps_no_token(office: Office) -> None:
    invitation = people.invite(office, "bob")
    entry = office.store.entries(kind="invitation")[-1]
    assert entry.body["token_sha256"] == token_digest(invitation.token)
    assert invitation.token not in str(entry.body)


def test_a_name_that_is_taken_is_not_invited(office: Office, ada: Contributor) -> None:
    with pytest.raises(IdentityError, match="ada is enrolled already"):
        people.invite(office, "ada")


def test_somebody_enrolled_is_invited_again_for_the_key_they_have(office: Office, ada: Contributor) -> None:
    invitation = people.invite(office, "ada", renew=True)
    assert office.store.check_token(invitation.token, signing_key=office.store.contributor("ada").signing_key) == "ada"
    with pytest.raises(IdentityError, match="nobody called 'bob' is enrolled"):
        people.invite(office, "bob", renew=True)


def test_an_invitation_names_the_ports_that_are_forwarded(root: Path) -> None:
    names = ["gate.example.org:17443/17444", "gate.example.org:443", "[::1]:443", "::1", "owner.local"]
    with open_office(root, {"service.names": names}) as office:
        invitation = people.invite(office, "bob")
    assert invitation.addresses == (
        "gate.example.org:17443",
        "gate.example.org:443",
        "[::1]:443",
        "[::1]:7443",
        "owner.local:7443",
    )
    assert invitation.enrolment_addresses == (
        "gate.example.org:17444",
        "gate.example.org:7444",
        "[::1]:7444",
        "owner.local:7444",
    )
    assert hosts(names) == ("gate.example.org", "::1", "owner.local")


@pytest.mark.parametrize(
    "name", ["gate.example.org:0", "gate.example.org:443/", "gate.example.org/443", "a b", "x:1:2"]
)
def test_a_name_the_service_cannot_be_reached_by_is_refused(root: Path, name: str) -> None:
    with open_office(root, {"service.names": [name]}) as office, pytest.raises(IdentityError, match="is not a"):
        people.invite(office, "bob")


def test_with_any_free_port_the_running_service_says_which(root: Path) -> None:
    with open_office(root, {"service.port": 0}) as office:
        with pytest.raises(ConfigurationError, match="any free one"):
            people.invite(office, "bob")
        office.workspace.ports_file.write_text(json.dumps({"port": 5001, "enrolment_port": 5002}))
        assert people.invite(office, "bob").addresses == ("127.0.0.1:5001",)


def test_revoking_tells_how_many_submissions_are_undecided(office: Office, ada: Contributor) -> None:
    ada.hand_in(slightly_changed)
    assert people.revoke(office, "ada", "left") == 1
    (standing,) = people.standings(office)
    assert standing.contributor.reason == "left"
    assert standing.to_json()["submissions"] == {"received": 1}
    with pytest.raises(IdentityError):
        people.revoke(office, "nobody")


# Decisions


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


def test_vetting_a_file_needs_the_file_and_a_guard(office: Office, tmp_path: Path, worker: Worker) -> None:
    with pytest.raises(StorageError, match="there is no file"):
        vet_file(office, tmp_path / "none.safetensors")
    office.store.set_guard_state(office.store.current().id, GuardState.MISSING)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(GuardError, match="has no guard yet"):
        vet_file(office, tmp_path / "junk")


# Pruning


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


# Looking


def test_the_status_page_counts_what_there_is(office: Office, ada: Contributor) -> None:
    quarantined(office, ada.hand_in(slightly_changed))
    ada.hand_in(slightly_changed)
    found = looking.status(office)
    assert found["submissions"] == {"quarantined": 1, "received": 1}
    assert found["contributors"] == {"enrolled": 1, "revoked": 0}
    assert found["release"]["guard"] == "ready"
    assert found["ledger"]["entries"] == office.store.head().index + 1
    json.dumps(found)


def test_an_id_finds_its_submission_or_release_by_the_first_digits(office: Office, ada: Contributor) -> None:
    submission = ada.hand_in(slightly_changed)
    assert looking.find(office, submission.id[:12]).id == submission.id
    assert looking.find(office, office.store.current().id[:12]).id == office.store.current().id
    with pytest.raises(LedgerError, match="no submission or release"):
        looking.find(office, "f" * 64)


def test_entries_are_chosen_by_kind_contributor_and_number(office: Office, ada: Contributor) -> None:
    Contributor(office, "bob")
    submission = quarantined(office, ada.hand_in(slightly_changed))
    about_ada = looking.entries(office, contributor="ada")
    assert [one.kind for one in about_ada] == ["invitation", "enrolment", "certificate", "submission", "verdict"]
    assert [one.index for one in about_ada] == sorted(one.index for one in about_ada)
    assert [one.kind for one in looking.entries(office, kind="verdict")] == ["verdict"]
    assert looking.entries(office, last=1)[0].body["submission"] == submission.id
    assert looking.entries(office, after=office.store.head().index) == []


def test_receipt_files_are_held_against_the_ledger(office: Office, ada: Contributor, tmp_path: Path) -> None:
    submission = ada.hand_in(slightly_changed)
    assert submission.commit_receipt is not None
    receipt = tmp_path / "receipt.json"
    receipt.write_bytes(submission.commit_receipt.to_bytes())
    assert looking.verify_ledger(office, [receipt]).ok
    receipt.write_bytes(b"{}")
    report = looking.verify_ledger(office, [receipt])
    assert not report.ok
    assert str(receipt) in report.problems[0]


def test_a_release_is_described_with_what_contributors_are_asked_to_do(office: Office) -> None:
    release = office.store.current()
    found = looking.release_facts(release)
    assert found["finetuning"] == read_manifest(release).finetuning.to_json()
    assert (found["architecture"], found["status"]) == ("mlp", "current")
