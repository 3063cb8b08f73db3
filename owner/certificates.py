"""The owner's certificate authority, as it lies in the workspace."""

from __future__ import annotations

from common.identity.authority import Authority
from owner.workspace import Workspace


def found_authority(workspace: Workspace) -> Authority:
    """A new authority in the workspace's keys folder. Raises StorageError where there is one already."""
    authority = Authority.create()
    authority.save(workspace.authority_key, workspace.authority_certificate)
    return authority


def load_authority(workspace: Workspace) -> Authority:
    """Raises IdentityError where the key can be read by others or does not fit the certificate, StorageError."""
    return Authority.load(workspace.authority_key, workspace.authority_certificate)
