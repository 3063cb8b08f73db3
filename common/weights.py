"""Weights on the wire: loading without trust, writing deterministic files, admission checks on layout and values.

Weights files are safetensors, never pickle. Tensors are made from exactly the bytes whose header was checked: there is
no second parser that could see another file than the first did.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import WeightsError
from common.files import atomic_writer, storage_errors
from common.weights_header import (
    CODES,
    DTYPES,
    LIMITS,
    Header,
    Layout,
    Limits,
    TensorSpec,
    encode_start,
    read_header,
    read_start,
)

__all__ = [
    "DTYPES",
    "LIMITS",
    "Header",
    "Layout",
    "Limits",
    "TensorSpec",
    "Weights",
    "check_digest",
    "check_layout",
    "check_values",
    "digest_file",
    "digest_of",
    "layout_of",
    "load",
    "read_header",
    "save",
    "weights_of",
]

Weights = dict[str, Tensor]


def load(path: Path, *, limits: Limits = LIMITS, digest: str | None = None) -> Weights:
    """The tensors of a safetensors file, in memory of their own (later changes to the file do not reach them).

    digest: SHA-256 (hex) that the file must have, of the very bytes the tensors are made from.
    Raises WeightsError as `read_header` does, NON_BOOLEAN and DIGEST_MISMATCH; StorageError.
    """
    with _open(path) as file:
        header, start = read_start(file, os.fstat(file.fileno()).st_size, limits)
        hasher = hashlib.sha256(start) if digest is not None else None
        weights = {}
        for name, spec in header.layout.items():
            begin, end = header.offsets[name]
            raw = torch.empty(end - begin, dtype=torch.uint8)
            view = raw.numpy().data
            # A buffered file fills the whole buffer unless it ends first.
            if file.readinto(view) != len(view):
                raise WeightsError("FILE_TOO_SHORT", f"{path} became shorter while it was read")
            if hasher is not None:
                hasher.update(view)
            # Any other byte in a bool is undefined behaviour in what computes with it.
            if spec.dtype == torch.bool and raw.numel() and int(raw.max()) > 1:
                raise WeightsError("NON_BOOLEAN", f"tensor {name} is bool and holds a byte other than 0 and 1")
            weights[name] = raw.view(spec.dtype).reshape(spec.shape)
    if hasher is not None and hasher.hexdigest() != digest:
        raise _digest_mismatch(path, hasher.hexdigest(), str(digest))
    return weights


def save(
    path: Path, weights: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None, limits: Limits = LIMITS
) -> str:
    """Writes weights atomically; returns the SHA-256 (hex) of the file.

    The same weights give the same bytes, whatever the order of the dict, the strides or the device: tensors lie by
    falling element size, then by name, so each is aligned. Tied tensors are written once per name.
    Raises WeightsError UNSUPPORTED_TENSOR for what the format cannot hold or `load` would refuse; StorageError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest = save(Path(folder, "w.safetensors"), {"bias": torch.zeros(2)})
    ...     load(Path(folder, "w.safetensors"), digest=digest)
    {'bias': tensor([0., 0.])}
    """
    hasher = hashlib.sha256()
    pieces = _pieces(weights, metadata or {}, limits)
    with atomic_writer(path) as file:
        for piece in pieces:
            hasher.update(piece)
            file.write(piece)
    return hasher.hexdigest()


def digest_of(weights: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> str:
    """SHA-256 (hex) of the file that `save` would write, without writing it. Raises WeightsError UNSUPPORTED_TENSOR."""
    hasher = hashlib.sha256()
    for piece in _pieces(weights, metadata or {}, LIMITS):
        hasher.update(piece)
    return hasher.hexdigest()


def weights_of(model: nn.Module) -> Weights:
    """The model's parameters and buffers by name: copies on the CPU, which later training leaves alone.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> kept = weights_of(model)
    >>> _ = nn.init.constant_(model.weight, 9.0)
    >>> bool((kept["weight"] == 9.0).any())
    False
    """
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """Names, dtypes and shapes of weights or a `state_dict`.

    >>> layout_of({"w": torch.zeros(2, 3)})
    {'w': TensorSpec(dtype=torch.float32, shape=(2, 3))}
    """
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def check_layout(header: Header | Layout, expected: Layout) -> None:
    """Raises WeightsError TENSOR_MISSING, TENSOR_EXTRA, SHAPE_MISMATCH or DTYPE_MISMATCH, the first that applies; the
    message names every tensor that is wrong and how."""
    found = header.layout if isinstance(header, Header) else header
    common = sorted(found.keys() & expected.keys())
    problems = [("TENSOR_MISSING", f"{name} is missing") for name in sorted(expected.keys() - found.keys())]
    problems += [("TENSOR_EXTRA", f"{name} does not belong") for name in sorted(found.keys() - expected.keys())]
    problems += [
        ("SHAPE_MISMATCH", f"{name} has shape {list(found[name].shape)}, not {list(expected[name].shape)}")
        for name in common
        if found[name].shape != expected[name].shape
    ]
    problems += [
        ("DTYPE_MISMATCH", f"{name} is {CODES.get(found[name].dtype)}, not {CODES.get(expected[name].dtype)}")
        for name in common
        if found[name].dtype != expected[name].dtype
    ]
    if problems:
        shown = "; ".join(text for _, text in problems[:20])
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise WeightsError(problems[0][0], f"the weights do not fit the model: {shown}{more}")


def check_values(weights: Mapping[str, Tensor], *, limits: Limits = LIMITS) -> None:
    """Every float finite and within `limits.magnitude`, BatchNorm's variances and counters not negative.

    One pass per tensor, no copies. Raises WeightsError NON_FINITE, MAGNITUDE, NEGATIVE_VARIANCE or NEGATIVE_COUNTER,
    naming the tensor.
    """
    for name, tensor in weights.items():
        if not tensor.numel() or tensor.dtype == torch.bool:
            continue
        # aminmax hands NaN on, so two numbers tell all there is to ask about a tensor.
        low, high = (float(value) for value in torch.aminmax(tensor.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise WeightsError("NON_FINITE", f"tensor {name} holds NaN or infinity")
        if tensor.is_floating_point() and max(-low, high) > limits.magnitude:
            raise WeightsError(
                "MAGNITUDE", f"tensor {name} holds {low if -low > high else high:g}, the limit is {limits.magnitude:g}"
            )
        if low < 0 and name.rpartition(".")[2] == "running_var":
            raise WeightsError("NEGATIVE_VARIANCE", f"tensor {name} is a variance and holds {low:g}")
        if low < 0 and name.rpartition(".")[2] == "num_batches_tracked":
            raise WeightsError("NEGATIVE_COUNTER", f"tensor {name} is a counter and holds {low:g}")


def digest_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read in blocks. Raises StorageError."""
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, expected: str) -> None:
    """Raises WeightsError DIGEST_MISMATCH, StorageError."""
    found = digest_file(path)
    if found != expected:
        raise _digest_mismatch(path, found, expected)


def _pieces(weights: Mapping[str, Tensor], metadata: Mapping[str, str], limits: Limits) -> Iterator[bytes | memoryview]:
    """The bytes of the file: its header, then one tensor at a time."""
    if sys.byteorder != "little":
        raise WeightsError("UNSUPPORTED_TENSOR", "weights are little endian; this machine is not")
    order = sorted(weights, key=lambda name: (-weights[name].element_size(), name))
    start, file_bytes = encode_start({name: weights[name] for name in order}, metadata)
    try:
        read_header(start, limits, file_bytes=file_bytes)
    except WeightsError as error:
        raise WeightsError("UNSUPPORTED_TENSOR", f"these weights have no file form: {error.message}") from None
    yield start
    for name in order:
        flat = weights[name].detach().to("cpu").contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


@contextmanager
def _open(path: Path) -> Iterator[BufferedReader]:
    with storage_errors("read the weights", path), Path(path).open("rb") as file:
        yield file


def _digest_mismatch(path: Path, found: str, expected: str) -> WeightsError:
    return WeightsError("DIGEST_MISMATCH", f"{path} has SHA-256 {found[:12]}..., not {expected[:12]}... as declared")
