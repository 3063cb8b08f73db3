"""The owner's shares of the data, decoded once and kept in the workspace, where guards and vetting read them."""

from __future__ import annotations

from common.datasets import load as load_data
from common.datasets import load_examples, save_examples
from common.errors import WorkspaceError
from common.examples import Examples
from common.files import ensure_directory
from common.splits import owner_shares
from owner.settings import OwnerSettings
from owner.workspace import Workspace

# What belongs to nobody (`unclaimed`) is not kept: a contributor brings its own data, a simulation splits anew.
KEPT = ("train", "references", "trigger_fit", "trigger_calibration", "evaluation")


def save_shares(workspace: Workspace, settings: OwnerSettings, *, download: bool = False) -> dict[str, int]:
    """Load the data set, divide it and write every share; returns how many examples each holds.

    Raises UnknownNameError, DataError, StorageError.
    """
    options = settings.data
    data = load_data(options.name, data_dir=options.dir, download=download, seed=options.seed)
    shares = owner_shares(
        data,
        seed=options.seed,
        train=options.train,
        references=options.references,
        trigger_fit=options.trigger_fit,
        trigger_calibration=options.trigger_calibration,
    )
    ensure_directory(workspace.shares)
    for name in KEPT:
        save_examples(workspace.share(name), getattr(shares, name))
    return {name: len(getattr(shares, name)) for name in KEPT}


def load_share(workspace: Workspace, name: str) -> Examples:
    """Raises WorkspaceError where the share is missing, DataError where it cannot be read."""
    path = workspace.share(name)
    if not path.is_file():
        raise WorkspaceError(
            f"the {name} share {path} is missing", hint="restore the file: a new split would not be the same"
        )
    return load_examples(path)
