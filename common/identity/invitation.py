"""The invitation: one string by which a joiner can tell the owner from a stranger, and the owner the joiner.

    portier1:<base64url of canonical JSON, no padding>

It carries the certificate of the owner's authority, not only its fingerprint, so that a joiner's first connection is
already checked by an ordinary TLS library with that root: no unverified first contact, and no code of ours that
compares fingerprints in a handshake. `ca_spki_sha256` derives the fingerprint from it, for people who compare it by
telephone. Who reads an invitation can redeem it, once, until it expires: it is a secret, and the token is kept out of
repr, logs and messages.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from common import canonical, timestamps
from common.errors import IdentityError, InvitationError, WireError
from common.identity import certificates
from common.identity.keys import check_public_key
from common.identity.names import check_contributor_name, parse_address

PREFIX: Final = "portier1:"
LIMIT: Final = 8 * 1024
ADDRESSES: Final = 8
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_FIELDS = ("addresses", "ca_certificate", "enrolment_addresses", "expires", "name", "owner_key", "token")

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Invitation:
    """name: the contributor's, as the ledger will know it.
    addresses, enrolment_addresses: `host:port` of the service and of the enrolment listener, 1 to 8 each, to be tried
    in order.
    ca_certificate: of the owner's authority, DER.
    owner_key: the owner's Ed25519 public key, 32 bytes.
    token: 43 characters, 32 random bytes in base64url; good for one enrolment. The owner keeps `token_digest` of it
    only.
    expires: aware, whole seconds.

    Raises InvitationError, which names the field.
    """

    name: str
    addresses: tuple[str, ...]
    enrolment_addresses: tuple[str, ...]
    ca_certificate: bytes
    owner_key: bytes
    token: str = field(repr=False)
    expires: datetime

    def __post_init__(self) -> None:
        _checked("name", check_contributor_name, self.name)
        for field_name in ("addresses", "enrolment_addresses"):
            addresses = getattr(self, field_name)
            if not isinstance(addresses, tuple) or not 1 <= len(addresses) <= ADDRESSES:
                raise InvitationError(f"invitation field {field_name!r} must be 1 to {ADDRESSES} addresses")
            for address in addresses:
                _checked(field_name, parse_address, address)
        _checked("ca_certificate", _authority, self.ca_certificate)
        _checked("owner_key", check_public_key, self.owner_key)
        _checked("token", token_digest, self.token)
        if not isinstance(self.expires, datetime) or self.expires.tzinfo is None or self.expires.microsecond:
            raise InvitationError("invitation field 'expires' must be a time with a time zone, in whole seconds")

    @classmethod
    def create(
        cls,
        *,
        name: str,
        addresses: Sequence[str],
        enrolment_addresses: Sequence[str],
        ca_certificate: bytes,
        owner_key: bytes,
        expires: datetime,
    ) -> Invitation:
        """An invitation with a fresh token. ca_certificate: PEM or DER. Raises InvitationError."""
        certificate = _checked("ca_certificate", _authority, ca_certificate)
        return cls(
            name=name,
            addresses=tuple(addresses),
            enrolment_addresses=tuple(enrolment_addresses),
            ca_certificate=certificate.public_bytes(serialization.Encoding.DER),
            owner_key=owner_key,
            token=new_token(),
            expires=expires.replace(microsecond=0),
        )

    @property
    def ca_certificate_pem(self) -> bytes:
        """The root to give to a TLS library."""
        return _authority(self.ca_certificate).public_bytes(serialization.Encoding.PEM)

    @property
    def ca_spki_sha256(self) -> str:
        """64 hex digits: SHA-256 of the authority's public key."""
        return certificates.spki_sha256(_authority(self.ca_certificate))

    def check(self, now: datetime | None = None) -> None:
        """Raises InvitationError where the invitation has expired."""
        if (now or timestamps.now()) >= self.expires:
            raise InvitationError(
                f"the invitation of {self.name} expired at {timestamps.to_text(self.expires)}",
                hint="ask the owner for a new one (portier-owner invite)",
            )

    def to_string(self) -> str:
        fields = {
            "addresses": self.addresses,
            "ca_certificate": _base64(self.ca_certificate),
            "enrolment_addresses": self.enrolment_addresses,
            "expires": timestamps.to_text(self.expires),
            "name": self.name,
            "owner_key": _base64(self.owner_key),
            "token": self.token,
        }
        return PREFIX + _base64(canonical.encode(fields))

    @classmethod
    def from_string(cls, text: str) -> Invitation:
        """The invitation of a string of at most 8 KiB; white space, which mail programs add, is ignored.

        Says nothing about expiry (`check` does). Raises InvitationError, which never shows the string or the token.
        """
        if len(text) > LIMIT:
            raise InvitationError(f"an invitation has at most {LIMIT} characters, this text {len(text)}")
        compact = "".join(text.split())
        if not compact.startswith(PREFIX):
            hint = f"an invitation begins with {PREFIX}; paste all of it"
            if re.match(r"portier[0-9]+:", compact):
                hint = "it was made by another version of portier: use the same version as the owner"
            raise InvitationError("this is not an invitation", hint=hint)
        fields = _read_fields(compact.removeprefix(PREFIX))
        for name in ("addresses", "enrolment_addresses"):
            if isinstance(fields[name], list):
                fields[name] = tuple(fields[name])
        for name in ("ca_certificate", "owner_key"):
            fields[name] = _from_base64(name, fields[name])
        try:
            fields["expires"] = timestamps.from_text(fields["expires"])
        except ValueError as error:
            raise InvitationError(f"invitation field 'expires' is {error}") from None
        return cls(**fields)


def new_token() -> str:
    """32 random bytes as 43 characters."""
    return secrets.token_urlsafe(32)


def token_digest(token: str) -> str:
    """64 hex digits, SHA-256 of the token's ASCII characters: all that the owner keeps of it.

    Raises InvitationError for what cannot be a token.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise InvitationError("a token has 43 characters out of A-Z a-z 0-9 _ -")
    return hashlib.sha256(token.encode("ascii")).hexdigest()


def _read_fields(payload: str) -> dict[str, Any]:
    data = _from_base64("payload", payload)
    try:
        fields = canonical.decode(data, limit=LIMIT, depth=2)
    except WireError as error:
        raise _damaged(error.message) from None
    if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
        raise _damaged(f"it must have the fields {', '.join(_FIELDS)} and no others")
    return fields


def _authority(data: bytes) -> x509.Certificate:
    return certificates.check_authority_certificate(certificates.load_certificate(data))


def _checked(name: str, check: Callable[[Any], _Value], value: object) -> _Value:
    try:
        return check(value)
    except IdentityError as error:
        raise InvitationError(f"invitation field {name!r}: {error.message}", hint=error.hint) from None


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _from_base64(name: str, text: Any) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError, TypeError):
        data = None
    if data is None or _base64(data) != text:
        raise _damaged(f"{name} is not base64url")
    return data


def _damaged(why: str) -> InvitationError:
    return InvitationError(f"the invitation is damaged: {why}", hint="paste all of it, or ask the owner for a new one")
