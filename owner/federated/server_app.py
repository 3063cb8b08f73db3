"""The ServerApp: what `flwr run .` starts on the server's side, and what `run_federation` runs too."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from logging import INFO
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.object_ref import load_app  # what Flower itself loads apps by
from torch import nn

from common.devices import Compute, choose_compute
from common.errors import ConfigurationError
from common.weights import Weights, weights_of
from owner.federated.asking import SUCCESS_KEY, effect_of, success_alone, success_of
from owner.federated.choosing import choose_strategy
from owner.federated.client_modules import load_clients
from owner.federated.config import FederationConfig
from owner.federated.effects import Standing, took
from owner.federated.incremental import Incremental
from owner.federated.incremental_results import IncrementalResult
from owner.federated.logs import log
from owner.federated.measuring import accuracy_of
from owner.federated.memory import memory
from owner.federated.replies import to_arrays, to_weights
from owner.federated.results import FederationResult, RoundResult
from owner.federated.shared_work import initial_model
from owner.federated.vetted import VettedStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """`[tool.flwr.app.config]` is a FederationConfig, its names with dashes. What it came to goes to Flower's log.

    Raises what `run_federation` does, before a client is asked.
    """
    config = FederationConfig.from_flat(context.run_config)
    # Flower's simulation loads the ClientApp in another thread at the same time, and takes a module that is half imported for a whole one
    # unless the import goes through its own lock.
    with suppress(ImportError):
        load_app(f"{config.client_app}:__name__", ConfigurationError, Path(__file__).parents[2])
    load_clients(config.client_app, attacked=config.attackers > 0).check(config)
    if config.setting == "incremental":
        submissions = Incremental(config, progress=False).run(grid)
        for row in submissions.table():  # of rounds, the strategy has told already
            log(INFO, "\t> %s", _told(row))
        _tell(submissions)
        return
    _tell(serve(grid, config))


def _tell(result: FederationResult | IncrementalResult) -> None:
    log(INFO, "Dropping: %s", _told(result.detection.to_json()))
    log(INFO, "Result: %s", _told(result.summary()))


def _told(values: Mapping[str, object]) -> str:
    """
    >>> _told({"outcome": "kept", "reason": "", "p_value": 0.123456})
    'outcome kept, p_value 0.1235'
    """
    known = {name: value for name, value in values.items() if value not in (None, "")}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in known.items()
    )


def serve(grid: Grid, config: FederationConfig, *, progress: bool | None = False) -> FederationResult:
    """One federation over any grid. Raises ConfigurationError for too few nodes, and what fitting and the strategy raise."""
    server = Server(config, progress=progress)
    return server.run(grid)


@dataclass
class Server:
    """The owner's side of one federation: its data, its first global model, the strategy."""

    config: FederationConfig
    progress: bool | None = None
    compute: Compute = field(init=False)
    model: nn.Module = field(init=False)
    strategy: VettedStrategy = field(init=False)
    fitting_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        started = memory().clock()
        config = self.config
        self.compute = choose_compute(config.device, config.precision)
        shares = config.shares()
        self.model = initial_model(config, compute=self.compute, progress=self.progress)
        self.strategy = choose_strategy(config, self.model, shares, compute=self.compute, progress=self.progress)
        self.fitting_seconds = memory().clock() - started

    def run(self, grid: Grid) -> FederationResult:
        started = time.perf_counter()
        attacking = self.config.attacking
        initial: Weights = weights_of(self.model)
        accuracies: dict[int, float] = {}
        initial_success = success_of(self.strategy, grid, initial, number=0, timeout=self.config.timeout)
        result = self.strategy.start(
            grid=grid,
            initial_arrays=to_arrays(initial),
            num_rounds=self.config.rounds,
            timeout=self.config.timeout,
            train_config=ConfigRecord(),
            evaluate_config=success_alone(),
            evaluate_fn=self._evaluator(accuracies),
        )
        successes = {
            number: float(metrics[SUCCESS_KEY])  # type: ignore[arg-type]
            for number, metrics in result.evaluate_metrics_clientapp.items()
            if SUCCESS_KEY in metrics
        }
        rounds = tuple(
            RoundResult(record, accuracies[record.number], successes.get(record.number))
            for record in self.strategy.records
        )
        weights, last = to_weights(result.arrays), rounds[-1]
        effective = None
        if attacking:
            effects = functools.partial(effect_of, self.strategy, grid, timeout=self.config.timeout)
            before = Standing(accuracies[0], initial_success, effects(initial, number=0))
            after = Standing(last.accuracy, last.attack_success, effects(weights, number=self.config.rounds))
            effective = took(before, after)
        return FederationResult(
            config=self.config.to_flat(),
            attackers=tuple(sorted(attacking)),
            attackers_weight=self.config.weight_of(attacking),
            initial_accuracy=accuracies[0],
            initial_attack_success=initial_success,
            attack_effective=effective,
            rounds=rounds,
            weights=weights,
            fitting_seconds=self.fitting_seconds,
            seconds=time.perf_counter() - started,
        )

    def _evaluator(self, accuracies: dict[int, float]) -> Callable[[int, ArrayRecord], MetricRecord]:
        def measure(number: int, arrays: ArrayRecord) -> MetricRecord:
            accuracies[number] = accuracy_of(self.config, self.model, to_weights(arrays), self.compute)
            return MetricRecord({"accuracy": accuracies[number]})

        return measure
