"""A guard on disk: one directory of safetensors and JSON, written as a whole and read only where every digest agrees.

    guard.json                      what it guards, how it was fitted, scores, thresholds, digest of every file here
    detector-<name>.safetensors     a fitted detector
    references.safetensors          per-image errors (N,) of the owner's fine-tune M_f and of every reference
    release.safetensors             M's activations on the calibration triggers, its logits on the evaluation triggers
    probes.safetensors              M's activations on the inputs that detectors of probes made; only where there are such
    kept/                           weights of the fine-tunes, each with its own digest; only where they are kept, no part of the guard
    triggers.safetensors            the calibration and evaluation triggers

The digests find damage and mix-ups. They are no signature: who may write to the owner's disk may write a guard.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from common import canonical
from common.activations import Activations
from common.code import code_digest
from common.devices import Compute
from common.errors import ConfigurationError, GuardError, GuardMismatchError, ModelError, WireError
from common.examples import Examples
from common.files import ensure_directory, read_bounded, storage_errors, sync_directory, write_atomically
from common.locks import lock_held
from common.model_spec import ModelSpec
from common.training_options import TrainingOptions
from common.weights import Weights, digest_of
from common.weights import load as load_weights
from common.weights import save as save_weights
from owner.detectors import DETECTORS, Detector, DetectorState, restore
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.own_detectors import own_code
from owner.gatekeeper.references import Reference
from owner.gatekeeper.stored import whole
from owner.gatekeeper.transplants import KEPT
from owner.gatekeeper.usefulness import Usefulness

if TYPE_CHECKING:
    from owner.gatekeeper.guard import Guard

FORMAT = 1
_JSON_LIMIT = 64 << 20
_WAIT_SECONDS = 60.0
"""For another process that writes the same guard."""


def write(guard: Guard, directory: Path, kept: Iterable[Path] = ()) -> None:
    """`directory` is whole afterwards, or as it was before; after a kill, once it was `settle`d. kept: as in `Guard.save`.

    Raises StorageError, GuardError where another process is still writing it.
    """
    with _alone(Path(directory), wait_seconds=_WAIT_SECONDS):
        _settle(Path(directory))
        _write(guard, Path(directory), kept)


def _write(guard: Guard, directory: Path, kept: Iterable[Path]) -> None:
    with storage_errors("write the guard", directory):
        unfinished = _beside(directory)
    try:
        with storage_errors("keep the fine-tunes of the guard", directory):
            _take_over(kept, unfinished / KEPT)
        files = {name: save_weights(unfinished / name, tensors) for name, tensors in _tensors(guard).items()}
        write_atomically(unfinished / "guard.json", _describe(guard, files))
        with storage_errors("write the guard", directory):
            unfinished.chmod(0o755)
            if directory.exists():
                retired = _beside(directory)
                directory.replace(retired)  # killed after this, `settle` finds two whole guards, and takes the new one
                unfinished.replace(directory)
                shutil.rmtree(retired)
            else:
                unfinished.replace(directory)
            sync_directory(directory.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _beside(directory: Path) -> Path:
    """A new folder next to `directory`, named after it."""
    return Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))


def _left_beside(directory: Path) -> list[Path]:
    # All of the name: `.guard-2-abc` belongs to the guard in `guard-2`.
    name = re.compile(rf"\.{re.escape(directory.name)}-\w+")
    return [path for path in directory.parent.glob(".*") if name.fullmatch(path.name)]


def _alone(directory: Path, wait_seconds: float = 0.0) -> AbstractContextManager[None]:
    """Held while anything is written beside `directory`: what lies there is of processes that were killed, in whichever container
    or on whichever machine."""

    def in_use(holder: str) -> GuardError:
        return _WrittenNowError(f"another process (pid {holder}) is writing the guard in {directory}")

    path = directory.with_name(f".{directory.name}.lock")
    return lock_held(path, in_use=in_use, wait_seconds=wait_seconds, stays=False)


class _WrittenNowError(GuardError):
    pass


def _take_over(folders: Iterable[Path], target: Path) -> None:
    """Every file of the folders, which stay as they are: killed before the guard stands, nothing is lost."""
    for path in (path for folder in folders for path in folder.glob("*")):
        copy = ensure_directory(target) / path.name
        if copy.exists():
            continue
        try:
            os.link(path, copy)
        except OSError:  # a file system without hard links
            shutil.copy2(path, copy)


def settle(directory: Path) -> None:
    """Finish or remove what processes killed while they wrote the guard in `directory` have left: where there is none now, the
    newest whole one of theirs takes its place. Nothing while a process writes it, which has done so itself. Raises StorageError.
    """
    if _left_beside(directory):
        with suppress(_WrittenNowError), _alone(directory):
            _settle(directory)


def remove(directory: Path) -> None:
    """The guard in `directory`, and what processes killed while they wrote it have left. Raises as `write` does."""
    with _alone(directory, wait_seconds=_WAIT_SECONDS):
        # Half-written ones first: `settle` would put one in its place.
        for path in (*_left_beside(directory), directory):
            shutil.rmtree(path, ignore_errors=True)


def _settle(directory: Path) -> None:
    with storage_errors("tidy up beside the guard", directory):
        left = _left_beside(directory)
        # guard.json is written last.
        whole = [path for path in left if (path / "guard.json").is_file()]
        if whole and not directory.exists():
            newest = max(whole, key=lambda path: (path / "guard.json").stat().st_mtime_ns)
            newest.chmod(0o755)
            newest.replace(directory)
            sync_directory(directory.parent)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def read(directory: Path) -> dict[str, Any]:
    """The fields of the guard in `directory`. Raises GuardError, GuardMismatchError, StorageError as `Guard.load` does."""
    directory = Path(directory)
    about = _read_description(directory)
    try:
        tensors = {name: load_weights(directory / name, digest=digest) for name, digest in about["files"].items()}
        _check_code(directory, about["versions"])
        _check_detectors(directory, about["detectors"])
        fields = _fields(about, tensors)
        _check_own_code(directory, about["own_code"], fields["detectors"])
        return fields | {"compute": _compute(directory, about["compute"])}
    except KeyError as error:
        raise GuardError(f"the guard in {directory} is damaged: it lacks {error}", hint="fit it again") from error
    except (WireError, ConfigurationError, ModelError, TypeError, ValueError, AttributeError) as error:
        raise GuardError(f"the guard in {directory} is damaged: {error}", hint="fit it again") from error


def release_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of the file that `common.weights.save` would make of these weights. Raises WeightsError."""
    return digest_of(weights)


