"""Randomness by seed and purpose, so that no two uses share a stream and none depends on what ran before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def derived_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed that says nothing about those of other purposes.

    >>> derived_seed(0, "epoch 1") == derived_seed(0, "epoch 2")
    False
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A fresh generator on the CPU."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


@contextmanager
def random_state(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """torch's global random state, which initialisation and dropout draw from, set inside the block and put back after it.

    device: where CUDA, its state too, and cuDNN keeps to deterministic kernels.
    """
    kernels: AbstractContextManager[None] = nullcontext()
    on_cuda = device is not None and device.type == "cuda"
    if on_cuda:
        kernels = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with torch.random.fork_rng(devices=[device] if on_cuda else []), kernels:
        # torch.manual_seed would also move the state of devices that are not ours to restore.
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
