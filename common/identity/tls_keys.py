"""EC P-256 private keys: of TLS sessions, and of the owner's authority."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import IdentityError
from common.files import write_secret
from common.identity.keys import private_key_pem, read_private_key


class TlsKey:
    """An EC P-256 private key, the one kind that TLS sessions and certificates here use.

    >>> TlsKey.generate().pem.splitlines()[0]
    b'-----BEGIN PRIVATE KEY-----'
    """

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        self.private_key = private_key

    def __repr__(self) -> str:
        return "TlsKey(EC P-256)"

    @classmethod
    def generate(cls) -> TlsKey:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path) -> TlsKey:
        """Raises IdentityError where others may read the file or it is no P-256 key,
        StorageError where it cannot be read."""
        key = read_private_key(path)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise IdentityError(f"{path} holds another kind of key, not an EC P-256 key")
        return cls(key)

    def save(self, path: Path, *, replace: bool = False) -> None:
        """PEM (PKCS #8), mode 0600. Raises StorageError, also where `path` exists and `replace` is not set."""
        write_secret(path, self.pem, replace=replace)

    @property
    def pem(self) -> bytes:
        """The private key itself, unencrypted: for TLS libraries that take keys from memory."""
        return private_key_pem(self.private_key)
