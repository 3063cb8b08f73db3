"""Publishing a release so that a crash leaves either the old state or the new one.

The files come first, as a folder of their own under `releases/`, with a mark that they are not published yet; the ledger
row comes last and alone makes them a release, and then the mark goes. A marked folder without a row is what a crash left
between the two: nobody has ever been shown it, and `reconcile` removes it at the next start. An unmarked one was a release
once, of a ledger newer than this one, and is kept.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common import timestamps
from common.errors import LedgerError, WorkspaceError
from common.files import ensure_directory, storage_errors, sync_directory, write_atomically
from common.identity.keys import Domain, SigningKey, verify
from common.manifest import ReleaseManifest, parse_release
from common.model_spec import ModelSpec
from common.training_options import TrainingOptions
from common.weights import Weights, check_digest, digest_file, load
from owner.ledger.records import Release
from owner.ledger.store import Store
from owner.workspace import ID, Workspace

Clock = Callable[[], datetime]
_UNFINISHED = ".unfinished-"
UNPUBLISHED = ".unpublished"
"""The mark: a file in the folder of a release from before it has its name until the ledger has its row."""
SET_ASIDE = ".set-aside-"
"""Before the name of a whole release folder that the ledger does not know."""


@dataclass(frozen=True)
class SignedRelease:
    """A release whose files lie in the workspace and which no ledger row names yet."""

    id: str
    manifest: bytes
    signature: bytes


def prepare(
    workspace: Workspace,
    store: Store,
    signing_key: SigningKey,
    weights: Path,
    *,
    parent: str | None,
    spec: ModelSpec,
    class_names: tuple[str, ...],
    finetuning: TrainingOptions,
    note: str = "",
    clock: Clock = timestamps.now,
) -> SignedRelease:
    """Lay out a release's folder from the weights file `weights`, which stays where it is (linked where the file system
    can, else copied), and sign its manifest.

    Hold `workspace.publishing()` from before `parent` was looked up until the ledger row is there; then call `published`.
    Raises StorageError; what was begun is removed.
    """
    manifest = ReleaseManifest(
        number=next_number(store),
        parent=parent,
        spec=spec,
        class_names=class_names,
        weights_sha256=digest_file(weights),
        weights_bytes=weights.stat().st_size,
        finetuning=finetuning,
        created=timestamps.to_text(clock()),
        note=note,
    )
    data = manifest.to_bytes()
    signature = signing_key.sign(Domain.RELEASE, data)
    files = workspace.release(manifest.id)
    unfinished = workspace.releases / f"{_UNFINISHED}{manifest.id}"
    with storage_errors("write the release", files.directory):
        ensure_directory(workspace.releases)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            _link_or_copy(weights, unfinished / files.weights.name)
            write_atomically(unfinished / files.manifest.name, data)
            write_atomically(unfinished / files.signature.name, signature)
            (unfinished / UNPUBLISHED).touch()
            sync_directory(unfinished)
            # The same manifest within one second (a retry) has the same id and the same bytes.
            if files.directory.exists():
                shutil.rmtree(unfinished)
            else:
                unfinished.rename(files.directory)
            sync_directory(workspace.releases)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return SignedRelease(manifest.id, data, signature)


def publish(workspace: Workspace, store: Store, prepared: SignedRelease) -> Release:
    """Make a prepared release the current one. Raises LedgerError, and removes its files, where the ledger refuses."""
    try:
        release = store.publish(prepared.manifest, prepared.signature)
    except LedgerError:
        discard(workspace, prepared)
        raise
    published(workspace, release)
    return release


def published(workspace: Workspace, release: Release) -> None:
    """Take the mark off a release that the ledger has a row of."""
    # The row is what counts: a mark that cannot be removed now is removed by `reconcile`.
    with suppress(OSError):
        (workspace.release(release.id).directory / UNPUBLISHED).unlink(missing_ok=True)


def discard(workspace: Workspace, prepared: SignedRelease) -> None:
    """Remove the files of a release that will not be."""
    shutil.rmtree(workspace.release(prepared.id).directory, ignore_errors=True)


def next_number(store: Store) -> int:
    """One above the highest ever published: a release that was rolled back keeps its number to itself."""
    return max((release.number for release in store.releases()), default=-1) + 1


def read_manifest(release: Release) -> ReleaseManifest:
    """The manifest as the ledger holds it. Raises ManifestError."""
    return parse_release(release.manifest)


def check(workspace: Workspace, release: Release, public_key: bytes) -> ReleaseManifest:
    """The manifest of a release whose files are what the ledger says and the owner signed.

    Raises SignatureError, WeightsError DIGEST_MISMATCH or WorkspaceError where they are not.
    """
    files = workspace.release(release.id)
    verify(Domain.RELEASE, release.manifest, release.signature, public_key)
    if not files.weights.is_file():
        raise WorkspaceError(
            f"release {release.id[:12]} has lost its weights: {files.weights} is missing",
            hint="restore the file from a backup; its SHA-256 is in the ledger",
        )
    check_digest(files.weights, release.weights_sha256)
    return read_manifest(release)


def load_weights(workspace: Workspace, release: Release) -> Weights:
    """The weights of a release, of the very bytes whose digest the ledger holds. Raises WeightsError, StorageError."""
    return load(workspace.release(release.id).weights, digest=release.weights_sha256)


def reconcile(workspace: Workspace, store: Store) -> list[str]:
    """Remove the folders of releases that never were, and set others aside that no ledger row names; returns the names of these.
    Only for the process that serves, which holds `workspace.publishing()`.

    A folder without a row and without a mark is of a ledger newer than this one, which was restored from an older copy: it is
    not deleted for that, and once a ledger names it again, it is back in its place.

    Raises WorkspaceError where a row names a release whose files are gone: that is damage, not an interrupted run.
    """
    known = {release.id for release in store.releases()}
    orphans = []
    ensure_directory(workspace.releases)
    for directory in sorted(workspace.releases.iterdir()):
        never_published = directory.name not in known and (directory / UNPUBLISHED).exists()
        if directory.name.startswith(_UNFINISHED) or never_published:
            shutil.rmtree(directory, ignore_errors=True)
        elif ID.fullmatch(directory.name) and directory.name not in known:
            with storage_errors("set aside", directory):
                aside = directory.with_name(f"{SET_ASIDE}{directory.name}")
                if aside.exists():  # of the same manifest, and so of the same weights
                    shutil.rmtree(aside)
                directory.replace(aside)
            orphans.append(directory.name)
    for release in store.releases():
        files = workspace.release(release.id)
        published(workspace, release)
        aside = files.directory.with_name(f"{SET_ASIDE}{release.id}")
        if aside.is_dir() and not files.directory.exists():
            with storage_errors("put back", aside):
                aside.replace(files.directory)
        if not files.weights.is_file():
            raise WorkspaceError(
                f"release {release.id[:12]} has lost its weights: {files.weights} is missing",
                hint="restore the file from a backup; its SHA-256 is in the ledger",
            )
        for path, content in ((files.manifest, release.manifest), (files.signature, release.signature)):
            if not path.is_file():
                write_atomically(path, content)
    return orphans


def _link_or_copy(source: Path, target: Path) -> None:
    """Both names are of files that are never written again, so one set of bytes on disk can serve both."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        with suppress(FileNotFoundError):
            target.unlink()
        shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
