"""What the cells of a comparison would all make again: kept by what it follows from, as long as there is room."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

Made = TypeVar("Made")

_ROUGHLY_NOTHING = 1024
"""Bytes that are counted for a thing beside its tensors."""


@dataclass(frozen=True)
class _Kept:
    value: Any
    seconds: float
    size: int


class Memory:
    """Results by what they follow from; the one longest not asked for goes first when there are more than `megabytes`.

    A key must hold all that a result depends on, and nobody may change a result.

    >>> memory = Memory(1)
    >>> memory.get("two", lambda: 1 + 1), memory.get("two", lambda: 3)
    (2, 2)
    """

    def __init__(self, megabytes: float) -> None:
        self._room = int(megabytes * (1 << 20))
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._used = 0
        self._saved = 0.0

    def get(self, key: Hashable, make: Callable[[], Made], *, size: Callable[[Made], int] = lambda _made: 0) -> Made:
        """What `make` gave for `key`, or gives now. size: bytes of it. What `make` raises is not kept."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            self._saved += found.seconds
            made: Made = found.value
            return made
        started = self.clock()
        made = make()
        self._keep(key, _Kept(made, self.clock() - started, size(made) + _ROUGHLY_NOTHING))
        return made

    def clock(self) -> float:
        """Seconds, to be taken the difference of: what is recalled counts what it took to make, so that a strategy's
        cost does not depend on who came before it."""
        return time.perf_counter() + self._saved

    def _keep(self, key: Hashable, kept: _Kept) -> None:
        if kept.size > self._room:
            return
        self._kept[key] = kept
        self._used += kept.size
        while self._used > self._room:
            self._used -= self._kept.popitem(last=False)[1].size


_memory = Memory(0)


def memory() -> Memory:
    """That of this process; it keeps nothing outside of `remembering`."""
    return _memory


def remember(megabytes: float) -> Memory:
    """From now on; for a process that does nothing else. See `remembering`."""
    global _memory  # noqa: PLW0603 - of the process: Flower runs server and clients where no argument reaches
    _memory = Memory(megabytes)
    return _memory


@contextlib.contextmanager
def remembering(megabytes: float = 1024) -> Iterator[Memory]:
    """Within it, federations of this process share what they have in common. It changes no figure but seconds of waiting."""
    global _memory  # noqa: PLW0603
    before = _memory
    try:
        yield remember(megabytes)
    finally:
        _memory = before


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Of names, shapes, dtypes and values.

    >>> import torch
    >>> digest_of({"w": torch.ones(2)}) == digest_of({"w": torch.ones(2).clone()}) != digest_of({"w": torch.ones(1, 2)})
    True
    """
    hasher = hashlib.blake2b(digest_size=16)
    for name, tensor in weights.items():
        array = tensor.detach().cpu().contiguous().numpy()
        hasher.update(f"{name} {array.dtype} {array.shape} ".encode())
        hasher.update(array.reshape(-1).view("uint8").data)
    return hasher.hexdigest()


def digest_of_content(content: RecordDict) -> str:
    """Of all that a message says."""
    hasher = hashlib.blake2b(digest_size=16)
    for key, record in content.items():
        hasher.update(f"{key} {type(record).__name__} ".encode())
        if isinstance(record, ArrayRecord):
            for name, array in record.items():
                hasher.update(f"{name} {array.dtype} {array.shape} {len(array.data)} ".encode())
                hasher.update(array.data)
        else:
            hasher.update(repr(sorted(record.items())).encode())
    return hasher.hexdigest()


def size_of(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in weights.values())


def size_of_content(content: RecordDict) -> int:
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())
