"""The owner's certificate authority: an X.509 root of its own that vouches for one service and its contributors.

Every certificate is EC P-256 with ECDSA-SHA256. The root may issue end certificates only (path length 0). Nobody who
trusts it for Portier should trust it for anything else, so it is never installed in a system's store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common import timestamps
from common.errors import IdentityError
from common.files import read_bounded, write_atomically
from common.identity import certificates
from common.identity.names import check_contributor_name, check_host, ip_address
from common.identity.tls_keys import TlsKey

CLOCK_SKEW: Final = timedelta(minutes=5)
"""Certificates begin so much in the past: the other side's clock may be behind."""
AUTHORITY_DAYS: Final = 3652


@dataclass(frozen=True)
class Issued:
    """A new certificate. serial: 40 hex digits. not_after: aware, UTC."""

    certificate_pem: bytes
    serial: str
    not_after: datetime


@dataclass(frozen=True)
class ServerCredentials:
    """What a TLS listener needs. certificate_chain_pem: its own certificate, then the authority's."""

    key: TlsKey
    certificate_chain_pem: bytes
    not_after: datetime


class Authority:
    """Issues certificates. `now` arguments are for tests and imports; they default to the clock.

    >>> authority = Authority.create()
    >>> credentials = authority.issue_server(["localhost", "127.0.0.1"], days=90)
    """

    def __init__(self, key: TlsKey, certificate: x509.Certificate) -> None:
        certificates.check_authority_certificate(certificate)
        if certificates.spki(certificate.public_key()) != certificates.spki(key.private_key.public_key()):
            raise IdentityError(
                "the authority's key and certificate do not belong together",
                hint="restore both files from the same backup",
            )
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, *, now: datetime | None = None) -> Authority:
        """A new authority for ten years."""
        key = TlsKey.generate()
        start = now or timestamps.now()
        public = key.private_key.public_key()
        # Part of the key's hash in the name: two authorities never share a name, by which TLS libraries look
        # issuers up.
        identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        name = _name(f"Portier authority {identifier.digest.hex()[:12]}")
        builder = (
            _builder(name, name, public, start, start + timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(identifier, critical=False)
        )
        return cls(key, builder.sign(key.private_key, hashes.SHA256()))

    @classmethod
    def load(cls, key_path: Path, certificate_path: Path) -> Authority:
        """Raises IdentityError where a file is not what it should be or others may read the key; StorageError."""
        certificate = certificates.load_certificate(read_bounded(certificate_path, certificates.LIMIT))
        return cls(TlsKey.load(key_path), certificate)

    def save(self, key_path: Path, certificate_path: Path) -> None:
        """The key with mode 0600, the certificate for everybody. Raises StorageError, also where the key file
        exists."""
        self._key.save(key_path)
        write_atomically(certificate_path, self.certificate_pem)

    @property
    def certificate_pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.DER)

    @property
    def spki_sha256(self) -> str:
        """64 hex digits: the fingerprint that people compare."""
        return certificates.spki_sha256(self._certificate)

    def issue_server(self, names: Sequence[str], *, days: float, now: datetime | None = None) -> ServerCredentials:
        """A key and certificate for a listener reached by `names` (host names and IP addresses).

        Raises IdentityError for a name that is none, or an authority that has expired.
        """
        hosts = [check_host(name) for name in dict.fromkeys(names)]
        if not hosts:
            raise IdentityError("a server certificate needs a host name or address", hint="set service.names")
        alternatives: list[x509.GeneralName] = []
        for host in hosts:
            address = ip_address(host)
            alternatives.append(x509.DNSName(host) if address is None else x509.IPAddress(address))
        key = TlsKey.generate()
        certificate = self._issue(
            key.private_key.public_key(),
            # 64 characters is the most a common name may have; the alternative names are what counts.
            common_name=hosts[0] if len(hosts[0]) <= 64 else "Portier owner",
            alternatives=alternatives,
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            lifetime=timedelta(days=days),
            now=now,
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return ServerCredentials(key, pem + self.certificate_pem, certificate.not_valid_after_utc)

    def sign_request(self, request: bytes, name: str, *, days: float, now: datetime | None = None) -> Issued:
        """A certificate for contributor `name` and the key in a certificate request (PKCS #10, DER).

        Subject and extensions that the request asks for are ignored: the name is the one the caller has established,
        by a token at enrolment and by the TLS session at renewal. Raises IdentityError.
        """
        check_contributor_name(name)
        public = certificates.load_request(request).public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise IdentityError("the certificate request is not for an EC P-256 key")
        if certificates.spki(public) == certificates.spki(self._key.private_key.public_key()):
            raise IdentityError("the certificate request is for the authority's own key")
        certificate = self._issue(
            public,
            common_name=name,
            alternatives=[x509.UniformResourceIdentifier(certificates.CONTRIBUTOR_URI + name)],
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
            lifetime=timedelta(days=days),
            now=now,
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return Issued(pem, certificates.serial_text(certificate), certificate.not_valid_after_utc)

    def _issue(
        self,
        public: ec.EllipticCurvePublicKey,
        *,
        common_name: str,
        alternatives: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        lifetime: timedelta,
        now: datetime | None,
    ) -> x509.Certificate:
        start = now or timestamps.now()
        certificates.check_validity(self._certificate, start)
        end = min(start + lifetime, self._certificate.not_valid_after_utc)
        identifier = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            _builder(_name(common_name), self._certificate.subject, public, start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        )
        return builder.sign(self._key.private_key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - CLOCK_SKEW)
        .not_valid_after(end)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
