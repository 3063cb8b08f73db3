"""One submission at a time: the detectors of rounds with their one adaptation, and the gate beside them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict, UserConfig

from common.devices import choose_compute
from common.errors import ConfigurationError, GuardError, UnknownNameError, VacuousGateError
from common.weights import Weights
from contributor.federated import client_app
from owner.federated import FederationConfig, run_federation
from owner.federated.alone import AgainstReferences, honest_references
from owner.federated.choosing import guard_options
from owner.federated.config import UnservedError
from owner.federated.incremental import Incremental
from owner.federated.incremental_results import IncrementalResult
from owner.federated.inline import InlineGrid
from owner.federated.replies import NO_REPLY
from owner.federated.running import run_submissions
from owner.federated.server_app import app
from owner.federated.shared_work import initial_model
from owner.federated.thresholds import Cut, round_mean
from owner.gatekeeper.references import FIRST_FITTING

BASE: dict[str, Any] = {
    "setting": "incremental",
    "model": "mlp",
    "clients": 6,
    "attackers": 3,
    "attack": "sign-flip",
    "learning-rate": 0.1,
    "local-epochs": 2,
    "release-epochs": 8,
    "owner-train": 0.3,
    "guard-references": 19,
    "pretraining-contributors": 8,
    "detector-epochs": 20,
    "engine": "inline",
    "device": "cpu",
    "precision": "float32",
}


def configured(**changes: Any) -> FederationConfig:
    return FederationConfig.from_flat({**BASE, **{name.replace("_", "-"): value for name, value in changes.items()}})


@pytest.fixture(scope="module")
def judged() -> IncrementalResult:
    return run_submissions(configured(strategy="spectral-vae"))


@pytest.mark.parametrize("strategy", ["spectral-vae", "fedcvae", "gated"])
def test_every_ruined_submission_is_dropped_and_scores_above_every_honest_one(strategy: str) -> None:
    found = run_submissions(configured(strategy=strategy)).detection
    assert (found.recall, found.auroc) == (1.0, 1.0)


def test_without_a_defence_every_submission_is_merged_and_nobody_is_judged() -> None:
    result = run_submissions(configured(strategy="fedavg"))
    assert result.detection.f1 is None
    assert result.own_rule is None
    ruined = [one.result.accuracy for one in result.submissions if one.attacks]
    assert max(ruined) < result.initial_accuracy - 0.2


def test_a_dropped_submission_leaves_the_release_as_it_is(judged: IncrementalResult) -> None:
    dropped = [one for one in judged.submissions if one.dropped]
    assert dropped
    assert {one.result.accuracy for one in dropped} == {judged.initial_accuracy}
    assert all(one.own_accuracy < judged.initial_accuracy - 0.3 for one in dropped if one.own_accuracy is not None)


def test_the_same_seed_gives_the_same_table(judged: IncrementalResult) -> None:
    assert run_submissions(configured(strategy="spectral-vae")).table() == judged.table()


def test_a_submission_is_judged_the_same_whoever_else_submits(judged: IncrementalResult) -> None:
    """Which clients attack follows from the seed: with one attacker more the honest ones that are left are the same."""
    more = run_submissions(configured(strategy="spectral-vae", attackers=4)).table()
    still = [row for row in more if row["partition"] not in configured(attackers=4).attacking]
    before = {row["partition"]: row for row in judged.table()}
    assert still == [before[row["partition"]] for row in still]


def test_the_result_is_plain_json_in_the_shape_of_a_federations(judged: IncrementalResult) -> None:
    data = json.loads(json.dumps(judged.to_json(), allow_nan=False))
    assert set(data["summary"]) >= {"accuracy", "attack_success", "seconds_per_round"}
    assert [len(one["clients"]) for one in data["rounds"]] == [1] * 6
    assert len(data["attackers"]) == 3


def test_the_success_of_a_backdoor_is_that_of_the_release_which_comes_of_it() -> None:
    attack = "pattern:source=any,target=3,fraction=0.9,position=bottom-right,size=3"
    result = run_submissions(configured(strategy="fedavg", attack=attack, local_epochs=4))
    attacked = [one for one in result.submissions if one.attacks]
    assert min(one.own_attack_success or 0 for one in attacked) > 0.8
    assert result.summary()["attack_success"] == pytest.approx(
        sum(one.result.attack_success or 0 for one in attacked) / 3
    )


def test_whether_an_attack_took_is_told_of_what_comes_of_the_attackers_submissions() -> None:
    undefended, defended = (run_submissions(configured(strategy=name)) for name in ("fedavg", "spectral-vae"))
    assert undefended.to_json()["attack_effective"] is True
    assert defended.to_json()["attack_effective"] is False


def test_nobody_measures_the_attack_on_what_honest_clients_sent() -> None:
    measured: list[float] = []
    config = configured(strategy="fedavg", attack="flip:source=7,target=1")
    app = client_app(config.task())

    def counted(message: Message, context: Context) -> Message:
        reply = app(message, context)
        measured.extend(
            float(m["attack-success"]) for m in reply.content.metric_records.values() if "attack-success" in m
        )  # type: ignore[arg-type]
        return reply

    result = Incremental(config, progress=False).run(InlineGrid(counted, config.clients))  # type: ignore[arg-type]
    honest = [one for one in result.submissions if not one.attacks]
    assert {(one.result.attack_success, one.own_attack_success) for one in honest} == {(None, None)}
    # The release once, and of three attackers what they sent and what comes of it.
    assert len(measured) == 1 + 2 * 3


def test_flowers_server_app_logs_every_submission_and_what_they_come_to(
    judged: IncrementalResult, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `flwr run` starts it, which returns nothing."""
    config = configured(strategy="spectral-vae")
    flat = {name: value for name, value in config.to_flat().items() if name not in ("engine", "client-app")}
    grid, told = InlineGrid(client_app(config.task()), config.clients), UserConfig(flat)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    with caplog.at_level(logging.INFO, "flwr"):
        app(grid=grid, context=Context(1, 1, UserConfig(), RecordDict(), told))
    lines = [line for line in caplog.messages if "p_value" in line]
    assert [
        f"partition {row['partition']}, outcome {row['outcome']}" in line
        for row, line in zip(judged.table(), lines, strict=True)
    ] == [True] * 6
    assert f"recall {judged.detection.recall:.4g}" in caplog.text
    assert f"accuracy {judged.summary()['accuracy']:.4g}" in caplog.messages[-1]