def description_digest(directory: Path) -> str:
    """SHA-256 (hex) of a guard's guard.json, which names the digests of all its files: the guard's identity."""
    return hashlib.sha256(read_bounded(Path(directory, "guard.json"), _JSON_LIMIT)).hexdigest()


def _tensors(guard: Guard) -> dict[str, Weights]:
    groups = {"owner": guard.owner_finetune}
    groups |= {str(k): reference for k, reference in enumerate(guard.references)}
    groups |= {f"fitting {k}": reference for k, reference in enumerate(guard.fitting)}
    probes = {
        f"{name}/{part}": tensor
        for name, seen in guard.release_probes.items()
        for part, tensor in (("features", seen.features), ("logits", seen.logits))
    }
    return {
        "references.safetensors": {
            f"{key}/{name}": errors for key, one in groups.items() for name, errors in one.image_errors.items()
        },
        "release.safetensors": {
            "calibration.features": guard.release_calibration.features,
            "calibration.logits": guard.release_calibration.logits,
            "evaluation.logits": guard.release_evaluation_logits,
        },
        "triggers.safetensors": _pack("calibration", guard.calibration) | _pack("evaluation", guard.evaluation),
        **({"probes.safetensors": probes} if probes else {}),
        **{f"detector-{name}.safetensors": d.state().tensors for name, d in guard.detectors.items()},
    }


def _describe(guard: Guard, files: Mapping[str, str]) -> bytes:
    about = {
        "format": FORMAT,
        "release_sha256": guard.release_sha256,
        "spec": guard.spec.to_json(),
        "class_names": list(guard.calibration.class_names),
        "head": guard.head,
        "compute": guard.compute.to_json(),
        "options": guard.options.to_json(),
        "finetuning": guard.finetuning.to_json(),
        "detectors": {name: detector.state().options for name, detector in guard.detectors.items()},
        "thresholds": guard.thresholds,
        "owner_finetune": guard.owner_finetune.to_json(),
        "references": [reference.to_json() for reference in guard.references],
        "fitting": [reference.to_json() for reference in guard.fitting],
        "inputs": len(guard.calibration.inputs),
        "key": guard.key,
        "provenance": dict(guard.provenance),
        "usefulness": None if guard.usefulness is None else guard.usefulness.to_json(),
        "versions": dict(guard.versions),
        "own_code": own_code(guard.detectors),
        "files": dict(files),
    }
    return canonical.encode(about | {"sha256": hashlib.sha256(canonical.encode(about)).hexdigest()})


def _read_description(directory: Path) -> dict[str, Any]:
    try:
        about = canonical.parse(read_bounded(directory / "guard.json", _JSON_LIMIT), limit=_JSON_LIMIT, depth=16)
    except WireError as error:
        raise GuardError(f"the guard in {directory} is damaged: {error.message}", hint="fit it again") from error
    if not isinstance(about, dict) or not isinstance(about.get("format"), int):
        raise GuardError(f"{directory / 'guard.json'} does not describe a guard")
    if about["format"] != FORMAT:
        raise GuardError(
            f"the guard in {directory} has format {about['format']}, this version reads format {FORMAT}",
            hint="use the version of Portier that wrote it, or fit the guard again",
        )
    digest = about.pop("sha256", None)
    if digest != hashlib.sha256(canonical.encode(about)).hexdigest():
        raise GuardError(f"{directory / 'guard.json'} was altered after it was written", hint="fit the guard again")
    return about


