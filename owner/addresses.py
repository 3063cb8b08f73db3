"""How the service is reached: the entries of `service.names`, which are hosts, and ports where other ones are forwarded here; and ports
that are free."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from common.errors import IdentityError
from common.identity.names import check_host, format_address, parse_address

_NEVER_HANDED_OUT: Final = range(20_000, 32_000)
"""Ports below those that Linux and macOS give to whoever connects, or listens on any."""


@dataclass(frozen=True)
class Reached:
    """host: what the certificate holds. port, enrolment_port: of the two listeners as contributors see them; None where they are the
    ones listened on."""

    host: str
    port: int | None = None
    enrolment_port: int | None = None

    @classmethod
    def parse(cls, name: str) -> Reached:
        """From `host`, `host:port` or `host:port/enrolment port`, an IPv6 address with a port in brackets.

        >>> Reached.parse("::1"), Reached.parse("gate.example.org:443/444")
        (Reached(host='::1', port=None, enrolment_port=None), Reached(host='gate.example.org', port=443, enrolment_port=444))

        Raises IdentityError.
        """
        try:
            return cls(check_host(name))
        except IdentityError:
            if ":" not in name:
                raise
        address, slash, enrolment_port = name.partition("/")
        host, port = parse_address(address)
        return cls(host, port, parse_address(f"localhost:{enrolment_port}")[1] if slash else None)

    def addresses(self, port: int, enrolment_port: int) -> tuple[str, str]:
        """`host:port` of the service and of the enrolment listener; port, enrolment_port: those listened on."""
        return (
            format_address(self.host, self.port or port),
            format_address(self.host, self.enrolment_port or enrolment_port),
        )


def hosts(names: Sequence[str]) -> tuple[str, ...]:
    """The hosts of `service.names`, each once. Raises IdentityError."""
    return tuple(dict.fromkeys(Reached.parse(name).host for name in names))


def free_ports(count: int) -> tuple[int, ...]:
    """Ports on 127.0.0.1 to be listened on later, or again and again: not such as the system would choose, for it gives those to
    anybody's connection as soon as nobody listens. Raises OSError where none is free."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_NEVER_HANDED_OUT, len(_NEVER_HANDED_OUT)):
        try:
            with socket.socket() as probe:
                # What an earlier listener's connections have left behind keeps nobody from listening.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return tuple(found)
    raise OSError(f"fewer than {count} ports are free on 127.0.0.1")
