"""The contributor's side of the protocol: releases in, submissions out, verdicts back, over cut lines and restarts.

    client = OwnerClient(home)
    release = client.release()                              # the owner's signature has been verified
    client.download(release, path)                          # the digest has been verified
    status = client.submit(manifest, signature, weights)    # its receipt has been verified
    for status in client.watch(status.id): ...

No release, no handing in and no decision reaches a caller that the owner has not signed. Why it declined is its bare word. Calls may be repeated at will: what was done is found done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc

from common.errors import ConnectionLostError, PortierError, ProtocolError, WeightsError, WireError
from common.identity.keys import Domain, verify
from common.identity.requests import certificate_request
from common.identity.tls_keys import TlsKey
from common.manifest import ReleaseManifest, SubmissionManifest, parse_release, parse_submission
from common.receipts import RECEIVED, Receipt, verify_receipt
from common.weights import LIMITS, check_digest
from contributor.connection import CALL_SECONDS, Connection, transfer_deadline
from contributor.membership import Membership
from contributor.patience import OnTrouble, Patience
from contributor.transfers import Download, Progress, Upload
from protos import collaboration_pb2 as wire
from protos.collaboration_pb2_grpc import CollaborationStub

WATCH_SECONDS: Final = 3600.0
"""A watch is opened anew so often: a half-dead proxy between the two would otherwise hold it for ever."""
CODES: Final = frozenset({"format", "utility", "review", "expired"})
"""Why a submission was declined, as far as contributors are told."""
_SAME_TRIES: Final = 5


class State(StrEnum):
    """What a contributor sees of its submission."""

    UPLOADING = "uploading"
    PENDING = "pending"
    ACCEPTED = "accepted"
    DECLINED = "declined"


@dataclass(frozen=True)
class OfferedRelease:
    """A release whose signature has been verified. data: the manifest's bytes as signed.

    tries_left: how many more submissions on it the owner will take from this contributor.
    """

    manifest: ReleaseManifest
    data: bytes
    signature: bytes
    current: bool
    tries_left: int

    @property
    def id(self) -> str:
        return self.manifest.id


@dataclass(frozen=True)
class SubmissionStatus:
    """code: of a declined one: format, utility, review or expired. committed_bytes: on the owner's disk.

    commit_receipt, verdict_receipt: verified; None until there is one.
    """

    id: str
    state: State
    code: str
    base_release: str
    committed_bytes: int
    total_bytes: int
    created: str
    commit_receipt: Receipt | None = None
    verdict_receipt: Receipt | None = None

    @property
    def decided(self) -> bool:
        return self.state in (State.ACCEPTED, State.DECLINED)


class OwnerClient:
    """home: where `join` put keys and addresses. patience: seconds to go on trying while the owner cannot be reached, counted
    from the last progress; None for ever. on_trouble: told once when that takes long.

    addresses: `host:port` to call instead of those that `home` names.

    The certificate is renewed in the last third of its lifetime by whichever call comes first.
    Raises WorkspaceError where `home` has not joined, IdentityError where its certificate has expired.
    """

    def __init__(
        self,
        home: Path,
        *,
        patience: float | None = 60.0,
        on_trouble: OnTrouble | None = None,
        addresses: Sequence[str] = (),
    ) -> None:
        self.membership = Membership.open(home)
        self._addresses = tuple(addresses) or self.membership.addresses
        self._patience, self._on_trouble = patience, on_trouble
        self._connection = self._connect()

    @property
    def name(self) -> str:
        return self.membership.name

    @property
    def owner_key(self) -> bytes:
        return self.membership.owner_key

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def release(self, identifier: str | None = None) -> OfferedRelease:
        """The release of that full id, or the current one.

        Raises WireError UNKNOWN_RELEASE, SignatureError where the owner did not sign it, ManifestError.
        """
        answer = self._call("GetRelease", wire.GetReleaseRequest(release_id=identifier or ""))
        verify(Domain.RELEASE, answer.manifest, answer.signature, self.owner_key)
        manifest = parse_release(answer.manifest)
        if identifier and manifest.id != identifier:
            raise ProtocolError(f"the owner answered with release {manifest.id[:12]} when asked for {identifier[:12]}")
        return OfferedRelease(manifest, answer.manifest, answer.signature, answer.current, answer.tries_left)

    def download(self, release: OfferedRelease, into: Path, *, progress: Progress | None = None) -> Path:
        """The weights of a release as the file `into`, which exists only with the digest that the manifest states.

        Resumes from `into` with the suffix `.part`. Raises WeightsError DIGEST_MISMATCH where even a download from
        the start has another digest, FILE_TOO_LONG; ProtocolError, StorageError (also where the disk has no room for it),
        ConnectionLostError.
        """
        manifest = release.manifest
        if manifest.weights_bytes > LIMITS.file_bytes:
            raise WeightsError(
                "FILE_TOO_LONG",
                f"release {manifest.id[:12]} has {manifest.weights_bytes} bytes of weights, the limit is {LIMITS.file_bytes}",
            )
        download = Download(into, size=manifest.weights_bytes, digest=manifest.weights_sha256, progress=progress)
        if download.present:
            return into
        if download.offset > manifest.weights_bytes:
            download.discard()
        resumed = download.offset > 0
        self._download(release, download)
        try:
            download.finish()
        except WeightsError:
            # What an earlier attempt left may have been damaged on this machine's disk.
            if not resumed:
                raise
            self._download(release, download)
            download.finish()
        return into

    def submit(
        self,
        manifest: SubmissionManifest | bytes,
        signature: bytes,
        weights: Path,
        *,
        progress: Progress | None = None,
    ) -> SubmissionStatus:
        """Hand in signed weights; returns once the owner has all of them and has given a receipt.

        A submission handed in before is not sent again, one begun before is continued.
        Raises WeightsError DIGEST_MISMATCH where `weights` is not what `manifest` declares; QuotaError, WireError,
        SignatureError (the receipt), IdentityError, ConnectionLostError.
        """
        data = manifest if isinstance(manifest, bytes) else manifest.to_bytes()
        parsed = parse_submission(data)
        check_digest(weights, parsed.weights_sha256)
        patience = self._new_patience()
        committed, same = -1, 0
        while True:
            try:
                status = self._begin(data, signature)
                if status.committed_bytes > committed:
                    patience.progress()
                    committed, same = status.committed_bytes, 0
                if status.state is State.UPLOADING:
                    status = self._upload(status, weights, parsed.weights_bytes, progress)
                if status.state is not State.UPLOADING:
                    return status
                raise ConnectionLostError("the owner took a part of the upload only")
            except WireError as error:
                same += 1
                if error.code != "WRONG_OFFSET" or same > _SAME_TRIES:
                    patience.wait(error)
            except PortierError as error:
                patience.wait(error)

    def status(self, identifier: str) -> SubmissionStatus:
        """How a submission stands now. Raises WireError UNKNOWN_SUBMISSION."""
        return next(self.watch(identifier))

    def watch(self, identifier: str) -> Generator[SubmissionStatus, None, None]:
        """The submission's status now and at each change, until it is accepted or declined.

        A lost connection is made again and seen only as a delay. Raises WireError UNKNOWN_SUBMISSION, SignatureError
        (a receipt), ConnectionLostError once patience has run out.
        """
        patience = self._new_patience()
        request = wire.WatchVerdictRequest(submission_id=identifier)
        last: SubmissionStatus | None = None
        call: Any = None
        try:
            while last is None or not last.decided:
                try:
                    if call is None:
                        self._renew_if_due()
                    with self._connection.stub() as stub:
                        call = stub.WatchVerdict(request, timeout=WATCH_SECONDS) if call is None else call
                        answer = next(call, None)
                    if answer is None:
                        raise ConnectionLostError("the owner ended the watch early")
                    status = self._read(answer, identifier)
                except PortierError as error:
                    call = None
                    patience.wait(error)
                else:
                    patience.progress()
                    if status != last:
                        last = status
                        yield status
        finally:
            if call is not None:
                call.cancel()

    def submissions(self, limit: int = 100) -> list[SubmissionStatus]:
        """This contributor's submissions, the newest first."""
        answer = self._call("ListSubmissions", wire.ListSubmissionsRequest(limit=limit))
        return [self._read(one, one.submission_id) for one in answer.submissions]

    def renew(self) -> None:
        """A new TLS key and certificate, used from the next call on. Raises IdentityError, ConnectionLostError."""
        tls_key = TlsKey.generate()
        request = wire.RenewCertificateRequest(certificate_request=certificate_request(tls_key, self.name))
        answer = self._persist("RenewCertificate", request)
        self.membership.save_identity(tls_key, answer.certificate)
        self._connection.close()
        self._connection = self._connect()

    def _connect(self) -> Connection:
        identity = self.membership.identity()
        identity.check()
        credentials = grpc.ssl_channel_credentials(self.membership.authority(), identity.key, identity.certificate)
        return Connection(self._addresses, credentials, CollaborationStub)

    def _renew_if_due(self) -> None:
        if self.membership.identity().renewal_due():
            self.renew()

    def _call(self, method: str, request: object) -> Any:
        self._renew_if_due()
        return self._persist(method, request)

    def _new_patience(self) -> Patience:
        return Patience(self._patience, on_trouble=self._on_trouble)

    def _persist(self, method: str, request: object) -> Any:
        return self._new_patience().persist(lambda: self._once(method, request))

    def _once(self, method: str, request: object) -> Any:
        with self._connection.stub() as stub:
            return getattr(stub, method)(request, timeout=CALL_SECONDS)

    def _download(self, release: OfferedRelease, download: Download) -> None:
        patience = self._new_patience()
        size = release.manifest.weights_bytes
        while (before := download.offset) < size:
            self._renew_if_due()
            try:
                with self._connection.stub() as stub:
                    request = wire.DownloadRequest(release_id=release.id, offset=before)
                    call = stub.Download(request, timeout=transfer_deadline(size - before))
                    try:
                        download.take(call)
                    finally:
                        call.cancel()
                if download.offset < size:
                    raise ConnectionLostError("the owner ended the download early")
            except PortierError as error:
                if download.offset > before:
                    patience.progress()
                patience.wait(error)

    def _begin(self, data: bytes, signature: bytes) -> SubmissionStatus:
        self._renew_if_due()
        answer = self._once("BeginSubmission", wire.BeginSubmissionRequest(manifest=data, signature=signature))
        return self._read(answer, hashlib.sha256(data).hexdigest())

    def _upload(
        self, status: SubmissionStatus, weights: Path, size: int, progress: Progress | None
    ) -> SubmissionStatus:
        upload = Upload(weights, submission=status.id, offset=status.committed_bytes, size=size, progress=progress)
        try:
            with self._connection.stub() as stub:
                answer = stub.Upload(upload.chunks(), timeout=transfer_deadline(size - status.committed_bytes))
        except PortierError:
            if upload.error is not None:
                raise upload.error from None
            raise
        return self._read(answer, status.id)

    def _read(self, answer: wire.Submission, identifier: str) -> SubmissionStatus:
        """Raises ProtocolError for an answer about something else, of an unknown state, or that the owner has not signed as it should
        have; SignatureError, WireError."""
        name = wire.Submission.State.Name(answer.state) if answer.state in wire.Submission.State.values() else ""
        if answer.submission_id != identifier or name.lower() not in State.__members__.values():
            raise ProtocolError(f"the owner's answer about submission {identifier[:12]} cannot be read")
        status = SubmissionStatus(
            id=identifier,
            state=State(name.lower()),
            code=answer.code if answer.code in CODES else "",
            base_release=answer.base_release[:64],
            committed_bytes=answer.committed_bytes,
            total_bytes=answer.total_bytes,
            created=answer.created[:40],
            commit_receipt=self._receipt(answer.commit_receipt, identifier),
            verdict_receipt=self._receipt(answer.verdict_receipt, identifier),
        )
        _check_receipts(status)
        return status

    def _receipt(self, data: bytes, identifier: str) -> Receipt | None:
        if not data:
            return None
        receipt = Receipt.from_bytes(data)
        verify_receipt(receipt, self.owner_key)
        if receipt.subject != identifier:
            raise ProtocolError(
                f"the owner's receipt is about {receipt.subject[:80]}, not submission {identifier[:12]}"
            )
        return receipt


def _check_receipts(status: SubmissionStatus) -> None:
    """Raises ProtocolError where the owner tells more of a submission than it has signed."""
    commit, verdict = status.commit_receipt, status.verdict_receipt
    expired = status.state is State.DECLINED and status.code == "expired"
    # An upload that was dropped was never handed in, and no verdict says so.
    if commit is None and verdict is None and (status.state is State.UPLOADING or expired):
        return
    if commit is None or commit.statement != RECEIVED:
        raise ProtocolError(f"the owner gave no receipt for submission {status.id[:12]}", hint="ask the owner")
    if not status.decided:
        return
    wanted = "accepted" if status.state is State.ACCEPTED else "rejected"
    if verdict is None or verdict.statement != wanted or verdict.index <= commit.index:
        raise ProtocolError(
            f"the owner says that submission {status.id[:12]} is {status.state}, and has signed no such verdict",
            hint="ask the owner",
        )
