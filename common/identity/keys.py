"""Ed25519 signing keys and domain-separated signatures.

A signature is made over `domain || 0x00 || data`: bytes signed as one kind of thing never verify as another.
Public keys travel and are stored as their 32 raw bytes (RFC 8032), signatures as 64.
"""

from __future__ import annotations

import hashlib
import os
import stat
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from common.errors import IdentityError, SignatureError
from common.files import storage_errors, write_secret

PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_KEY_FILE_BYTES = 16 * 1024


class Domain(StrEnum):
    """What a signature is about."""

    RELEASE = "portier release manifest v1"
    SUBMISSION = "portier submission manifest v1"
    LEDGER_HEAD = "portier ledger head v1"
    RECEIPT = "portier receipt v1"
    ENROLMENT = "portier enrolment v1"


class SigningKey:
    """An Ed25519 private key.

    >>> key = SigningKey.generate()
    >>> signature = key.sign(Domain.RELEASE, b"manifest")
    >>> verify(Domain.RELEASE, b"manifest", signature, key.public_key)
    """

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key: bytes = private_key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"SigningKey(public_key={self.public_key.hex()})"

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Raises IdentityError where others may read the file or it is no Ed25519 key,
        StorageError where it cannot be read."""
        key = read_private_key(path)
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError(f"{path} holds another kind of key, not an Ed25519 signing key")
        return cls(key)

    def save(self, path: Path, *, replace: bool = False) -> None:
        """PEM (PKCS #8), mode 0600. Raises StorageError, also where `path` exists and `replace` is not set."""
        write_secret(path, private_key_pem(self._private_key), replace=replace)

    def sign(self, domain: Domain, data: bytes) -> bytes:
        """64 bytes."""
        return self._private_key.sign(_message(domain, data))


def verify(domain: Domain, data: bytes, signature: bytes, public_key: bytes) -> None:
    """Raises SignatureError where the signature is not one of `data` in this domain by the owner of `public_key`,
    IdentityError where `public_key` is none."""
    key = Ed25519PublicKey.from_public_bytes(check_public_key(public_key))
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureError(f"a signature has {SIGNATURE_BYTES} bytes, this one {len(signature)} ({domain})")
    try:
        key.verify(bytes(signature), _message(domain, data))
    except InvalidSignature:
        raise SignatureError(
            f"the signature does not verify with key {fingerprint(public_key)} ({domain})",
            hint="the bytes were altered, or signed by somebody else",
        ) from None


def check_public_key(public_key: bytes) -> bytes:
    """The key itself, where it can be one that somebody holds the private half of. Raises IdentityError.

    Points of small order are refused: with one of them as public key, one signature fits many messages, and nobody
    needs a private key for it.
    """
    if not isinstance(public_key, bytes) or len(public_key) != PUBLIC_KEY_BYTES:
        raise IdentityError(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes")
    if public_key[:-1] + bytes([public_key[-1] & 0x7F]) in _SMALL_ORDER:
        raise IdentityError("this Ed25519 public key is a point of small order: nobody can hold its private key")
    return public_key


def fingerprint(public_key: bytes) -> str:
    """The first 16 hex digits of the key's SHA-256 in groups of four, for people to compare and for messages.

    >>> fingerprint(bytes(32))
    '6668-7aad-f862-bd77'
    """
    digits = hashlib.sha256(public_key).hexdigest()[:16]
    return "-".join(digits[i : i + 4] for i in range(0, 16, 4))


def read_private_key(path: Path) -> PrivateKeyTypes:
    """A private key of any kind from an unencrypted PEM file that only its owner may read.

    Raises IdentityError (with the chmod that mends it, where others may read the file) or StorageError.
    """
    with storage_errors("read the private key", path), Path(path).open("rb") as file:
        # The open file is asked, not the path: nobody can swap it in between.
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise IdentityError(
                f"the private key {path} can be used by other people on this machine (mode {mode:04o})",
                hint=f"chmod 600 {path}   (and make a new key if they may have copied it)",
            )
        data = file.read(_KEY_FILE_BYTES + 1)
    try:
        if len(data) > _KEY_FILE_BYTES:
            raise ValueError("too long")
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError(f"{path} does not hold an unencrypted private key in PEM form") from None


def private_key_pem(key: PrivateKeyTypes) -> bytes:
    """PKCS #8, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _message(domain: Domain, data: bytes) -> bytes:
    return Domain(domain).value.encode("ascii") + b"\0" + data


# y-coordinates (little endian, sign bit cleared) of the eight points of small order, with those encodings that are not
# reduced modulo p = 2^255 - 19: 0, 1, the two of order 8, p - 1, p, p + 1. The same list as in libsodium.
_SMALL_ORDER = frozenset(
    [
        bytes(32),
        bytes([1]) + bytes(31),
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
        (2**255 - 20).to_bytes(32, "little"),
        (2**255 - 19).to_bytes(32, "little"),
        (2**255 - 18).to_bytes(32, "little"),
    ]
)
