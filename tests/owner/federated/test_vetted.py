"""What every strategy does with replies before it judges them, and after."""

from __future__ import annotations

import logging
import math
import random

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    FedXgbBagging,
    Krum,
    MultiKrum,
    Strategy,
)

from common.errors import ConfigurationError
from owner.federated.inline import InlineGrid
from owner.federated.replies import NO_REPLY, to_weights
from owner.federated.results import detection
from owner.federated.strategies import RobustStrategy
from owner.federated.vetted import VettedStrategy
from tests.owner.federated.messages import Round, answered, model, outcomes, partitions

BASE = model(0.0, 0.0)


def begun(inner: Strategy | None = None, base: dict[str, torch.Tensor] | None = None) -> tuple[VettedStrategy, Round]:
    """A strategy that has sent its first round's instructions."""
    strategy, messages = RobustStrategy(inner or FedAvg()), Round()
    messages.send(strategy, base or BASE)
    return strategy, messages


def merged(strategy: VettedStrategy, replies: list, number: int = 1) -> dict[str, torch.Tensor]:
    arrays, _ = strategy.aggregate_train(number, replies)
    assert arrays is not None
    return to_weights(arrays)


def test_two_replies_are_averaged_by_their_samples() -> None:
    strategy, messages = begun()
    replies = [messages.reply(model(1.0, 0.0), 0, samples=30), messages.reply(model(5.0, 4.0), 1, samples=10)]
    assert merged(strategy, replies)["w"].tolist() == [[2.0, 1.0]]


def test_one_reply_is_the_new_model() -> None:
    strategy, messages = begun()
    assert merged(strategy, [messages.reply(model(3.0, 4.0), 7)])["w"].tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("replies", ["none", "failed", "broken"])
def test_where_nobody_is_left_the_old_model_stays(replies: str) -> None:
    strategy, messages = begun(base=model(1.5, 2.5))
    given = {
        "none": [],
        "failed": [messages.failure(), messages.failure()],
        "broken": [messages.reply(model(math.nan, 1.0), 0)],
    }[replies]
    assert merged(strategy, given)["w"].tolist() == [[1.5, 2.5]]
    assert strategy.records[0].kept_model
    assert strategy.records[0].note == "nobody was left"


def test_a_failed_client_is_recorded_with_its_reason() -> None:
    strategy, messages = begun()
    merged(strategy, [messages.failure("the disk is full"), messages.reply(model(1.0, 1.0), 1)])
    failed = [client for client in answered(strategy.records[0]) if client.outcome == "failed"]
    assert [client.reason for client in failed] == ["the client failed: the disk is full"]


@pytest.mark.parametrize(
    ("weights", "samples", "reason"),
    [
        (model(math.nan, 0.0), 10, "NON_FINITE"),
        (model(math.inf, 0.0), 10, "NON_FINITE"),
        (model(1.0, 0.0, 0.0), 10, "SHAPE_MISMATCH"),
        ({"v": torch.zeros(1, 2)}, 10, "TENSOR_"),
        ({"w": torch.zeros(1, 2, dtype=torch.float64)}, 10, "DTYPE_MISMATCH"),
        (model(1.0, 0.0), 0, "not a positive number"),
        (model(1.0, 0.0), -5, "not a positive number"),
        (model(1.0, 0.0), math.nan, "not a positive number"),
        (model(1.0, 0.0), [1, 2], "not a positive number"),
        (model(1.0, 0.0), 1.2e308, "at most 2.14748e+09 is allowed"),
        (model(1.0, 0.0), 2**31 + 1, "at most 2.14748e+09 is allowed"),
    ],
)
def test_a_reply_that_cannot_be_merged_is_dropped_and_says_why(weights: dict, samples: object, reason: str) -> None:
    strategy, messages = begun()
    replies = [messages.reply(weights, 0, samples=samples), messages.reply(model(2.0, 2.0), 1)]
    assert merged(strategy, replies)["w"].tolist() == [[2.0, 2.0]]
    (dropped,) = strategy.records[0].with_outcome("dropped")
    assert dropped.partition == 0
    assert reason in dropped.reason


def test_a_reply_of_other_records_is_dropped() -> None:
    strategy, messages = begun()
    odd = messages.reply(model(1.0, 0.0), 0)
    odd.content["more"] = ArrayRecord(model(1.0, 0.0))
    merged(strategy, [odd, messages.reply(model(2.0, 2.0), 1)])
    assert "2 records of arrays" in strategy.records[0].with_outcome("dropped")[0].reason


