"""The gatekeeper inside a strategy: who gets past it, and what happens as the global model moves away from its release."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from common.devices import choose_compute
from common.errors import ConfigurationError, DataError, GuardMismatchError, GuardRangeError
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.training import train
from common.training_options import TrainingOptions
from common.weights import Weights
from owner.federated import FederationConfig, run_federation
from owner.federated.gated import GatedStrategy
from owner.federated.guard_fitting import GuardFitter
from owner.federated.replies import to_weights
from owner.gatekeeper import Gatekeeper, GuardOptions
from owner.population import HonestPopulation
from tests.owner.federated.messages import Round, outcomes

COMPUTE = choose_compute("cpu", "float32")
SPEC = ModelSpec("mlp", (1, 6, 6), 3)
TUNING = TrainingOptions(epochs=1, learning_rate=0.02, batch_size=16, momentum=0.0, schedule="constant")


def images(count: int, seed: int) -> Examples:
    """Three brightnesses, which a small network tells apart at once."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 60, (count, 1, 6, 6), generator=torch.Generator().manual_seed(seed))
    return Examples(((noise + 90 * labels.view(-1, 1, 1, 1)).to(torch.uint8),), labels, ("dark", "grey", "bright"))


@pytest.fixture(scope="module")
def release() -> torch.nn.Module:
    model = build(SPEC, seed=0)
    train(model, images(240, 1), dataclasses.replace(TUNING, epochs=8), compute=COMPUTE, progress=False)
    return model


@pytest.fixture(scope="module")
def fitter(release: torch.nn.Module) -> GuardFitter:
    options = GuardOptions(
        detectors=("paper",),
        references=9,
        reject_level=0.1,
        quarantine_level=0.1,
        epochs=5,
        population=HonestPopulation(learning_rate=(0.5, 2.0), noisy=0.0, other_images=0.0),
    )
    return GuardFitter(release, images(330, 2), images(120, 3), SPEC, TUNING, options, COMPUTE)


@pytest.fixture(scope="module")
def guard(fitter: GuardFitter, release: torch.nn.Module) -> Gatekeeper:
    return fitter(release.state_dict())