def _check_code(directory: Path, versions: Mapping[str, str]) -> None:
    if versions.get("detectors") != code_digest("owner.detectors"):
        raise GuardMismatchError(
            f"the guard in {directory} was fitted by other code of detectors (portier {versions.get('portier')}) than this one's: what "
            "its references scored says nothing of what a submission scores now",
            hint="fit it again, or use the version of Portier that wrote it",
        )


def _check_detectors(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        if name not in DETECTORS:
            raise GuardError(
                f"the guard in {directory} holds the detector {name!r}, which this process does not know "
                f"(known: {', '.join(sorted(DETECTORS))})",
                hint="for one of your own: put the module that registers it into the setting guard.modules, or, in Python, call "
                "owner.detectors.register with its class before loading the guard",
            )


def _check_own_code(directory: Path, stored: Mapping[str, str], detectors: Mapping[str, Detector]) -> None:
    for name, digest in own_code(detectors).items():
        # One that was typed in has none.
        if digest and (fitted_by := stored[name]) and digest != fitted_by:
            raise GuardMismatchError(
                f"the guard in {directory} was fitted by another version of the detector {name} "
                f"({type(detectors[name]).__module__}): what its references scored says nothing of what a submission scores now",
                hint="fit it again (portier-owner protect), or put the module back as it was",
            )


def _compute(directory: Path, stored: Mapping[str, Any]) -> Compute:
    whole(stored, Compute, "device and precision")
    try:
        return Compute.from_json(stored)
    except ConfigurationError as error:
        raise GuardMismatchError(
            f"the guard in {directory} was fitted on {stored}, which this machine cannot do: {error.message}",
            hint="fit it again on this machine",
        ) from error


def _fields(about: Mapping[str, Any], tensors: Mapping[str, Weights]) -> dict[str, Any]:
    errors, seen, triggers = (tensors[f"{name}.safetensors"] for name in ("references", "release", "triggers"))
    names, inputs = tuple(about["class_names"]), int(about["inputs"])

    def reference(key: str, data: Mapping[str, Any]) -> Reference:
        mine = {name.partition("/")[2]: e for name, e in errors.items() if name.partition("/")[0] == key}
        return Reference(data["plan"], data["scores"], data["accuracy"], mine)

    return {
        "release_sha256": about["release_sha256"],
        "spec": ModelSpec.from_json(whole(about["spec"], ModelSpec, "the fields of the model")),
        "head": about["head"],
        "options": GuardOptions.from_json(about["options"]),
        "finetuning": TrainingOptions.from_json(whole(about["finetuning"], TrainingOptions, "the training options")),
        "detectors": {
            name: restore(name, DetectorState(tensors[f"detector-{name}.safetensors"], options))
            for name, options in about["detectors"].items()
        },
        "owner_finetune": reference("owner", about["owner_finetune"]),
        "references": tuple(reference(str(k), data) for k, data in enumerate(about["references"])),
        "fitting": tuple(reference(f"fitting {k}", data) for k, data in enumerate(about["fitting"])),
        "calibration": _unpack("calibration", triggers, inputs, names),
        "evaluation": _unpack("evaluation", triggers, inputs, names),
        "release_calibration": Activations(seen["calibration.features"], seen["calibration.logits"]),
        "release_evaluation_logits": seen["evaluation.logits"],
        "release_probes": _unpack_probes(tensors.get("probes.safetensors", {})),
        "key": about["key"],
        "provenance": about["provenance"],
        "usefulness": None if about["usefulness"] is None else Usefulness.from_json(about["usefulness"]),
        "versions": about["versions"],
    }


def _unpack_probes(tensors: Mapping[str, Tensor]) -> dict[str, Activations]:
    names = [name.removesuffix("/logits") for name in tensors if name.endswith("/logits")]
    return {name: Activations(tensors[f"{name}/features"], tensors[f"{name}/logits"]) for name in names}


def _pack(name: str, examples: Examples) -> Weights:
    inputs = {f"{name}.inputs.{i}": tensor for i, tensor in enumerate(examples.inputs)}
    return inputs | {f"{name}.labels": examples.labels}


def _unpack(name: str, tensors: Weights, inputs: int, class_names: tuple[str, ...]) -> Examples:
    found = tuple(tensors[f"{name}.inputs.{i}"] for i in range(inputs))
    return Examples(found, tensors[f"{name}.labels"], class_names)
