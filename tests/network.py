"""A small owner for tests and benchmarks of the network: a workspace with one release, served by a thread or a process."""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import multiprocessing
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from common import timestamps
from common.config import load
from common.errors import PortierError
from common.files import ensure_directory
from common.identity.authority import Authority
from common.identity.invitation import Invitation, token_digest
from common.identity.keys import Domain, SigningKey
from common.identity.requests import certificate_request
from common.identity.tls_keys import TlsKey
from common.manifest import ReleaseManifest, SubmissionManifest, new_nonce
from common.model_spec import ModelSpec
from common.training_options import TrainingOptions
from common.weights import Weights, save
from contributor.client import OwnerClient
from contributor.joining import join
from contributor.statuses import exception_of
from owner.ledger.records import GuardState, Release
from owner.ledger.store import Store
from owner.service import serve
from owner.settings import OwnerSettings
from owner.workspace import Workspace
from protos import collaboration_pb2 as wire
from protos.collaboration_pb2_grpc import CollaborationStub

SPEC = ModelSpec("logistic", (1, 8, 8), 10)
OPTIONS = TrainingOptions(epochs=1)


def weights_of(bytes_: int, seed: int = 0) -> Weights:
    """One float32 tensor of about so many bytes."""
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(max(1, bytes_ // 4), generator=generator)}


@dataclass
class Owner:
    """An owner's workspace and open ledger. port, enrolment_port: while it is served."""

    workspace: Workspace
    settings: OwnerSettings
    store: Store
    key: SigningKey
    authority: Authority
    port: int = 0
    enrolment_port: int = 0

    @classmethod
    def found(cls, root: Path, *, weights: int = 200_000, **settings: Any) -> Owner:
        """A workspace with one release of about `weights` bytes; settings by dotted name with __ for the dot.

        All have the same keys: they are copies of one, since making them takes longer than most tests.
        """
        shutil.copytree(_founded(weights), root)
        return cls.open(root, **settings)

    @classmethod
    def _found(cls, root: Path, weights: int) -> None:
        workspace = Workspace(root)
        for directory in (workspace.releases, workspace.submissions, workspace.locks):
            ensure_directory(directory)
        ensure_directory(workspace.keys, 0o700)
        SigningKey.generate().save(workspace.signing_key)
        Authority.create().save(workspace.authority_key, workspace.authority_certificate)
        owner = cls.open(root)
        owner.publish(weights_of(weights))
        owner.store.close()

    @classmethod
    def open(cls, root: Path, **settings: Any) -> Owner:
        workspace = Workspace(root)
        key = SigningKey.load(workspace.signing_key)
        authority = Authority.load(workspace.authority_key, workspace.authority_certificate)
        options = {"service.host": "127.0.0.1", "service.port": 0, "service.enrolment_port": 0, **_overrides(settings)}
        store = Store.open(workspace.ledger_file, key)
        return cls(workspace, load(OwnerSettings, overrides=options), store, key, authority)

    def publish(self, weights: Weights) -> Release:
        """Make these weights the current release, its guard ready."""
        part = self.workspace.root / "new.safetensors"
        digest = save(part, weights)
        releases = self.store.releases()
        manifest = ReleaseManifest(
            number=len(releases),
            parent=releases[-1].id if releases else None,
            spec=SPEC,
            class_names=tuple(map(str, range(10))),
            weights_sha256=digest,
            weights_bytes=part.stat().st_size,
            finetuning=OPTIONS,
            created=timestamps.to_text(timestamps.now()),
        )
        files = self.workspace.release(manifest.id)
        ensure_directory(files.directory)
        part.rename(files.weights)
        release = self.store.publish(manifest.to_bytes(), self.key.sign(Domain.RELEASE, manifest.to_bytes()))
        self.store.set_guard_state(release.id, GuardState.READY)
        return release

    def turn_clock_to(self, moment: datetime) -> None:
        """For the ledger alone."""
        self.store._clock = lambda: moment

    def invite(
        self, name: str, *, hours: float = 1.0, expires: datetime | None = None, renew: bool = False
    ) -> Invitation:
        invitation = Invitation.create(
            name=name,
            addresses=[f"localhost:{self.port}"],
            enrolment_addresses=[f"localhost:{self.enrolment_port}"],
            ca_certificate=self.authority.certificate_pem,
            owner_key=self.key.public_key,
            expires=expires or timestamps.now() + timedelta(hours=hours),
        )
        self.store.invite(name, token_digest(invitation.token), invitation.expires, renew=renew)
        return invitation

    def let_expire(self, client: OwnerClient) -> None:
        """The certificate in the client's home ran out a minute ago."""
        key = TlsKey.generate()
        issued = self.authority.sign_request(certificate_request(key, client.name), client.name, days=-1 / 1440)
        client.membership.save_identity(key, issued.certificate_pem)

    def contributor(self, name: str, home: Path, *, patience: float | None = 30.0) -> OwnerClient:
        """Invite and join over the network."""
        join(self.invite(name), home / name, patience=patience)
        return OwnerClient(home / name, patience=patience)


@contextmanager
def serving(owner: Owner, **arguments: Any) -> Iterator[Owner]:
    """Serve from a thread of this process; stops in order at the end of the block."""
    ready, stopping = threading.Event(), threading.Event()
    failure: list[BaseException] = []

    def on_ready(port: int, enrolment_port: int) -> None:
        owner.port, owner.enrolment_port = port, enrolment_port
        ready.set()

    async def main() -> None:
        stop = asyncio.Event()
        task = asyncio.ensure_future(
            serve(owner.workspace, owner.settings, owner.store, on_ready=on_ready, stop=stop, **arguments)
        )
        while not task.done() and not stopping.is_set():
            await asyncio.wait({task}, timeout=0.02)
        stop.set()
        await task

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            failure.append(error)
            ready.set()

    thread = threading.Thread(target=run, name="owner")
    thread.start()
    ready.wait(120)
    try:
        if not failure:
            yield owner
    finally:
        stopping.set()
        thread.join(120)
    if failure:
        raise failure[0]


# Processes are forked off one that has imported everything and started nothing: importing torch takes seconds each.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.network"])


@dataclass
class OwnerProcess:
    """A served workspace in a process of its own."""

    process: BaseProcess
    port: int
    enrolment_port: int

    @classmethod
    def start(
        cls, root: Path, *, before_serving: Callable[[Path], None] | None = None, **settings: Any
    ) -> OwnerProcess:
        """before_serving: a module's function, called in the process with `root`.

        Raises RuntimeError with the error that kept it from starting.
        """
        receiving, sending = _PROCESSES.Pipe(duplex=False)
        process = _PROCESSES.Process(target=_serve, args=(root, settings, sending, before_serving), name="owner")
        process.start()
        sending.close()
        try:
            said = receiving.recv()
        except EOFError:
            said = f"it died; see {root / 'owner.log'}"
        receiving.close()
        if not isinstance(said, str):
            return cls(process, *said)
        process.join(60)
        raise RuntimeError(f"the owner did not start: {said}")

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        self.process.kill()
        self.process.join(60)

    def stop(self) -> int | None:
        self.process.terminate()
        self.process.join(60)
        return self.process.exitcode

    def resident_kib(self) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def in_process(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that runs a function of a test module."""
    process = _PROCESSES.Process(target=target, args=arguments)
    process.start()
    return process


def _serve(
    root: Path, settings: dict[str, Any], ready: Connection, before_serving: Callable[[Path], None] | None
) -> None:
    with (root / "owner.log").open("a") as log:
        os.dup2(log.fileno(), 2)
    try:
        owner = Owner.open(root, **settings)
        if before_serving is not None:
            before_serving(root)
        asyncio.run(serve(owner.workspace, owner.settings, owner.store, on_ready=lambda *ports: ready.send(ports)))
        owner.store.close()
    except PortierError as error:
        ready.send(error.diagnostics())


@dataclass(frozen=True)
class Signed:
    manifest: SubmissionManifest
    signature: bytes
    path: Path


def sign(client: OwnerClient, base: str, path: Path, **changes: Any) -> Signed:
    """A signed submission of the file at `path`; `changes` replace manifest fields, even with wrong values."""
    data = path.read_bytes()
    fields: dict[str, Any] = {
        "contributor": client.name,
        "base_release": base,
        "spec": SPEC,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "weights_bytes": len(data),
        "samples": 10,
        "training": OPTIONS,
        "nonce": new_nonce(),
        "created": timestamps.to_text(timestamps.now()),
    }
    manifest = SubmissionManifest(**{**fields, **changes})
    key = client.membership.signing_key()
    return Signed(manifest, key.sign(Domain.SUBMISSION, manifest.to_bytes()), path)


def submission(client: OwnerClient, base: str, path: Path, *, seed: int = 1, bytes_: int = 200_000) -> Signed:
    """Random weights at `path` and a signed manifest for them."""
    save(path, weights_of(bytes_, seed))
    return sign(client, base, path)


@contextmanager
def raw(client: OwnerClient, port: int, *, identity: tuple[bytes, bytes] | None = None) -> Iterator[Any]:
    """A bare stub, for what the client would never send. identity: key and certificate (PEM) of somebody else."""
    own = client.membership.identity()
    key, certificate = identity or (own.key, own.certificate)
    credentials = grpc.ssl_channel_credentials(client.membership.authority(), key, certificate)
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        yield CollaborationStub(channel)  # type: ignore[no-untyped-call]


@contextmanager
def refused(kind: type[PortierError], *, code: str = "", match: str = "") -> Iterator[None]:
    """The call inside the block is refused with that error."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error = exception_of(caught.value, "the owner")
    assert type(error) is kind, error
    assert code in ("", getattr(error, "code", "")), error
    assert re.search(match, error.message), error.message


def chunks_of(data: bytes, identifier: str, *, start: int = 0, size: int = 1 << 20) -> list[wire.UploadChunk]:
    return [
        wire.UploadChunk(submission_id=identifier, offset=offset, data=data[offset : offset + size])
        for offset in range(start, len(data), size)
    ]


def begin(stub: Any, signed: Signed) -> wire.Submission:
    request = wire.BeginSubmissionRequest(manifest=signed.manifest.to_bytes(), signature=signed.signature)
    answer = stub.BeginSubmission(request, timeout=20)
    assert isinstance(answer, wire.Submission)
    return answer


@cache
def _founded(weights: int) -> Path:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    Owner._found(Path(folder.name, "owner"), weights)
    return Path(folder.name, "owner")


def _overrides(settings: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in settings.items()}