class _Losing(InlineGrid):
    """The answer of partition 2 never comes."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = super().send_and_receive(messages, timeout=timeout)
        return [reply for reply in replies if reply.metadata.src_node_id != 1002]


def test_who_was_asked_and_never_submitted_is_listed() -> None:
    config = configured(strategy="fedavg")
    result = Incremental(config, progress=False).run(_Losing(client_app(config.task()), config.clients))
    last = result.submissions[-1].record.clients[0]
    assert (last.node, last.outcome, last.reason) == (1002, "failed", NO_REPLY)
    assert len(result.submissions) == 6


class _Echo:
    """Scores each model by its one weight."""

    def __init__(self) -> None:
        self.looked = 0

    def seen(self, updates: Sequence[Weights]) -> list[torch.Tensor]:
        self.looked += len(updates)
        return [weights["w"] for weights in updates]

    def scores_of(self, number: int, seen: Sequence[torch.Tensor]) -> list[float]:
        return [float(weight) for weight in seen]

    def cut(self, scores: Sequence[float]) -> Cut:
        return round_mean(scores)


def weighing(value: float) -> Weights:
    return {"w": torch.tensor(value)}


@pytest.mark.parametrize(
    ("score", "p", "dropped", "by_mean"),
    [(2.5, 0.6, False, False), (3.0, 0.6, False, True), (4.5, 0.2, True, True), (float("inf"), 0.2, True, True)],
)
def test_a_score_is_compared_with_those_of_the_references(score: float, p: float, dropped: bool, by_mean: bool) -> None:
    judge = AgainstReferences(_Echo(), [weighing(v) for v in (1.0, 2.0, 3.0, 4.0)], level=0.2)
    found = judge.judge(weighing(score))
    assert (found.p_value, bool(found.reason), found.own_rule_drops) == (p, dropped, by_mean)
    assert found.threshold == 4.0


def test_references_are_looked_at_once_whoever_submits() -> None:
    detector = _Echo()
    judge = AgainstReferences(detector, [weighing(v) for v in (1.0, 2.0, 3.0, 4.0)], level=0.2)
    first, second, again = (judge.judge(weighing(v)).p_value for v in (2.5, 4.5, 2.5))
    assert (first, second, again) == (0.6, 0.2, 0.6)
    assert detector.looked == 4 + 3


def test_references_that_cannot_be_scored_are_no_yardstick() -> None:
    with pytest.raises(GuardError, match="at least one honest reference"):
        AgainstReferences(_Echo(), [], level=0.5)
    with pytest.raises(GuardError, match="finite"):
        AgainstReferences(_Echo(), [weighing(float("nan"))], level=0.5).judge(weighing(1.0))


def test_a_reference_is_the_same_whichever_others_are_made() -> None:
    config = configured(strategy="spectral-vae")
    compute = choose_compute("cpu", "float32")
    pool = config.shares().references
    model = initial_model(config, compute=compute)
    options = guard_options(config, pool=len(pool))

    def made(*numbers: int) -> list[Weights]:
        return honest_references(model, pool, options, config.training(0, 0), numbers=numbers, compute=compute)

    together, alone, other = made(0, 1)[1], made(1)[0], made(FIRST_FITTING)[0]
    assert all(torch.equal(together[name], alone[name]) for name in alone)
    assert not all(torch.equal(other[name], alone[name]) for name in alone)


def test_the_gate_on_a_model_without_a_penultimate_layer_is_refused() -> None:
    with pytest.raises(VacuousGateError):
        run_submissions(configured(strategy="gated", model="logistic"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"strategy": "krum"}, UnservedError, "selects among the replies of a round"),
        ({"setting": "incremental-learning"}, UnknownNameError, "unknown setting"),
        ({"strategy": "fedcvae", "detector_options": "latnet=3"}, UnknownNameError, "latnet"),
        ({"strategy": "fedcvae", "detector_options": "latent=0"}, ConfigurationError, "latent must be at least 1"),
        ({"strategy": "spectral-vae", "detector_options": "mean-factor=0"}, ConfigurationError, "mean_factor"),
        ({"strategy": "gated", "detector_options": "latent=3"}, ConfigurationError, "no detector to give options"),
        ({"guard_references": 9, "level": 0.05}, ConfigurationError, r"1/\(K\+1\)"),
    ],
)
def test_what_cannot_be_judged_is_refused(changes: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        configured(**changes)


def test_the_two_settings_are_not_taken_for_each_other() -> None:
    with pytest.raises(ConfigurationError) as caught:
        run_federation(configured())
    assert "run_submissions" in caught.value.hint


def test_options_of_a_detector_reach_it() -> None:
    config = configured(strategy="fedclean", detector_options="images=40,gap=0.3", detector_epochs=7, seed=3)
    options = config.detector
    assert options is not None
    assert (options.images, options.gap, options.epochs, options.seed) == (40, 0.3, 7, 3)  # type: ignore[union-attr]
