"""Connections to the owner: TLS channels to each of its addresses, one in use, the next after a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import grpc

from contributor.statuses import exception_of

CALL_SECONDS: Final = 30.0
"""Deadline of a call that moves no weights."""
SLOWEST_BYTES_PER_SECOND: Final = 64 * 1024
_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    # Training lasts hours between two calls; pings keep the connection, and tell a dead line within 40 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own back-off reaches two minutes; ours is the one that counts.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 << 20),
)


class Connection:
    """make_stub: from a channel to a service's stub."""

    def __init__(
        self, addresses: Sequence[str], credentials: grpc.ChannelCredentials, make_stub: Callable[[grpc.Channel], Any]
    ) -> None:
        self._addresses = tuple(addresses)
        self._credentials = credentials
        self._make_stub = make_stub
        self._in_use = 0
        self._channel: grpc.Channel | None = None
        self._stub: Any = None

    @property
    def address(self) -> str:
        return self._addresses[self._in_use]

    @contextmanager
    def stub(self) -> Iterator[Any]:
        """The stub, for calls inside the block; a failed call is raised as one of `common.errors`.

        After a lost connection the next address is used, on a new channel.
        """
        if self._channel is None:
            self._channel = grpc.secure_channel(self.address, self._credentials, options=_OPTIONS)
            self._stub = self._make_stub(self._channel)
        try:
            yield self._stub
        except grpc.RpcError as error:
            failed = exception_of(error, self.address)
            if isinstance(error, grpc.Call) and error.code() in _LINE_ERRORS:
                self.close()
                self._in_use = (self._in_use + 1) % len(self._addresses)
            raise failed from None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = self._stub = None


def transfer_deadline(size: int) -> float:
    """Seconds one call may take that moves `size` bytes; what is not moved by then is resumed by the next call."""
    return 600.0 + size / SLOWEST_BYTES_PER_SECOND


_LINE_ERRORS: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN}
)
