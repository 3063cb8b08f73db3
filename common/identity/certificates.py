"""Reading certificates and certificate requests that come from outside.

A contributor's certificate names it in exactly one URI among the subject alternative names,
`urn:portier:contributor:NAME`; nothing else in a certificate says who it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID

from common.errors import IdentityError
from common.identity.names import check_contributor_name

CONTRIBUTOR_URI: Final = "urn:portier:contributor:"
LIMIT: Final = 16 * 1024

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Peer:
    """What a contributor's certificate says.

    name: of the contributor. serial: 40 hex digits. not_before, not_after: aware, UTC.
    """

    name: str
    serial: str
    not_before: datetime
    not_after: datetime

    def renewal_due(self, now: datetime) -> bool:
        """Whether the last third of the lifetime has begun."""
        return now >= self.not_after - (self.not_after - self.not_before) / 3


def read_peer(certificate: bytes) -> Peer:
    """What the certificate (PEM or DER) of a TLS session's other end says.

    Only for a certificate that the TLS session has verified against the owner's authority: no signature is checked
    here. Raises IdentityError where it is not a contributor's.
    """
    parsed = load_certificate(certificate)

    def read() -> tuple[list[str], bool]:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = parsed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        only_one = len(list(names)) == 1
        return names.get_values_for_type(x509.UniformResourceIdentifier) if only_one else [], (
            list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        )

    uris, is_client = _guarded("the certificate's extensions", read)
    if not is_client or len(uris) != 1 or not uris[0].startswith(CONTRIBUTOR_URI):
        raise IdentityError("this is not a contributor's certificate", hint="use the certificate that enrolment gave")
    name = check_contributor_name(uris[0].removeprefix(CONTRIBUTOR_URI))
    return Peer(name, serial_text(parsed), parsed.not_valid_before_utc, parsed.not_valid_after_utc)


def load_certificate(data: bytes) -> x509.Certificate:
    """One X.509 certificate in PEM or DER, of at most 16 KiB, with a serial number as in RFC 5280.

    Raises IdentityError.
    """
    return _guarded(
        "the certificate", lambda: _load(data, x509.load_pem_x509_certificate, x509.load_der_x509_certificate)
    )


def check_authority_certificate(certificate: x509.Certificate) -> x509.Certificate:
    """The certificate itself, where it can be an owner's authority: EC P-256, CA of path length 0, signed by itself.

    Raises IdentityError.
    """

    def read() -> bool:
        key = certificate.public_key()
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        if not is_p256(key) or not constraints.ca or constraints.path_length != 0 or not usage.key_cert_sign:
            return False
        certificate.verify_directly_issued_by(certificate)
        return True

    if not _guarded("the authority's certificate", read):
        raise IdentityError("this is not the certificate of an owner's authority")
    return certificate


def load_request(der: bytes) -> x509.CertificateSigningRequest:
    """A certificate request (PKCS #10, DER, at most 16 KiB) for an EC P-256 key, signed with that key.

    Raises IdentityError.
    """

    def read() -> x509.CertificateSigningRequest | None:
        if not isinstance(der, bytes) or len(der) > LIMIT:
            raise ValueError(f"it must be at most {LIMIT} bytes")
        request = x509.load_der_x509_csr(der)
        good_hash = isinstance(request.signature_hash_algorithm, (hashes.SHA256, hashes.SHA384, hashes.SHA512))
        return request if is_p256(request.public_key()) and good_hash and request.is_signature_valid else None

    request = _guarded("the certificate request", read)
    if request is None:
        raise IdentityError("the certificate request is not for an EC P-256 key, or not signed with that key")
    return request


def spki_sha256(certificate: x509.Certificate) -> str:
    """64 hex digits: SHA-256 of the certificate's public key (SubjectPublicKeyInfo, DER). Raises IdentityError."""
    return hashlib.sha256(_guarded("the certificate's key", lambda: spki(certificate.public_key()))).hexdigest()


def spki(key: object) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError("the key is not an EC P-256 key")
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def is_p256(key: object) -> bool:
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def serial_text(certificate: x509.Certificate) -> str:
    """40 hex digits."""
    return f"{certificate.serial_number:040x}"


def check_validity(certificate: x509.Certificate, now: datetime) -> None:
    """Raises IdentityError where the certificate is not valid yet, or no longer."""
    if now.astimezone(UTC) < certificate.not_valid_before_utc:
        raise IdentityError(
            f"the certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only",
            hint="check this machine's clock",
        )
    if now.astimezone(UTC) > certificate.not_valid_after_utc:
        raise IdentityError(f"the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")


def _load(
    data: bytes,
    from_pem: Callable[[bytes], x509.Certificate],
    from_der: Callable[[bytes], x509.Certificate],
) -> x509.Certificate:
    if not isinstance(data, bytes) or len(data) > LIMIT:
        raise ValueError(f"it must be at most {LIMIT} bytes")
    certificate = from_pem(data) if data.lstrip().startswith(b"-----") else from_der(data)
    if not 0 < certificate.serial_number < 1 << 160:
        raise ValueError("its serial number must be positive, of at most 20 bytes")
    return certificate


def _guarded(what: str, read: Callable[[], _Value]) -> _Value:
    """Runs a reader of somebody else's ASN.1; whatever the library says about it becomes an IdentityError."""
    try:
        return read()
    except (
        ValueError,
        TypeError,
        OverflowError,
        InvalidSignature,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
        x509.UnsupportedGeneralNameType,
        x509.AttributeNotFound,
        # How the library speaks of a serial number below 1, where warnings are errors; later versions raise ValueError.
        CryptographyDeprecationWarning,
    ) as error:
        raise IdentityError(f"{what} is malformed: {str(error)[:120] or type(error).__name__}") from None
