"""Owner and contributor as processes of their own: killed, restarted, out of disk, in each other's way."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import StorageError
from contributor.client import OwnerClient, State, SubmissionStatus
from contributor.transfers import part_of
from owner.addresses import free_ports
from owner.ledger.records import SubmissionState
from tests.network import Owner, OwnerProcess, Signed, in_process, submission
from tests.waiting import until

SIZE = 24 << 20


@pytest.fixture
def ports() -> dict[str, int]:
    """Settings with two free ports, to come back on after a kill."""
    return dict(zip(("service__port", "service__enrolment_port"), free_ports(2), strict=True))


@pytest.fixture
def served(tmp_path: Path, ports: dict[str, int]) -> Iterator[tuple[Owner, list[OwnerProcess]]]:
    """An owner's workspace, and its process at the end of the list."""
    owner = Owner.found(tmp_path / "owner", weights=SIZE)
    processes = [OwnerProcess.start(owner.workspace.root, **ports)]
    owner.port, owner.enrolment_port = processes[0].port, processes[0].enrolment_port
    yield owner, processes
    processes[-1].kill()
    owner.store.close()


def in_background(work: Any) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def slowed(signed: Signed, part: Path, at: int, act: Any) -> Any:
    """A progress callback that acts once, when `at` bytes are on the owner's disk."""
    done = threading.Event()

    def progress(sent: int, total: int) -> None:
        if sent >= at and not done.is_set():
            until(lambda: part.exists() and part.stat().st_size >= at - (4 << 20))
            done.set()
            act()

    return progress


@pytest.mark.parametrize("mebibytes", [1, 9, 23])
def test_an_upload_survives_the_owner_being_killed_in_the_middle(
    served: tuple[Owner, list[OwnerProcess]], tmp_path: Path, ports: dict[str, int], mebibytes: int
) -> None:
    owner, processes = served
    with owner.contributor("ann", tmp_path / "homes", patience=30.0) as ann:
        signed = submission(ann, ann.release().id, tmp_path / "s.safetensors", bytes_=SIZE)
        part = owner.workspace.submission(signed.manifest.id).part

        def kill_and_restart() -> None:
            processes[-1].kill()
            processes.append(OwnerProcess.start(owner.workspace.root, **ports))

        progress = slowed(signed, part, mebibytes << 20, kill_and_restart)
        status = ann.submit(signed.manifest, signed.signature, signed.path, progress=progress)
    assert len(processes) == 2
    assert status.state is State.PENDING
    assert status.commit_receipt is not None
    assert owner.workspace.submission(status.id).weights.read_bytes() == signed.path.read_bytes()
    assert owner.store.verify([status.commit_receipt]).ok


def test_a_watch_survives_a_restart_of_the_owner_and_sees_what_was_decided_meanwhile(
    served: tuple[Owner, list[OwnerProcess]], tmp_path: Path, ports: dict[str, int]
) -> None:
    owner, processes = served
    with owner.contributor("ann", tmp_path / "homes", patience=60.0) as ann:
        signed = submission(ann, ann.release().id, tmp_path / "s.safetensors")
        status = ann.submit(signed.manifest, signed.signature, signed.path)
        seen: list[SubmissionStatus] = []
        thread, _ = in_background(lambda: seen.extend(ann.watch(status.id)))
        processes[-1].kill()
        owner.store.claim()
        owner.store.decide(status.id, SubmissionState.REJECTED, {"public_code": "format"})
        processes.append(OwnerProcess.start(owner.workspace.root, **ports))
        thread.join(120)
    assert (seen[-1].state, seen[-1].code) == (State.DECLINED, "format")


def test_a_download_survives_the_owner_being_killed_in_the_middle(
    served: tuple[Owner, list[OwnerProcess]], tmp_path: Path, ports: dict[str, int]
) -> None:
    owner, processes = served
    with owner.contributor("ann", tmp_path / "homes", patience=30.0) as ann:
        release = ann.release()

        def kill_once(done: int, total: int) -> None:
            if done >= 8 << 20 and len(processes) == 1:
                processes[-1].kill()
                processes.append(OwnerProcess.start(owner.workspace.root, **ports))

        path = ann.download(release, tmp_path / "w.safetensors", progress=kill_once)
    assert len(processes) == 2
    assert path.read_bytes() == owner.workspace.release(release.id).weights.read_bytes()
    assert not part_of(path).exists()


