"""Downloads: of releases that are offered, in order from any offset, and whose caller goes away leave nothing open."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from common.errors import WireError
from contributor.client import OwnerClient
from owner.ledger.records import Contributor
from owner.service import downloads
from owner.service.authentication import Caller
from owner.service.calls import LiveCalls
from protos import collaboration_pb2 as wire
from tests.network import Owner, raw, refused, weights_of
from tests.waiting import until


class Disk(ThreadPoolExecutor):
    """begun: set once its first piece of work has left the queue."""

    def __init__(self) -> None:
        super().__init__(1)
        self.begun = threading.Event()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def run() -> Any:
            self.begun.set()
            return fn(*args, **kwargs)

        return super().submit(run)


def test_a_download_cancelled_while_its_file_is_opened_closes_it(tmp_path: Path) -> None:
    # Opening a FIFO waits for its other end, and writing to it fails once nobody has it open for reading.
    fifo = tmp_path / "weights"
    os.mkfifo(fifo)

    async def cancelled() -> None:
        with LiveCalls(streams=1).open("ann") as call, Disk() as disk:
            caller = Caller(Contributor("ann", bytes(32), ""), call)
            task = asyncio.ensure_future(anext(downloads.chunks(caller, fifo, 0, disk)))
            await asyncio.to_thread(disk.begun.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            writer = await asyncio.to_thread(os.open, fifo, os.O_WRONLY)
            try:
                await asyncio.to_thread(until, lambda: nobody_reads(writer))
            finally:
                os.close(writer)

    asyncio.run(cancelled())


def test_a_file_that_becomes_shorter_while_it_is_sent_is_the_owners_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").write_bytes(bytes(10))
    monkeypatch.setattr(downloads._Weights, "read", lambda *_: b"")

    async def download() -> None:
        with LiveCalls(streams=1).open("ann") as call, Disk() as disk:
            caller = Caller(Contributor("ann", bytes(32), ""), call)
            await anext(downloads.chunks(caller, tmp_path / "weights", 0, disk))

    with pytest.raises(WireError) as caught:
        asyncio.run(download())
    assert caught.value.code == "RELEASE_DAMAGED"


def test_a_download_from_the_end_sends_nothing_and_one_from_behind_it_is_refused(
    owner: Owner, ann: OwnerClient
) -> None:
    release = ann.release()
    size = release.manifest.weights_bytes
    with raw(ann, owner.port) as stub:
        assert list(stub.Download(wire.DownloadRequest(release_id=release.id, offset=size), timeout=30)) == []
        with refused(WireError, code="WRONG_OFFSET", match=f"which have {size} bytes"):
            next(stub.Download(wire.DownloadRequest(release_id=release.id, offset=size + 1), timeout=30))


@pytest.mark.parametrize("rolled_back", [False, True])
def test_a_release_that_nothing_may_be_based_on_is_not_given_out(
    serve_owner: Callable[..., Owner], tmp_path: Path, rolled_back: bool
) -> None:
    owner = serve_owner(merge__bases_allowed=1)
    first, second = owner.store.current(), owner.publish(weights_of(4000, 5))
    gone = first
    if rolled_back:
        owner.store.rollback(first.id, "it misbehaved")
        gone = second
    with owner.contributor("ann", tmp_path / "homes") as ann, raw(ann, owner.port) as stub:
        assert ann.release().id != gone.id
        with refused(WireError, code="UNKNOWN_RELEASE"):
            stub.GetRelease(wire.GetReleaseRequest(release_id=gone.id), timeout=30)
        with refused(WireError, code="UNKNOWN_RELEASE"):
            next(stub.Download(wire.DownloadRequest(release_id=gone.id), timeout=30))


def nobody_reads(writer: int) -> bool:
    try:
        os.write(writer, b"x")
    except BrokenPipeError:
        return True
    return False
