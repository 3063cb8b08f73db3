"""Training that survives its process: model and optimiser after a whole epoch, in one safetensors file.

The file is replaced in one step, so that a kill at any moment leaves the previous epoch's. Its metadata, under the one key
`portier`, are JSON: format version, epochs done, their losses, and a fingerprint of what is being trained. Random state is
not among them: the training loop draws each epoch's from (seed, epoch) alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from common.errors import ModelError, StorageError
from common.examples import Examples
from common.files import write_atomically
from common.training_options import TrainingOptions

FORMAT = 1
FILE_NAME = "training.safetensors"
_HASHED_ROWS = 4096


@dataclass(frozen=True)
class Checkpoint:
    """Where a training's state is kept.

    path: a file, or an existing directory, in which it is `training.safetensors`.
    fingerprint: of the training; a file with another one is not resumed.
    """

    path: Path
    fingerprint: str

    @classmethod
    def at(cls, path: Path, model: nn.Module, examples: Examples, options: TrainingOptions, device: str) -> Checkpoint:
        """The checkpoint of training this model, as it is now, on these examples. Of large data, 4096 rows are hashed."""
        digest = hashlib.sha256(json.dumps([FORMAT, device, options.to_json()], sort_keys=True).encode())
        step = max(1, len(examples) // _HASHED_ROWS)
        columns = [("labels", examples.labels), *((str(i), t[::step]) for i, t in enumerate(examples.inputs))]
        for name, tensor in (*columns, *model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(_bytes(tensor))
        return cls(path / FILE_NAME if path.is_dir() else path, digest.hexdigest())

    def save(self, model: nn.Module, optimiser: torch.optim.Optimizer, losses: list[float]) -> None:
        """Raises StorageError where the file cannot be written; the previous one is then still there."""
        tensors = {f"model.{name}": t.detach().contiguous() for name, t in _unshared(model).items()}
        scalars: dict[str, dict[str, Any]] = {}
        for i, state in optimiser.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{i}.{key}"] = value.contiguous()
                elif value is not None:
                    scalars.setdefault(str(i), {})[key] = value
        about = {"format": FORMAT, "fingerprint": self.fingerprint, "losses": losses, "optimiser": scalars}
        write_atomically(self.path, safetensors.torch.save(tensors, {"portier": json.dumps(about)}))

    def resume(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> list[float]:
        """Puts the saved state into model and optimiser and returns the losses of the epochs done; [] without a file.

        Raises StorageError where the file cannot be read, ModelError where it belongs to another training.
        """
        if not self.path.exists():
            return []
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["portier"])
                # Cloned: what safetensors returns may be a view of the file, and the optimiser changes its state in place.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
            fingerprint, losses, scalars = about["fingerprint"], list(about["losses"]), about["optimiser"]
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"the checkpoint {self.path} cannot be read: {error}", hint="delete it to start the training over"
            ) from error
        if about.get("format") != FORMAT or fingerprint != self.fingerprint:
            raise ModelError(
                f"the checkpoint {self.path} belongs to another training: other starting weights, examples, options or device",
                hint="delete it, or name another checkpoint",
            )
        with torch.no_grad():
            for name, target in _unshared(model).items():
                target.copy_(tensors[f"model.{name}"])
        _restore(optimiser, tensors, scalars)
        return [float(loss) for loss in losses]


def _restore(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in scalars.items()}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimiser":
            index, _, key = rest.partition(".")
            # Fused steps walk through parameter and state side by side, so both must lie in memory in the same order.
            like = parameters[int(index)]
            value = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            states.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})


def _unshared(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with tied weights once: safetensors stores no tensor twice."""
    seen: set[tuple[int, torch.Size, int]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.storage_offset())
        if tensor.numel() == 0 or key not in seen:
            kept[name] = tensor
        seen.add(key)
    return kept


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
