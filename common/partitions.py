"""Dividing a data set among contributors: evenly, by Dirichlet class mixes, a few classes each, or as the data come divided.

`iid` and `dirichlet` give the same indices as flwr-datasets' partitioners at the same seed, so that the Flower side
and ours hand out the same shares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigurationError, DataError
from common.examples import Examples
from common.specs import choose, from_options, in_range, split_spec

ATTEMPTS = 11


def iid(labels: Tensor, count: int, seed: int) -> list[Tensor]:
    """`count` shares of equal size (to one), drawn at random. labels: (N,). Returns int64 index tensors.

    >>> [len(share) for share in iid(torch.zeros(10), 3, seed=0)]
    [4, 3, 3]

    Raises ConfigurationError where there are fewer examples than shares.
    """
    _check_count(labels, count)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [torch.from_numpy(share) for share in np.array_split(order, count)]


def dirichlet(labels: Tensor, count: int, alpha: float, seed: int, min_size: int = 10) -> list[Tensor]:
    """Each class is divided by proportions drawn from a symmetric Dirichlet(alpha) (Hsu, Qi, Brown 2019).

    A small alpha leaves each share few classes, a large one approaches `iid`. Drawn anew, up to 11 times, until every
    share holds at least `min_size` examples; DataError where that does not happen.
    """
    _check_count(labels, count)
    in_range("dirichlet", "alpha", alpha, 1e-6, 1e6)
    generator = np.random.default_rng(seed)
    targets = labels.cpu().numpy()
    members = [np.flatnonzero(targets == label) for label in np.unique(targets)]
    for _ in range(ATTEMPTS):
        parts: list[list[np.ndarray]] = [[] for _ in range(count)]
        for indices in members:
            proportions = generator.dirichlet(np.full(count, float(alpha)))
            cuts = (np.cumsum(proportions) * len(indices)).astype(int)[:-1]
            for part, piece in zip(parts, np.split(indices, cuts), strict=True):
                part.append(piece)
        shares = [np.concatenate(part) for part in parts]
        if min(len(share) for share in shares) >= min_size:
            return [_shuffled(share, generator) for share in shares]
    raise DataError(
        f"no division of {len(labels)} examples among {count} with alpha={alpha:g} gave each at least {min_size}",
        hint="raise alpha, lower min_size or divide among fewer",
    )


def pathological(labels: Tensor, count: int, classes_each: int, seed: int) -> list[Tensor]:
    """Each share holds `classes_each` classes and nothing else (McMahan et al. 2017, "pathological non-IID").

    Classes are dealt round from a random order, so all are given out and none is held by more than one share more
    than another; the holders of a class have equal parts of it.

    Raises ConfigurationError where a share cannot have that many classes, or some class would go to nobody.
    """
    _check_count(labels, count)
    generator = np.random.default_rng(seed)
    targets = labels.cpu().numpy()
    present = np.unique(targets)
    in_range("pathological", "classes", classes_each, 1, len(present))
    if count * classes_each < len(present):
        raise ConfigurationError(
            f"pathological: {count} shares of {classes_each} classes leave some of {len(present)} classes to nobody",
            hint=f"give each at least {-(-len(present) // count)} classes",
        )
    dealt = generator.permutation(present)
    held = [{int(dealt[(i * classes_each + k) % len(dealt)]) for k in range(classes_each)} for i in range(count)]
    parts: list[list[np.ndarray]] = [[] for _ in range(count)]
    for label in present:
        holders = [i for i in range(count) if int(label) in held[i]]
        indices = np.flatnonzero(targets == label)
        if len(indices) < len(holders):
            raise DataError(f"class {label} has {len(indices)} examples, too few for the {len(holders)} who share it")
        for holder, piece in zip(holders, np.array_split(_permuted(indices, generator), len(holders)), strict=True):
            parts[holder].append(piece)
    return [_shuffled(np.concatenate(part), generator) for part in parts]


def natural(clients: Tensor | None, count: int, seed: int) -> list[Tensor]:
    """Each share is what one client of the data set has, in the order of the clients' numbers. clients: (N,) int64.

    Where there are fewer shares than clients, whole clients are dealt round in a random order.

    >>> [share.tolist() for share in natural(torch.tensor([7, 2, 7, 2]), 2, seed=0)]
    [[1, 3], [0, 2]]

    Raises DataError where nobody knows whose the examples are, ConfigurationError where there are more shares than clients.
    """
    if clients is None:
        raise DataError(
            "natural: these data do not say whose each example is",
            hint="take a data set that comes divided (synthetic, vehicle-sensors, a `client` column), or another partition",
        )
    present = np.unique(clients.cpu().numpy())
    if not 1 <= count <= len(present):
        raise ConfigurationError(
            f"natural: the examples are of {len(present)} clients and can be divided among 1 to {len(present)}, not {count}"
        )
    if count < len(present):
        present = np.random.default_rng(seed).permutation(present)
    whose = clients.cpu().numpy()
    return [torch.from_numpy(np.flatnonzero(np.isin(whose, present[i::count]))) for i in range(count)]


@dataclass(frozen=True)
class Partition(ABC):
    """Share number `index` (from 0) of `count`, for someone who holds the whole data set and takes only their part."""

    name: ClassVar[str]

    index: int
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        in_range(self.name, "count", self.count, 1, 1_000_000)
        in_range(self.name, "index", self.index, 0, self.count - 1)
        in_range(self.name, "seed", self.seed, 0, (1 << 63) - 1)

    @abstractmethod
    def divide(self, labels: Tensor, clients: Tensor | None = None) -> list[Tensor]:
        """All `count` shares, as index tensors. labels, clients: (N,), as `Examples` has them."""

    def apply(self, examples: Examples) -> Examples:
        """The examples of share `index`."""
        return examples.take(self.divide(examples.labels, examples.clients)[self.index])

    def __str__(self) -> str:
        """The specification `parse_partition` reads back."""
        return f"{self.name}:" + ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


@dataclass(frozen=True)
class Iid(Partition):
    name = "iid"

    def divide(self, labels: Tensor, clients: Tensor | None = None) -> list[Tensor]:
        return iid(labels, self.count, self.seed)


@dataclass(frozen=True)
class Dirichlet(Partition):
    name = "dirichlet"

    alpha: float = 0.5
    min_size: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self.name, "alpha", self.alpha, 1e-6, 1e6)
        in_range(self.name, "min_size", self.min_size, 0, 1 << 40)

    def divide(self, labels: Tensor, clients: Tensor | None = None) -> list[Tensor]:
        return dirichlet(labels, self.count, self.alpha, self.seed, self.min_size)


@dataclass(frozen=True)
class Pathological(Partition):
    name = "pathological"

    classes: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self.name, "classes", self.classes, 1, 1_000_000)

    def divide(self, labels: Tensor, clients: Tensor | None = None) -> list[Tensor]:
        return pathological(labels, self.count, self.classes, self.seed)


@dataclass(frozen=True)
class Natural(Partition):
    name = "natural"

    def divide(self, labels: Tensor, clients: Tensor | None = None) -> list[Tensor]:
        return natural(clients, self.count, self.seed)


KINDS: dict[str, type[Partition]] = {kind.name: kind for kind in (Iid, Dirichlet, Pathological, Natural)}


def parse_partition(text: str) -> Partition:
    """The partition a specification names.

    >>> parse_partition("dirichlet:alpha=0.3,index=3,count=12")
    Dirichlet(index=3, count=12, seed=0, alpha=0.3, min_size=10)

    Raises UnknownNameError naming the nearest kind or option, ConfigurationError naming field and limit.
    """
    name, options = split_spec(text, "partition")
    return from_options(choose(KINDS, name, "partition"), options, f"partition {name}")


def _check_count(labels: Tensor, count: int) -> None:
    if not 1 <= count <= len(labels):
        raise ConfigurationError(f"{len(labels)} examples can be divided among 1 to {len(labels)}, not {count}")


def _permuted(indices: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return generator.permutation(indices)


def _shuffled(indices: np.ndarray, generator: np.random.Generator) -> Tensor:
    generator.shuffle(indices)
    return torch.from_numpy(indices)