def state(model: torch.nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def tuned(weights: Weights, seed: int, *, epochs: int = 1) -> Weights:
    """An honest client's answer."""
    model = build(SPEC)
    model.load_state_dict(weights)
    options = dataclasses.replace(TUNING, epochs=epochs, seed=seed)
    train(model, images(60, 10 + seed), options, compute=COMPUTE, progress=False)
    return state(model)


def far(weights: Weights) -> Weights:
    """A model no honest fine-tuning leads to."""
    return {name: 4 * tensor for name, tensor in weights.items()}


def test_honest_replies_pass_and_a_ruined_one_is_dropped(guard: Gatekeeper, release: torch.nn.Module) -> None:
    strategy, messages = GatedStrategy(None, guard), Round()
    messages.send(strategy, state(release))
    honest = [messages.reply(tuned(state(release), seed), seed) for seed in (0, 1)]
    strategy.aggregate_train(1, [messages.reply(far(state(release)), 2), *honest])
    record = strategy.records[0]
    assert outcomes(record) == ["kept", "kept", "dropped"]
    assert "ACTIVATION_AUTOENCODER" in record.clients[2].reason
    scores = [client.score for client in record.clients]
    assert max(scores[:2]) <= (record.threshold or 0) < scores[2]  # type: ignore[operator, type-var]


def test_a_guard_that_is_given_as_a_fitter_fits_the_first_global_model(
    fitter: GuardFitter, release: torch.nn.Module
) -> None:
    strategy, messages = GatedStrategy(None, fitter, refresh="when-left"), Round()
    messages.send(strategy, state(release))
    arrays, _ = strategy.aggregate_train(1, [messages.reply(tuned(state(release), 0), 0)])
    assert arrays is not None
    assert outcomes(strategy.records[0]) == ["kept"]
    assert strategy.records[0].guard_seconds > 0
    assert strategy.guard is not None
    assert strategy.guard.guard.usefulness is None  # no client is turned away for what its update does by itself
    assert strategy.guard_seconds == {1: strategy.records[0].guard_seconds}


def test_a_guard_of_another_architecture_is_refused_before_anything_is_sent(guard: Gatekeeper) -> None:
    other = state(build(ModelSpec("logistic", (1, 6, 6), 3), seed=0))
    with pytest.raises(GuardMismatchError, match="the guard protects a mlp, and the federated model is another"):
        Round().send(GatedStrategy(None, guard), other)


def test_a_fitter_of_another_architecture_is_refused(fitter: GuardFitter) -> None:
    other = state(build(ModelSpec("logistic", (1, 6, 6), 3), seed=0))
    with pytest.raises(GuardMismatchError, match="the federated model is another"):
        Round().send(GatedStrategy(None, fitter), other)


def test_a_guard_of_another_release_is_refused(guard: Gatekeeper, release: torch.nn.Module) -> None:
    with pytest.raises(GuardMismatchError, match="begins with"):
        Round().send(GatedStrategy(None, guard), tuned(state(release), 5))


def test_while_the_global_model_stays_in_range_the_guard_stays(guard: Gatekeeper, release: torch.nn.Module) -> None:
    strategy, messages = GatedStrategy(None, guard), Round()
    messages.send(strategy, state(release))
    messages.send(strategy, _between(release), number=2)
    assert strategy.guard is guard


def _between(release: torch.nn.Module) -> Weights:
    """The mean of a round of honest clients: it moves less than each of them."""
    every = [tuned(state(release), seed) for seed in range(4)]
    return {name: torch.stack([one[name] for one in every]).mean(0) for name in every[0]}


def test_once_the_global_model_has_left_never_is_an_error(guard: Gatekeeper, release: torch.nn.Module) -> None:
    strategy, messages = GatedStrategy(None, guard, refresh="never"), Round()
    messages.send(strategy, state(release))
    with pytest.raises(GuardRangeError, match="has left the range of its guard") as caught:
        messages.send(strategy, far(state(release)), number=2)
    assert "when-left" in caught.value.hint


def test_once_the_global_model_has_left_a_new_guard_is_fitted(
    guard: Gatekeeper, fitter: GuardFitter, release: torch.nn.Module
) -> None:
    strategy, messages = GatedStrategy(None, guard, refresh="when-left", refit=fitter), Round()
    messages.send(strategy, state(release))
    moved = far(state(release))
    messages.send(strategy, moved, number=2)
    assert strategy.guard is not guard
    assert all(torch.equal(strategy.guard.release[name], moved[name]) for name in moved)  # type: ignore[union-attr]


def test_before_a_guard_drops_most_of_what_comes_of_a_later_model_it_is_renewed(
    guard: Gatekeeper, fitter: GuardFitter, release: torch.nn.Module
) -> None:
    """Replies are farther from the guarded release than the model they were made from: without a new guard the federation stands still."""
    strategy, messages = GatedStrategy(None, guard, refresh="when-left", refit=fitter), Round()
    messages.send(strategy, state(release))
    ruined = [messages.reply(far(state(release)), partition) for partition in (1, 2)]
    strategy.aggregate_train(1, [messages.reply(tuned(state(release), 0), 0), *ruined])
    assert outcomes(strategy.records[0]) == ["kept", "dropped", "dropped"]
    assert strategy.guard is guard  # of this very model: whoever is dropped, the guard is right to
    later = _between(release)
    messages.send(strategy, later, number=2)
    assert strategy.guard is guard
    strategy.aggregate_train(2, [messages.reply(tuned(later, 0), 0), *ruined])
    assert strategy.guard is not guard
    assert outcomes(strategy.records[1]) == ["kept", "dropped", "dropped"]
    record = strategy.records[1]
    assert strategy.guard_seconds[2] == record.guard_seconds > record.vetting_seconds > 0


def test_in_a_federation_of_honest_clients_most_are_kept_to_the_end() -> None:
    given = {"strategy": "gated", "refresh": "when-left", "guard-references": 19, "rounds": 5, "clients": 6}
    given |= {"learning-rate": 0.1, "local-epochs": 2, "engine": "inline", "device": "cpu", "precision": "float32"}
    result = run_federation(FederationConfig.from_flat({"data": "digits", "model": "mlp", **given}))
    kept = [len(one.record.with_outcome("kept")) for one in result.rounds]
    assert min(kept[-2:]) >= 3
    assert result.accuracy > result.initial_accuracy


def test_a_number_fits_a_new_guard_every_so_many_rounds(
    guard: Gatekeeper, fitter: GuardFitter, release: torch.nn.Module
) -> None:
    strategy, messages = GatedStrategy(None, guard, refresh=2, refit=fitter), Round()
    guards = []
    for number, weights in enumerate((state(release), _between(release), _between(release)), 1):
        messages.send(strategy, weights, number=number)
        guards.append(strategy.guard)
    assert guards[0] is guards[1]
    assert guards[2] is not guards[1]


def test_between_two_refits_leaving_the_range_is_an_error(
    guard: Gatekeeper, fitter: GuardFitter, release: torch.nn.Module
) -> None:
    strategy, messages = GatedStrategy(None, guard, refresh=5, refit=fitter), Round()
    messages.send(strategy, state(release))
    with pytest.raises(GuardRangeError, match="has left the range"):
        messages.send(strategy, far(state(release)), number=2)


@pytest.mark.parametrize("refresh", ["sometimes", 0, -1, True, 2.5, None])
def test_a_refresh_that_is_none_is_refused(guard: Gatekeeper, refresh: object) -> None:
    with pytest.raises(ConfigurationError, match="refresh must be"):
        GatedStrategy(None, guard, refresh=refresh)  # type: ignore[arg-type]


def test_refitting_without_a_way_to_is_refused(guard: Gatekeeper) -> None:
    with pytest.raises(ConfigurationError, match="nothing says how"):
        GatedStrategy(None, guard, refresh="when-left")


def test_what_is_no_guard_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="guard must be"):
        GatedStrategy(None, "guard-folder")  # type: ignore[arg-type]


