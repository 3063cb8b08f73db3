"""A Flower strategy around another one: it vets replies, hands on those it keeps, and records why it dropped the others."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from logging import ERROR, INFO, WARNING
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    Krum,
    MultiKrum,
    Strategy,
)

from common.errors import ConfigurationError, WeightsError
from common.weights import Weights, layout_of
from owner.federated.logs import log
from owner.federated.memory import memory
from owner.federated.records import ClientRecord, RoundRecord
from owner.federated.replies import (
    MOST_SAMPLES,
    NO_REPLY,
    Reply,
    first_line,
    for_inner,
    merged,
    read_replies,
    to_arrays,
    to_weights,
)

_PRIVATE = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)
_TREES = (FedXgbBagging, FedXgbCyclic)


@dataclass(frozen=True)
class Judgement:
    """What a strategy says of the admitted replies, one entry each, in their order.

    reasons: why dropped, "" for those that are kept. scores: higher is worse; None where it scores nobody.
    """

    reasons: Sequence[str]
    scores: Sequence[float] | None = None
    threshold: float | None = None
    rule: str = ""


class VettedStrategy(Strategy):
    """Admission, and an order of replies that no network decides; whoever is admitted is merged by the inner strategy.

    It drops replies that hold no usable weights (another layout, numbers that are not finite, a weight that is none), keeps the
    old global model where nobody is left or the inner strategy raises, keeps integer tensors integers, and refuses to wait for
    nodes for ever. Subclasses judge the admitted replies.

    inner: the strategy that merges; FedAvg where not given. wait_seconds: how long nodes may take to connect.
    most_samples: that a reply may declare. It is the reply's weight in the mean, and nothing proves it: name the most that a client can have.
    records: one a round, see `RoundRecord`.
    Raises ConfigurationError for an inner strategy that cannot be wrapped, see `check_inner`.
    """

    name: ClassVar[str] = "admission"

    def __init__(
        self, inner: Strategy | None = None, *, wait_seconds: float = 60.0, most_samples: float = MOST_SAMPLES
    ) -> None:
        if not 0 < most_samples <= MOST_SAMPLES:
            raise ConfigurationError(f"most_samples must be above 0 and at most {MOST_SAMPLES}, not {most_samples}")
        self.inner = inner or FedAvg()
        check_inner(self.inner)
        self.wait_seconds, self.most_samples = wait_seconds, most_samples
        self.records: list[RoundRecord] = []
        self._base: Weights = {}
        self._asked: list[int] = []
        self._guard_seconds = 0.0

    def begin(self, number: int, base: Weights) -> None:
        """Called with the global model before it is sent out in round `number`. May raise; then nothing is sent."""

    def judge(self, number: int, updates: Sequence[Weights]) -> Judgement:
        """Called with the admitted weights of round `number`, at least one. Keeps all here."""
        return Judgement([""] * len(updates))

    def observe(self, contents: list[RecordDict], judgement: Judgement) -> Judgement:
        """Called with what the inner strategy is about to merge; for strategies that tell whom the inner one leaves out."""
        return judgement

    def describe(self) -> list[str]:
        """Lines for `summary`: what this strategy does and with which options."""
        return ["Drops replies without usable weights; keeps the old model where nobody is left"]

    def summary(self) -> None:
        """Log what the strategy does, then the inner strategy's own summary."""
        log(INFO, "\t├──> %s:", type(self).__name__)
        for line in self.describe():
            log(INFO, "\t│\t├── %s", line)
        log(INFO, "\t│\t└── Merges by %s", type(self.inner).__name__)
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Raises ConfigurationError where fewer nodes connect than the strategy needs, and what `begin` raises."""
        self._base = to_weights(arrays)
        started = memory().clock()
        self.begin(server_round, self._base)
        self._guard_seconds = memory().clock() - started
        need = max(needed_replies(self.inner), _attribute(self.inner, "min_train_nodes"))
        self._await_nodes(grid, need)
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        self._asked = sorted(message.metadata.dst_node_id for message in messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The merged weights of the replies that are kept; the old global model where none is."""
        clock, before = memory().clock(), self._guard_seconds
        weighted_by = getattr(_innermost(self.inner), "weighted_by_key", "num-examples")
        found = read_replies(replies, layout_of(self._base), weighted_by, self.most_samples, asked=self._asked)
        admitted = [reply for reply in found if reply.weights is not None]
        judgement = self.judge(server_round, [reply.weights or {} for reply in admitted]) if admitted else Judgement([])
        kept = [reply for reply, reason in zip(admitted, judgement.reasons, strict=True) if not reason]
        messages = for_inner(kept) if kept else []
        vetted = memory().clock() - clock - (self._guard_seconds - before)
        if kept:  # bookkeeping, which repeats what the inner strategy is about to do: not counted
            judgement = self.observe([message.content for message in messages], judgement)
        clock = time.perf_counter()
        arrays, metrics, note = self._merge(server_round, kept, messages)
        self.records.append(
            RoundRecord(
                server_round,
                _clients(found, admitted, judgement),
                threshold=judgement.threshold,
                rule=judgement.rule,
                kept_model=bool(note),
                vetting_seconds=vetted,
                guard_seconds=self._guard_seconds,
                merging_seconds=time.perf_counter() - clock,
                note=note,
            )
        )
        self._tell(self.records[-1])
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if _attribute(self.inner, "fraction_evaluate", 1) > 0:
            self._await_nodes(grid, _attribute(self.inner, "min_evaluate_nodes"))
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return self.inner.aggregate_evaluate(server_round, sorted(replies, key=_evaluation_order))

    def _merge(
        self, number: int, kept: Sequence[Reply], messages: list[Message]
    ) -> tuple[ArrayRecord, MetricRecord | None, str]:
        """Arrays, metrics, and why the old model was kept, "" where it was not."""
        if not messages:
            return to_arrays(self._base), None, "nobody was left"
        try:
            arrays, metrics = self.inner.aggregate_train(number, messages)
        except Exception as error:  # noqa: BLE001 - whatever a strategy raises costs its round, and not the federation
            failed = f"{type(self.inner).__name__} failed: {type(error).__name__}: {first_line(str(error))}"
            log(ERROR, "%s: in round %d %s", type(self).__name__, number, failed, exc_info=True)
            return to_arrays(self._base), None, failed
        if arrays is None:
            return to_arrays(self._base), metrics, f"{type(self.inner).__name__} merged nothing"
        try:
            return to_arrays(merged(arrays, kept, self._base)), metrics, ""
        except WeightsError as error:
            return to_arrays(self._base), metrics, f"the merged model is unusable: {error.code}: {error.message}"

    def _await_nodes(self, grid: Grid, need: int) -> None:
        need = max(need, _attribute(self.inner, "min_available_nodes"))
        deadline = time.monotonic() + self.wait_seconds
        while (connected := len(list(grid.get_node_ids()))) < need:
            if time.monotonic() >= deadline:
                raise ConfigurationError(
                    f"{type(self.inner).__name__} needs at least {need} nodes{_why(self.inner)}, and {connected} are "
                    f"connected after {self.wait_seconds:g} seconds",
                    hint="start more nodes, or lower the strategy's minimum or its number of malicious nodes",
                )
            time.sleep(0.1)

    def _tell(self, record: RoundRecord) -> None:
        kept, silent = record.with_outcome("kept"), sum(client.reason == NO_REPLY for client in record.clients)
        more = f", and {silent} clients sent none" if silent else ""
        came = len(record.clients) - silent
        log(INFO, "%s: kept %d of %d replies%s", type(self).__name__, len(kept), came, more)
        for client in record.clients:
            if client.outcome != "kept":
                score = "" if client.score is None else f" (score {client.score:.4g})"
                log(INFO, "\t> %s %s%s: %s", client.outcome, client.label, score, client.reason)
        for partition, nodes in record.claimed_twice.items():
            claimants = ", ".join(map(str, nodes))
            log(WARNING, "%s: partition %d is claimed by nodes %s", type(self).__name__, partition, claimants)
        if record.note:
            log(WARNING, "%s: keeping the old global model: %s", type(self).__name__, record.note)


