"""From Flower's reply messages to updates that can be judged, and back: order, admission, counters that stay counters."""

from __future__ import annotations

import copy
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from common.errors import WeightsError
from common.weights import Layout, Weights, check_layout, check_values, layout_of

IDENTITY_RECORD = "portier"
"""Name of the ConfigRecord in which Portier's own ClientApp tells its partition."""

PARTITION_KEY = "partition-id"

NO_REPLY = "no reply came"
"""Why a client failed that was asked and never answered."""

MOST_SAMPLES = 2**31
"""What a reply may declare unless it is said otherwise: two of 1e308 overflow the sum that divides every weight of the mean."""


@dataclass(frozen=True)
class Reply:
    """What one client that was asked answered. weights: None where it is not admitted, `reason` then says why.

    message: None where none came. partition: what the client claims, None where it says nothing.
    failed: there is no content at all: no answer, or an error that the client or its machine reported.
    samples: its weight in the mean.
    """

    message: Message | None = field(repr=False)
    node: int
    partition: int | None
    digest: str
    weights: Weights | None = field(repr=False)
    samples: float = 0.0
    reason: str = ""
    failed: bool = False


def to_weights(arrays: ArrayRecord) -> Weights:
    """Tensors by name, in the record's order. Raises what Flower and numpy raise for arrays that cannot be read."""
    return {name: torch.from_numpy(np.array(array.numpy(), copy=True, order="C")) for name, array in arrays.items()}


def to_arrays(weights: Mapping[str, Tensor]) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor.detach().cpu().numpy()) for name, tensor in weights.items()})


def read_replies(
    messages: Iterable[Message],
    layout: Layout,
    weighted_by: str,
    most_samples: float = MOST_SAMPLES,
    *,
    asked: Iterable[int] = (),
) -> list[Reply]:
    """Every reply, in the order of partitions; where a client does not tell its partition, by the content of its reply.

    asked: nodes that were sent an instruction; one that did not answer is a failed reply without a message.

    Neither the order in which replies come nor Flower's node ids, which differ in every run, decide anything.
    A reply is admitted when it holds one record of arrays of the layout's names, shapes and dtypes, all finite, and one
    record of metrics with a positive weight of at most `most_samples`.
    """
    found = [_read(message, layout, weighted_by, most_samples) for message in messages]
    answered = {reply.node for reply in found}
    found += [Reply(None, node, None, "", None, reason=NO_REPLY, failed=True) for node in asked if node not in answered]
    return sorted(found, key=lambda r: (r.partition is None, r.partition or 0, r.digest, r.reason))


def _read(message: Message, layout: Layout, weighted_by: str, most_samples: float) -> Reply:
    node = int(message.metadata.src_node_id)
    if message.has_error():
        reason = f"the client failed: {_failure(message.error.reason or '')}"
        return Reply(message, node, None, "", None, reason=reason, failed=True)
    if not message.has_content():
        return Reply(message, node, None, "", None, reason="the reply is empty", failed=True)
    content = message.content
    partition, digest = _partition(content), ""
    try:
        arrays, samples = _records(content, weighted_by, most_samples)
        digest = _digest(arrays)
        weights = _admitted(arrays, layout)
    except WeightsError as error:
        return Reply(message, node, partition, digest, None, reason=f"{error.code}: {first_line(error.message)}")
    return Reply(message, node, partition, digest, {name: weights[name] for name in layout}, samples=samples)


def _failure(reason: str) -> str:
    """In one line. Of a client whose process died Ray tells numbers that are others in every run."""
    return "its process died" if "ray.exceptions.Actor" in reason else first_line(reason)


def _records(content: RecordDict, weighted_by: str, most_samples: float) -> tuple[ArrayRecord, float]:
    arrays, metrics = list(content.array_records.values()), list(content.metric_records.values())
    if len(arrays) != 1 or len(metrics) != 1:
        message = f"the reply holds {len(arrays)} records of arrays and {len(metrics)} of metrics, not one each"
        raise WeightsError("REPLY_MALFORMED", message)
    samples = metrics[0].get(weighted_by)
    if isinstance(samples, bool) or not isinstance(samples, (int, float)) or not 0 < samples < math.inf:
        raise WeightsError("REPLY_MALFORMED", f"its {weighted_by!r} is {samples!r}, not a positive number")
    if samples > most_samples:
        message = (
            f"its {weighted_by!r}, its weight in the mean, is {samples:g}, and at most {most_samples:g} is allowed"
        )
        raise WeightsError("REPLY_MALFORMED", message)
    return arrays[0], float(samples)


