"""Enrolment requests: both proofs, and nothing that can be used elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest

from common.errors import IdentityError, InvitationError, SignatureError
from common.identity.invitation import new_token
from common.identity.keys import Domain, SigningKey
from common.identity.requests import certificate_request, enrolment_request, verify_enrolment_request
from common.identity.tls_keys import TlsKey

TLS, SIGNING, TOKEN = TlsKey.generate(), SigningKey.generate(), new_token()
REQUEST = enrolment_request(TOKEN, "ward-3", TLS, SIGNING)


def test_an_honest_request_verifies() -> None:
    verify_enrolment_request(REQUEST)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"token": new_token()}, SignatureError),
        ({"token": "short"}, InvitationError),
        ({"token": ""}, InvitationError),
        ({"certificate_request": certificate_request(TlsKey.generate(), "ward-3")}, SignatureError),
        ({"certificate_request": certificate_request(TLS, "ward-3")}, SignatureError),
        ({"certificate_request": b""}, IdentityError),
        ({"certificate_request": REQUEST.certificate_request[:-1]}, IdentityError),
        ({"signing_key": SigningKey.generate().public_key}, SignatureError),
        ({"signing_key": bytes(32)}, IdentityError),
        ({"signing_key": b""}, IdentityError),
        ({"proof": bytes(64)}, SignatureError),
        ({"proof": b""}, SignatureError),
        ({"proof": REQUEST.proof[:-1]}, SignatureError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.__name__,
)
def test_a_request_with_one_part_exchanged_is_refused(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        verify_enrolment_request(dataclasses.replace(REQUEST, **change))
    # Two of them are kinds of the third, and a wrong proof must not pass for a request that was looked at.
    assert type(caught.value) is error


def test_a_signature_made_for_something_else_proves_nothing() -> None:
    statement = hashlib.sha256(REQUEST.certificate_request).digest() + hashlib.sha256(TOKEN.encode()).digest()
    for domain in Domain:
        request = dataclasses.replace(REQUEST, proof=SIGNING.sign(domain, statement))
        if domain == Domain.ENROLMENT:
            verify_enrolment_request(request)
        else:
            with pytest.raises(SignatureError):
                verify_enrolment_request(request)


def test_the_token_does_not_show() -> None:
    assert TOKEN not in repr(REQUEST)
