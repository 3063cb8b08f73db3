"""Publishing: files first, the ledger row last, and nothing left over."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from common.errors import LedgerError, SignatureError, WeightsError, WorkspaceError
from common.identity.keys import Domain, SigningKey, verify
from common.manifest import parse_release
from common.weights import digest_file, load, save
from owner import releases
from owner.ledger.records import Release
from owner.operations.opening import Office


def prepare(office: Office, *, parent: str | None = None) -> releases.SignedRelease:
    current = office.store.current()
    manifest = releases.read_manifest(current)
    weights = office.workspace.work / "next.safetensors"
    save(weights, {name: t + 1 if t.is_floating_point() else t for name, t in load(files(office, current)).items()})
    return releases.prepare(
        office.workspace,
        office.store,
        office.signing_key,
        weights,
        parent=parent or current.id,
        spec=manifest.spec,
        class_names=manifest.class_names,
        finetuning=manifest.finetuning,
    )


def files(office: Office, release: Release) -> Path:
    return office.workspace.release(release.id).weights


def folders(office: Office) -> set[str]:
    return {path.name for path in office.workspace.releases.iterdir()}


def test_a_published_release_is_signed_by_the_owner_and_current(office: Office) -> None:
    old = office.store.current()
    release = releases.publish(office.workspace, office.store, prepare(office))
    assert office.store.current().id == release.id
    laid = office.workspace.release(release.id)
    verify(Domain.RELEASE, laid.manifest.read_bytes(), laid.signature.read_bytes(), office.signing_key.public_key)
    manifest = parse_release(laid.manifest.read_bytes())
    assert (manifest.id, manifest.parent, manifest.number) == (release.id, old.id, old.number + 1)
    assert manifest.weights_sha256 == digest_file(laid.weights)


def test_a_prepared_release_is_no_release_before_the_ledger_has_it(office: Office) -> None:
    prepared = prepare(office)
    assert prepared.id in folders(office)
    assert [one.id for one in office.store.releases()] == [office.store.current().id]


def test_a_release_is_on_disk_before_it_has_its_name(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut cannot be staged; in which order the system is asked can be seen. The weights are copied, as between two disks."""
    asked: list[object] = []
    marked: list[int] = []
    fsync, rename = os.fsync, Path.rename

    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def synced(handle: int) -> None:
        asked.append(os.fstat(handle).st_ino)
        if any(office.workspace.releases.glob(f".unfinished-*/{releases.UNPUBLISHED}")):
            marked.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", lambda *names: (asked.append("named"), rename(*names)))
    laid = office.workspace.release(prepare(office).id)
    named = asked.index("named")
    for path in (laid.weights, laid.manifest, laid.signature, laid.directory):
        assert path.stat().st_ino in asked[:named], path.name
    assert laid.directory.stat().st_ino in marked
    assert office.workspace.releases.stat().st_ino in asked[named:]
    assert digest_file(laid.weights) == parse_release(laid.manifest.read_bytes()).weights_sha256


def test_reconciling_removes_what_never_was_a_release(office: Office) -> None:
    """What a crash left before the folder had its name, and between the folder and the row."""
    current = office.store.current().id
    prepare(office)
    (office.workspace.releases / f".unfinished-{'c' * 64}").mkdir()
    assert releases.reconcile(office.workspace, office.store) == []
    assert folders(office) == {current}


def test_a_crash_after_the_row_leaves_a_release(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "published", lambda *_: None)
    release = releases.publish(office.workspace, office.store, prepare(office))
    monkeypatch.undo()
    mark = office.workspace.release(release.id).directory / releases.UNPUBLISHED
    assert mark.exists()
    assert releases.reconcile(office.workspace, office.store) == []
    assert not mark.exists()
    assert files(office, release).is_file()


