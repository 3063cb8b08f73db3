"""The header of a safetensors file, read strictly: each thing is bounded before it is paid for.

A safetensors file is: 8 bytes, the header's length n, little endian; n bytes of JSON, `{"name": {"dtype", "shape",
"data_offsets": [begin, end]}, ...}`, padded with spaces, offsets counted from the end of the header; then the tensors,
little endian, row-major, without a gap (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import torch
from torch import Tensor

from common import canonical
from common.errors import WeightsError, WireError
from common.files import storage_errors

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES: Final = {dtype: code for code, dtype in DTYPES.items()}
_FIELDS: Final = {"dtype", "shape", "data_offsets"}
_DEPTH: Final = 3  # object, tensor, shape
# A safetensors file can begin with these bytes too, so they count only where the header is impossible.
_OTHERS: Final[Mapping[bytes, str]] = {
    b"PK\x03\x04": "a zip archive, as torch.save writes it,",
    b"\x80\x02": "a pickle, as old versions of torch.save write it,",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
}
_CONVERT: Final = (
    "Portier unpickles nothing: a pickle runs code. Where you built the model, write its weights by "
    'safetensors.torch.save_file(model.state_dict(), "model.safetensors")'
)


@dataclass(frozen=True)
class Limits:
    """What a file may cost before it is refused. The largest model named in this package, resnet152, has 932 tensors, a
    header of 83 KiB and 233 MB.

    file_bytes: of the whole file (8 GiB).
    header_bytes: of the JSON (1 MiB); parsing takes at most some 30 times that in memory.
    tensors: how many (16,384).
    name_length: characters of a tensor name (255).
    dimensions: of one tensor (8).
    metadata_entries: strings in `__metadata__` (64).
    magnitude: of a floating-point value (1e15): its square is finite in float32 and bfloat16, even summed over 10^8
        terms. Honest weights stay many orders below, and variances of unscaled inputs still fit. What passes and
        overflows later all the same shows as a non-finite activation in vetting, and is rejected there.
    """

    file_bytes: int = 8 << 30
    header_bytes: int = 1 << 20
    tensors: int = 16_384
    name_length: int = 255
    dimensions: int = 8
    metadata_entries: int = 64
    magnitude: float = 1e15


LIMITS: Final = Limits()


class TensorSpec(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]


Layout = dict[str, TensorSpec]


@dataclass(frozen=True)
class Header:
    """A header that holds: every offset is where it must be, and the file has exactly the bytes it speaks of.

    layout: name -> dtype and shape, in the order of the data.
    offsets: name -> (begin, end), counted from `data_start`.
    data_start: first byte of the data in the file.
    file_bytes: length of the whole file.
    """

    layout: Layout
    offsets: dict[str, tuple[int, int]]
    metadata: dict[str, str]
    data_start: int
    file_bytes: int


def read_header(source: Path | bytes, limits: Limits = LIMITS, *, file_bytes: int | None = None) -> Header:
    """The validated header of a safetensors file.

    source: the file, or its first bytes (at least the header; `file_bytes` then gives the length of the whole).
    Raises WeightsError FILE_TOO_LONG, FILE_TOO_SHORT, HEADER_TOO_LONG, HEADER_MALFORMED, TOO_MANY_TENSORS,
    OFFSETS_INVALID; StorageError where the file cannot be read.
    """
    if isinstance(source, bytes):
        return read_start(BytesIO(source), len(source) if file_bytes is None else file_bytes, limits)[0]
    with storage_errors("read the weights", source), Path(source).open("rb") as file:
        return read_start(file, os.fstat(file.fileno()).st_size, limits)[0]


def read_start(file: BinaryIO, file_bytes: int, limits: Limits) -> tuple[Header, bytes]:
    """The validated header, and the bytes it was read from; `file` stands at the first byte of the data afterwards."""
    if file_bytes > limits.file_bytes:
        raise WeightsError("FILE_TOO_LONG", f"the file has {file_bytes} bytes, the limit is {limits.file_bytes}")
    prefix = file.read(8)
    if len(prefix) < 8:
        raise WeightsError("FILE_TOO_SHORT", f"a safetensors file has at least 8 bytes, this one {len(prefix)}")
    length = int.from_bytes(prefix, "little")
    if length > limits.header_bytes:
        raise _no_header(
            "HEADER_TOO_LONG", prefix, f"the header claims {length} bytes, the limit is {limits.header_bytes}"
        )
    if length > file_bytes - 8:
        claim = f"the header claims {length} bytes, the file has {file_bytes - 8} after it"
        raise _no_header("FILE_TOO_SHORT", prefix, claim)
    text = file.read(length)
    if len(text) < length:
        raise WeightsError("FILE_TOO_SHORT", f"the file ends within its header of {length} bytes")
    metadata, tensors = _parse(text, limits)
    layout, offsets = _lay_out(tensors, file_bytes - 8 - length, limits)
    return Header(layout, offsets, metadata, 8 + length, file_bytes), prefix + text


def encode_start(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """Length and header for tensors lying in the order of `weights`, and the length of the whole file.

    Padded with spaces to a multiple of 8, so that the first tensor is aligned. Raises WeightsError UNSUPPORTED_TENSOR.
    """
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, tensor in weights.items():
        if tensor.dtype not in CODES or tensor.layout != torch.strided or tensor.is_meta or name == "__metadata__":
            raise WeightsError(
                "UNSUPPORTED_TENSOR",
                f"tensor {name} ({tensor.dtype}, {tensor.layout}, {tensor.device}) has no form in a weights file",
            )
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + end


def _parse(text: bytes, limits: Limits) -> tuple[dict[str, str], dict[str, Any]]:
    """Metadata and the still unchecked tensor entries."""
    if not text.startswith(b"{"):
        raise _malformed("it must be a JSON object from its first byte")
    try:
        entries = canonical.parse(text, limit=limits.header_bytes, depth=_DEPTH)
    except WireError as error:
        raise _malformed(error.message) from None
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed("__metadata__ must map strings to strings")
    if len(metadata) > limits.metadata_entries:
        raise _malformed(f"__metadata__ has {len(metadata)} entries, the limit is {limits.metadata_entries}")
    if len(entries) > limits.tensors:
        raise WeightsError("TOO_MANY_TENSORS", f"the file has {len(entries)} tensors, the limit is {limits.tensors}")
    return metadata, entries


def _lay_out(tensors: Mapping[str, Any], data_bytes: int, limits: Limits) -> tuple[Layout, dict[str, tuple[int, int]]]:
    """Checks every entry, then that the tensors cover the data exactly, one after the other."""
    checked = [(*_offsets(name, entry), name, _spec(name, entry, limits)) for name, entry in tensors.items()]
    layout: Layout = {}
    offsets: dict[str, tuple[int, int]] = {}
    at = 0
    for begin, end, name, spec in sorted(checked, key=lambda item: item[:3]):
        if begin != at:
            how = "overlaps the one before" if begin < at else "leaves a gap before it"
            raise WeightsError("OFFSETS_INVALID", f"tensor {name} begins at {begin}, not at {at}: it {how}")
        needed = math.prod(spec.shape) * spec.dtype.itemsize
        if end - begin != needed:
            raise WeightsError("OFFSETS_INVALID", f"tensor {name} needs {needed} bytes, its offsets give {end - begin}")
        if end > data_bytes:
            raise WeightsError("FILE_TOO_SHORT", f"tensor {name} ends at {end}, the data have {data_bytes} bytes")
        layout[name], offsets[name], at = spec, (begin, end), end
    if at != data_bytes:
        raise WeightsError("FILE_TOO_LONG", f"{data_bytes - at} bytes follow the last tensor")
    return layout, offsets


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _malformed(f"entry {name[:80]!a} must have exactly the fields {', '.join(sorted(_FIELDS))}")
    offsets = entry["data_offsets"]
    if not _sizes(offsets, 2) or len(offsets) != 2:
        raise _malformed(f"entry {name[:80]!a}: data_offsets must be two integers from 0")
    begin, end = offsets
    if begin > end:
        raise WeightsError("OFFSETS_INVALID", f"tensor {name[:80]!a} ends at {end}, before it begins at {begin}")
    return begin, end


def _spec(name: str, entry: dict[str, Any], limits: Limits) -> TensorSpec:
    # isprintable also keeps out control characters and lone surrogates: names go into logs and onto terminals.
    if not 0 < len(name) <= limits.name_length or not name.isprintable():
        raise _malformed(f"{name[:80]!a} is not a tensor name (1 to {limits.name_length} printable characters)")
    dtype, shape = entry["dtype"], entry["shape"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _malformed(f"tensor {name}: dtype must be one of {', '.join(DTYPES)}")
    if not _sizes(shape, limits.dimensions):
        raise _malformed(f"tensor {name}: shape must be at most {limits.dimensions} integers from 0")
    # Zeros left out: torch multiplies the other sizes of an empty tensor into its strides.
    if math.prod(size for size in shape if size) >= 1 << 60:
        raise _malformed(f"tensor {name}: the sizes of its shape multiply to 2^60 or more")
    return TensorSpec(DTYPES[dtype], tuple(shape))


def _sizes(value: Any, most: int) -> bool:
    """Whether `value` is a list of at most `most` integers, each from 0 (bool is an int in Python, not in JSON)."""
    return isinstance(value, list) and len(value) <= most and all(type(size) is int and size >= 0 for size in value)


def _no_header(code: str, prefix: bytes, why: str) -> WeightsError:
    """What a file is that has no safetensors header, where its first bytes tell. Nothing of it is unpacked."""
    kind = next((kind for magic, kind in _OTHERS.items() if prefix.startswith(magic)), None)
    if kind is None:
        return WeightsError(code, why)
    return WeightsError(code, f"this is {kind} and no safetensors file", hint=_CONVERT)


def _malformed(why: str) -> WeightsError:
    return WeightsError("HEADER_MALFORMED", f"the safetensors header is malformed: {why}")
