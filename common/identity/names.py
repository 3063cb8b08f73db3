"""Names that come from outside: contributors, hosts, `host:port` addresses. The one place that says which are valid."""

from __future__ import annotations

import ipaddress
import re

from common.errors import IdentityError

_CONTRIBUTOR = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


def check_contributor_name(name: object) -> str:
    """The name itself, where it may be one: 1 to 63 of a-z 0-9 . _ - and first a letter or digit.

    Names become folder names, certificate subjects and log lines, hence the small alphabet: no path separator, no
    leading dot, no control character, no two names that differ only in case. Raises IdentityError.

    >>> check_contributor_name("ward-3.north")
    'ward-3.north'
    """
    if not isinstance(name, str) or not _CONTRIBUTOR.fullmatch(name):
        raise IdentityError(
            f"{_shown(name)} is not a contributor name",
            hint="use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit",
        )
    return name


def check_host(host: object) -> str:
    """The host itself: a lower-case ASCII DNS name, or an IPv4 or IPv6 address one can connect to.

    Raises IdentityError.

    Wildcards are refused (they would vouch for hosts nobody listed), so are addresses such as 0.0.0.0 that mean "any".

    >>> check_host("model.example.org"), check_host("::1")
    ('model.example.org', '::1')
    """
    address = ip_address(host)
    if address is not None:
        if address.is_unspecified:
            raise IdentityError(f"{host} means any address; nobody can connect to it", hint="name the host itself")
        return str(address)
    # A last label of digits alone is a mistyped IPv4 address, never a host.
    if not isinstance(host, str) or len(host) > 253 or not _HOST.fullmatch(host) or host.rsplit(".", 1)[-1].isdigit():
        raise IdentityError(
            f"{_shown(host)} is not a host name or an IP address",
            hint="use a lower-case DNS name (punycode where it is not ASCII), an IPv4 or an IPv6 address",
        )
    return host


def ip_address(host: object) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The host as an IP address, None where it is a DNS name (or nothing valid). IPv6 zone ids are not addresses
    here."""
    if not isinstance(host, str) or not host.isascii() or len(host) > 45 or "%" in host:
        return None
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def parse_address(address: object) -> tuple[str, int]:
    """Host and port of `host:port` or `[ipv6]:port`, port 1 to 65535. Raises IdentityError.

    >>> parse_address("owner.example.org:7443"), parse_address("[::1]:7443")
    (('owner.example.org', 7443), ('::1', 7443))
    """
    if isinstance(address, str) and len(address) <= 300:
        host, colon, port = address.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        if colon and _PORT.fullmatch(port) and int(port) <= 65535 and bracketed == (":" in host):
            return check_host(host), int(port)
    raise IdentityError(
        f"{_shown(address)} is not an address",
        hint="use host:port, with brackets around an IPv6 address ([::1]:7443)",
    )


def format_address(host: str, port: int) -> str:
    """The inverse of `parse_address`.

    >>> format_address("::1", 7443)
    '[::1]:7443'
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    parse_address(address)
    return address


def _shown(value: object) -> str:
    """A value from outside, short and without control characters."""
    text = ascii(value) if isinstance(value, str) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:76]}...'"
