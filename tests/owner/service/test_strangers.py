"""Strangers may knock as often as they like: the owner keeps descriptors, threads and answers for those who have joined."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from owner.service import descriptors, server
from protos import collaboration_pb2 as wire
from protos.collaboration_pb2_grpc import EnrolmentStub
from tests.network import Owner, serving
from tests.waiting import until


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def turned_away(connection: socket.socket) -> bool:
    """Whether its other end has closed it."""
    try:
        return connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted by /proc")
def test_idle_connections_cost_no_more_descriptors_than_the_listener_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "connections", lambda *_: (8, 4))
    owner = Owner.found(tmp_path / "owner")
    with serving(owner):
        ann = owner.contributor("ann", tmp_path / "homes")
        before = open_descriptors()
        idle = [socket.create_connection(("127.0.0.1", owner.enrolment_port)) for _ in range(40)]
        until(lambda: sum(map(turned_away, idle)) >= len(idle) - 4)
        assert open_descriptors() - before - len(idle) <= 8
        assert ann.release().current
        for one in idle:
            one.close()
        owner.contributor("bob", tmp_path / "homes").close()
        ann.close()
    owner.store.close()


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (256, 4000, 4000),
        (256, 1 << 20, descriptors.MOST),
        (4000, 4000, 4000),
        (1 << 20, 1 << 20, 1 << 20),
        (descriptors.resource.RLIM_INFINITY, descriptors.resource.RLIM_INFINITY, descriptors.MOST),
    ],
)
def test_the_limit_on_open_files_is_raised_as_far_as_the_system_lets_and_never_lowered(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int
) -> None:
    asked = []
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(descriptors.resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert descriptors.raise_limit() == raised
    assert asked == ([(raised, hard)] if raised > soft >= 0 else [])


def test_refusals_of_strangers_keep_no_contributor_waiting(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = owner.contributor("ann", tmp_path / "homes")
    begun, go_on, record = threading.Event(), threading.Event(), owner.store.record_refusal

    def slowly(*arguments: Any, **named: Any) -> None:
        begun.set()
        go_on.wait(20)
        record(*arguments, **named)

    monkeypatch.setattr(owner.store, "record_refusal", slowly)
    credentials = grpc.ssl_channel_credentials(owner.authority.certificate_pem)
    with grpc.secure_channel(f"localhost:{owner.enrolment_port}", credentials) as channel:
        stub: Any = EnrolmentStub(channel)  # type: ignore[no-untyped-call]
        refused = [stub.Enrol.future(wire.EnrolRequest(token="x" * 200), timeout=30) for _ in range(12)]
        assert begun.wait(60)
        assert ann.release().current
        assert not any(one.done() for one in refused)
        go_on.set()
        assert {one.code() for one in refused} == {grpc.StatusCode.INVALID_ARGUMENT}
    ann.close()


def test_contributors_share_what_is_left_between_the_addresses_and_are_told_where_it_is_little(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert descriptors.connections(4096) == (3712, 128)
    assert "at a time" not in caplog.text
    assert descriptors.connections(512, addresses=2) == (96, 32)
    assert "only 96 contributors" in caplog.text


def test_a_system_that_refuses_its_own_limit_is_asked_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refusing(_: int, limits: tuple[int, int]) -> None:
        asked.append(limits[0])
        if limits[0] > 4096:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (256, descriptors.resource.RLIM_INFINITY))
    monkeypatch.setattr(descriptors.resource, "setrlimit", refusing)
    assert descriptors.raise_limit() == 4096
    assert asked == [descriptors.MOST, 10240, 4096]


def test_a_connection_on_which_nothing_is_asked_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks the ledger about it: it could be a revoked contributor's."""
    short = {"grpc.max_connection_idle_ms": 300}
    options = server.options
    monkeypatch.setattr(server, "options", lambda n: tuple((k, short.get(k, v)) for k, v in options(n)))
    owner = Owner.found(tmp_path / "owner")
    with serving(owner):
        ann = owner.contributor("ann", tmp_path / "homes")
        own = ann.membership.identity()
        mutual = grpc.ssl_channel_credentials(owner.authority.certificate_pem, own.key, own.certificate)
        seen: list[grpc.ChannelConnectivity] = []
        with grpc.secure_channel(f"localhost:{owner.port}", mutual) as channel:
            channel.subscribe(seen.append, try_to_connect=True)
            grpc.channel_ready_future(channel).result(timeout=30)
            until(lambda: grpc.ChannelConnectivity.IDLE in seen[1:])
        assert ann.release().current
        ann.close()
    owner.store.close()
