"""Starting, stopping, and what runs beside the service."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common import timestamps
from common.errors import ConfigurationError, ConnectionLostError, GuardError, PortInUseError, RevokedError
from common.identity.authority import Authority
from common.identity.tls_keys import TlsKey
from contributor.client import OwnerClient
from owner.ledger.records import SubmissionState
from owner.service import serve
from owner.service.calls import LiveCalls
from owner.service.tls import ServerCertificate
from tests.network import Owner, begin, raw, serving, submission
from tests.waiting import until


def test_a_port_in_use_is_named_with_the_flag_that_changes_it(owner: Owner, tmp_path: Path) -> None:
    other = Owner.found(tmp_path / "other", service__port=owner.port)
    with pytest.raises(PortInUseError) as caught, serving(other):
        pass
    other.store.close()
    assert str(owner.port) in caught.value.message
    assert "--port" in caught.value.hint


def test_an_enrolment_port_in_use_is_named_with_its_own_flag(owner: Owner, tmp_path: Path) -> None:
    other = Owner.found(tmp_path / "other", service__enrolment_port=owner.port)
    with pytest.raises(PortInUseError) as caught, serving(other):
        pass
    other.store.close()
    assert "--enrolment-port" in caught.value.hint


def test_an_address_that_is_not_this_machines_is_a_wrong_setting(tmp_path: Path) -> None:
    other = Owner.found(tmp_path / "other", service__host="192.0.2.1")
    with pytest.raises(ConfigurationError, match=r"cannot listen on 192\.0\.2\.1"), serving(other):
        pass
    other.store.close()


def health_of(channel: grpc.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    status: int = stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=30).status
    return status


def test_both_listeners_answer_health_checks(owner: Owner, ann: OwnerClient) -> None:
    root, own = owner.authority.certificate_pem, ann.membership.identity()
    mutual = grpc.ssl_channel_credentials(root, own.key, own.certificate)
    for port, credentials in ((owner.port, mutual), (owner.enrolment_port, grpc.ssl_channel_credentials(root))):
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            assert health_of(channel) == health_pb2.HealthCheckResponse.SERVING


def test_health_may_be_checked_and_not_watched(owner: Owner, ann: OwnerClient) -> None:
    """A stream of it would outlive quotas and revocations."""
    root, own = owner.authority.certificate_pem, ann.membership.identity()
    mutual = grpc.ssl_channel_credentials(root, own.key, own.certificate)
    for port, credentials in ((owner.port, mutual), (owner.enrolment_port, grpc.ssl_channel_credentials(root))):
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=30)
            with pytest.raises(grpc.RpcError) as caught:
                next(watch)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_stop_ends_open_watches_at_once_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("owner.service.server.STOP_GRACE_SECONDS", 60.0)
    owner = Owner.found(tmp_path / "owner")
    with serving(owner):
        ann = owner.contributor("ann", tmp_path / "homes", patience=0.0)
        signed = submission(ann, ann.release().id, tmp_path / "s.safetensors")
        watch = ann.watch(ann.submit(signed.manifest, signed.signature, signed.path).id)
        next(watch)
        started = time.monotonic()
    assert time.monotonic() - started < 40  # they have not been left until the grace was over
    with pytest.raises(ConnectionLostError, match="stopping"):
        next(watch)
    ann.close()
    owner.store.close()


def test_a_service_that_stops_lets_no_call_in_and_the_first_reason_for_an_end_stands() -> None:
    async def stopping() -> None:
        calls = LiveCalls(streams=1)
        with calls.open("ann") as call:
            calls.revoke(["ann"])
            calls.stop(ConnectionLostError("stopping"))
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(5)
            with pytest.raises(RevokedError):
                call.check()
        with pytest.raises(ConnectionLostError, match="stopping"), calls.open("bob"):
            pass

    asyncio.run(stopping())


def test_what_a_kill_left_is_put_right_before_calls_are_taken_and_uploads_nobody_goes_on_with_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner.service.server.HOUSEKEEPING_SECONDS", 0.05)
    owner = Owner.found(tmp_path / "owner", quotas__upload_hours=1e-9)
    left = owner.workspace.submission("0" * 64)
    left.directory.mkdir(parents=True)
    left.part.write_bytes(b"of no submission that the ledger knows")
    with serving(owner):
        assert not left.directory.exists()
        with owner.contributor("ann", tmp_path / "homes") as ann, raw(ann, owner.port) as stub:
            begun = begin(stub, submission(ann, ann.release().id, tmp_path / "s.safetensors")).submission_id
            until(lambda: owner.store.submission(begun).state is SubmissionState.EXPIRED)
    owner.store.close()


def test_what_runs_beside_the_service_is_told_to_end(tmp_path: Path) -> None:
    owner = Owner.found(tmp_path / "owner")
    ended = []

    async def beside(stopped: asyncio.Event) -> None:
        await stopped.wait()
        ended.append(True)

    with serving(owner, background=[beside]):
        pass
    owner.store.close()
    assert ended == [True]


def test_the_error_of_what_runs_beside_ends_the_service_and_is_raised(tmp_path: Path) -> None:
    owner = Owner.found(tmp_path / "owner")

    async def failing(stopped: asyncio.Event) -> None:
        await asyncio.sleep(0.05)
        raise GuardError("no guard can be fitted")

    with pytest.raises(GuardError, match="no guard"):
        asyncio.run(serve(owner.workspace, owner.settings, owner.store, background=[failing]))
    owner.store.close()


def test_the_servers_certificate_is_kept_over_a_restart_and_issued_anew_for_other_names(tmp_path: Path) -> None:
    owner = Owner.found(tmp_path / "owner")
    owner.store.close()

    def certificate(*names: str, days: float = 90, after: timedelta = timedelta()) -> bytes:
        def clock() -> object:
            return timestamps.now() + after

        ServerCertificate(owner.workspace, owner.authority, names=names, days=days, clock=clock)  # type: ignore[arg-type]
        return owner.workspace.server_certificate.read_bytes()

    first = certificate("localhost")
    assert certificate("localhost") == first
    assert certificate("localhost", after=timedelta(days=50)) == first
    assert certificate("localhost", after=timedelta(days=61)) != first
    second = owner.workspace.server_certificate.read_bytes()
    assert certificate("localhost", "127.0.0.1") != second
    assert owner.workspace.server_key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("spoilt", ["key", "authority"])
def test_a_pair_that_does_not_fit_or_is_of_another_authority_is_not_served(tmp_path: Path, spoilt: str) -> None:
    """As a kill between the two writes leaves it, and as a restored authority finds it."""
    owner = Owner.found(tmp_path / "owner")
    owner.store.close()

    def issued(authority: Authority) -> bytes:
        ServerCertificate(owner.workspace, authority, names=["localhost"], days=90)
        return owner.workspace.server_certificate.read_bytes()

    first = issued(owner.authority)
    authority = owner.authority
    if spoilt == "key":
        TlsKey.generate().save(owner.workspace.server_key, replace=True)
    else:
        authority = Authority.create()
    second = issued(authority)
    assert second != first
    assert second.endswith(authority.certificate_pem)
    assert issued(authority) == second


def test_a_renewed_server_certificate_is_shown_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    owner = Owner.found(tmp_path / "owner")
    made: list[ServerCertificate] = []

    class Kept(ServerCertificate):
        def __init__(self, *arguments: object, **named: object) -> None:
            super().__init__(*arguments, **named)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr("owner.service.server.ServerCertificate", Kept)
    with serving(owner):
        before = shown(owner.enrolment_port)
        assert shown(owner.enrolment_port) == before
        owner.workspace.server_certificate.unlink()
        made[0].refresh()  # or the service's own first round has been here since: either way it is a new one
        assert shown(owner.enrolment_port) != before
        with owner.contributor("ann", tmp_path / "homes") as ann:
            assert ann.release().current
    owner.store.close()


def shown(port: int) -> str:
    import ssl

    return ssl.get_server_certificate(("127.0.0.1", port), timeout=30)


def test_a_wish_to_serve_that_fails_leaves_nothing_listening(tmp_path: Path, serve_owner: Callable[..., Owner]) -> None:
    first = serve_owner()
    other = Owner.found(tmp_path / "other", service__enrolment_port=first.port)
    with pytest.raises(PortInUseError), serving(other):
        pass
    with serving(Owner.open(tmp_path / "other")) as now:
        assert now.port
        now.store.close()
    other.store.close()


def test_one_that_sets_the_stop_on_its_way_down_ends_the_service_with_its_error(tmp_path: Path) -> None:
    owner = Owner.found(tmp_path / "owner")

    async def failing(stopped: asyncio.Event) -> None:
        stopped.set()
        await asyncio.sleep(0.05)
        raise GuardError("no guard can be fitted")

    with pytest.raises(GuardError, match="no guard"):
        asyncio.run(serve(owner.workspace, owner.settings, owner.store, background=[failing]))
    owner.store.close()


def test_a_workspace_that_others_may_read_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    owner = Owner.found(tmp_path / "owner")
    for mode, told in ((0o750, True), (0o700, False)):
        owner.workspace.root.chmod(mode)
        caplog.clear()
        with serving(owner):
            pass
        assert ("chmod 700" in caplog.text) is told
    owner.store.close()
