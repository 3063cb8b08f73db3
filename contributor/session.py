"""A home that has joined, connected to its owner: what the commands need of keys, certificate, downloads and calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import timestamps
from common.errors import ConfigurationError, ConnectionLostError, ManifestError, SignatureError
from common.files import ensure_directory, write_atomically
from common.identity.invitation import ADDRESSES, Invitation
from common.identity.keys import Domain, SigningKey, fingerprint, verify
from common.identity.names import format_address, parse_address
from contributor.contributing import Standing
from contributor.membership import Membership
from contributor.workspace import ContributorWorkspace

if TYPE_CHECKING:
    from common.manifest import ReleaseManifest
    from contributor.client import OwnerClient, SubmissionStatus
    from contributor.patience import OnTrouble


def join(
    workspace: ContributorWorkspace,
    invitation: str,
    *,
    patience: float = 60.0,
    on_try: Callable[[str], None] = lambda _address: None,
) -> dict[str, Any]:
    """Redeem an invitation's text; returns what `describe` does. patience: seconds to go on trying while the owner cannot be
    reached; on_try: told each address once, before it is called.

    Raises InvitationError, IdentityError, WorkspaceError (joined another owner already), ConnectionLostError.
    """
    from contributor import joining  # noqa: PLC0415 - grpc, which `status` does not need

    parsed = Invitation.from_string(invitation)
    parsed.check()
    joining.join(parsed, workspace.home, patience=patience, on_try=on_try)
    return describe(workspace)


def move(
    workspace: ContributorWorkspace, addresses: Sequence[str], *, patience: float = 10.0
) -> tuple[dict[str, Any], list[ConnectionLostError]]:
    """Call the owner at these addresses (`host:port`, 1 to 8, tried in order) from now on; what `describe` returns, and which of them
    do not answer now.

    The owner must answer at one of them, by a certificate of the authority that was joined, and know this contributor.
    patience: seconds to try each for.
    Raises ConnectionLostError where none answers, IdentityError where somebody else does; then the old ones are kept.
    """
    from contributor.client import OwnerClient  # noqa: PLC0415 - torch, which `status` does not need

    membership = Membership.open(workspace.home)
    new = tuple(format_address(*parse_address(address)) for address in dict.fromkeys(addresses))
    if not 1 <= len(new) <= ADDRESSES:
        raise ConfigurationError(f"an owner has 1 to {ADDRESSES} addresses, not {len(new)}")
    silent: list[ConnectionLostError] = []
    for address in new:
        with OwnerClient(workspace.home, patience=patience, addresses=(address,)) as client:
            try:
                client.submissions(1)
            except ConnectionLostError as error:
                silent.append(error)
    if len(silent) == len(new):
        raise silent[0]
    dataclasses.replace(membership, addresses=new).save()
    return describe(workspace), silent


def describe(workspace: ContributorWorkspace) -> dict[str, Any]:
    """Name, owner and certificate of a home, as JSON values. Raises WorkspaceError where it has not joined."""
    membership = Membership.open(workspace.home)
    return {
        "name": membership.name,
        "home": str(workspace.home),
        "addresses": list(membership.addresses),
        "owner_key": fingerprint(membership.owner_key),
        "certificate_until": timestamps.to_text(membership.identity().peer.not_after),
    }


def renew(workspace: ContributorWorkspace) -> dict[str, Any]:
    """Get a new certificate; returns what `describe` does. Raises IdentityError, RevokedError, ConnectionLostError."""
    from contributor.client import OwnerClient  # noqa: PLC0415 - torch, which `status` does not need

    with OwnerClient(workspace.home) as client:
        client.renew()
    return describe(workspace)


def signing_key(workspace: ContributorWorkspace) -> SigningKey:
    """Raises WorkspaceError, IdentityError, StorageError."""
    return Membership.open(workspace.home).signing_key()


@contextmanager
def connect(
    workspace: ContributorWorkspace, *, patience: float | None = 600.0, on_trouble: OnTrouble | None = None
) -> Iterator[Session]:
    """The owner of this home, for as long as the block runs. patience: seconds to go on trying while it cannot be reached,
    on_trouble: told once when that takes long."""
    from contributor.client import OwnerClient  # noqa: PLC0415 - as above

    with OwnerClient(workspace.home, patience=patience, on_trouble=on_trouble) as client:
        yield Session(workspace, client)


class Session:
    """`contributing.Owner` over the network, with releases kept in the home."""

    def __init__(self, workspace: ContributorWorkspace, client: OwnerClient) -> None:
        self._workspace = workspace
        self._client = client
        self._verified: dict[str, ReleaseManifest] = {}
        self._tries_left: dict[str, int] = {}

    @property
    def name(self) -> str:
        return self._client.name

    def fetch_release(self, release_id: str) -> tuple[str, ReleaseManifest]:
        """A release that was fetched before, in this run or an earlier one, is not asked for again."""
        if release_id not in self._verified:
            manifest = self._stored(release_id) if release_id else None
            release_id, manifest = (release_id, manifest) if manifest else self._offered(release_id)
            self._verified[release_id] = manifest
        return release_id, self._verified[release_id]

    def tries_left(self, release_id: str) -> int | None:
        return self._tries_left.get(release_id)

    def weights_path(self, release_id: str) -> Path:
        return self._workspace.releases / release_id / "weights.safetensors"

    def submit(
        self, manifest: bytes, signature: bytes, weights: Path, on_progress: Callable[[int, int], None]
    ) -> Standing:
        return _standing(self._client.submit(manifest, signature, weights, progress=on_progress))

    def watch(self, submission_id: str) -> Iterator[Standing]:
        for status in self._client.watch(submission_id):
            yield _standing(status)

    def _offered(self, release_id: str) -> tuple[str, ReleaseManifest]:
        offered = self._client.release(release_id or None)
        self._tries_left[offered.id] = offered.tries_left
        self._client.download(offered, self.weights_path(offered.id))
        # Written last: a manifest on disk says that the weights beside it were whole and verified.
        directory = ensure_directory(self._workspace.releases / offered.id)
        write_atomically(directory / "manifest.sig", offered.signature)
        write_atomically(directory / "manifest.json", offered.data)
        return offered.id, offered.manifest

    def _stored(self, release_id: str) -> ReleaseManifest | None:
        """The manifest on disk, its signature verified again; None where it is not there, or no longer what was signed."""
        from common.manifest import parse_release  # noqa: PLC0415 - as above

        directory = self._workspace.releases / release_id
        try:
            data, signature = (directory / "manifest.json").read_bytes(), (directory / "manifest.sig").read_bytes()
            verify(Domain.RELEASE, data, signature, self._client.owner_key)
            manifest = parse_release(data)
        except (OSError, SignatureError, ManifestError):
            return None
        return manifest if manifest.id == release_id and self.weights_path(release_id).is_file() else None


def _standing(status: SubmissionStatus) -> Standing:
    return Standing(
        state=str(status.state),
        code=status.code,
        commit_receipt=status.commit_receipt.to_bytes() if status.commit_receipt else b"",
        verdict_receipt=status.verdict_receipt.to_bytes() if status.verdict_receipt else b"",
    )
