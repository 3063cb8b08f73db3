"""Invitations: what they hold, what is refused, and that the token stays out of sight."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import traceback
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from common import canonical
from common.errors import InvitationError
from common.identity.authority import Authority
from common.identity.invitation import LIMIT, PREFIX, Invitation, new_token, token_digest
from common.identity.keys import SigningKey

AUTHORITY = Authority.create()
OWNER = SigningKey.generate()
EXPIRES = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
INVITATION = Invitation.create(
    name="ward-3",
    addresses=["localhost:7443", "[::1]:7443"],
    enrolment_addresses=["localhost:7444"],
    ca_certificate=AUTHORITY.certificate_pem,
    owner_key=OWNER.public_key,
    expires=EXPIRES,
)


def test_the_string_gives_back_the_invitation() -> None:
    text = INVITATION.to_string()
    assert text.startswith("portier1:")
    assert len(text) < 2048
    assert Invitation.from_string(text) == INVITATION
    assert Invitation.from_string(text).to_string() == text


def test_white_space_that_mail_programs_add_does_no_harm() -> None:
    text = INVITATION.to_string()
    wrapped = "  " + "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76)) + "\n\n"
    assert Invitation.from_string(wrapped) == INVITATION


def test_the_fingerprint_is_that_of_the_authoritys_public_key() -> None:
    certificate = x509.load_pem_x509_certificate(INVITATION.ca_certificate_pem)
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert INVITATION.ca_spki_sha256 == hashlib.sha256(spki).hexdigest() == AUTHORITY.spki_sha256
    assert INVITATION.ca_certificate_pem == AUTHORITY.certificate_pem


def test_an_invitation_is_good_until_it_expires() -> None:
    INVITATION.check(EXPIRES - timedelta(seconds=1))
    for now in (EXPIRES, EXPIRES + timedelta(days=1), EXPIRES.astimezone(timezone(timedelta(hours=2)))):
        with pytest.raises(InvitationError, match="expired at 2030-01-02T03:04:05Z") as caught:
            INVITATION.check(now)
        assert "portier-owner invite" in caught.value.hint


def test_every_invitation_has_a_token_of_its_own() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(base64.urlsafe_b64decode(token + "=")) == 32 for token in tokens)
    assert token_digest(INVITATION.token) == hashlib.sha256(INVITATION.token.encode()).hexdigest()


def test_the_token_does_not_show(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("x").info("%s %r %s", INVITATION, INVITATION, [INVITATION])
    assert INVITATION.token not in caplog.text + repr(INVITATION) + str(INVITATION) + f"{INVITATION}"
    assert "ward-3" in repr(INVITATION)


def changed(**changes: Any) -> str:
    fields = json.loads(base64.urlsafe_b64decode(INVITATION.to_string().removeprefix(PREFIX) + "==")) | changes
    return wrapped(canonical.encode({name: value for name, value in fields.items() if value is not ...}))


def wrapped(payload: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(payload).rstrip(b"=").decode()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


TEXT = INVITATION.to_string()
SERVER = x509.load_pem_x509_certificates(AUTHORITY.issue_server(["localhost"], days=1).certificate_chain_pem)[0]
MALFORMED = {
    "empty": ("", "not an invitation"),
    "something else": ("https://example.org", "not an invitation"),
    "another version": (TEXT.replace("portier1", "portier2"), "not an invitation"),
    "prefix in upper case": (TEXT.replace("portier1", "PORTIER1"), "not an invitation"),
    "prefix alone": (PREFIX, "damaged"),
    "over 8 KiB": (PREFIX + "A" * LIMIT, "at most 8192 characters"),
    "cut short": (TEXT[:-8], "damaged"),
    "a character too many": (TEXT + "A", "damaged"),
    "padded": (TEXT + "=", "damaged"),
    "standard base64": (PREFIX + "+/+/", "damaged"),
    "not ASCII": (PREFIX + "é" * 8, "damaged"),
    "a NUL": (TEXT + "\0", "damaged"),
    "spare bits set": (PREFIX + "QR", "damaged"),
    "payload not JSON": (wrapped(b"invitation"), "damaged"),
    "payload not canonical": (wrapped(b'{ "name":"a"}'), "damaged"),
    "payload a list": (wrapped(b"[]"), "damaged"),
    "payload nested": (wrapped(b"[[[1]]]"), "damaged"),
    "a field missing": (changed(token=...), "fields"),
    "a field too many": (changed(extra=1), "fields"),
    "name a path": (changed(name="../a"), "'name'"),
    "name null": (changed(name=None), "'name'"),
    "no address": (changed(addresses=[]), "'addresses'"),
    "nine addresses": (changed(addresses=["a:1"] * 9), "'addresses'"),
    "address a string": (changed(addresses="localhost:7443"), "'addresses'"),
    "address without port": (changed(addresses=["localhost"]), "'addresses'"),
    "address a number": (changed(addresses=[7443]), "'addresses'"),
    "address any": (changed(addresses=["0.0.0.0:7443"]), "'addresses'"),
    "no enrolment address": (changed(enrolment_addresses=[]), "'enrolment_addresses'"),
    "enrolment address a URL": (changed(enrolment_addresses=["http://a:1"]), "'enrolment_addresses'"),
    "certificate not base64": (changed(ca_certificate="*"), "ca_certificate"),
    "certificate a number": (changed(ca_certificate=1), "ca_certificate"),
    "certificate empty": (changed(ca_certificate=""), "'ca_certificate'"),
    "certificate of a server": (
        changed(ca_certificate=b64(SERVER.public_bytes(serialization.Encoding.DER))),
        "'ca_certificate'",
    ),
    "certificate cut short": (changed(ca_certificate=b64(AUTHORITY.certificate_der[:-1])), "'ca_certificate'"),
    "certificate altered": (
        changed(ca_certificate=b64(AUTHORITY.certificate_der[:-1] + bytes([AUTHORITY.certificate_der[-1] ^ 1]))),
        "'ca_certificate'",
    ),
    "owner key short": (changed(owner_key=b64(bytes(31))), "'owner_key'"),
    "owner key of small order": (changed(owner_key=b64(bytes(32))), "'owner_key'"),
    "owner key null": (changed(owner_key=None), "owner_key"),
    "token short": (changed(token="A" * 42), "'token'"),
    "token with other characters": (changed(token="*" * 43), "'token'"),
    "token with a line end": (changed(token="A" * 43 + "\n"), "'token'"),
    "token null": (changed(token=None), "'token'"),
    "expires without zone": (changed(expires="2030-01-02T03:04:05"), "'expires'"),
    "expires a number": (changed(expires=1893553445), "'expires'"),
    "expires with a fraction": (changed(expires="2030-01-02T03:04:05.5Z"), "'expires'"),
    "expires never": (changed(expires="9999-99-99T00:00:00Z"), "'expires'"),
}


@pytest.mark.parametrize(("text", "named"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_invitation_is_refused_and_its_token_not_shown(text: str, named: str) -> None:
    with pytest.raises(InvitationError) as caught:
        Invitation.from_string(text)
    assert named in caught.value.message
    assert (
        INVITATION.token
        not in "".join(traceback.format_exception(caught.value, chain=True)) + caught.value.diagnostics()
    )
    assert len(caught.value.message) < 400


def test_the_hint_for_another_version_says_so() -> None:
    with pytest.raises(InvitationError) as caught:
        Invitation.from_string(TEXT.replace("portier1", "portier2"))
    assert "version" in caught.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [("addresses", ["localhost:7443"]), ("expires", datetime(2030, 1, 1)), ("token", "short"), ("owner_key", "hex")],
)
def test_a_wrong_invitation_cannot_even_be_made(field: str, value: object) -> None:
    with pytest.raises(InvitationError, match=field):
        dataclasses.replace(INVITATION, **{field: value})  # type: ignore[arg-type]
