"""The owner's shares of the data, decoded once and kept in the workspace, where guards and vetting read them."""

from __future__ import annotations

import math

import torch

from common.datasets import DataSet, load_examples, save_examples
from common.datasets import load as load_data
from common.errors import ConfigurationError, DataError, GuardError, WorkspaceError
from common.examples import Examples
from common.files import ensure_directory
from common.splits import OwnerShares, owner_shares, stratified
from owner.gatekeeper.triggers import MINIMUM, Triggers, check_examples
from owner.settings import DataSettings, OwnerSettings
from owner.workspace import Workspace

# What belongs to nobody (`unclaimed`) is not kept: a contributor brings its own data, a simulation splits anew.
KEPT = ("train", "references", "trigger_fit", "trigger_calibration", "evaluation")


def divided(options: DataSettings, *, download: bool = False) -> OwnerShares:
    """The data set that the settings name, divided as they say; every share is large enough for a guard.

    Raises UnknownNameError; DataError for data that cannot be read, or are too few, saying how many are enough; ConfigurationError for a
    `size` that the data have no use for.
    """
    data = load_data(
        options.name, data_dir=options.dir, download=download, seed=options.seed, size=options.size or None
    )
    shape = data.train.input_shape
    if options.size and shape[1:] != (options.size, options.size):
        raise ConfigurationError(
            f"data.size is {options.size}, but {data.name} is not read from image files: an example has the shape {shape}",
            hint="leave data.size out",
        )
    shares = owner_shares(
        data,
        seed=options.seed,
        train=options.train,
        references=options.references,
        trigger_fit=options.trigger_fit,
        trigger_calibration=options.trigger_calibration,
    )
    _check(data, shares, options)
    return shares


def save_shares(workspace: Workspace, settings: OwnerSettings, *, download: bool = False) -> dict[str, int]:
    """Write every share of the divided data; returns how many examples each holds. Raises as `divided`, and StorageError."""
    shares = divided(settings.data, download=download)
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


def _check(data: DataSet, shares: OwnerShares, options: DataSettings) -> None:
    """What `protect` would refuse, after the model was trained: told while the division can still be changed."""
    fit, calibration = options.trigger_fit, options.trigger_calibration
    rest = 1 - fit - calibration
    images = len(data.test)
    for name, share, part in (
        ("data.trigger_fit", fit, shares.trigger_fit),
        ("data.trigger_calibration", calibration, shares.trigger_calibration),
        ("what data.trigger_fit and data.trigger_calibration leave for evaluation", rest, shares.evaluation),
    ):
        if len(part) >= MINIMUM:
            continue
        # Dividing class by class may leave a part one image a class short of its share.
        needed = MINIMUM + part.classes
        ways = [
            f"{math.ceil(needed / min(fit, calibration, rest))} test images are enough for these shares (of data without a test set a "
            "quarter is held out as one)"
        ]
        thirds = stratified(data.test.labels, (0.33, 0.33), torch.Generator(), groups=data.test_groups)
        if min(map(len, thirds)) >= MINIMUM:
            ways.append(
                "or divide what there is into equal parts: --set data.trigger_fit=0.33 --set data.trigger_calibration=0.33"
            )
        raise DataError(
            f"{name} is {share:.3g} of {images} test images of {data.name}: {len(part)} images, and a guard needs at least {MINIMUM} in "
            "each of the three parts",
            hint="; ".join(ways),
        )
    try:
        Triggers(shares.trigger_fit, shares.trigger_calibration, shares.evaluation)
        check_examples(shares.references, "data.references, the reference pool,", every_class=False)
    except GuardError as error:
        raise DataError(
            f"{data.name} cannot be divided so that a guard can be fitted: {error.message}",
            hint="bring more data, or change data.trigger_fit, data.trigger_calibration or data.references",
        ) from None
