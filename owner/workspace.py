"""The owner's workspace: one folder that holds settings, keys, ledger, releases, submissions and data shares.

```
DIR/portier.toml                      settings
    ledger.sqlite                     ledger
    keys/                             mode 0700: the owner's signing key, certificate authority, server certificate
    shares/<share>.safetensors        the owner's examples, split
    releases/<id>/                    manifest.json manifest.sig weights.safetensors guard/ guard.escalation.json
    submissions/<id>/                 manifest.json manifest.sig weights.part | weights.safetensors would_be.safetensors
                                      verdict.json
    work/                             resumable work in progress: training checkpoints, reference models
    locks/                            one file per lock, naming the process that holds it
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import WorkspaceError
from common.locks import lock_held

ID = re.compile(r"[0-9a-f]{64}")
SHARES = ("train", "references", "trigger_fit", "trigger_calibration", "evaluation")


@dataclass(frozen=True)
class ReleaseFiles:
    """Where one release lies. `guard` is a folder; it appears as a whole when the guard is fitted. `escalation` is the file of its
    escalation tier, which appears when that is first needed."""

    directory: Path

    @property
    def manifest(self) -> Path:
        return self.directory / "manifest.json"

    @property
    def signature(self) -> Path:
        return self.directory / "manifest.sig"

    @property
    def weights(self) -> Path:
        return self.directory / "weights.safetensors"

    @property
    def guard(self) -> Path:
        return self.directory / "guard"

    @property
    def escalation(self) -> Path:
        return self.directory / "guard.escalation.json"


@dataclass(frozen=True)
class SubmissionFiles:
    """Where one submission lies. `part` is an upload in progress, `weights` the committed whole of it."""

    directory: Path

    @property
    def manifest(self) -> Path:
        return self.directory / "manifest.json"

    @property
    def signature(self) -> Path:
        return self.directory / "manifest.sig"

    @property
    def part(self) -> Path:
        return self.directory / "weights.part"

    @property
    def weights(self) -> Path:
        return self.directory / "weights.safetensors"

    @property
    def would_be(self) -> Path:
        """The merged weights a promotion would publish."""
        return self.directory / "would_be.safetensors"

    @property
    def verdict(self) -> Path:
        return self.directory / "verdict.json"


@dataclass(frozen=True)
class Workspace:
    """Paths below `root`; knows no more of their content than its name.

    >>> Workspace(Path("w")).release("ab" * 32).weights.as_posix()[:15]
    'w/releases/abab'
    """

    root: Path

    @classmethod
    def open(cls, root: Path) -> Workspace:
        """The workspace at `root`. Raises WorkspaceError where there is none, or only half of one."""
        workspace = cls(root.expanduser().absolute())
        if not workspace.settings_file.is_file():
            if workspace.releases.is_dir() and any(workspace.releases.iterdir()):
                raise WorkspaceError(
                    f"the workspace {root} has lost its {workspace.settings_file.name}",
                    hint="put it back from a backup, or write it anew after that of another workspace; delete nothing",
                )
            if workspace.keys.is_dir():
                raise WorkspaceError(
                    f"the workspace {root} was never finished: `portier-owner init` was interrupted",
                    hint=f"delete {root} and run `portier-owner init` again",
                )
            raise WorkspaceError(
                f"{root} is not a workspace: it has no {workspace.settings_file.name}",
                hint="make one with `portier-owner init DIR`, or name one with --workspace or PORTIER_WORKSPACE",
            )
        return workspace

    @property
    def settings_file(self) -> Path:
        """Written last by `init`, so that a half-made workspace is told from a whole one."""
        return self.root / "portier.toml"

    @property
    def ledger_file(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def signing_key(self) -> Path:
        """Ed25519 private key that signs releases, ledger heads and receipts."""
        return self.keys / "signing.key"

    @property
    def authority_key(self) -> Path:
        return self.keys / "authority.key"

    @property
    def authority_certificate(self) -> Path:
        return self.keys / "authority.crt"

    @property
    def server_key(self) -> Path:
        return self.keys / "server.key"

    @property
    def server_certificate(self) -> Path:
        return self.keys / "server.crt"

    @property
    def shares(self) -> Path:
        return self.root / "shares"

    def share(self, name: str) -> Path:
        """Examples file of one of SHARES."""
        if name not in SHARES:
            raise ValueError(f"no share {name!r}, only {SHARES}")
        return self.shares / f"{name}.safetensors"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    def release(self, identifier: str) -> ReleaseFiles:
        return ReleaseFiles(self.releases / _checked(identifier))

    @property
    def submissions(self) -> Path:
        return self.root / "submissions"

    def submission(self, identifier: str) -> SubmissionFiles:
        return SubmissionFiles(self.submissions / _checked(identifier))

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def ports_file(self) -> Path:
        """Which ports the running service got, as JSON; written by `serve` when it is ready."""
        return self.locks / "ports.json"

    @contextmanager
    def lock(self, name: str, *, wait_seconds: float = 0.0, stays: bool = True) -> Iterator[None]:
        """Hold the lock `name` (`serve`, `train`, ...); it goes with the process, however that ends. stays: as in `lock_held`.

        Raises WorkspaceError, naming the process that holds it, where it is not free within `wait_seconds`.
        """

        def in_use(holder: str) -> WorkspaceError:
            return WorkspaceError(
                f"another process (pid {holder}) holds the {name} lock of the workspace {self.root}",
                hint="wait for it to end, or stop it",
            )

        with lock_held(self.locks / f"{name}.lock", in_use=in_use, wait_seconds=wait_seconds, stays=stays):
            yield

    @contextmanager
    def guard_in_use(self, release: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
        """Held by whoever writes, reads or removes the guard of `release` as a process of its own; raises as `lock` does."""
        with self.lock(f"guard-{_checked(release)[:12]}", wait_seconds=wait_seconds, stays=False):
            yield

    @contextmanager
    def fitting(self, *releases: str | None, wait_seconds: float = 0.0) -> Iterator[None]:
        """Held by whoever fits a guard or its escalation tier, one at a time. releases: whose guards it writes or takes fine-tunes
        from. wait_seconds: for `prune` to be done with them. Raises as `lock` does."""
        with ExitStack() as held:
            held.enter_context(self.lock("guard"))
            for release in releases:
                if release is not None:
                    held.enter_context(self.guard_in_use(release, wait_seconds=wait_seconds))
            yield

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Held by whoever changes which release is current, from looking at the current one to the ledger row; so the
        service, `promote` and `rollback` do not merge against a release that another of them has just replaced.

        Blocks for up to a minute: run it off the event loop.
        """
        with self.lock("publishing", wait_seconds=60.0):
            yield


def _checked(identifier: str) -> str:
    if not ID.fullmatch(identifier):
        raise ValueError(f"not a full identifier: {identifier!r}")
    return identifier