def check_inner(inner: Strategy) -> None:
    """Raises ConfigurationError for a strategy that must not merge what another one has vetted.

    Differential privacy: the noise is of a size for `num_sampled_clients` replies, and fewer are merged; and whom a look at the replies
    dropped tells of their data without any noise. Trees (XGBoost): arrays grow from round to round, and admission wants one layout.
    A `start` of its own: Flower calls that of the outermost strategy alone.
    """
    for strategy in _within(inner):
        name = type(strategy).__name__
        if isinstance(strategy, _PRIVATE):
            raise ConfigurationError(
                f"{name} promises a privacy that dropping replies takes away: its noise is of a size for all sampled clients, and who is "
                "dropped follows from replies without noise",
                hint="let each client add noise of its own, with ClientApp(mods=[LocalDpMod(...)]): whatever is done with its reply is then "
                f"private too; wrapping a Portier strategy in {name} does not mend it either",
            )
        if isinstance(strategy, _TREES):
            raise ConfigurationError(
                f"{name} merges trees, whose arrays are of another shape in every reply, and Portier judges weights of one layout",
                hint="use it without a Portier strategy",
            )
    if getattr(inner.start, "__func__", None) is not Strategy.start:
        raise ConfigurationError(
            f"{type(inner).__name__} has a start(...) of its own, which would never be called: Flower calls that of the strategy around it",
            hint="do what it does after each round in evaluate_fn, which is given every new global model, or give that start(...) to a "
            "subclass of the Portier strategy",
        )


