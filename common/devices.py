"""Where a model runs and in which precision: the device, and the dtype that autocast uses on it."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import ConfigurationError, UnknownNameError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """A device, and the dtype of its matrix products: float32, or bfloat16 under autocast (weights stay float32).

    Activations compare only between equal `Compute`s: a guard stores the one it was fitted with.

    >>> Compute(torch.device("cpu"), torch.float32).to_json()
    {'device': 'cpu', 'dtype': 'float32'}
    """

    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in PRECISIONS.values():
            raise ConfigurationError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.dtype}")

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which matrix products and convolutions run in `dtype`."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @property
    def channels_last(self) -> bool:
        """Whether images are faster as (N, H, W, C) in memory: on a CPU, and where a GPU's bfloat16 convolutions are native."""
        return self.device.type == "cpu" or (self.dtype == torch.bfloat16 and self.device.type == "cuda")

    def to_json(self) -> dict[str, str]:
        return {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Compute:
        """The inverse of `to_json`. Raises UnknownNameError or ConfigurationError for what this machine does not have."""
        try:
            device, dtype = str(data["device"]), str(data["dtype"])
        except KeyError as missing:
            raise ConfigurationError(f"a stored compute lacks its {missing}") from None
        return choose_compute(device, dtype)


def choose_compute(device: str = "auto", precision: str = "auto") -> Compute:
    """The device and precision to use; "auto" takes the fastest that this machine runs natively.

    device: auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, mps ...
    precision: auto, float32 or bfloat16. auto is bfloat16 on a CPU with AMX or AVX512-BF16 and on a CUDA device that
        supports it, float32 elsewhere: emulated bfloat16 is slower than float32.

    Raises UnknownNameError for a precision or kind of device that does not exist, ConfigurationError for a device that
    this machine does not have.

    >>> choose_compute("cpu", "float32").channels_last
    True
    """
    chosen = _find_device(device)
    if precision == "auto":
        return Compute(chosen, torch.bfloat16 if _native_bfloat16(chosen) else torch.float32)
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, ["auto", *PRECISIONS])
    return Compute(chosen, PRECISIONS[precision])


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UnknownNameError("device", name, ["auto", "cpu", "cuda", "mps"]) from None
    if device.type == "meta":
        raise ConfigurationError("device 'meta' holds no numbers", hint="use auto or cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ConfigurationError(
            f"device {name!r} cannot be used on this machine: {reason}", hint="use auto or cpu"
        ) from None
    return device


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return _cpu_has("amx_bf16", "_is_amx_tile_supported") or _cpu_has("avx512_bf16", "_is_avx512_bf16_supported")
    return False


def _cpu_has(capability: str, older_probe: str) -> bool:
    """torch has no public probe in every release Portier supports; an absent one means "no", which costs speed alone."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return bool(capabilities().get(capability, False))
    probe = getattr(torch.cpu, older_probe, None)
    return bool(probe()) if probe is not None else False


def without_waiting(draws: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device. Out of pageable memory the host would wait for all that a GPU has still to do."""
    return draws.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else draws.to(device)


@functools.cache
def keep_freed_memory() -> None:
    """Lets this process keep up to 1 GiB of freed memory instead of handing every large block back to the system.

    glibc maps a tensor of more than 128 KiB anew each time it is made, and the kernel then clears its pages one fault at a
    time: 14 of 78 ms of CPU time a training step of the paper's CNN. Does nothing outside glibc, or where the user
    set malloc's options.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def device_name(compute: Compute) -> str:
    """What the maker calls it."""
    if compute.device.type == "cuda":
        return str(torch.cuda.get_device_name(compute.device))
    return f"{os.cpu_count()} x {_cpu_name()}" if compute.device.type == "cpu" else str(compute.device)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text("utf-8") if cpuinfo.exists() else "", re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()