def submit_slowly(home: Path, signed: Signed) -> None:
    """What the contributor does that will be killed: at 8 MiB it stops for long, so that the kill never comes too late."""

    def progress(sent: int, total: int) -> None:
        if sent == 8 << 20:
            time.sleep(60)

    with OwnerClient(home) as client:
        client.submit(signed.manifest, signed.signature, signed.path, progress=progress)


def test_an_upload_survives_the_contributor_being_killed_in_the_middle(
    served: tuple[Owner, list[OwnerProcess]], tmp_path: Path
) -> None:
    owner, _ = served
    with owner.contributor("ann", tmp_path / "homes") as ann:
        signed = submission(ann, ann.release().id, tmp_path / "s.safetensors", bytes_=SIZE)
        part = owner.workspace.submission(signed.manifest.id).part
        contributor = in_process(submit_slowly, ann.membership.home, signed)
        until(lambda: part.exists() and part.stat().st_size > 4 << 20)
        contributor.kill()
        contributor.join()
        assert 0 < part.stat().st_size < SIZE
        sent: list[int] = []
        status = ann.submit(
            signed.manifest, signed.signature, signed.path, progress=lambda done, total: sent.append(done)
        )
    assert status.state is State.PENDING
    assert sent[0] > 1 << 20, "the second attempt began anew instead of resuming"


def test_a_full_disk_refuses_the_upload_loses_nothing_and_the_owner_lives(
    served: tuple[Owner, list[OwnerProcess]], tmp_path: Path
) -> None:
    owner, processes = served
    pid = processes[-1].pid
    with owner.contributor("ann", tmp_path / "homes") as ann:
        signed = submission(ann, ann.release().id, tmp_path / "s.safetensors", bytes_=SIZE)
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        # A limit on the size of files: what the process sees is a write that fails half-way, as on a full disk.
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (10_500_000, hard))
        with pytest.raises(StorageError, match="the owner's disk is full"):
            ann.submit(signed.manifest, signed.signature, signed.path)
        assert ann.status(signed.manifest.id).state is State.UPLOADING
        assert ann.status(signed.manifest.id).committed_bytes >= 10 << 20
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        assert ann.submit(signed.manifest, signed.signature, signed.path).state is State.PENDING
    weights = owner.workspace.submission(signed.manifest.id).weights
    assert weights.read_bytes() == signed.path.read_bytes()


def test_a_port_that_another_process_uses_is_named(served: tuple[Owner, list[OwnerProcess]], tmp_path: Path) -> None:
    _, processes = served
    other = Owner.found(tmp_path / "other")
    other.store.close()
    with pytest.raises(RuntimeError, match=rf"port {processes[-1].port} on 127.0.0.1 is in use"):
        OwnerProcess.start(tmp_path / "other", service__port=processes[-1].port)


def test_sigterm_ends_the_owner_in_order_with_a_watch_open(
    served: tuple[Owner, list[OwnerProcess]], tmp_path: Path
) -> None:
    owner, processes = served
    with owner.contributor("ann", tmp_path / "homes", patience=0.0) as ann:
        signed = submission(ann, ann.release().id, tmp_path / "s.safetensors")
        status = ann.submit(signed.manifest, signed.signature, signed.path)
        watch = ann.watch(status.id)
        next(watch)
        assert processes[-1].stop() == 0
        with pytest.raises(Exception, match="stopping"):
            next(watch)


def test_the_killed_owners_leftovers_are_put_right(
    served: tuple[Owner, list[OwnerProcess]], tmp_path: Path, ports: dict[str, int]
) -> None:
    owner, processes = served
    with owner.contributor("ann", tmp_path / "homes") as ann:
        signed = submission(ann, ann.release().id, tmp_path / "s.safetensors")
        status = ann.submit(signed.manifest, signed.signature, signed.path)
        orphan = owner.workspace.submission("0" * 64)
        orphan.directory.mkdir()
        orphan.part.write_bytes(b"a part that no row knows")
        processes[-1].kill()
        processes.append(OwnerProcess.start(owner.workspace.root, **ports))
        assert not orphan.directory.exists()
        assert ann.status(status.id).state is State.PENDING
