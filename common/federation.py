"""What the server and the clients of a simulated federation must agree on: data, shares, model, local training, who attacks.

It travels as flat values (`[tool.flwr.app.config]`, a client's settings), so that both sides read the same.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from common.config_values import read_value
from common.datasets import load, part_of_original
from common.datasets.synthetic import NAME as SYNTHETIC
from common.errors import ConfigurationError, UnknownNameError
from common.examples import Examples
from common.model_spec import ModelSpec
from common.partitions import Partition, parse_partition
from common.randomness import derived_seed, generator
from common.specs import in_range, split_spec
from common.splits import OwnerShares, owner_shares
from common.training_options import Optimiser, TrainingOptions


@dataclass(frozen=True)
class FederatedTask:
    """data: a data set by name or path. data_dir: folder of data sets; "" is $PORTIER_DATA.
    examples, test_examples: use so many of the training set, and of the test set, by which the owner judges; 0 for all.
    model: an architecture by name, or `package.module:factory`.
    clients: how many hold a share. partition: how the shares differ, without index and count: `iid`, `dirichlet:alpha=0.5`,
        `natural`.
    attackers: how many of them attack, chosen by `seed` among those who can. attack: what they do, as `flip:source=7,target=6`.
    local_epochs, learning_rate, batch_size, optimiser, momentum, weight_decay: of the training in a round.
    owner_train, owner_references: fractions of the training set that the owner keeps, to train the release and as public data.
    seed: of shares, attackers, initial weights and training.
    device, precision: of training.

    Raises ConfigurationError naming field and limit; UnknownNameError for an unknown model or partition.
    """

    data: str = "digits"
    data_dir: str = ""
    examples: int = 0
    test_examples: int = 0
    model: str = "mlp"
    clients: int = 10
    partition: str = "iid"
    attackers: int = 0
    attack: str = ""
    local_epochs: int = 1
    learning_rate: float = 0.05
    batch_size: int = 32
    optimiser: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    owner_train: float = 0.1
    owner_references: float = 0.15
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        in_range("federation", "clients", self.clients, 1, 100_000)
        in_range("federation", "local_epochs", self.local_epochs, 1, 1_000_000)
        in_range("federation", "examples", self.examples, 0, 1 << 40)
        in_range("federation", "test_examples", self.test_examples, 0, 1 << 40)
        in_range("federation", "seed", self.seed, 0, (1 << 62) - 1)
        if self.attackers < 0:
            raise ConfigurationError(f"attackers must not be negative, not {self.attackers}")
        if self.attackers > self.clients:
            raise ConfigurationError(
                f"there cannot be {self.attackers} attackers among {self.clients} clients",
                hint="lower attackers, or raise clients",
            )
        if self.attackers and not self.attack:
            raise ConfigurationError(
                f"{self.attackers} clients are to attack, and no attack is named", hint="set attack, as sign-flip"
            )
        self.share_of(0)
        self.training(0, 1)

    def share_of(self, client: int) -> Partition:
        """The partition that takes client number `client`'s examples."""
        name, options = split_spec(self.partition, "partition")
        for fixed in ("index", "count", "seed"):
            if fixed in options:
                raise ConfigurationError(
                    f"partition {self.partition!r}: {fixed} follows from the federation, leave it out"
                )
        given = [f"{key}={value}" for key, value in options.items()]
        return parse_partition(
            f"{name}:" + ",".join([*given, f"index={client}", f"count={self.clients}", f"seed={self.seed}"])
        )

    def attackers_among(self, can: Callable[[Examples], bool]) -> frozenset[int]:
        """Which clients attack, by number: in an order drawn by `seed` the first `attackers` of those with whose share it `can` be done; all
        of them where they are fewer. Who is among a few attackers is among more, too.

        >>> len(FederatedTask(clients=5, attackers=2, attack="sign-flip").attackers_among(lambda share: True))
        2

        Raises DataError, UnknownNameError.
        """
        chosen: list[int] = []
        for client in torch.randperm(self.clients, generator=generator(self.seed, "who attacks")).tolist():
            if len(chosen) == self.attackers:
                break
            if can(self.examples_of(client)):
                chosen.append(client)
        return frozenset(chosen)

    def weight_of(self, clients: Iterable[int]) -> float:
        """How much of all clients' examples these hold, from 0 to 1: what they weigh in a mean by examples. Raises DataError, UnknownNameError."""
        sizes = self.sizes()
        return sum(sizes[client] for client in clients) / sum(sizes)

    def training(self, client: int, number: int) -> TrainingOptions:
        """What client number `client` does in round `number` (from 1)."""
        return TrainingOptions(
            epochs=self.local_epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            optimiser=cast(Optimiser, self.optimiser),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule="constant",
            seed=derived_seed(self.seed, f"client {client} round {number}"),
        )

    def task(self) -> FederatedTask:
        """The part that clients know, of a configuration that holds more."""
        return FederatedTask(**{f.name: getattr(self, f.name) for f in dataclasses.fields(FederatedTask)})

    def shares(self) -> OwnerShares:
        """The owner's shares, and in `unclaimed` what the clients divide among them. Raises DataError, UnknownNameError."""
        return self._divided[0]

    def about_data(self) -> dict[str, Any]:
        """How many examples there are to train on, and of them the clients'; how many accuracy is measured on; and what part of
        the published data set is at hand, None where it is whole or nobody knows (`common.datasets.part_of_original`)."""
        shares, part = self._divided
        owners = len(shares.train) + len(shares.references)
        clients = len(shares.unclaimed)
        return {"train": owners + clients, "clients": clients, "evaluation": len(shares.evaluation), "part": part}

    @property
    def _divided(self) -> tuple[OwnerShares, str | None]:
        counts = self.examples, self.test_examples
        return _shares(self.data, self.data_dir, counts, self.owner_train, self.owner_references, self.seed)

    def examples_of(self, client: int) -> Examples:
        return self.shares().unclaimed.take(self._division[client])

    def sizes(self) -> tuple[int, ...]:
        """How many examples each client has. Raises DataError, UnknownNameError."""
        return tuple(map(len, self._division))

    @property
    def _division(self) -> tuple[Tensor, ...]:
        """Of each client, which of the unclaimed examples are its own: (n,) int64."""
        return _divided(dataclasses.replace(self.task(), attackers=0, attack=""))

    def spec(self) -> ModelSpec:
        """Reads the data for its shape and classes."""
        train = self.shares().train
        return ModelSpec(self.model, train.input_shape, train.classes)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], *, strict: bool = True) -> Self:
        """From flat values by name, `-` and `_` alike. strict: an unknown name is an error; else it is somebody else's.

        >>> FederatedTask.from_flat({"learning-rate": 0.1}).learning_rate
        0.1

        Raises UnknownNameError naming the nearest field, ConfigurationError for a value of another type.
        """
        types = typing.get_type_hints(cls)
        known = [field.name for field in dataclasses.fields(cls)]
        given: dict[str, Any] = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name in known:
                given[name] = read_value(value, types[name], f"federation: {key}")
            elif strict:
                raise UnknownNameError("setting of a federation", key, [name.replace("_", "-") for name in known])
        return cls(**given)

    def to_flat(self) -> dict[str, Any]:
        """The inverse of `from_flat`, names as TOML has them."""
        return {name.replace("_", "-"): value for name, value in dataclasses.asdict(self).items()}


