"""How the service is reached: the entries of `service.names`, which are hosts, and ports where other ones are forwarded here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import IdentityError
from common.identity.names import check_host, format_address, parse_address


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
