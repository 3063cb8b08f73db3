"""The owner's authority: what it signs, what it refuses, and what real TLS makes of it."""

from __future__ import annotations

import ssl
import stat
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import IdentityError, StorageError
from common.identity import certificates
from common.identity.authority import Authority
from common.identity.certificates import load_certificate, read_peer
from common.identity.requests import certificate_request
from common.identity.tls_keys import TlsKey

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.Extension[x509.ExtensionType]:
    return certificate.extensions.get_extension_for_class(kind)


class TestTheAuthority:
    def test_it_may_issue_end_certificates_only_and_for_ten_years(self) -> None:
        certificate = load_certificate(Authority.create(now=NOW).certificate_pem)
        constraints = extension(certificate, x509.BasicConstraints)
        assert constraints.critical
        assert extension(certificate, x509.KeyUsage).critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
        assert certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
        assert timedelta(days=3650) < certificate.not_valid_after_utc - NOW < timedelta(days=3655)

    def test_it_survives_the_disk_and_its_key_is_private(self, tmp_path: Path, authority: Authority) -> None:
        authority.save(tmp_path / "key", tmp_path / "certificate")
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
        again = Authority.load(tmp_path / "key", tmp_path / "certificate")
        assert again.certificate_pem == authority.certificate_pem
        assert again.spki_sha256 == authority.spki_sha256
        with pytest.raises(StorageError):
            Authority.create().save(tmp_path / "key", tmp_path / "certificate")
        assert (tmp_path / "certificate").read_bytes() == authority.certificate_pem

    def test_a_key_of_another_authority_is_refused(self, tmp_path: Path, authority: Authority) -> None:
        authority.save(tmp_path / "key", tmp_path / "certificate")
        Authority.create().save(tmp_path / "other key", tmp_path / "other certificate")
        with pytest.raises(IdentityError, match="do not belong together"):
            Authority.load(tmp_path / "other key", tmp_path / "certificate")

    def test_a_certificate_that_is_no_authority_is_refused(self, tmp_path: Path, authority: Authority) -> None:
        credentials = authority.issue_server(["localhost"], days=1)
        credentials.key.save(tmp_path / "key")
        (tmp_path / "certificate").write_bytes(credentials.certificate_chain_pem)
        with pytest.raises(IdentityError):
            Authority.load(tmp_path / "key", tmp_path / "certificate")

    def test_an_expired_authority_issues_nothing(self) -> None:
        old = Authority.create(now=NOW - timedelta(days=4000))
        with pytest.raises(IdentityError, match="expired"):
            old.issue_server(["localhost"], days=1, now=NOW)

    def test_an_authority_from_the_future_issues_nothing(self) -> None:
        """Its clock went back: what it issued now would not be valid with it."""
        early = Authority.create(now=NOW + timedelta(days=1))
        with pytest.raises(IdentityError, match="valid from 2026-01-03 02:59 UTC only"):
            early.issue_server(["localhost"], days=1, now=NOW)

    def test_nothing_outlives_the_authority(self) -> None:
        old = Authority.create(now=NOW - timedelta(days=3600))
        assert old.issue_server(["localhost"], days=825, now=NOW).not_after == (
            NOW - timedelta(days=3600) + timedelta(days=3652)
        )


