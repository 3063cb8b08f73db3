"""What a contributor keeps of its enrolment: name, addresses, the owner's keys, and its own.

<home>/membership.json     name, addresses, the owner's Ed25519 public key; written last, so it stands for all of it
<home>/keys/signing.key    Ed25519 private key that signs submissions (PEM, mode 0600)
<home>/keys/identity.pem   TLS private key and certificate in one file (mode 0600): they are replaced together
<home>/keys/authority.pem  certificate of the owner's authority
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization

from common import timestamps
from common.errors import IdentityError, WorkspaceError
from common.files import ensure_directory, read_bounded, write_atomically, write_secret
from common.identity.certificates import Peer, load_certificate, read_peer, spki
from common.identity.keys import SigningKey, check_public_key
from common.identity.names import check_contributor_name, parse_address
from common.identity.tls_keys import TlsKey
from contributor.workspace import ContributorWorkspace

FORMAT: Final = 1
LIMIT: Final = 64 * 1024
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True)
class Membership:
    """name: the contributor's. addresses: `host:port` of the owner's service, to be tried in order.
    owner_key: Ed25519 public key, 32 bytes."""

    home: Path
    name: str
    addresses: tuple[str, ...]
    owner_key: bytes

    @classmethod
    def open(cls, home: Path) -> Membership:
        """Raises WorkspaceError where `join` has not been run in this home or its files are damaged."""
        path = home / "membership.json"
        ContributorWorkspace(home).check_joined()
        try:
            fields = json.loads(read_bounded(path, LIMIT))
            if fields["format"] != FORMAT:
                raise ValueError(f"format {fields['format']!r} is not known")
            addresses = tuple(fields["addresses"])
            for address in addresses:
                parse_address(address)
            owner_key = check_public_key(bytes.fromhex(fields["owner_key"]))
            return cls(home, check_contributor_name(fields["name"]), addresses, owner_key)
        except (ValueError, KeyError, TypeError, IdentityError) as error:
            raise WorkspaceError(
                f"{path} is damaged: {error}",
                hint="restore it from a backup; or move it away, and join in this home with an invitation of `portier-owner invite NAME "
                "--renew`",
            ) from None

    def save(self) -> None:
        fields = {
            "format": FORMAT,
            "name": self.name,
            "addresses": list(self.addresses),
            "owner_key": self.owner_key.hex(),
        }
        write_atomically(self.home / "membership.json", json.dumps(fields, indent=1, sort_keys=True).encode() + b"\n")

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def signing_key_file(self) -> Path:
        return self.keys / "signing.key"

    @property
    def identity_file(self) -> Path:
        return self.keys / "identity.pem"

    @property
    def authority_file(self) -> Path:
        return self.keys / "authority.pem"

    def signing_key(self) -> SigningKey:
        """Raises IdentityError, StorageError."""
        return SigningKey.load(self.signing_key_file)

    def signing_key_or_new(self) -> SigningKey:
        """The key of an earlier attempt to join, so that it may be repeated, else a new one. Raises as `signing_key`."""
        ensure_directory(self.keys, 0o700)
        if not self.signing_key_file.exists():
            SigningKey.generate().save(self.signing_key_file)
        return self.signing_key()

    def authority(self) -> bytes:
        """PEM. Raises StorageError."""
        return read_bounded(self.authority_file, LIMIT)

    def identity(self) -> Identity:
        """Raises IdentityError where the file is damaged, StorageError where it cannot be read."""
        pem = read_bounded(self.identity_file, LIMIT)
        key, marker, certificate = pem.partition(_CERTIFICATE)
        if not marker:
            raise IdentityError(
                f"{self.identity_file} holds no certificate",
                hint=f"restore it from a backup, or ask the owner for `portier-owner invite {self.name} --renew` and join with that",
            )
        return Identity(key, marker + certificate)

    def save_identity(self, tls_key: TlsKey, certificate: bytes) -> None:
        """Keep a certificate (PEM) that the owner sent, if it is what was asked for. Raises IdentityError, StorageError."""
        peer, parsed = read_peer(certificate), load_certificate(certificate)
        if peer.name != self.name:
            raise IdentityError(f"the owner's certificate is for {peer.name}, not for {self.name}")
        if spki(parsed.public_key()) != spki(tls_key.private_key.public_key()):
            raise IdentityError("the owner's certificate is for another key than the one sent")
        write_secret(self.identity_file, tls_key.pem + parsed.public_bytes(serialization.Encoding.PEM), replace=True)


@dataclass(frozen=True)
class Identity:
    """key, certificate: PEM, for the TLS session."""

    key: bytes
    certificate: bytes

    @property
    def peer(self) -> Peer:
        return read_peer(self.certificate)

    def renewal_due(self) -> bool:
        return self.peer.renewal_due(timestamps.now())

    def check(self) -> None:
        """Raises IdentityError where the certificate has expired."""
        if timestamps.now() >= self.peer.not_after:
            raise IdentityError(
                f"the certificate of {self.peer.name} expired on {self.peer.not_after:%Y-%m-%d}",
                hint=f"ask the owner to run `portier-owner invite {self.peer.name} --renew`, and run `portier-contributor join "
                "INVITATION` here with what they send you; your signing key stays",
            )
