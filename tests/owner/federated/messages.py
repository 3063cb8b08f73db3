"""Replies made by hand, and models of a few numbers, whose updates can be told apart by eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from owner.federated.inline import InlineGrid
from owner.federated.records import ClientRecord, RoundRecord
from owner.federated.replies import NO_REPLY


class Round:
    """One round's messages without clients: `instruction` is what a server sent, the other methods answer it."""

    def __init__(self, nodes: int = 10) -> None:
        self.grid = InlineGrid(lambda _m, _c: None, nodes)  # type: ignore[arg-type, return-value]

    def instruction(self, node: int = 1000) -> Message:
        return Message(RecordDict({"config": ConfigRecord({"server-round": 1})}), node, "train")

    def reply(
        self,
        weights: Mapping[str, Tensor],
        partition: int | None,
        *,
        samples: object = 10,
        node: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Message:
        record = MetricRecord({"num-examples": samples, **(metrics or {})})  # type: ignore[dict-item]
        content = RecordDict({"arrays": ArrayRecord(dict(weights)), "metrics": record})
        if partition is not None:
            content["portier"] = ConfigRecord({"partition-id": partition})
        return Message(content, reply_to=self.instruction(1000 + (partition or 0) if node is None else node))

    def failure(self, reason: str = "the disk is full") -> Message:
        return Message(Error(code=2, reason=reason), reply_to=self.instruction())

    def send(self, strategy: object, weights: Mapping[str, Tensor], number: int = 1) -> list[Message]:
        arrays = ArrayRecord(dict(weights))
        return list(strategy.configure_train(number, arrays, ConfigRecord(), self.grid))  # type: ignore[attr-defined]


def model(*values: float, steps: int | None = None) -> dict[str, Tensor]:
    """A layer with these weights, and BatchNorm's counter where `steps` are given."""
    weights: dict[str, Tensor] = {"w": torch.tensor([list(values)], dtype=torch.float32)}
    return weights if steps is None else {**weights, "n": torch.tensor(steps)}


def answered(record: RoundRecord) -> list[ClientRecord]:
    """Without those who were asked, and whom a test lets say nothing."""
    return [client for client in record.clients if client.reason != NO_REPLY]


def outcomes(record: RoundRecord) -> list[str]:
    return [client.outcome for client in answered(record)]


def partitions(record: RoundRecord) -> Sequence[int | None]:
    return [client.partition for client in answered(record)]