class TestServerCertificates:
    def test_names_and_addresses_become_alternative_names(self, authority: Authority) -> None:
        credentials = authority.issue_server(["model.example.org", "127.0.0.1", "::1", "127.0.0.1"], days=90)
        certificate, root = x509.load_pem_x509_certificates(credentials.certificate_chain_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["model.example.org"]
        assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
        assert list(extension(certificate, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
        assert not extension(certificate, x509.BasicConstraints).value.ca
        assert root.public_bytes(serialization.Encoding.PEM) == authority.certificate_pem

    def test_lifetime_and_clock_skew_are_as_stated(self, authority: Authority) -> None:
        credentials = authority.issue_server(["localhost"], days=90, now=datetime(2030, 1, 1, tzinfo=UTC))
        certificate = load_certificate(
            credentials.certificate_chain_pem.split(b"-----END")[0] + b"-----END CERTIFICATE-----\n"
        )
        assert certificate.not_valid_before_utc == datetime(2029, 12, 31, 23, 55, tzinfo=UTC)
        assert certificate.not_valid_after_utc == credentials.not_after == datetime(2030, 4, 1, tzinfo=UTC)

    @pytest.mark.parametrize(
        "names", [[], [""], ["*.example.org"], ["0.0.0.0"], ["localhost", "a b"], ["LOCALHOST"]], ids=repr
    )
    def test_what_is_no_host_is_refused(self, authority: Authority, names: list[str]) -> None:
        with pytest.raises(IdentityError):
            authority.issue_server(names, days=90)

    def test_a_long_host_name_fits(self, authority: Authority) -> None:
        host = ".".join(["a" * 60] * 3)
        assert authority.issue_server([host], days=1).not_after


class TestContributorCertificates:
    def test_the_certificate_names_the_contributor_and_is_for_clients_alone(self, authority: Authority) -> None:
        key = TlsKey.generate()
        issued = authority.sign_request(certificate_request(key, "ward-3"), "ward-3", days=90)
        certificate = load_certificate(issued.certificate_pem)
        peer = read_peer(issued.certificate_pem)
        assert (peer.name, peer.serial, peer.not_after) == ("ward-3", issued.serial, issued.not_after)
        assert certificate.subject.rfc4514_string() == "CN=ward-3"
        assert list(extension(certificate, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert certificates.spki(certificate.public_key()) == certificates.spki(key.private_key.public_key())

    def test_what_the_request_asks_for_is_ignored(self, authority: Authority) -> None:
        key = TlsKey.generate()
        greedy = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody-else")]))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key.private_key, hashes.SHA256())
            .public_bytes(serialization.Encoding.DER)
        )
        certificate = load_certificate(authority.sign_request(greedy, "ward-3", days=90).certificate_pem)
        assert read_peer(certificate.public_bytes(serialization.Encoding.DER)).name == "ward-3"
        assert not extension(certificate, x509.BasicConstraints).value.ca
        assert b"somebody-else" not in certificate.public_bytes(serialization.Encoding.DER)
        assert b"localhost" not in certificate.public_bytes(serialization.Encoding.DER)

    def test_serials_are_random_and_renewal_keeps_the_key(self, authority: Authority) -> None:
        request = certificate_request(TlsKey.generate(), "ward-3")
        first, second = (authority.sign_request(request, "ward-3", days=90) for _ in range(2))
        assert first.serial != second.serial
        assert len(first.serial) == len(second.serial) == 40

    def test_renewal_is_due_in_the_last_third(self, authority: Authority) -> None:
        start = datetime(2030, 1, 1, tzinfo=UTC)
        peer = read_peer(
            authority.sign_request(certificate_request(TlsKey.generate(), "a"), "a", days=90, now=start).certificate_pem
        )
        assert not peer.renewal_due(start + timedelta(days=59))
        assert peer.renewal_due(start + timedelta(days=61))

    @pytest.mark.parametrize("name", ["", "../a", "A", "a\n", "a" * 64])
    def test_what_is_no_name_is_not_certified(self, authority: Authority, name: str) -> None:
        with pytest.raises(IdentityError):
            authority.sign_request(certificate_request(TlsKey.generate(), "a"), name, days=90)

    def test_the_authoritys_own_key_is_not_certified_again(self, tmp_path: Path, authority: Authority) -> None:
        authority.save(tmp_path / "key", tmp_path / "certificate")
        request = certificate_request(TlsKey.load(tmp_path / "key"), "a")
        with pytest.raises(IdentityError, match="authority's own key"):
            authority.sign_request(request, "a", days=90)


def request_with(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    algorithm: hashes.HashAlgorithm | None,
    *,
    extra: int = 0,
) -> bytes:
    """extra: bytes of an extension that nobody knows."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if extra:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(extra))
        builder = builder.add_extension(unknown, critical=False)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)  # type: ignore[arg-type]


def tampered() -> bytes:
    der = bytearray(certificate_request(TlsKey.generate(), "ward-3"))
    at = der.index(b"ward-3")
    der[at] ^= 1
    return bytes(der)


MALFORMED_REQUESTS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"request",
    "PEM": lambda: b"-----BEGIN CERTIFICATE REQUEST-----\n",
    "a certificate": lambda: Authority.create().certificate_der,
    "cut short": lambda: certificate_request(TlsKey.generate(), "a")[:-1],
    "bytes behind": lambda: certificate_request(TlsKey.generate(), "a") + b"\0",
    "over 16 KiB": lambda: request_with(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256(), extra=16 * 1024),
    "altered after signing": tampered,
    "P-384": lambda: request_with(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
    "secp256k1": lambda: request_with(ec.generate_private_key(ec.SECP256K1()), hashes.SHA256()),
    "RSA": lambda: request_with(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
    "Ed25519": lambda: request_with(ed25519.Ed25519PrivateKey.generate(), None),
    "SHA-224": lambda: request_with(ec.generate_private_key(ec.SECP256R1()), hashes.SHA224()),
}


@pytest.mark.parametrize("made", MALFORMED_REQUESTS.values(), ids=MALFORMED_REQUESTS.keys())
def test_a_malformed_request_is_refused(authority: Authority, made: Callable[[], bytes]) -> None:
    with pytest.raises(IdentityError):
        authority.sign_request(made(), "ward-3", days=90)


class TestPeers:
    def test_only_a_contributors_certificate_names_a_contributor(self, authority: Authority) -> None:
        server = authority.issue_server(["localhost"], days=1).certificate_chain_pem.split(b"-----BEGIN")[1]
        for certificate in (b"-----BEGIN" + server, authority.certificate_pem, authority.certificate_der):
            with pytest.raises(IdentityError):
                read_peer(certificate)

    @pytest.mark.parametrize(
        "names",
        [
            ["urn:portier:contributor:a", "urn:portier:contributor:b"],
            ["urn:portier:contributor:A"],
            ["urn:portier:contributor:"],
            ["urn:portier:contributor:../a"],
            ["urn:portier:owner:a"],
            ["https://example.org/a"],
            ["a"],
        ],
        ids=repr,
    )
    def test_malformed_names_in_a_certificate_name_nobody(self, names: list[str]) -> None:
        with pytest.raises(IdentityError):
            read_peer(end_certificate([x509.UniformResourceIdentifier(name) for name in names]))

    @pytest.mark.parametrize(
        ("others", "usage"),
        [
            ([x509.DNSName("localhost")], [ExtendedKeyUsageOID.CLIENT_AUTH]),
            ([], [ExtendedKeyUsageOID.SERVER_AUTH]),
            ([], [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
        ],
        ids=["another name beside it", "for servers", "for clients and servers"],
    )
    def test_a_contributors_name_counts_alone_and_for_clients_alone(
        self, others: list[x509.GeneralName], usage: list[x509.ObjectIdentifier]
    ) -> None:
        name = x509.UniformResourceIdentifier("urn:portier:contributor:a")
        assert read_peer(end_certificate([name])).name == "a"
        with pytest.raises(IdentityError, match="not a contributor's certificate"):
            read_peer(end_certificate([name, *others], usage))


def end_certificate(
    names: Sequence[x509.GeneralName], usage: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH,)
) -> bytes:
    key = TlsKey.generate().private_key
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    builder = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, NOW, NOW + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def self_signed(
    key: ec.EllipticCurvePrivateKey, *, ca: bool = True, path_length: int | None = 0, may_sign: bool = True
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
    rest = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    usage = x509.KeyUsage(digital_signature=True, key_cert_sign=may_sign, crl_sign=True, decipher_only=False, **rest)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


@pytest.mark.parametrize(
    "change",
    [
        {"key": ec.generate_private_key(ec.SECP384R1())},
        {"ca": False, "path_length": None},
        {"path_length": None},
        {"path_length": 1},
        {"may_sign": False},
    ],
    ids=["P-384", "no CA", "any path length", "path length 1", "may not sign certificates"],
)
def test_an_authority_is_a_p256_key_that_issues_end_certificates(change: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"key": ec.generate_private_key(ec.SECP256R1())}
    certificates.check_authority_certificate(self_signed(**usual))
    with pytest.raises(IdentityError, match="not the certificate of an owner's authority"):
        certificates.check_authority_certificate(self_signed(**(usual | change)))


def test_a_certificate_over_16_kib_is_refused(authority: Authority) -> None:
    assert load_certificate(authority.certificate_pem + b"\n" * 1000)
    with pytest.raises(IdentityError, match="at most 16384 bytes"):
        load_certificate(authority.certificate_pem + b"\n" * certificates.LIMIT)


class Handshake:
    """A TLS handshake in memory, the strictest checks on both sides."""

    def __init__(
        self, folder: Path, root: bytes, server: tuple[TlsKey, bytes], client: tuple[TlsKey, bytes] | None, host: str
    ) -> None:
        server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_side.verify_mode = ssl.CERT_REQUIRED if client else ssl.CERT_NONE
        client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in (server_side, client_side):
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            context.load_verify_locations(cadata=root.decode("ascii"))
        for name, context, identity in (("server", server_side, server), ("client", client_side, client)):
            if identity:
                (folder / name).write_bytes(identity[0].pem + identity[1])
                context.load_cert_chain(folder / name)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server_side.wrap_bio(to_server, to_client, server_side=True)
        self.client = client_side.wrap_bio(to_client, to_server, server_hostname=host)

    def run(self) -> None:
        waiting = [self.client, self.server]
        for _ in range(10):
            for side in list(waiting):
                try:
                    side.do_handshake()
                    waiting.remove(side)
                except ssl.SSLWantReadError:
                    pass
            if not waiting:
                return
        raise AssertionError("the handshake does not end")


@pytest.fixture
def shake(tmp_path: Path, authority: Authority) -> Callable[..., Handshake]:
    def make(
        *,
        root: bytes = authority.certificate_pem,
        server: tuple[TlsKey, bytes] | None = None,
        client: tuple[TlsKey, bytes] | None = None,
        host: str = "localhost",
    ) -> Handshake:
        credentials = authority.issue_server(["localhost", "127.0.0.1"], days=1)
        return Handshake(tmp_path, root, server or (credentials.key, credentials.certificate_chain_pem), client, host)

    return make


def contributor(authority: Authority, **when: datetime) -> tuple[TlsKey, bytes]:
    key = TlsKey.generate()
    return key, authority.sign_request(certificate_request(key, "ward-3"), "ward-3", days=1, **when).certificate_pem


class TestRealTls:
    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_both_sides_know_each_other(self, shake: Callable[..., Handshake], authority: Authority, host: str) -> None:
        handshake = shake(client=contributor(authority), host=host)
        handshake.run()
        certificate = handshake.server.getpeercert(binary_form=True)
        assert certificate is not None
        assert read_peer(certificate).name == "ward-3"

    def test_enrolment_needs_no_client_certificate(self, shake: Callable[..., Handshake]) -> None:
        shake().run()

    def test_another_host_is_not_the_owner(self, shake: Callable[..., Handshake]) -> None:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname"):
            shake(host="example.org").run()

    def test_another_authority_is_not_the_owner(self, shake: Callable[..., Handshake]) -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(root=Authority.create().certificate_pem).run()

    def test_a_contributor_cannot_play_the_owner(self, shake: Callable[..., Handshake], authority: Authority) -> None:
        with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
            shake(server=contributor(authority)).run()

    def test_the_owners_server_certificate_is_no_contributors(
        self, shake: Callable[..., Handshake], authority: Authority
    ) -> None:
        credentials = authority.issue_server(["localhost"], days=1)
        with pytest.raises(ssl.SSLError, match=r"purpose|UNSUPPORTED_CERTIFICATE"):
            shake(client=(credentials.key, credentials.certificate_chain_pem)).run()

    def test_another_authoritys_contributor_is_nobody(self, shake: Callable[..., Handshake]) -> None:
        with pytest.raises(ssl.SSLError):
            shake(client=contributor(Authority.create())).run()

    def test_a_contributor_cannot_certify_anybody(self, shake: Callable[..., Handshake], authority: Authority) -> None:
        key, certificate = contributor(authority)
        forger = x509.CertificateBuilder(
            load_certificate(certificate).subject,
            load_certificate(certificate).subject,
            (forged := TlsKey.generate()).private_key.public_key(),
            7,
            datetime.now(UTC) - timedelta(days=1),
            datetime.now(UTC) + timedelta(days=1),
        ).add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        chain = forger.sign(key.private_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + certificate
        with pytest.raises(ssl.SSLError):
            shake(client=(forged, chain)).run()

    def test_an_expired_certificate_is_refused(self, shake: Callable[..., Handshake]) -> None:
        old = Authority.create(now=datetime.now(UTC) - timedelta(days=10))
        then = datetime.now(UTC) - timedelta(days=5)
        credentials = old.issue_server(["localhost"], days=1, now=then)
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            shake(root=old.certificate_pem, server=(credentials.key, credentials.certificate_chain_pem)).run()


@pytest.mark.parametrize("strict", [True, False], ids=["warnings are errors", "warnings are ignored"])
def test_a_serial_number_below_nought_is_refused(authority: Authority, strict: bool) -> None:
    certificate = load_certificate(authority.certificate_pem)
    der = bytearray(authority.certificate_der)
    at = der.index(certificate.serial_number.to_bytes(20, "big"))
    der[at] |= 0x80
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        with pytest.raises(IdentityError, match="serial number"):
            load_certificate(bytes(der))
