"""Uploads: at most one at a time per submission, at most a few chunks of each in memory, hashed and on disk as they come.

While one chunk is hashed and written in the executor, the next comes in from the network; a third is only taken from
gRPC once the first is on disk, so a slow disk slows the sender down and nothing piles up.

An upload that can never become what its manifest declares (header that breaks a rule, more bytes than declared, wrong
digest) ends the submission: it is marked expired and its files are removed. The same weights may be handed in again with a new manifest.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from common.errors import LedgerError, WeightsError, WireError
from owner.ledger.records import Submission, SubmissionState
from owner.ledger.store import Store
from owner.service import part_file
from owner.service.authentication import Caller, off_loop
from owner.service.limits import CHUNK_BYTES, CHUNK_TIMEOUT_SECONDS
from owner.service.part_file import PartFile
from owner.service.reconciliation import finish
from owner.workspace import ID, SubmissionFiles, Workspace
from protos import collaboration_pb2 as wire


class Uploads:
    """ledger, disk: executors for calls of the store, and for writing and hashing."""

    def __init__(
        self,
        workspace: Workspace,
        store: Store,
        *,
        ledger: Executor,
        disk: Executor,
        chunk_timeout: float = CHUNK_TIMEOUT_SECONDS,
    ) -> None:
        self._workspace = workspace
        self._store = store
        self._ledger = ledger
        self._disk = disk
        self._chunk_timeout = chunk_timeout
        self._active: set[str] = set()
        self._taking = threading.Lock()

    @contextmanager
    def held(self, identifier: str) -> Iterator[bool]:
        """Meanwhile nobody uploads this submission. False, and nothing is held, where somebody is about it. From any thread."""
        taken = self._take(identifier)
        try:
            yield taken
        finally:
            if taken:
                self._active.discard(identifier)

    def _take(self, identifier: str) -> bool:
        with self._taking:
            if identifier in self._active:
                return False
            self._active.add(identifier)
            return True

    async def receive(self, caller: Caller, chunks: AsyncIterator[wire.UploadChunk]) -> Submission:
        """Take the chunks of one call; returns the submission as it is then, received if all of it is there.

        Raises WireError NOT_UPLOADING, UPLOAD_IN_PROGRESS, UPLOAD_STALLED, WRONG_OFFSET, CHUNK_TOO_LONG, WRONG_SUBMISSION;
        WeightsError; StorageError.
        """
        try:
            async with asyncio.timeout(self._chunk_timeout) as limit:
                return await self._receive(caller, chunks, limit)
        except TimeoutError:
            raise WireError(
                "UPLOAD_STALLED", f"the upload sent nothing for {self._chunk_timeout:g} s", hint="resume it"
            ) from None

    async def _receive(
        self, caller: Caller, chunks: AsyncIterator[wire.UploadChunk], limit: asyncio.Timeout
    ) -> Submission:
        first = await anext(chunks, None)
        if first is None:
            raise WireError("EMPTY_UPLOAD", "the upload has no chunk", hint="name the submission in the first one")
        submission = await own_submission(self._store, self._ledger, caller, first.submission_id)
        with self._exclusively(submission.id) as place:
            # Another call may have finished it between the look-up and the lock.
            submission = await off_loop(self._ledger, self._store.submission, submission.id)
            if submission.state is SubmissionState.EXPIRED:
                raise WireError(
                    "NOT_UPLOADING", f"submission {submission.id[:12]} has expired", hint="hand in a new one"
                )
            if submission.state is not SubmissionState.UPLOADING:
                return submission
            files = self._workspace.submission(submission.id)
            if await off_loop(self._disk, files.weights.exists):
                # All of it had come, and the ledger could not be told: its disk was full.
                limit.reschedule(None)
                submission = await off_loop(self._disk, finish, self._workspace, self._store, submission)
                if submission.state is not SubmissionState.UPLOADING:
                    return submission
            begun, first = [first], None
            part: PartFile | None = None
            try:
                # To hash what is there already may take longer than a contributor may be silent, and is not its doing.
                limit.reschedule(None)
                part = await place.open(files, submission)
                await self._append_all(caller, part, submission, begun, chunks, limit)
                limit.reschedule(None)
                if part.complete:
                    await off_loop(self._disk, part.finish)
                    submission, _ = await off_loop(self._ledger, self._store.committed, submission.id)
            except WeightsError as error:
                await off_loop(self._ledger, self._store.expire_upload, submission.id, error.code, error.message)
                await off_loop(self._disk, part_file.discard, files)
                raise
            finally:
                if part is not None:
                    await asyncio.shield(place.close(part))
        return submission

    async def _append_all(
        self,
        caller: Caller,
        part: PartFile,
        submission: Submission,
        begun: list[wire.UploadChunk],
        chunks: AsyncIterator[wire.UploadChunk],
        limit: asyncio.Timeout,
    ) -> None:
        """begun: the first chunk; it is taken out, so that nobody holds it once it is written."""
        loop = asyncio.get_running_loop()
        chunk: wire.UploadChunk | None = begun.pop()
        writing: asyncio.Future[None] | None = None
        while chunk is not None:
            caller.call.check()
            limit.reschedule(loop.time() + self._chunk_timeout)
            if len(chunk.data) > CHUNK_BYTES:
                raise WireError("CHUNK_TOO_LONG", f"a chunk has {len(chunk.data)} bytes, the limit is {CHUNK_BYTES}")
            if chunk.submission_id not in ("", submission.id):
                raise WireError("WRONG_SUBMISSION", "one upload holds the chunks of one submission")
            if writing is not None:
                await writing
            offset, data = chunk.offset, chunk.data
            # What is being written is held by the executor alone: two names here would be two mebibytes an upload.
            chunk = None
            writing = loop.run_in_executor(self._disk, part.append, offset, data)
            del data
            writing.add_done_callback(_look_at)
            if not part.header_checked:
                # A file nobody could read is refused now, not when its next chunk comes.
                await writing
            chunk = await anext(chunks, None)
        if writing is not None:
            await writing

    @contextmanager
    def _exclusively(self, identifier: str) -> Iterator[_Place]:
        if not self._take(identifier):
            raise WireError(
                "UPLOAD_IN_PROGRESS",
                f"submission {identifier[:12]} is being uploaded by another call",
                hint="end that one, or wait until the owner has noticed that its line is cut",
            )
        place = _Place(self._disk, lambda: self._active.discard(identifier))
        try:
            yield place
        finally:
            place.unless_opened()


class _Place:
    """A submission's place, kept until its file is closed, even where the call that took it is cancelled meanwhile."""

    def __init__(self, disk: Executor, free: Callable[[], None]) -> None:
        self._disk = disk
        self._free = free
        self._opened = False

    async def open(self, files: SubmissionFiles, submission: Submission) -> PartFile:
        """Hashes what is there already, which may take seconds."""
        self._opened = True
        opening = asyncio.get_running_loop().run_in_executor(self._disk, PartFile, files, submission)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_opened)
            raise
        except BaseException:
            # Freed by `unless_opened`, once whoever asked has dealt with the error.
            self._opened = False
            raise

    def close(self, part: PartFile) -> asyncio.Future[None]:
        closing = asyncio.get_running_loop().run_in_executor(self._disk, part.close)
        closing.add_done_callback(lambda _: self._free())
        return closing

    def unless_opened(self) -> None:
        if not self._opened:
            self._free()

    def _close_opened(self, opening: asyncio.Future[PartFile]) -> None:
        if opening.exception() is None:
            self.close(opening.result()).add_done_callback(_look_at)
        else:
            self._free()


def _look_at(future: asyncio.Future[None]) -> None:
    """A call that is cancelled does not wait for its last chunk; asyncio would complain that nobody saw its error."""
    if not future.cancelled():
        future.exception()


async def own_submission(store: Store, ledger: Executor, caller: Caller, identifier: str) -> Submission:
    """The caller's submission of that full id. Somebody else's is as unknown as one that does not exist.

    Raises WireError UNKNOWN_SUBMISSION.
    """
    unknown = WireError("UNKNOWN_SUBMISSION", f"{caller.name} has no submission {identifier[:64]!a}")
    if not ID.fullmatch(identifier):
        raise unknown
    try:
        submission = await off_loop(ledger, store.submission, identifier)
    except LedgerError:
        raise unknown from None
    if submission.contributor != caller.name:
        raise unknown
    caller.call.submission = submission.id
    return submission
