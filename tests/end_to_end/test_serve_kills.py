"""The whole `portier-owner serve` killed (SIGKILL) in the middle of its work; a contributor hands in and waits over the network."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from common.weights import load, save
from contributor.client import OwnerClient, State, SubmissionStatus
from contributor.joining import join
from owner.addresses import free_ports
from owner.cli.application import main
from owner.ledger.records import GuardState, SubmissionState
from owner.operations import people
from owner.operations.opening import Office, open_office
from owner.releases import read_manifest
from tests.network import in_process, sign
from tests.owner.people import slightly_changed
from tests.waiting import until

REFERENCES = 20
"""Of a guard that is fitted anew: enough of them that the owner is killed in the middle."""


def serve(arguments: list[str], log: Path) -> None:
    """`portier-owner`, in a process that was forked off one that has imported everything: importing torch takes seconds."""
    with log.open("a") as target:
        os.dup2(target.fileno(), 2)
    main(arguments)


class Served:
    """A workspace, and the process that serves it on the same two ports each time it is started."""

    def __init__(self, root: Path, *settings: str) -> None:
        self.ports = free_ports(2)
        self.root = root
        self._settings = [part for setting in settings for part in ("--set", setting)]
        self._log = root / "serve.log"
        self._process: BaseProcess | None = None

    def start(self) -> None:
        flags = ["--port", str(self.ports[0]), "--enrolment-port", str(self.ports[1]), "--verbose", *self._settings]
        ready = self.root / "locks" / "ports.json"
        ready.unlink(missing_ok=True)
        self._process = in_process(serve, ["serve", "-w", str(self.root), *flags], self._log)
        self.until(ready.exists)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.join(30)
        assert self._process.exitcode == -signal.SIGKILL

    def stop(self) -> int | None:
        assert self._process is not None
        self._process.terminate()
        self._process.join(60)
        return self._process.exitcode

    def said(self) -> str:
        return self._log.read_text()

    def until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._process.is_alive(), self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.005)

    def children(self) -> dict[int, str]:
        """Processes it has started, with their command lines."""
        assert self._process is not None
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and f"PPid:\t{self._process.pid}\n" in (entry / "status").read_text():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode().replace("\0", " ")
            except OSError:
                continue
        return found

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(30)


@contextmanager
def served(root: Path, *settings: str) -> Iterator[Served]:
    owner = Served(root, *settings)
    try:
        yield owner
    finally:
        owner.close()


@contextmanager
def joined(owner: Served, office: Office, home: Path) -> Iterator[OwnerClient]:
    """Ada, enrolled over the network."""
    join(people.invite(office, "ada"), home, patience=60.0)
    with OwnerClient(home, patience=60.0) as client:
        yield client


def hand_in(client: OwnerClient, office: Office, folder: Path) -> SubmissionStatus:
    """An honest submission on the current release, sent over the network."""
    release = office.store.current()
    path = folder / "returned.safetensors"
    save(path, slightly_changed(load(office.workspace.release(release.id).weights)))
    signed = sign(client, release.id, path, spec=read_manifest(release).spec)
    return client.submit(signed.manifest, signed.signature, signed.path)


def verdict_of(client: OwnerClient, identifier: str) -> SubmissionStatus:
    """The last word, which may take a restart of the owner to come."""
    *_, last = client.watch(identifier)
    return last


@pytest.fixture
def owner_and_office(root: Path) -> Iterator[tuple[Served, Office]]:
    with served(root, "guard.fit=on-demand", f"guard.references={REFERENCES}") as owner:
        overrides = {"service.port": owner.ports[0], "service.enrolment_port": owner.ports[1]}
        with open_office(root, overrides) as office:
            yield owner, office


def gone(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


def test_an_owner_killed_while_it_vets_gives_one_verdict_after_its_restart(
    owner_and_office: tuple[Served, Office], tmp_path: Path
) -> None:
    owner, office = owner_and_office
    owner.start()
    with joined(owner, office, tmp_path / "home") as ada:
        handed_in = hand_in(ada, office, tmp_path)
        owner.until(lambda: office.store.submission(handed_in.id).state is SubmissionState.VETTING)
        owner.until(lambda: any("owner.gatekeeper.worker" in command for command in owner.children().values()))
        workers = list(owner.children())
        owner.kill()
        assert office.store.submission(handed_in.id).state is SubmissionState.VETTING
        assert office.store.entries(kind="verdict") == []
        owner.start()
        status = verdict_of(ada, handed_in.id)
    assert status.state is State.ACCEPTED
    assert status.commit_receipt is not None
    assert status.verdict_receipt is not None
    (verdict,) = office.store.entries(kind="verdict")
    assert verdict.body["submission"] == handed_in.id
    assert [one.submission_id for one in office.store.releases()] == [None, handed_in.id]
    assert owner.stop() == 0
    assert office.store.verify([status.commit_receipt, status.verdict_receipt]).problems == []
    assert "1 interrupted vettings will be done again" in owner.said()
    until(lambda: all(map(gone, workers)))


@pytest.mark.slow
def test_an_owner_killed_while_it_fits_a_guard_goes_on_from_the_last_reference(
    owner_and_office: tuple[Served, Office], tmp_path: Path
) -> None:
    owner, office = owner_and_office
    release = office.store.current()
    files = office.workspace.release(release.id)
    # As after a prune: the guard is gone, and fitted when a submission needs it.
    office.store.set_guard_state(release.id, GuardState.MISSING)
    for path in files.guard.iterdir():
        path.unlink()
    files.guard.rmdir()

    def references() -> set[Path]:
        return set(files.directory.glob("guard.work/*/[0-9]*.json"))

    owner.start()
    with joined(owner, office, tmp_path / "home") as ada:
        handed_in = hand_in(ada, office, tmp_path)
        owner.until(lambda: bool(references()))
        (fitting,) = owner.children()
        owner.kill()
        until(lambda: gone(fitting))
        kept = {int(path.stem): json.loads(path.read_bytes())["plan"] for path in references()}
        assert 0 < len(kept) < REFERENCES
        assert office.store.submission(handed_in.id).state is SubmissionState.AWAITING_GUARD
        assert office.store.root().guard_state is GuardState.FITTING
        assert not files.guard.exists()
        owner.start()
        status = verdict_of(ada, handed_in.id)
    assert status.state is State.ACCEPTED
    assert len(office.store.entries(kind="verdict")) == 1
    assert owner.stop() == 0
    assert office.store.root().guard_state is GuardState.READY
    assert office.store.verify().ok
    assert not (files.directory / "guard.work").exists()
    # A plan tells how long its fine-tune took: one made again would hardly take the same thousandth of a second.
    fitted = json.loads((files.guard / "guard.json").read_bytes())["references"]
    assert len(fitted) == REFERENCES
    assert {k: fitted[k]["plan"] for k in kept} == kept