def test_metrics_that_not_all_report_do_not_stop_the_round() -> None:
    strategy, messages = begun()
    replies = [
        messages.reply(model(1.0, 0.0), 0, metrics={"train-loss": 0.5, "mine": 3.0}),
        messages.reply(model(1.0, 0.0), 1, metrics={"train-loss": 1.5}),
    ]
    _, metrics = strategy.aggregate_train(1, replies)
    assert dict(metrics or {}) == {"train-loss": 1.0}


@pytest.mark.parametrize(
    "inner",
    [
        FedAvg,
        FedMedian,
        FedTrimmedAvg,
        lambda: Krum(num_malicious_nodes=1),
        lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
        lambda: Bulyan(num_malicious_nodes=1),
    ],
    ids=["FedAvg", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan"],
)
@pytest.mark.parametrize("told", [True, False], ids=["by partition", "by content"])
def test_the_order_of_replies_and_the_ids_of_nodes_decide_nothing(inner: type[FedAvg], told: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    sent = [model(*torch.randn(2, generator=draws).tolist(), steps=i) for i in range(9)]
    results = []
    for attempt in range(2):
        strategy, messages = begun(inner(), base=model(0.0, 0.0, steps=0))
        order = list(range(9))
        random.Random(attempt).shuffle(order)
        nodes = random.Random(attempt).sample(range(5000, 6000), 9)
        replies = [messages.reply(sent[i], i if told else None, samples=i + 1, node=nodes[i]) for i in order]
        new = merged(strategy, replies)
        record = strategy.records[0]
        results.append((new["w"].numpy().tobytes(), int(new["n"]), outcomes(record), partitions(record)))
    assert results[0] == results[1]


@pytest.mark.parametrize("inner", [FedAvg, FedMedian, FedTrimmedAvg, lambda: Krum(num_malicious_nodes=0)])
def test_batch_norms_counters_stay_whole_numbers(inner: type[FedAvg]) -> None:
    strategy, messages = begun(inner(), base=model(0.0, 0.0, steps=100))
    replies = [messages.reply(model(1.0, 1.0, steps=steps), i) for i, steps in enumerate((103, 104, 2**62))]
    new = merged(strategy, replies)
    assert new["n"].dtype == torch.int64
    assert int(new["n"]) == 104
    assert new["w"].dtype == torch.float32


def test_counters_are_no_part_of_krums_distances() -> None:
    strategy, messages = begun(Krum(num_malicious_nodes=1), base=model(0.0, 0.0, steps=0))
    weights = [0.0, 0.1, 0.2, 0.1, 9.0]
    replies = [messages.reply(model(w, w, steps=1000 * i), i) for i, w in enumerate(weights)]
    merged(strategy, replies)
    assert [c.partition for c in strategy.records[0].with_outcome("kept")] == [1]


def test_krum_says_whom_it_leaves_out_and_by_what_score() -> None:
    strategy, messages = begun(MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4), base=BASE)
    replies = [messages.reply(model(w, w), i) for i, w in enumerate((0.0, 0.1, 9.0, 0.1, 0.2))]
    merged(strategy, replies)
    record = strategy.records[0]
    assert outcomes(record) == ["kept", "kept", "dropped", "kept", "kept"]
    assert "MultiKrum" in record.clients[2].reason
    assert max(record.clients, key=lambda client: client.score or 0).partition == 2


def test_a_client_that_was_asked_and_never_answered_is_recorded_by_its_node() -> None:
    strategy, messages = RobustStrategy(FedAvg()), Round(nodes=3)
    messages.send(strategy, BASE)
    merged(strategy, [messages.reply(model(1.0, 0.0), 2)])
    record = strategy.records[0]
    assert [(c.node, c.outcome, c.partition) for c in record.clients] == [
        (1002, "kept", 2),
        (1000, "failed", None),
        (1001, "failed", None),
    ]
    assert {client.reason for client in record.with_outcome("failed")} == {NO_REPLY}


def test_a_partition_that_two_clients_claim_is_flagged(caplog: pytest.LogCaptureFixture) -> None:
    strategy, messages = begun()
    replies = [messages.reply(model(1.0, 0.0), partition, node=node) for partition, node in ((3, 7), (1, 8), (3, 9))]
    with caplog.at_level(logging.INFO, "flwr"), _propagating():
        merged(strategy, replies)
    record = strategy.records[0]
    assert {partition: sorted(nodes) for partition, nodes in record.claimed_twice.items()} == {3: [7, 9]}
    assert record.to_json()["claimed_twice"] == [3]
    assert "partition 3 is claimed by nodes" in caplog.text


def test_an_inner_strategy_that_raises_costs_its_round_and_not_the_federation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy, messages = begun(_Raising(), base=model(1.5, 2.5))
    with caplog.at_level(logging.INFO, "flwr"), _propagating():
        assert merged(strategy, [messages.reply(model(1.0, 0.0), 0)])["w"].tolist() == [[1.5, 2.5]]
    assert strategy.records[0].kept_model
    assert strategy.records[0].note == "_Raising failed: ZeroDivisionError: division by zero"
    (logged,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert logged.exc_info is not None


class _Raising(FedAvg):
    def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
        raise ZeroDivisionError("division by zero")


def test_a_merge_that_comes_out_broken_keeps_the_old_model() -> None:
    strategy, messages = begun(_Dividing())
    assert merged(strategy, [messages.reply(model(1.0, 0.0), 0)])["w"].tolist() == [[0.0, 0.0]]
    assert "unusable: NON_FINITE" in strategy.records[0].note


class _Dividing(FedAvg):
    def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
        return ArrayRecord(model(math.nan, 0.0)), None


def test_fewer_nodes_than_the_strategy_needs_is_an_error_and_no_endless_wait() -> None:
    strategy = VettedStrategy(Bulyan(num_malicious_nodes=2), wait_seconds=0.2)
    messages = Round(nodes=10)
    with pytest.raises(
        ConfigurationError, match=r"Bulyan needs at least 11 nodes \(4f \+ 3 for f = 2 malicious ones\), and 10"
    ):
        messages.send(strategy, BASE)


def test_evaluation_does_not_wait_for_ever_either() -> None:
    strategy = VettedStrategy(FedAvg(min_evaluate_nodes=5, min_available_nodes=1), wait_seconds=0.2)
    with pytest.raises(ConfigurationError, match="needs at least 5 nodes"):
        strategy.configure_evaluate(1, ArrayRecord(BASE), ConfigRecord(), Round(nodes=3).grid)


def test_a_strategy_explains_itself_and_the_one_inside(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flwr"), _propagating():
        RobustStrategy(Krum(num_malicious_nodes=2)).summary()
    assert "RobustStrategy" in caplog.text
    assert "Merges by Krum" in caplog.text
    assert "Number of malicious nodes: 2" in caplog.text


def test_the_log_says_who_was_dropped_and_why(caplog: pytest.LogCaptureFixture) -> None:
    strategy, messages = begun()
    with caplog.at_level(logging.INFO, "flwr"), _propagating():
        merged(strategy, [messages.reply(model(math.nan, 0.0), 4), messages.reply(model(1.0, 0.0), 5)])
    assert "kept 1 of 2 replies" in caplog.text
    assert "dropped partition 4 (node 1004): NON_FINITE" in caplog.text
    assert "8 clients sent none" in caplog.text


class _propagating:
    """Flower's logger hands nothing on, so that pytest would see nothing of it."""

    def __enter__(self) -> None:
        logger = logging.getLogger("flwr")
        self.before, self.level = logger.propagate, logger.level
        logger.propagate = True

    def __exit__(self, *_: object) -> None:
        logging.getLogger("flwr").propagate = self.before


def test_evaluation_replies_are_handed_on() -> None:
    strategy, messages = begun()
    reply = messages.reply(BASE, 0)
    reply.content = RecordDict({"metrics": reply.content.metric_records["metrics"]})
    reply.content.metric_records["metrics"]["accuracy"] = 0.75
    assert dict(strategy.aggregate_evaluate(1, [reply]) or {}) == {"accuracy": 0.75}


def test_who_declares_more_examples_than_a_client_can_have_is_dropped() -> None:
    """The number is a reply's weight in the mean: one client must not be all of it by saying so."""
    strategy = VettedStrategy(None, most_samples=100)
    messages = Round()
    messages.send(strategy, model(0.0, 0.0))
    replies = [messages.reply(model(9.0, 9.0), 0, samples=101), messages.reply(model(2.0, 2.0), 1, samples=100)]
    assert merged(strategy, replies)["w"].tolist() == [[2.0, 2.0]]
    assert "its weight in the mean, is 101" in strategy.records[0].with_outcome("dropped")[0].reason
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(ConfigurationError, match="most_samples"):
            VettedStrategy(None, most_samples=wrong)


def named(message: Message, arrays: str, metrics: str, **more: ConfigRecord) -> Message:
    """The reply with its records under other names, and with others beside them."""
    content = message.content
    message.content = RecordDict({arrays: content["arrays"], metrics: content["metrics"], **more})
    return message


def test_what_aggregates_metrics_finds_records_as_clients_call_them() -> None:
    """A project's own function; one client that calls its records otherwise, or says more, changes nothing for it."""
    seen = []

    def aggregate(contents: list[RecordDict], _weighted_by: str) -> MetricRecord:
        seen.extend((float(c["scores"]["loss"]), c["about"]["unit"], sorted(c["about"])) for c in contents)
        return MetricRecord({"mine": 1.0})

    strategy, messages = begun(FedAvg(train_metrics_aggr_fn=aggregate))
    replies = []
    for partition, name in enumerate(("odd", "scores", "scores")):
        message = messages.reply(model(1.0, 0.0), None, metrics={"loss": float(partition)})
        more = {"unit": "nats", **({"extra": 1} if partition else {})}
        replies.append(named(message, "weights", name, about=ConfigRecord(more)))
    _, metrics = strategy.aggregate_train(1, replies)
    assert dict(metrics or {}) == {"mine": 1.0}
    assert sorted(seen) == [(0.0, "nats", ["unit"]), (1.0, "nats", ["unit"]), (2.0, "nats", ["unit"])]


class _Noting(FedAvg):
    """A wrapper of somebody's own, that keeps what it wraps as Flower's do."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self.strategy = strategy

    def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
        return self.strategy.aggregate_train(server_round, replies)


def test_a_strategy_inside_another_is_asked_for_its_weights_and_minima() -> None:
    wrapped = _Noting(FedAvg(weighted_by_key="n", min_train_nodes=3))
    strategy, messages = begun(wrapped)
    replies = [messages.reply(model(1.0 + i, 0.0), i, metrics={"n": 1.0 + i}) for i in range(3)]
    merged(strategy, replies)
    assert outcomes(strategy.records[0]) == ["kept"] * 3
    with pytest.raises(ConfigurationError, match="at least 3 nodes"):
        Round(nodes=2).send(VettedStrategy(wrapped, wait_seconds=0), model(0.0, 0.0))


@pytest.mark.parametrize(
    "private",
    [
        DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 3),
        DifferentialPrivacyClientSideFixedClipping(FedAvg(), 1.0, 1.0, 3),
        DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 0.1, 3),
        DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.1, 3),
        _Noting(DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 3)),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_privacy_whose_noise_counts_on_every_reply_is_refused(private: Strategy) -> None:
    with pytest.raises(ConfigurationError, match="a privacy that dropping replies takes away") as caught:
        RobustStrategy(private)
    assert "LocalDpMod" in caught.value.hint


def test_clients_that_add_noise_of_their_own_are_served() -> None:
    """The way out that the refusal names."""
    app = ClientApp(mods=[LocalDpMod(clipping_norm=1.0, sensitivity=0.1, epsilon=10.0, delta=1e-5)])

    @app.train()
    def train(message, context):  # type: ignore[no-untyped-def]
        moved = {**to_weights(message.content["arrays"]), **model(1.0, 1.0)}
        content = RecordDict({"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 3})})
        return Message(content, reply_to=message)

    strategy = RobustStrategy(FedAvg(fraction_evaluate=1e-9, min_evaluate_nodes=1))
    strategy.start(grid=InlineGrid(app, 3), initial_arrays=ArrayRecord(model(0.0, 0.0, steps=3)), num_rounds=1)
    assert outcomes(strategy.records[0]) == ["kept"] * 3


def test_trees_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="of another shape in every reply"):
        RobustStrategy(FedXgbBagging())


class _Saving(FedAvg):
    def start(self, *arguments, **options):  # type: ignore[no-untyped-def]
        return super().start(*arguments, **options)


def test_a_start_that_would_never_be_called_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"_Saving has a start\(...\) of its own") as caught:
        RobustStrategy(_Saving())
    assert "evaluate_fn" in caught.value.hint


def test_where_the_inner_strategy_merges_nothing_nobody_was_judged() -> None:
    """Bulyan of fewer than 4f + 3 replies."""
    strategy, messages = RobustStrategy(Bulyan(num_malicious_nodes=1)), Round()
    messages.send(strategy, model(0.0, 0.0))
    merged(strategy, [messages.reply(model(float(i), 0.0), i) for i in range(5)])
    assert strategy.records[0].kept_model
    found = detection(strategy.records, frozenset({0}))
    assert (found.missed, found.honest_kept) == (0, 0)
    assert found.f1 is None
