"""Enrolment: what a contributor sends to have its keys bound to its name, and the proof that both are its own.

The certificate request is signed with the TLS key. The proof is an Ed25519 signature, with the key that will sign
submissions, over SHA-256(request) || SHA-256(token): it shows possession of that key, for this TLS key and this
invitation only, so a request overheard or replayed enrols nobody else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from common.errors import SignatureError
from common.identity import certificates
from common.identity.invitation import token_digest
from common.identity.keys import Domain, SigningKey, check_public_key, verify
from common.identity.tls_keys import TlsKey

REQUEST_BYTES: Final = certificates.LIMIT


@dataclass(frozen=True)
class EnrolmentRequest:
    """token: out of the invitation. certificate_request: PKCS #10, DER. signing_key: Ed25519 public key, 32 bytes.
    proof: 64 bytes, as the module describes."""

    token: str = field(repr=False)
    certificate_request: bytes
    signing_key: bytes
    proof: bytes


def certificate_request(tls_key: TlsKey, name: str) -> bytes:
    """A PKCS #10 request (DER) for the key; for enrolment and for renewal. The owner decides the name, this one is for
    people who look at the request."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(tls_key.private_key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def enrolment_request(token: str, name: str, tls_key: TlsKey, signing_key: SigningKey) -> EnrolmentRequest:
    """Raises InvitationError where the token cannot be one."""
    request = certificate_request(tls_key, name)
    proof = signing_key.sign(Domain.ENROLMENT, _statement(token, request))
    return EnrolmentRequest(token, request, signing_key.public_key, proof)


def verify_enrolment_request(request: EnrolmentRequest) -> None:
    """Checks form and proofs, cheapest first; whether the token is known is the ledger's to say.

    Raises InvitationError (token), IdentityError (certificate request, key) or SignatureError (proof).
    """
    statement = _statement(request.token, request.certificate_request)
    check_public_key(request.signing_key)
    certificates.load_request(request.certificate_request)
    try:
        verify(Domain.ENROLMENT, statement, request.proof, request.signing_key)
    except SignatureError:
        raise SignatureError("the enrolment does not prove possession of its signing key") from None


def _statement(token: str, request: bytes) -> bytes:
    return hashlib.sha256(request).digest() + bytes.fromhex(token_digest(token))