def _admitted(arrays: ArrayRecord, layout: Layout) -> Weights:
    try:
        weights = to_weights(arrays)
    except Exception as error:  # noqa: BLE001 - bytes from outside: numpy may raise anything on them
        raise WeightsError(
            "UNSUPPORTED_TENSOR", f"its arrays cannot be read: {type(error).__name__}: {error}"
        ) from None
    check_layout(layout_of(weights), layout)
    check_values(weights)
    return weights


def for_inner(replies: Sequence[Reply]) -> list[Message]:
    """Messages that any strategy can merge: the same names everywhere, the same integer tensors, and of metrics and of configuration what all
    have. Records are called what most clients call them.

    Integer tensors (BatchNorm's counters) become the same one, the lower median, in every message: their mean is then that
    number, and they are no part of the distances of Krum and its kin.
    """
    counters = {
        name: torch.stack([_weights(reply)[name] for reply in replies]).median(0).values
        for name, tensor in _weights(replies[0]).items()
        if not tensor.is_floating_point() and tensor.dtype != torch.bool
    }
    contents = [_message(reply).content for reply in replies]
    arrays_name = _usual(next(iter(content.array_records)) for content in contents)
    metrics_name = _usual(next(iter(content.metric_records)) for content in contents)
    metrics = _shared([next(iter(content.metric_records.values())) for content in contents])
    settings = {
        name: _shared([content.config_records[name] for content in contents])
        for name in contents[0].config_records
        if name not in {arrays_name, metrics_name} and all(name in content.config_records for content in contents)
    }
    made = []
    for place, reply in enumerate(replies):
        message = copy.copy(_message(reply))
        message.content = RecordDict(
            {
                arrays_name: to_arrays(_weights(reply) | counters),
                metrics_name: MetricRecord(metrics[place]),
                **{name: ConfigRecord(found[place]) for name, found in settings.items()},
            }
        )
        made.append(message)
    return made


def _usual(names: Iterable[str]) -> str:
    """The most frequent one; of equally frequent ones the first of the alphabet: no single client decides."""
    counts = Counter(names)
    return min(counts, key=lambda name: (-counts[name], name))


def _shared(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each record with those entries alone that all of them have, of one kind."""
    names = [name for name, value in records[0].items() if all(_alike(value, other.get(name)) for other in records)]
    return [{name: record[name] for name in names} for record in records]


def merged(arrays: ArrayRecord, kept: Sequence[Reply], base: Mapping[str, Tensor]) -> Weights:
    """What the inner strategy made of `for_inner(kept)`, in the base's order and dtypes; integer tensors as those messages had.

    Raises WeightsError for a tensor that is missing, of another shape, or not finite.
    """
    made = to_weights(arrays)
    result: Weights = {}
    for name, tensor in base.items():
        if name not in made or made[name].shape != tensor.shape:
            raise WeightsError("SHAPE_MISMATCH", f"merging gave no tensor {name} of shape {tuple(tensor.shape)}")
        if tensor.is_floating_point():
            result[name] = made[name].to(tensor.dtype)
        else:
            stacked = torch.stack([_weights(reply)[name] for reply in kept])
            result[name] = stacked[0] if tensor.dtype == torch.bool else stacked.median(0).values
    check_values(result)
    return result


def _weights(reply: Reply) -> Weights:
    assert reply.weights is not None  # noqa: S101 - for the type checker: callers hand in admitted replies
    return reply.weights


def _message(reply: Reply) -> Message:
    assert reply.message is not None  # noqa: S101 - for the type checker: what is admitted has come
    return reply.message


def _partition(content: RecordDict) -> int | None:
    record = content.get(IDENTITY_RECORD)
    value = record.get(PARTITION_KEY) if isinstance(record, ConfigRecord) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _digest(arrays: ArrayRecord) -> str:
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        hasher.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        hasher.update(arrays[name].data)
    return hasher.hexdigest()


def _alike(one: object, other: object) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return numbers or any(isinstance(one, kind) and isinstance(other, kind) for kind in (str, bytes))


def first_line(text: str) -> str:
    return text.splitlines()[0][:300] if text else ""
