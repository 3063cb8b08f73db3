"""The calls of an enrolled contributor: releases out, submissions in, verdicts back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from common.errors import IdentityError, LedgerError, WireError
from common.identity.authority import Authority
from common.identity.keys import Domain, verify
from common.manifest import parse_release, parse_submission
from owner.ledger.records import Release, ReleaseStatus, Submission, SubmissionState
from owner.ledger.store import Store
from owner.service import downloads, enrolment, quotas, views
from owner.service.authentication import Caller, Context, Door, off_loop
from owner.service.changes import Changes
from owner.service.limits import LISTED_SUBMISSIONS
from owner.service.part_file import committed_bytes
from owner.service.uploads import Uploads, own_submission
from owner.settings import OwnerSettings
from owner.workspace import ID, Workspace
from protos import collaboration_pb2 as wire
from protos.collaboration_pb2_grpc import CollaborationServicer


@dataclass(frozen=True)
class Service:
    """What the calls work with. ledger, disk: executors for calls of the store, and for reading, writing and hashing."""

    workspace: Workspace
    settings: OwnerSettings
    store: Store
    authority: Authority
    door: Door
    changes: Changes
    uploads: Uploads
    ledger: Executor
    disk: Executor


async def _whole(writing: Coroutine[Any, Any, None]) -> None:
    """Await a message being written; a call that is ended meanwhile ends after it, for a status sent beside it may be lost."""
    task = asyncio.ensure_future(writing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


class Collaboration(CollaborationServicer):
    def __init__(self, service: Service) -> None:
        self._service = service
        self._announcing = threading.Lock()

    async def GetRelease(self, request: wire.GetReleaseRequest, context: Context) -> wire.Release:  # noqa: N802
        async def work(caller: Caller) -> wire.Release:
            ledger, store = self._service.ledger, self._service.store
            release = await off_loop(ledger, self._offered, request.release_id)
            tries = await off_loop(ledger, store.tries, caller.name, release.id)
            return wire.Release(
                release_id=release.id,
                manifest=release.manifest,
                signature=release.signature,
                current=release.status is ReleaseStatus.CURRENT,
                tries_left=max(0, self._service.settings.quotas.tries_per_release - tries),
            )

        return await self._service.door.admit(context, work)

    async def Download(self, request: wire.DownloadRequest, context: Context) -> None:  # noqa: N802
        async def work(caller: Caller) -> None:
            release = await off_loop(self._service.ledger, self._offered, request.release_id)
            path = self._service.workspace.release(release.id).weights
            async with aclosing(downloads.chunks(caller, path, request.offset, self._service.disk)) as chunks:
                async for chunk in chunks:
                    await context.write(chunk)

        await self._service.door.admit(context, work)

    async def BeginSubmission(self, request: wire.BeginSubmissionRequest, context: Context) -> wire.Submission:  # noqa: N802
        async def work(caller: Caller) -> wire.Submission:
            submission = await off_loop(self._service.ledger, self._begin, caller, request.manifest, request.signature)
            return await self._view(submission)

        return await self._service.door.admit(context, work)

    async def Upload(self, request_iterator: AsyncIterator[wire.UploadChunk], context: Context) -> wire.Submission:  # noqa: N802
        async def work(caller: Caller) -> wire.Submission:
            return await self._view(await self._service.uploads.receive(caller, request_iterator))

        return await self._service.door.admit(context, work)

    async def WatchVerdict(self, request: wire.WatchVerdictRequest, context: Context) -> None:  # noqa: N802
        async def work(caller: Caller) -> None:
            last: wire.Submission | None = None
            while last is None or not views.decided(last):
                seen = self._service.changes.version
                service = self._service
                view = await self._view(
                    await own_submission(service.store, service.ledger, caller, request.submission_id)
                )
                caller.call.check()  # a cancellation that met a finished wait is lost, and this call would go on
                if view != last:
                    await _whole(context.write(view))
                    last = view
                else:
                    await self._service.changes.wait(seen)

        await self._service.door.admit(context, work)

    async def ListSubmissions(  # noqa: N802
        self, request: wire.ListSubmissionsRequest, context: Context
    ) -> wire.ListSubmissionsResponse:
        async def work(caller: Caller) -> wire.ListSubmissionsResponse:
            count = min(request.limit or LISTED_SUBMISSIONS, LISTED_SUBMISSIONS)
            store = self._service.store
            newest = await off_loop(self._service.ledger, store.submissions, contributor=caller.name, limit=count)
            return wire.ListSubmissionsResponse(submissions=[await self._view(submission) for submission in newest])

        return await self._service.door.admit(context, work)

    async def RenewCertificate(self, request: wire.RenewCertificateRequest, context: Context) -> wire.Certificate:  # noqa: N802
        async def work(caller: Caller) -> wire.Certificate:
            service = self._service
            return await off_loop(
                service.ledger,
                enrolment.renew,
                service.store,
                service.authority,
                request.certificate_request,
                caller.name,
                days=service.settings.service.certificate_days,
            )

        return await self._service.door.admit(context, work)

    def _offered(self, identifier: str) -> Release:
        """The release of that full id, the current one for "". Raises WireError UNKNOWN_RELEASE. Blocking."""
        store, settings = self._service.store, self._service.settings
        if identifier == "":
            return store.current()
        if ID.fullmatch(identifier) and identifier in store.allowed_bases(settings.merge.bases_allowed):
            return store.release(identifier)
        raise WireError(
            "UNKNOWN_RELEASE",
            f"release {identifier[:64]!a} is not offered: it does not exist, or lies too far back",
            hint="fetch the current release",
        )

    def _begin(self, caller: Caller, data: bytes, signature: bytes) -> Submission:
        """Every check that needs no weights, cheapest first; then the row. Blocking."""
        store, settings = self._service.store, self._service.settings
        quotas.check_lengths(data, signature)
        verify(Domain.SUBMISSION, data, signature, caller.contributor.signing_key)
        manifest = parse_submission(data)
        if manifest.contributor != caller.name:
            raise IdentityError(
                f"manifest field 'contributor' says {manifest.contributor}, but the TLS session is {caller.name}'s"
            )
        caller.call.submission = manifest.id
        known = self._known(manifest.id, caller)
        if known is not None:
            return known
        try:
            base = store.release(manifest.base_release)
        except LedgerError:
            raise WireError("UNKNOWN_RELEASE", f"base_release {manifest.base_release[:12]} does not exist") from None
        bases = store.allowed_bases(settings.merge.bases_allowed)
        quotas.allowed(base, bases, policy=settings.merge.policy)
        release = parse_release(base.manifest)
        if manifest.spec != release.spec:
            raise WireError("SPEC_MISMATCH", "manifest field 'spec' is not that of the base release")
        quotas.check_size(manifest, release.weights_bytes)
        # One at a time: of two that each fit alone, the second must see the first.
        with self._announcing:
            uploading = store.submissions(state=SubmissionState.UPLOADING)
            quotas.check_room(self._service.workspace, manifest.weights_bytes, uploading)
            return store.begin(data, signature, caller.name, quota=quotas.of(settings.quotas))

    def _known(self, identifier: str, caller: Caller) -> Submission | None:
        """A submission announced before is not held to rules that have moved on since, such as the allowed bases."""
        try:
            submission = self._service.store.submission(identifier)
        except LedgerError:
            return None
        return submission if submission.contributor == caller.name else None

    async def _view(self, submission: Submission) -> wire.Submission:
        committed = 0
        if submission.state is SubmissionState.UPLOADING:
            files = self._service.workspace.submission(submission.id)
            committed = await off_loop(self._service.disk, committed_bytes, files)
        return views.describe(submission, committed)