@functools.lru_cache(maxsize=4)
def _shares(
    data: str, data_dir: str, counts: tuple[int, int], train: float, references: float, seed: int
) -> tuple[OwnerShares, str | None]:
    # Kept: one process plays many clients, and the data are the same for all of them.
    found = load(_of_seed(data, seed), data_dir=Path(data_dir) if data_dir else None, seed=seed)
    part = part_of_original(found)
    examples, test_examples = counts
    if 0 < examples < len(found.train):
        chosen = _some(len(found.train), examples, seed, "examples")
        found = dataclasses.replace(found, train=found.train.take(chosen), train_groups=_of(found.train_groups, chosen))
    if 0 < test_examples < len(found.test):
        chosen = _some(len(found.test), test_examples, seed, "test examples")
        found = dataclasses.replace(found, test=found.test.take(chosen), test_groups=_of(found.test_groups, chosen))
    divided = owner_shares(
        found, seed=seed, train=train, references=references, trigger_fit=0.3, trigger_calibration=0.3
    )
    return divided, part


def _of_seed(data: str, seed: int) -> str:
    """
    >>> _of_seed("synthetic:alpha=1,beta=1", 7), _of_seed("synthetic:seed=3", 7), _of_seed("digits", 7)
    ('synthetic:alpha=1,beta=1,seed=7', 'synthetic:seed=3', 'digits')
    """
    name, colon, options = data.partition(":")
    if name.lower() != SYNTHETIC or "seed" in split_spec(data, "data set")[1]:
        return data
    return f"{name}:{options + ',' if colon else ''}seed={seed}"


# Kept for a few partitions: who attacks, what they weigh and each client's share are asked for in every round.
@functools.lru_cache(maxsize=4)
def _divided(task: FederatedTask) -> tuple[Tensor, ...]:
    unclaimed = task.shares().unclaimed
    return tuple(task.share_of(0).divide(unclaimed.labels, unclaimed.clients))


def _some(count: int, wanted: int, seed: int, stream: str) -> Tensor:
    return torch.randperm(count, generator=generator(seed, stream))[:wanted].sort().values


def _of(groups: Tensor | None, chosen: Tensor) -> Tensor | None:
    return None if groups is None else groups[chosen]
