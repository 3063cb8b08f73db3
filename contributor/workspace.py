"""A contributor's home: what lies where, and how far a contribution has got.

    <home>/membership.json           written by `join`: name, addresses, the owner's public key
    <home>/contributor.toml          written by `join`, then the contributor's to edit: settings
    <home>/keys/                     signing key, TLS key, certificate, the owner's CA
    <home>/releases/<id>/            manifest.json, manifest.sig, weights.safetensors (weights.part while downloading)
    <home>/contributions/<label>/    state.json, checkpoint, weights.safetensors, manifest.json, manifest.sig, receipts

A contribution is one run of `contribute`: a request (which data, which options), the release it is based on, and a
submission. Its `state.json` is rewritten as a whole at each step, so a killed process finds either the step before or
the step after it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError, WorkspaceError
from common.files import ensure_directory, write_atomically
from common.locks import lock_held

HOME_VARIABLE = "PORTIER_CONTRIBUTOR_HOME"
STATE_FORMAT = 1


class Step(StrEnum):
    """How far a contribution has got; each step names what is done, not what is under way."""

    STARTED = "started"
    FETCHED = "fetched"
    TRAINED = "trained"
    SIGNED = "signed"
    COMMITTED = "committed"
    DECIDED = "decided"


@dataclass(frozen=True)
class Contribution:
    """The state of one contribution.

    label: its folder's name, which sorts by age.
    request: what was asked for, as JSON; a later `contribute` with an equal request continues this one.
    seed: of partition, training and attack.
    nonce: 32 hex digits, fixed at the start, so that a restart hands in the same submission and not a second one.
    release, submission: full ids, "" until they are known.
    verdict: "", "accepted" or "declined"; code: the owner's coarse reason for declining.
    measured: what was measured on the way (samples, seconds, attack success, accuracy), for reports.
    """

    label: str
    request: Mapping[str, Any]
    seed: int
    nonce: str
    step: Step = Step.STARTED
    release: str = ""
    submission: str = ""
    verdict: str = ""
    code: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"format": STATE_FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Contribution:
        """Raises WorkspaceError for a format this version does not know."""
        version = data.get("format") if isinstance(data, Mapping) else None
        if version != STATE_FORMAT:
            raise WorkspaceError(f"contribution state of format {version!r}, this version reads {STATE_FORMAT}")
        fields = {key: value for key, value in data.items() if key != "format"}
        return cls(**{**fields, "step": Step(fields["step"])})


@dataclass(frozen=True)
class ContributorWorkspace:
    """Paths below one contributor's home; nothing is created before something is written."""

    home: Path

    @classmethod
    def at(cls, home: Path | None = None) -> ContributorWorkspace:
        """`home`, else $PORTIER_CONTRIBUTOR_HOME, else ~/.portier/contributor."""
        return cls(home or Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".portier" / "contributor"))

    @property
    def membership_file(self) -> Path:
        return self.home / "membership.json"

    @property
    def settings_file(self) -> Path:
        return self.home / "contributor.toml"

    @property
    def joined(self) -> bool:
        return self.membership_file.is_file()

    def check_joined(self) -> None:
        """Raises WorkspaceError where `join` has not been run in this home."""
        if not self.joined:
            raise WorkspaceError(
                f"{self.home} belongs to no owner yet",
                hint="run `portier-contributor join INVITATION` with the invitation the owner sent you",
            )

    @property
    def releases(self) -> Path:
        return self.home / "releases"

    def contribution_directory(self, label: str) -> Path:
        return self.home / "contributions" / label

    def contributions(self) -> list[Contribution]:
        """Every contribution, oldest first. Raises WorkspaceError for a state file that cannot be read."""
        return list(self._read_all())

    def open_contribution(self, request: Mapping[str, Any]) -> Contribution | None:
        """The newest undecided contribution with an equal request, which is the one to continue."""
        for contribution in reversed(self.contributions()):
            if contribution.step != Step.DECIDED and dict(contribution.request) == dict(request):
                return contribution
        return None

    def find(self, submission: str) -> Contribution | None:
        """The contribution whose submission id begins with `submission`, None where there is none.

        Raises ConfigurationError where several do.
        """
        found = [c for c in self.contributions() if c.submission and c.submission.startswith(submission)]
        if len(found) > 1:
            raise ConfigurationError(f"{submission!r} begins {len(found)} submission ids", hint="give more of the id")
        return found[0] if found else None

    def start(self, request: Mapping[str, Any], *, seed: int, nonce: str) -> Contribution:
        """A new contribution, on disk."""
        taken = [int(c.label) for c in self.contributions()]
        contribution = Contribution(f"{max(taken, default=0) + 1:06d}", request, seed, nonce)
        ensure_directory(self.contribution_directory(contribution.label))
        self.save(contribution)
        return contribution

    def save(self, contribution: Contribution) -> None:
        path = self.contribution_directory(contribution.label) / "state.json"
        write_atomically(path, json.dumps(contribution.to_json(), indent=1, sort_keys=True).encode())

    @contextmanager
    def lock(self, label: str) -> Iterator[None]:
        """Hold a contribution while working on it; the lock goes with the process, however that ends.

        Raises WorkspaceError, at once, where another process holds it.
        """
        path = self.contribution_directory(label) / "lock"

        def in_use(holder: str) -> WorkspaceError:
            return WorkspaceError(
                f"another process (pid {holder}) works on this contribution ({path.parent})",
                hint="wait for it, or begin a second contribution with `contribute --fresh`",
            )

        with lock_held(path, in_use=in_use):
            yield

    def _read_all(self) -> Iterator[Contribution]:
        for path in sorted((self.home / "contributions").glob("[0-9]*/state.json")):
            try:
                yield Contribution.from_json(json.loads(path.read_text("utf-8")))
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise WorkspaceError(
                    f"{path} cannot be read: {error}", hint=f"move {path.parent} away to begin that contribution anew"
                ) from None
