"""Setting I of the comparison, the paper's: one submission at a time against one release.

Every client fine-tunes the same release once, on its own share, honestly or under its attack. The owner judges each submission as
if no other had come, and measures the release that would come of it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from torch import nn

from common.devices import Compute, choose_compute
from common.errors import GuardError
from common.weights import Weights, layout_of, weights_of
from owner.federated.alone import AgainstReferences, Finding, honest_references
from owner.federated.asking import effect_of, success_of
from owner.federated.choosing import choose_strategy, guard_options
from owner.federated.config import DETECTORS, FederationConfig
from owner.federated.effects import Standing, mean_of, took
from owner.federated.gated import GatedStrategy, reason_of, score_of
from owner.federated.incremental_results import IncrementalResult, SubmissionResult
from owner.federated.measuring import accuracy_of
from owner.federated.memory import digest_of, memory, size_of
from owner.federated.pretraining import HonestRounds
from owner.federated.records import ClientRecord, RoundRecord
from owner.federated.replies import Reply, read_replies, to_arrays
from owner.federated.results import RoundResult
from owner.federated.shared_work import initial_model
from owner.federated.strategies import FedCLEAN, FedCVAE, SpectralVAE
from owner.federated.vetted import VettedStrategy
from owner.gatekeeper import Gatekeeper, MergePolicy, UtilityLimits, merge
from owner.gatekeeper.references import FIRST_FITTING

Judge = Callable[[Weights], Finding]

MERGE = MergePolicy()


@dataclass
class Incremental:
    """The owner's side: the release, the detector and its references, fitted before the first submission."""

    config: FederationConfig
    progress: bool | None = None
    compute: Compute = field(init=False)
    model: nn.Module = field(init=False)
    release: Weights = field(init=False)
    strategy: VettedStrategy = field(init=False)
    fitting_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        started = memory().clock()
        config = self.config
        self.compute = choose_compute(config.device, config.precision)
        self.model = initial_model(config, compute=self.compute, progress=self.progress)
        self.release = weights_of(self.model)
        shares, honest = config.shares(), None
        if config.strategy in ("spectral-vae", "fedcvae"):
            # Learnt from other references than those it is compared with.
            honest = HonestRounds((tuple(self._references(FIRST_FITTING, config.pretraining_contributors)),))
        self.strategy = choose_strategy(
            config, self.model, shares, compute=self.compute, honest=honest, progress=self.progress
        )
        self._against: AgainstReferences | None = None
        if isinstance(self.strategy, (SpectralVAE, FedCVAE, FedCLEAN)):
            references = self._references(0, config.guard_references)
            self._against = AgainstReferences(self.strategy.detector, references, level=config.reject_level)
        self.fitting_seconds = memory().clock() - started

    def run(self, grid: Grid) -> IncrementalResult:
        """Raises ConfigurationError for too few nodes, and what fitting the guard raises."""
        clock, started = memory().clock(), time.perf_counter()
        strategy, base = self.strategy, self.release
        attacking = self.config.attacking
        # Fits the guard of a gated strategy, which it does for the weights it is about to send.
        messages = list(strategy.configure_train(1, to_arrays(base), ConfigRecord(), grid))
        fitting = self.fitting_seconds + memory().clock() - clock
        replies = read_replies(
            grid.send_and_receive(messages, timeout=self.config.timeout),
            layout_of(base),
            "num-examples",
            asked=sorted(message.metadata.dst_node_id for message in messages),
        )
        judge, rule = self._judge()
        release = self._standing(grid, base)
        submissions = tuple(
            self._submission(grid, number, reply, judge, rule, release) for number, reply in enumerate(replies, 1)
        )
        attacked = [one.standing for one in submissions if one.standing is not None]
        return IncrementalResult(
            config=self.config.to_flat(),
            initial_accuracy=release.accuracy,
            initial_attack_success=release.success,
            submissions=submissions,
            fitting_seconds=fitting,
            seconds=time.perf_counter() - started,
            attackers_weight=self.config.weight_of(attacking),
            attack_effective=took(release, mean_of(attacked)) if attacked else None,
        )

    def _submission(
        self, grid: Grid, number: int, reply: Reply, judge: Judge, rule: str, release: Standing
    ) -> SubmissionResult:
        attacks = reply.partition in self.config.attacking
        if reply.weights is None:
            outcome = "failed" if reply.failed else "dropped"
            client = ClientRecord(reply.partition, reply.node, outcome, reply.reason)  # type: ignore[arg-type]
            return _result(RoundRecord(number, (client,), rule=rule), release, attacks)
        weights = reply.weights
        found = memory().get(
            ("finding", self.config.owner_key, self.compute, digest_of(weights)), lambda: judge(weights)
        )
        after = release
        if not found.reason:
            merged = merge(MERGE.policy, self.release, self.release, weights, MERGE.weight)
            after = self._standing(grid, merged) if attacks else Standing(self._accuracy(merged), None)
        client = ClientRecord(
            reply.partition, reply.node, "dropped" if found.reason else "kept", found.reason, found.score
        )
        record = RoundRecord(
            number, (client,), found.threshold, rule, kept_model=bool(found.reason), vetting_seconds=found.seconds
        )
        return dataclasses.replace(
            _result(record, after, attacks),
            own_accuracy=self._accuracy(weights),
            # Nothing is told of an honest submission's: each would be measured once more for every attack.
            own_attack_success=self._success(grid, weights) if attacks else None,
            p_value=found.p_value,
            own_rule_drops=found.own_rule_drops,
        )

    def _judge(self) -> tuple[Judge, str]:
        if self._against is not None:
            return self._against.judge, self._against.rule
        if isinstance(self.strategy, GatedStrategy):
            guard = self.strategy.guard
            if guard is None:
                raise GuardError("the guard has not been fitted")
            utility = self.strategy.utility
            return (lambda submission: _vetted(guard, submission, utility)), "the guard does not accept it"
        return (lambda _submission: Finding()), ""

    def _standing(self, grid: Grid, weights: Weights) -> Standing:
        effect = effect_of(self.strategy, grid, weights, number=1, timeout=self.config.timeout)
        return Standing(self._accuracy(weights), self._success(grid, weights), effect)

    def _accuracy(self, weights: Weights) -> float:
        """On the owner's evaluation share."""
        return accuracy_of(self.config, self.model, weights, self.compute)

    def _success(self, grid: Grid, weights: Weights) -> float | None:
        """Of the attack, which a client that knows it tells."""
        return success_of(self.strategy, grid, weights, number=1, timeout=self.config.timeout)

    def _references(self, first: int, count: int) -> list[Weights]:
        config, pool = self.config, self.config.shares().references
        plain = dataclasses.replace(config.owner_key, strategy="fedavg", detector_options="", detector_epochs=0)
        return memory().get(
            ("references", plain, self.compute, first, count),
            lambda: honest_references(
                self.model,
                pool,
                guard_options(config, pool=len(pool)),
                config.training(0, 0),
                numbers=range(first, first + count),
                compute=self.compute,
                progress=self.progress,
            ),
            size=lambda made: sum(map(size_of, made)),
        )


def _result(record: RoundRecord, after: Standing, attacks: bool) -> SubmissionResult:
    result = RoundResult(record, after.accuracy, after.success if attacks else None)
    return SubmissionResult(result, attacks, standing=after if attacks else None)


def adapted(strategy: str) -> bool:
    """Whether `strategy` needs the adaptation of `owner.federated.alone` to judge a submission that comes alone."""
    return strategy in DETECTORS


def _vetted(guard: Gatekeeper, submission: Weights, utility: UtilityLimits | None) -> Finding:
    started = time.perf_counter()
    verdict = guard.vet(submission, utility=utility)
    thresholds = guard.guard.thresholds
    threshold = next(iter(thresholds.values())) if len(thresholds) == 1 else None
    return Finding(
        reason_of(verdict),
        score_of(verdict, set(thresholds)),
        threshold,
        verdict.p_value,
        seconds=time.perf_counter() - started,
    )
