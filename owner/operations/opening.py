"""A workspace opened for work: its settings, its signing key and its ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import config
from common.errors import ConfigurationError
from common.identity.keys import SigningKey
from owner.ledger.store import Store
from owner.settings import OwnerSettings
from owner.workspace import Workspace

if TYPE_CHECKING:
    from common.devices import Compute


@dataclass(frozen=True)
class Office:
    """What the owner's operations work with."""

    workspace: Workspace
    settings: OwnerSettings
    signing_key: SigningKey
    store: Store

    def compute(self) -> Compute:
        """Device and dtype of training, guards and vetting, as the settings choose them."""
        from common.devices import choose_compute  # noqa: PLC0415 - `status` need not wait for torch

        return choose_compute(self.settings.model.device, self.settings.model.precision)


@contextmanager
def open_office(
    root: Path, overrides: Mapping[str, Any] | None = None, *, environment: Mapping[str, str] | None = None
) -> Iterator[Office]:
    """Open the workspace at `root`; `overrides` are settings by dotted name, stronger than environment and file.

    environment: instead of the process's own.

    Raises WorkspaceError, ConfigurationError (so too for an override of [data], which `init` alone reads), IdentityError (the
    key), LedgerError.
    """
    workspace = Workspace.open(root)
    settings = config.load(OwnerSettings, workspace.settings_file, overrides, environment=environment)
    _check_data(workspace, settings, overrides or {})
    signing_key = SigningKey.load(workspace.signing_key)
    store = Store.open(workspace.ledger_file, signing_key)
    try:
        yield Office(workspace, settings, signing_key, store)
    finally:
        store.close()


def _check_data(workspace: Workspace, settings: OwnerSettings, overrides: Mapping[str, Any]) -> None:
    """What is asked of [data] after `init` would change nothing, and be believed. Where data sets lie is nothing to a workspace that
    has its shares."""
    divided = config.load(OwnerSettings, workspace.settings_file, environment={}).data
    changed = [f"data.{leaf}" for leaf, value in settings.data if value != getattr(divided, leaf) and leaf != "dir"]
    for name in changed:
        source = "--set" if overrides.get(name) is not None else config.variable(name)
        raise ConfigurationError(
            f"{name} ({source}) cannot be changed any more: `init` divided the data, and the model, its guards and every verdict stand "
            "on that division",
            hint=f"leave it out; to divide otherwise, make another workspace: portier-owner init DIR --set {name}=VALUE",
        )


def parse_overrides(assignments: list[str] | None) -> dict[str, Any]:
    """Settings given as `section.field=value`, still as text.

    >>> parse_overrides(["guard.references=39", "service.names=a.example,b.example"])
    {'guard.references': '39', 'service.names': 'a.example,b.example'}

    Raises ConfigurationError where one is written otherwise.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigurationError(
                f"--set {assignment!r} is not section.field=value", hint="for example --set guard.references=39"
            )
        overrides[name.strip()] = value
    return overrides
