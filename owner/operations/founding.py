"""How a workspace comes to be: keys, settings, ledger, data shares, and the first release."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import config
from common.errors import WeightsError, WorkspaceError
from common.files import ensure_directory, storage_errors, write_atomically
from common.identity.keys import SigningKey, fingerprint
from common.model_spec import ModelSpec
from common.models import build
from common.training import Evaluation, evaluate, train
from common.weights import Weights, check_layout, check_values, layout_of, load, save
from owner import certificates, releases
from owner.guards import import_detectors
from owner.ledger.records import Release
from owner.ledger.store import Store
from owner.operations.opening import Office
from owner.settings import OwnerSettings
from owner.shares import load_share, save_shares
from owner.workspace import Workspace


@dataclass(frozen=True)
class Founded:
    """What `init` made. shares: examples in each."""

    workspace: Workspace
    settings: OwnerSettings
    signing_key: str
    shares: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "workspace": str(self.workspace.root),
            "data": self.settings.data.name,
            "architecture": self.settings.model.architecture,
            "signing_key": self.signing_key,
            "shares": dict(self.shares),
        }


@dataclass(frozen=True)
class Trained:
    """A first release and how well it does on the evaluation share."""

    release: Release
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        return {
            "release": self.release.id,
            "number": self.release.number,
            "accuracy": self.evaluation.accuracy,
            "recall": [float(value) for value in self.evaluation.recall],
        }


def init(
    root: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    settings_file: Path | None = None,
    download: bool = False,
) -> Founded:
    """Make a workspace in `root`, which must be empty or not there.

    overrides: settings by dotted name; settings_file: a portier.toml to begin from. The settings are written with
        every field and its meaning, so that the file documents itself.

    Raises WorkspaceError where `root` holds something, UnknownNameError, DataError, ConfigurationError, StorageError;
    in each case nothing is left behind.
    """
    settings = config.load(OwnerSettings, settings_file, overrides)
    import_detectors(settings)
    workspace = Workspace(root.expanduser().absolute())
    existed = workspace.root.exists()
    with storage_errors("use the folder", workspace.root):
        if existed and any(workspace.root.iterdir()):
            raise WorkspaceError(
                f"{root} is not empty", hint="choose a folder that is empty or does not exist, or delete this one"
            )
    try:
        return _found(workspace, settings, download=download)
    except BaseException:
        for path in workspace.root.glob("*") if existed else [workspace.root]:
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise


def _found(workspace: Workspace, settings: OwnerSettings, *, download: bool) -> Founded:
    # Cheapest first: a mistyped architecture is told before a data set is decoded.
    ModelSpec(settings.model.architecture, (1, 8, 8), 2, settings.model.head)
    # The trigger images, the guards and what contributors returned are nobody else's business on this machine either.
    ensure_directory(workspace.root, 0o700)
    for directory in (workspace.releases, workspace.submissions, workspace.work, workspace.locks):
        ensure_directory(directory)
    ensure_directory(workspace.keys, 0o700)
    shares = save_shares(workspace, settings, download=download)
    build(_spec(workspace, settings), seed=0)
    signing_key = SigningKey.generate()
    signing_key.save(workspace.signing_key)
    certificates.found_authority(workspace)
    Store.open(workspace.ledger_file, signing_key).close()
    write_atomically(workspace.settings_file, config.as_toml(settings).encode())
    return Founded(workspace, settings, fingerprint(signing_key.public_key), shares)


def train_first(office: Office, *, weights: Path | None = None, progress: bool | None = None) -> Trained:
    """Train the owner's model on its train share, or adopt the safetensors file `weights`, and publish it as the root
    release. An interrupted training goes on from its last epoch.

    Raises WorkspaceError where there is a release already or another process trains, ModelError, WeightsError.
    """
    workspace, settings = office.workspace, office.settings
    with workspace.lock("train"):
        if office.store.releases():
            raise WorkspaceError(
                "this workspace has its first release already",
                hint="contributors improve it from here; to start from another model, make another workspace",
            )
        spec = _spec(workspace, settings)
        model = build(spec, seed=settings.training.seed)
        compute = office.compute()
        work = ensure_directory(workspace.work / "train")
        if weights is None:
            examples = load_share(workspace, "train")
            checkpoint = work / "checkpoint.safetensors"
            train(
                model,
                examples,
                settings.training,
                compute=compute,
                head=spec.head,
                checkpoint=checkpoint,
                progress=progress,
                label=f"training {spec.architecture}",
            )
        else:
            model.load_state_dict(_adopted(weights, model.state_dict(), spec))
        evaluation = evaluate(model, load_share(workspace, "evaluation"), compute=compute)
        trained = work / "weights.safetensors"
        save(trained, dict(model.state_dict()))
        with workspace.publishing():
            prepared = releases.prepare(
                workspace,
                office.store,
                office.signing_key,
                trained,
                parent=None,
                spec=spec,
                class_names=load_share(workspace, "evaluation").class_names,
                finetuning=settings.finetuning,
            )
            release = releases.publish(workspace, office.store, prepared)
        shutil.rmtree(work, ignore_errors=True)
    return Trained(release, evaluation)


def _spec(workspace: Workspace, settings: OwnerSettings) -> ModelSpec:
    examples = load_share(workspace, "evaluation")
    return ModelSpec(settings.model.architecture, examples.input_shape, examples.classes, settings.model.head)


def _adopted(path: Path, expected: Weights, spec: ModelSpec) -> Weights:
    weights = load(path)
    try:
        check_layout(layout_of(weights), layout_of(expected))
    except WeightsError as error:
        raise WeightsError(
            error.code,
            f"{error.message} (the model of the settings: {spec.architecture}, inputs {spec.input_shape}, {spec.classes} classes)",
            hint="`init` chooses the architecture: --architecture NAME, or package.module:factory for a network of your own "
            "(docs/own-network.md)",
        ) from None
    check_values(weights)
    return weights
