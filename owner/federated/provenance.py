"""What the figures of a cell follow from beside its values: code, the data at hand, precision and machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from common.code import code_digest
from common.datasets import load
from common.devices import choose_compute, device_name
from common.examples import Examples
from common.specs import split_own
from owner.federated.config import FederationConfig

_PACKAGES: Final = ("common", "contributor.attacks", "owner.detectors", "owner.federated", "owner.gatekeeper")
_MODULES: Final = ("contributor.federated", "contributor.finetuning", "owner.population")
"""What else decides a cell, of packages whose other modules do not: commands and connections."""

_DIGITS: Final = 12


@functools.cache
def code(*own: str) -> str:
    """Of all that decides a cell's figures (hex), as it is at the first call. own: modules of somebody's own, which count without what
    they import.

    >>> code() == code("json")
    False
    """
    hasher = hashlib.sha256(code_digest(*_PACKAGES).encode())
    for module in dict.fromkeys((*_MODULES, *own)):
        text = _source(module)
        hasher.update(f"{module} {len(text)}\n".encode() + text)
    return hasher.hexdigest()[:_DIGITS]


def code_of(config: FederationConfig | None) -> str:
    """`code`, with the cell's ClientApp and attack, where they are somebody's own; of a cell that cannot be configured without."""
    if config is None:
        return code()
    attack = split_own(config.attack)
    return code(config.client_app, *([attack[0]] if attack else []))


def environment(config: FederationConfig) -> dict[str, Any]:
    """JSON: code, versions, and what the owner's side of the cell computes on and in which precision. Raises what `choose_compute` does."""
    compute = choose_compute(config.device, config.precision)
    return software(config) | {**compute.to_json(), "device": device_name(compute)}


def software(config: FederationConfig | None) -> dict[str, Any]:
    """The part of `environment` that a cell has, too, that cannot be configured."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "code": code_of(config),
    }


def data_digest(config: FederationConfig) -> str:
    """Of the whole data set as it is decoded here, whatever part of it a cell uses (hex); of one that each seed generates anew, of what
    seed 0 gives, which tells one generator from another. Raises DataError, UnknownNameError."""
    return _data_digest(config.data, config.data_dir or os.environ.get("PORTIER_DATA", ""))


# One of a process mostly, for it stays with a data set; the command itself looks at each.
@functools.lru_cache(maxsize=32)
def _data_digest(data: str, folder: str) -> str:
    found = load(data, data_dir=Path(folder) if folder else None)
    hasher = hashlib.sha256()
    for part, groups in ((found.train, found.train_groups), (found.test, found.test_groups)):
        _update(hasher, part, groups)
    return hasher.hexdigest()[:_DIGITS]


def _update(hasher: hashlib._Hash, examples: Examples, groups: Tensor | None) -> None:
    hasher.update(repr(examples.class_names).encode())
    for tensor in (*examples.inputs, examples.labels, examples.clients, groups):
        if tensor is not None:
            hasher.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
            hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _source(module: str) -> bytes:
    """b"" of one that has no file."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return b""
    path = Path(found.origin) if found is not None and found.origin else None
    return path.read_bytes() if path is not None and path.is_file() else b""
