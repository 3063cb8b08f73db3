"""Examples as one safetensors file: how a share of a data set is handed to another process.

Tensors `inputs.0`, `inputs.1` ..., `labels`, and `clients` where it is known whose they are; the metadata hold `format`
("portier-examples-1") and `class_names` (a JSON list). A folder with `train.safetensors` and, optionally, `test.safetensors` is a data set.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.torch

from common.datasets.dataset import DataSet, hold_out
from common.errors import DataError
from common.examples import Examples
from common.files import atomic_writer

FORMAT = "portier-examples-1"
SUFFIX = ".safetensors"


def save_examples(path: Path, examples: Examples) -> None:
    """Write `examples` to `path`, whole or not at all. Raises StorageError where that fails."""
    tensors = {f"inputs.{i}": tensor.cpu().contiguous() for i, tensor in enumerate(examples.inputs)}
    tensors["labels"] = examples.labels.cpu().contiguous()
    if examples.clients is not None:
        tensors["clients"] = examples.clients.cpu().contiguous()
    metadata = {"format": FORMAT, "class_names": json.dumps(examples.class_names, ensure_ascii=False)}
    with atomic_writer(Path(path)) as file:
        file.write(safetensors.torch.save(tensors, metadata))


def load_examples(path: Path) -> Examples:
    """What `save_examples` wrote. Raises DataError where `path` is missing, damaged or something else."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            # Cloned, because what safetensors returns may be a view of a file that somebody rewrites.
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except FileNotFoundError:
        raise DataError(f"there is no examples file {path}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"the examples file {path} cannot be read: {error}") from None
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"{path} holds no examples: its format is {metadata.get('format', 'not stated')!r}, not {FORMAT!r}",
            hint="model weights are safetensors files too; examples are written by save_examples",
        )
    labels, clients = tensors.pop("labels", None), tensors.pop("clients", None)
    inputs = [tensors.pop(f"inputs.{i}", None) for i in range(len(tensors))]
    given = tuple(tensor for tensor in inputs if tensor is not None)
    if labels is None or tensors or not given:
        raise DataError(f"{path} must hold labels and inputs.0, inputs.1 ... (clients perhaps), and nothing else")
    try:
        return Examples(given, labels, _class_names(metadata), clients)
    except (DataError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None


def load_file(path: Path, *, seed: int) -> DataSet:
    """The data set in one examples file; a quarter of each class, by `seed`, becomes the test set."""
    return hold_out(path.stem, load_examples(path), seed=seed)


def load_file_folder(path: Path, *, seed: int) -> DataSet:
    """The data set in `train.safetensors` and `test.safetensors`; without the latter a quarter is held out."""
    train, test = path / f"train{SUFFIX}", path / f"test{SUFFIX}"
    if not test.exists():
        return hold_out(path.name, load_examples(train), seed=seed)
    return DataSet(path.name, load_examples(train), load_examples(test))


def _class_names(metadata: dict[str, str]) -> tuple[str, ...]:
    names = json.loads(metadata.get("class_names", "null"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names must be a JSON list of strings")
    return tuple(names)
