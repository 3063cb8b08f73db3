"""Signing keys on disk, signatures and their domains."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import IdentityError, SignatureError, StorageError
from common.files import write_secret
from common.identity.keys import Domain, SigningKey, check_public_key, fingerprint, private_key_pem, verify
from common.identity.tls_keys import TlsKey

KINDS = pytest.mark.parametrize("kind", [SigningKey, TlsKey])
Kind = type[SigningKey] | type[TlsKey]


@KINDS
def test_a_key_survives_the_disk_and_nobody_else_may_read_it(tmp_path: Path, kind: Kind) -> None:
    key = kind.generate()
    key.save(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    again = kind.load(tmp_path / "key")
    again.save(tmp_path / "again")
    assert (tmp_path / "key").read_bytes() == (tmp_path / "again").read_bytes()
    assert (tmp_path / "key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")


@KINDS
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666, 0o777], ids=oct)
def test_a_key_that_others_may_use_is_refused_with_the_chmod_that_mends_it(
    tmp_path: Path, kind: Kind, mode: int
) -> None:
    kind.generate().save(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(IdentityError) as caught:
        kind.load(tmp_path / "key")
    assert f"{mode:04o}" in caught.value.message
    assert f"chmod 600 {tmp_path / 'key'}" in caught.value.hint


@KINDS
def test_a_key_is_not_overwritten(tmp_path: Path, kind: Kind) -> None:
    kind.generate().save(tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(StorageError):
        kind.generate().save(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


@KINDS
def test_a_missing_key_file_is_named(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(StorageError, match="missing"):
        kind.load(tmp_path / "missing")


def test_one_kind_of_key_is_not_taken_for_the_other(tmp_path: Path) -> None:
    SigningKey.generate().save(tmp_path / "signing")
    TlsKey.generate().save(tmp_path / "tls")
    with pytest.raises(IdentityError, match="another kind of key"):
        SigningKey.load(tmp_path / "tls")
    with pytest.raises(IdentityError, match="another kind of key"):
        TlsKey.load(tmp_path / "signing")
    write_secret(tmp_path / "P-384", private_key_pem(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(IdentityError, match="another kind of key"):
        TlsKey.load(tmp_path / "P-384")


@KINDS
@pytest.mark.parametrize("content", ["empty", "text", "a certificate", "cut", "encrypted", "long"])
def test_a_malformed_key_file_is_refused(tmp_path: Path, kind: Kind, content: str) -> None:
    kind.generate().save(tmp_path / "key")
    pem = (tmp_path / "key").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    data = {
        "empty": b"",
        "text": b"not a key",
        "a certificate": (Path(__file__).parents[2] / "data/golden/v1/authority_certificate.pem").read_bytes(),
        "cut": pem[:80] + pem[84:],
        "encrypted": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        ),
        "long": pem + b"\n" * 20_000,
    }[content]
    (tmp_path / "key").write_bytes(data)
    with pytest.raises(IdentityError, match="does not hold an unencrypted private key"):
        kind.load(tmp_path / "key")


@KINDS
def test_a_key_never_shows_its_private_half(kind: Kind, tmp_path: Path) -> None:
    key = kind.generate()
    key.save(tmp_path / "key")
    secret = "".join((tmp_path / "key").read_text().splitlines()[1:-1])
    assert secret[-20:] not in repr(key) + str(key)
    if isinstance(key, SigningKey):
        assert key.public_key.hex() in repr(key)


def test_a_signature_verifies_for_its_data_domain_and_key_alone() -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    signature = key.sign(Domain.RELEASE, b"data")
    verify(Domain.RELEASE, b"data", signature, key.public_key)
    for domain, data, wrong, public in (
        (Domain.RELEASE, b"Data", signature, key.public_key),
        (Domain.RELEASE, b"", signature, key.public_key),
        (Domain.RELEASE, b"data", signature, other.public_key),
        (Domain.RELEASE, b"data", signature[:-1] + bytes([signature[-1] ^ 1]), key.public_key),
        (Domain.RELEASE, b"data", b"", key.public_key),
        (Domain.RELEASE, b"data", signature[:-1], key.public_key),
        (Domain.RELEASE, b"data", signature + b"\0", key.public_key),
        *((domain, b"data", signature, key.public_key) for domain in Domain if domain != Domain.RELEASE),
    ):
        with pytest.raises(SignatureError):
            verify(domain, data, wrong, public)


def test_no_domain_is_the_beginning_of_another() -> None:
    """Domain and data are joined by a NUL, which no domain holds: the pair can be read back from what is signed."""
    assert all("\0" not in domain and domain.isascii() for domain in Domain)
    key = SigningKey.generate()
    signature = key.sign(Domain.RECEIPT, b"\0data")
    with pytest.raises(SignatureError):
        verify(Domain.RECEIPT, b"data", signature, key.public_key)


def test_the_signature_is_plain_ed25519_over_domain_nul_data() -> None:
    key = SigningKey.generate()
    signature = key.sign(Domain.LEDGER_HEAD, b"data")
    Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, b"portier ledger head v1\0data")


def small_order_keys() -> list[bytes]:
    """Encodings, sign bit clear, of the points P of -x^2 + y^2 = 1 + d x^2 y^2 with 8 P = 0, reduced modulo p or not.

    Orders 1, 2 and 4 have y = 1, -1 and 0. For order 8, 2 P has y = 0, so x^2 = -y^2, and the curve gives d y^4 + 2 y^2 = 1.
    """
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p

    def roots(square: int) -> list[int]:
        root = pow(square, (p + 3) // 8, p)
        either = (root, root * pow(2, (p - 1) // 4, p) % p)
        return [y for r in either if r * r % p == square % p for y in (r, -r % p)]

    squares = [(root - 1) * pow(d, -1, p) % p for root in roots(1 + d)]
    reduced = {0, 1, p - 1, *(y for square in squares for y in roots(square))}
    return [y.to_bytes(32, "little") for y in sorted(reduced | {y + p for y in reduced if y + p < 2**255})]


def test_public_keys_of_small_order_are_refused() -> None:
    keys = small_order_keys()
    assert len(keys) == 7
    for key in keys:
        for sign in (0, 0x80):
            with pytest.raises(IdentityError, match="small order"):
                check_public_key(key[:-1] + bytes([key[-1] | sign]))


def test_without_that_refusal_anybody_could_sign_for_a_key_of_small_order() -> None:
    identity = bytes([1]) + bytes(31)
    forged = identity + bytes(32)
    Ed25519PublicKey.from_public_bytes(identity).verify(forged, b"anything at all")
    with pytest.raises(IdentityError):
        verify(Domain.RELEASE, b"anything at all", forged, identity)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), "a" * 32, None], ids=repr)
def test_what_is_no_public_key_is_refused(key: object) -> None:
    with pytest.raises(IdentityError, match="32 bytes"):
        check_public_key(key)  # type: ignore[arg-type]


def test_fingerprints_differ_and_can_be_read_out() -> None:
    first, second = SigningKey.generate().public_key, SigningKey.generate().public_key
    assert fingerprint(first) != fingerprint(second)
    assert len(fingerprint(first)) == 19