def test_it_tells_what_guards_and_when_a_new_guard_comes(guard: Gatekeeper) -> None:
    lines = GatedStrategy(None, guard).describe()
    assert any("activation-autoencoder" in line and "9 references" in line for line in lines)
    assert any("never" in line for line in lines)


@pytest.mark.parametrize("kind", ["tuples", "dicts"])
def test_a_fitter_reads_the_batches_of_a_loader(kind: str) -> None:
    data = images(300, 4)
    x, y = data.images.float() / 255, data.labels
    pairs = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 300, 32)]
    batches = pairs if kind == "tuples" else [{"img": a, "label": b} for a, b in pairs]
    made = GuardFitter.from_batches(build(SPEC, seed=0), batches)
    triggers = made.triggers
    assert not isinstance(triggers, Examples)
    counted = [len(part) for part in (triggers.fit, triggers.calibration, triggers.evaluation, made.references_pool)]
    assert sum(counted) == 300
    assert made.references_pool.classes == 3


@pytest.mark.parametrize("batches", [[], ["text"], [(torch.zeros(3, 2),)], [{"img": torch.zeros(3, 2)}]])
def test_batches_of_another_kind_are_refused(batches: list) -> None:
    with pytest.raises(DataError):
        GuardFitter.from_batches(build(SPEC, seed=0), batches)


def test_the_merged_model_is_the_mean_of_those_that_passed(guard: Gatekeeper, release: torch.nn.Module) -> None:
    strategy, messages = GatedStrategy(None, guard), Round()
    messages.send(strategy, state(release))
    honest = [tuned(state(release), seed) for seed in (0, 1)]
    replies = [messages.reply(weights, i) for i, weights in enumerate([*honest, far(state(release))])]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    for name, tensor in to_weights(arrays).items():
        assert torch.allclose(tensor, (honest[0][name] + honest[1][name]) / 2, atol=1e-6)
