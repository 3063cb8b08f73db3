"""What the service bounds before it pays for it, and how its gRPC servers and their connections are set up.

Messages keep gRPC's own cap of 4 MiB; a chunk of weights is 1 MiB. The flow-control window is fixed instead of probed:
a probed one grows with the line's bandwidth and delay, and with it what one upload may hold of the owner's memory. At
1 MiB an upload reaches 10 MB/s over a line with a round trip of 100 ms.
"""

from __future__ import annotations

from typing import Any, Final

MIB: Final = 1 << 20
CHUNK_BYTES: Final = MIB
"""Data of one UploadChunk or DownloadChunk."""
MANIFEST_BYTES: Final = 64 * 1024
SIGNATURE_BYTES: Final = 64
TOKEN_BYTES: Final = 128
LISTED_SUBMISSIONS: Final = 100
HEADROOM_BYTES: Final = 2 * MIB
"""By how much a submission may exceed twice its base release's weights: vetting refuses other shapes, not the network."""
DISK_RESERVE_BYTES: Final = 64 * MIB
"""Left free when a submission is announced, so that ledger and verdicts can still be written."""
CHUNK_TIMEOUT_SECONDS: Final = 120.0
"""An upload that sends nothing for so long is ended, so that its place is free for the contributor's next attempt."""
STOP_GRACE_SECONDS: Final = 5.0
ENROLMENTS_AT_ONCE: Final = 32
"""Strangers' calls being worked on at a time; one more is refused at once instead of queued before the contributors' calls."""
PROBLEM_CHARACTERS: Final = 2000
"""Of message and hint in a Problem: trailing metadata are limited to 8 KiB by peers and proxies."""

_CONNECTION: Final[tuple[tuple[str, Any], ...]] = (
    # Without it a second owner on the same port would silently share the port's connections with the first.
    ("grpc.so_reuseport", 0),
    # A contributor trains for hours between two calls: pings keep its connection through NATs and are welcome.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_concurrent_streams", 64),
    # Whoever opens a connection and says nothing; two minutes by default.
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.experimental.tcp_max_read_chunk_size", 256 * 1024),
    ("grpc.http2.lookahead_bytes", MIB),
)


def options(connections: int) -> tuple[tuple[str, Any], ...]:
    """Of the service listener. connections: that it may hold at a time, at each address.

    One without a call is closed, for nobody asks the ledger whether its contributor is revoked; a client connects anew by itself.
    """
    return (
        *_CONNECTION,
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_connection_idle_ms", 300_000),
    )


def enrolment_options(connections: int) -> tuple[tuple[str, Any], ...]:
    """Of the enrolment listener, which keeps nobody's connection open for nothing."""
    return (
        *_CONNECTION,
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_receive_message_length", 64 * 1024),
        ("grpc.max_connection_idle_ms", 30_000),
    )
