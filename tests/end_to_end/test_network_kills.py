"""The owner killed at every moment of an upload at which it touches disk or ledger, one moment after the other."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from contributor.client import State
from tests.end_to_end.dying import Moments
from tests.network import Owner, OwnerProcess, submission


def arm(root: Path, *, kill_at: int) -> None:
    """Die at the moment of that number, counted from the first touch of a submission's files or of the ledger by a call."""
    moments = Moments(root, kill_at)
    threading.Timer(0.5, moments.arm).start()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_upload_ends_whole_wherever_the_owner_is_killed(tmp_path: Path) -> None:
    owner = Owner.found(tmp_path / "owner", weights=3_000_000)
    settings: dict[str, Any] = {"quotas__tries_per_release": 1000, "quotas__upload_bytes": 1 << 40}
    process = OwnerProcess.start(owner.workspace.root, **settings)
    owner.port, owner.enrolment_port = process.port, process.enrolment_port
    settings |= {"service__port": process.port, "service__enrolment_port": process.enrolment_port}
    ann = owner.contributor("ann", tmp_path / "homes", patience=60.0)
    base = ann.release().id
    process.kill()

    kill_at, died = 0, True
    while died:
        kill_at += 1
        process = OwnerProcess.start(owner.workspace.root, before_serving=partial(arm, kill_at=kill_at), **settings)
        threading.Event().wait(0.6)
        ended = threading.Event()
        restarted: list[OwnerProcess] = []

        def bring_back(
            first: OwnerProcess = process, ended: threading.Event = ended, restarted: list[OwnerProcess] = restarted
        ) -> None:
            while not ended.wait(0.02):
                if not first.process.is_alive():
                    restarted.append(OwnerProcess.start(owner.workspace.root, **settings))
                    return

        watcher = threading.Thread(target=bring_back)
        watcher.start()
        signed = submission(ann, base, tmp_path / "s.safetensors", seed=kill_at, bytes_=3_000_000)
        status = ann.submit(signed.manifest, signed.signature, signed.path)
        ended.set()
        watcher.join()
        died = bool(restarted)
        assert status.state is State.PENDING, kill_at
        assert status.commit_receipt is not None
        assert owner.workspace.submission(status.id).weights.read_bytes() == signed.path.read_bytes()
        assert owner.store.verify([status.commit_receipt]).ok
        for one in (process, *restarted):
            one.kill()
    print(f"{kill_at - 1} kill points")
    assert kill_at > 10
    ann.close()
    owner.store.close()