def needed_replies(inner: Strategy) -> int:
    """So many nodes the strategy's own theory asks for: 2f + 3 for Krum, 4f + 3 for Bulyan; 1 for those without one."""
    inner = _innermost(inner)
    if isinstance(inner, Bulyan):
        return 4 * inner.num_malicious_nodes + 3
    if isinstance(inner, (Krum, MultiKrum)):
        return 2 * inner.num_malicious_nodes + 3
    return 1


def _within(strategy: Strategy) -> Iterator[Strategy]:
    """It, and those that it wraps, as Flower's own wrappers do in `strategy` and Portier's in `inner`; the last one merges."""
    yield strategy
    for name in ("strategy", "inner"):
        if isinstance(wrapped := getattr(strategy, name, None), Strategy):
            yield from _within(wrapped)
            return


def _innermost(strategy: Strategy) -> Strategy:
    return list(_within(strategy))[-1]


def _why(inner: Strategy) -> str:
    inner = _innermost(inner)
    if needed_replies(inner) > 1:
        factor = 4 if isinstance(inner, Bulyan) else 2
        malicious = getattr(inner, "num_malicious_nodes", 0)
        return f" ({factor}f + 3 for f = {malicious} malicious ones)"
    return ""


def _attribute(inner: Strategy, name: str, default: int = 1) -> int:
    value = getattr(_innermost(inner), name, default)
    return value if isinstance(value, (int, float)) else default  # type: ignore[return-value]


def _clients(found: Sequence[Reply], admitted: Sequence[Reply], judgement: Judgement) -> tuple[ClientRecord, ...]:
    place = {id(reply): i for i, reply in enumerate(admitted)}
    made = []
    for reply in found:
        i = place.get(id(reply))
        reason = reply.reason if i is None else judgement.reasons[i]
        score = None if i is None or judgement.scores is None else float(judgement.scores[i])
        outcome = "failed" if reply.failed else ("dropped" if reason else "kept")
        made.append(ClientRecord(reply.partition, reply.node, outcome, reason, score))  # type: ignore[arg-type]
    return tuple(made)


def _evaluation_order(message: Message) -> tuple[bool, str]:
    if message.has_error():
        return True, ""
    return False, repr(sorted((name, sorted(r.items())) for name, r in message.content.metric_records.items()))