def test_reconciling_sets_aside_what_an_older_copy_of_the_ledger_does_not_know(office: Office) -> None:
    first = office.store.current()
    later = releases.publish(office.workspace, office.store, prepare(office))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(office.store), "releases", lambda _: [first])
        assert releases.reconcile(office.workspace, office.store) == [later.id]
        aside = office.workspace.releases / f"{releases.SET_ASIDE}{later.id}"
        assert folders(office) == {first.id, aside.name}
        assert (aside / "manifest.json").read_bytes() == later.manifest
        assert releases.reconcile(office.workspace, office.store) == []


def test_reconciling_restores_a_manifest_from_the_ledger(office: Office) -> None:
    release = office.store.current()
    office.workspace.release(release.id).manifest.unlink()
    assert releases.reconcile(office.workspace, office.store) == []
    assert office.workspace.release(release.id).manifest.read_bytes() == release.manifest


def test_reconciling_reports_lost_weights_and_removes_nothing(office: Office) -> None:
    release = office.store.current()
    files(office, release).unlink()
    with pytest.raises(WorkspaceError, match="has lost its weights"):
        releases.reconcile(office.workspace, office.store)
    assert release.id in folders(office)


def test_a_release_on_another_than_the_current_one_is_refused_and_leaves_no_files(office: Office) -> None:
    first = office.store.current()
    releases.publish(office.workspace, office.store, prepare(office))
    stale = prepare(office, parent=first.id)
    with pytest.raises(LedgerError, match="the current release is"):
        releases.publish(office.workspace, office.store, stale)
    assert stale.id not in folders(office)


def test_preparing_fails_without_a_trace_where_the_disk_fails(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    before = folders(office)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(releases, "write_atomically", full)
    with pytest.raises(Exception, match="No space left"):
        prepare(office)
    assert folders(office) == before


def test_the_file_of_a_release_is_checked_against_the_ledger(office: Office) -> None:
    release = office.store.current()
    key = office.signing_key.public_key
    assert releases.check(office.workspace, release, key).id == release.id
    with pytest.raises(SignatureError):
        releases.check(office.workspace, release, SigningKey.generate().public_key)
    path = files(office, release)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="SHA-256"):
        releases.check(office.workspace, release, key)
    with pytest.raises(WeightsError):
        releases.load_weights(office.workspace, release)


def test_a_number_is_never_given_twice_even_after_a_rollback(office: Office) -> None:
    first = office.store.current()
    second = releases.publish(office.workspace, office.store, prepare(office))
    office.store.rollback(first.id, "it misbehaved")
    third = releases.publish(office.workspace, office.store, prepare(office))
    assert (second.number, third.number, third.parent) == (first.number + 1, first.number + 2, first.id)


def test_weights_are_those_of_the_file_handed_over(office: Office) -> None:
    before = releases.load_weights(office.workspace, office.store.current())
    release = releases.publish(office.workspace, office.store, prepare(office))
    after = releases.load_weights(office.workspace, release)
    assert all(torch.equal(after[name], before[name] + 1) for name in before if before[name].is_floating_point())


def test_a_release_that_was_set_aside_is_back_once_the_ledger_names_it(office: Office) -> None:
    """An older copy of the ledger was served for a while, twice, and then the newer one again."""
    release = office.store.current()
    folder = office.workspace.release(release.id).directory
    weights = office.workspace.release(release.id).weights.read_bytes()
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(office.store), "releases", lambda _: [])
            assert releases.reconcile(office.workspace, office.store) == [release.id]
        assert not folder.exists()
        assert releases.reconcile(office.workspace, office.store) == []
        assert office.workspace.release(release.id).weights.read_bytes() == weights


def test_a_release_that_lies_in_its_place_and_aside_as_well_is_one_release(office: Office) -> None:
    """As when somebody copied it back by hand."""
    release = office.store.current()
    folder = office.workspace.release(release.id).directory
    aside = folder.with_name(f"{releases.SET_ASIDE}{release.id}")
    shutil.copytree(folder, aside)
    assert releases.reconcile(office.workspace, office.store) == []
    assert releases.load_weights(office.workspace, release)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(office.store), "releases", lambda _: [])
        assert releases.reconcile(office.workspace, office.store) == [release.id]
    assert folders(office) == {aside.name}
