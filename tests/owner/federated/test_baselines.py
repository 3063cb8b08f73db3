"""Each baseline on a case where its own paper says it works, and with nothing to find.

Sign flip (weights times -1) and additive noise N(0, 0.3^2) with 30 and 50 % attackers (Li et al. 2020), same value (Gu & Yang 2021),
on logistic regression; FedCLEAN, which looks at activations, on a network with some. Digits here, MNIST in the slow tests.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import scipy.stats
import torch
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg

from common.devices import choose_compute
from common.errors import ConfigurationError, GuardError, VacuousGateError
from common.models import build
from common.weights import weights_of
from owner.detectors.geometric_median import geometric_median
from owner.federated import FederationConfig, FederationResult, clean, pretraining, run_federation
from owner.federated.clean import CleanDetector, CleanOptions
from owner.federated.cvae import CVAEDetector, FedCVAEOptions
from owner.federated.honest_clients import honest_clients
from owner.federated.learning import errors_of, learn
from owner.federated.pretraining import HonestRounds, honest_rounds
from owner.federated.replies import to_weights
from owner.federated.spectral import SpectralDetector, SpectralOptions
from owner.federated.strategies import RobustStrategy
from owner.gatekeeper.references import FIRST_FITTING
from tests.owner.federated.messages import Round, model

DIGITS = {
    "data": "digits",
    "clients": 10,
    "rounds": 3,
    "local-epochs": 2,
    "learning-rate": 0.1,
    "engine": "inline",
    "device": "cpu",
    "precision": "float32",
}
MODELS = {"fedclean": "mlp"}
"""Where not logistic regression."""


def played(strategy: str, attack: str, attackers: int, **changes: object) -> FederationResult:
    given = {"strategy": strategy, "model": MODELS.get(strategy, "logistic"), "attack": attack, "attackers": attackers}
    return run_federation(FederationConfig.from_flat({**DIGITS, **given, **changes}))


CASES = [
    (strategy, attack, attackers)
    for strategy in ("spectral-vae", "fedcvae")
    for attack in ("sign-flip", "add-noise")
    for attackers in (3, 5)
    # Half of the clients around +w, half around -w: no median lies nearer to the honest half.
    if (strategy, attack, attackers) != ("fedcvae", "sign-flip", 5)
]


@pytest.mark.parametrize(
    ("strategy", "attack", "attackers"),
    [case for case in CASES if case[1:] in (("sign-flip", 3), ("add-noise", 5))],
)
def test_every_attacker_is_dropped_and_nobody_else(strategy: str, attack: str, attackers: int) -> None:
    found = played(strategy, attack, attackers).detection
    assert found.f1 is not None
    assert found.f1 >= 0.95
    assert found.auroc == 1.0


def test_fedcvae_drops_those_who_return_one_value_everywhere() -> None:
    assert played("fedcvae", "same-value", 3).detection.f1 == 1.0


@pytest.mark.parametrize("attack", ["sign-flip", "add-noise"])
def test_fedclean_drops_every_attacker_and_nobody_else(attack: str) -> None:
    found = played("fedclean", attack, 3).detection
    assert found.f1 is not None
    assert found.f1 >= 0.95


@pytest.mark.parametrize("attack", ["sign-flip", "add-noise"])
@pytest.mark.parametrize("strategy", ["krum", "multikrum"])
def test_krum_selects_no_attacker(strategy: str, attack: str) -> None:
    """Told the true number f, it selects the one, or the n - f, with the nearest neighbours (Blanchard et al. 2017)."""
    found = played(strategy, attack, 3).detection
    assert found.recall == 1.0
    assert found.auroc == 1.0


@pytest.mark.parametrize("strategy", ["bulyan", "fedmedian", "fedtrimmedavg"])
def test_robust_merging_learns_where_the_mean_is_lost(strategy: str) -> None:
    """Noise in two of eleven clients: 4f + 3 for Bulyan, and a fifth off both ends."""
    attacked = {"attack": "add-noise", "attackers": 2, "clients": 11}
    without = played(strategy, "", 0, clients=11).accuracy
    defended = played(strategy, **attacked).accuracy
    lost = played("fedavg", **attacked).accuracy
    assert defended > without - 0.05
    assert lost < defended - 0.05


@pytest.mark.parametrize("strategy", [FedMedian(), FedTrimmedAvg(beta=0.2)], ids=["FedMedian", "FedTrimmedAvg"])
def test_merging_coordinate_by_coordinate_is_numpys_and_scipys(strategy: FedMedian | FedTrimmedAvg) -> None:
    draws = torch.randn(10, 4, generator=torch.Generator().manual_seed(3))
    messages, robust = Round(), RobustStrategy(strategy)
    messages.send(robust, model(0.0, 0.0, 0.0, 0.0))
    arrays, _ = robust.aggregate_train(1, [messages.reply(model(*row.tolist()), i) for i, row in enumerate(draws)])
    assert arrays is not None
    median = isinstance(strategy, FedMedian)
    expected = np.median(draws, axis=0) if median else scipy.stats.trim_mean(draws, 0.2, axis=0)
    assert to_weights(arrays)["w"][0].numpy() == pytest.approx(expected, rel=1e-5)


def test_where_attackers_are_dropped_the_model_learns_as_if_there_were_none() -> None:
    attacked = {"attack": "sign-flip", "attackers": 5}
    alone = run_federation(FederationConfig.from_flat({**DIGITS, "model": "logistic", **attacked}))
    defended = played("spectral-vae", "sign-flip", 5)
    assert defended.accuracy > alone.accuracy + 0.2


@pytest.fixture(scope="module")
def honest() -> HonestRounds:
    config = FederationConfig.from_flat({**DIGITS, "model": "logistic"})
    model, public = build(config.spec(), seed=0), config.shares().references
    return honest_rounds(
        model,
        public,
        config.training(0, 0),
        rounds=2,
        contributors=4,
        seed=0,
        compute=choose_compute("cpu", "float32"),
        population=honest_clients(config, pool=len(public)),
        progress=False,
    )


def test_honest_rounds_learn_and_leave_the_model_as_it_was(honest: HonestRounds) -> None:
    assert [len(updates) for updates in honest.rounds] == [4, 4]
    first, second = (torch.stack([u["1.weight"] for u in updates]).mean(0) for updates in honest.rounds)
    assert second.norm() > first.norm() * 1.05
    assert not torch.equal(honest.rounds[0][0]["1.weight"], honest.rounds[0][1]["1.weight"])


def test_contributors_to_honest_rounds_are_others_each_time_and_none_that_calibrate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    plan = pretraining.plan_reference
    monkeypatch.setattr(pretraining, "plan_reference", lambda k, **named: asked.append(k) or plan(k, **named))
    config = FederationConfig.from_flat({**DIGITS, "model": "logistic", "local-epochs": 1})
    pool = config.shares().references
    honest_rounds(
        build(config.spec(), seed=0),
        pool,
        config.training(0, 0),
        rounds=2,
        contributors=3,
        seed=0,
        compute=choose_compute("cpu", "float32"),
        population=honest_clients(config, pool=len(pool)),
        progress=False,
    )
    assert asked == [FIRST_FITTING + k for k in range(6)]


@pytest.mark.parametrize("kind", ["spectral-vae", "fedcvae"])
def test_training_is_what_makes_honest_updates_score_low(kind: str, honest: HonestRounds) -> None:
    """An untrained network of the same shape rebuilds them worse: the training is real."""

    def of(epochs: int) -> float:
        detector = (
            SpectralDetector(SpectralOptions(epochs=epochs, hidden=(100,)))
            if kind == "spectral-vae"
            else CVAEDetector(FedCVAEOptions(epochs=epochs))
        ).fit(honest)
        return sum(detector.scores(1, list(honest.rounds[0])))

    assert of(epochs=60) < of(epochs=1)


@pytest.mark.parametrize(("spread", "noise"), [(0.05, 0.01), (0.05, 0.0005)], ids=["logistic", "mlp"])
def test_the_spectral_vae_rebuilds_its_own_rows_no_worse_than_their_mean_does(spread: float, noise: float) -> None:
    """24 updates of 7850 weights, as of logistic regression; of an MLP's the updates differ far less from each other."""
    draws = torch.Generator().manual_seed(0)
    base = torch.randn(7850, generator=draws) * spread
    updates = tuple({"w": base + noise * torch.randn(7850, generator=draws)} for _ in range(24))
    detector = SpectralDetector().fit(HonestRounds((updates,)))
    rows = torch.stack(detector.seen(updates))
    assert detector.network_ is not None
    squared, _ = errors_of(detector.network_, rows, torch.zeros(len(rows), 0))
    assert squared.mean() <= 1.5 * (rows - rows.mean(0)).square().sum(1).mean()


def test_fedcvae_rebuilds_honest_updates_no_worse_than_their_mean_does(honest: HonestRounds) -> None:
    detector = CVAEDetector().fit(honest)
    scores = detector.scores(1, list(honest.rounds[0]))
    rows = torch.stack(detector.seen(honest.rounds[0])) / detector.scale_
    assert sum(scores) / len(scores) <= 1.5 * (rows - rows.mean(0)).square().mean()


def test_fedclean_rebuilds_the_owners_own_snapshots_no_worse_than_their_mean_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learnt: list[torch.Tensor] = []
    told: dict[str, float] = {}

    def watched(network, *given, **named):  # type: ignore[no-untyped-def]
        learnt.extend(given)
        told.update(named)
        return learn(network, *given, **named)

    monkeypatch.setattr(clean, "learn", watched)
    config = FederationConfig.from_flat({**DIGITS, "model": "mlp"})
    detector = CleanDetector(build(config.spec(), seed=0), compute=choose_compute("cpu", "float32"))
    detector.fit(config.shares().trigger_fit)
    rows, condition = learnt
    triggers = min(CleanOptions().images, len(config.shares().trigger_fit))
    assert len(rows) == CleanOptions().snapshots * triggers
    # Half of the KL of a batch, which is one snapshot, beside the mean of squares over images and numbers.
    assert (told["batch_size"], told["kl_weight"]) == (triggers, 0.5 * triggers * rows.shape[1])
    assert detector.network_ is not None
    squared, _ = errors_of(detector.network_, rows, condition)
    assert squared.mean() <= 1.5 * (rows - rows.mean(0)).square().sum(1).mean()


def test_each_baseline_cuts_as_its_paper_says() -> None:
    """At the mean the two papers part; FedCLEAN's gap is its lambda of the range."""
    scores = [1.0, 2.0, 3.0]
    assert SpectralDetector().cut(scores).dropped == (False, False, True)
    assert CVAEDetector().cut(scores).dropped == (False, True, True)
    assert SpectralDetector(SpectralOptions(mean_factor=2.0)).cut(scores).dropped == (False, False, False)
    assert CVAEDetector(FedCVAEOptions(mean_factor=1.5)).cut(scores).dropped == (False, False, True)
    network, compute = build(FederationConfig.from_flat(DIGITS).spec(), seed=0), choose_compute("cpu", "float32")
    for gap, dropped in ((0.5, (False, True, False)), (0.95, (False, False, False))):
        assert (
            CleanDetector(network, compute=compute, options=CleanOptions(gap=gap)).cut([0.1, 1.1, 0.2]).dropped
            == dropped
        )


def test_the_spectral_score_is_squared_error_and_divergence_of_weights_in_the_honest_range(
    honest: HonestRounds,
) -> None:
    detector = SpectralDetector(SpectralOptions(size=None, hidden=(20,), epochs=2, margin=0.25)).fit(honest)
    flat = [torch.cat([w.flatten() for w in weights.values()]) for weights in honest.updates]
    low, high = float(torch.stack(flat).min()), float(torch.stack(flat).max())
    rows = (2 * torch.stack(flat[:3]) - (low - (high - low) / 4)) / (1.5 * (high - low))
    assert detector.network_ is not None
    rebuilt, kl = detector.network_(rows, torch.zeros(3, 0), None)
    expected = ((rows - rebuilt) ** 2).sum(1) + kl
    doubled = [{name: 2 * w for name, w in weights.items()} for weights in honest.updates[:3]]
    assert detector.scores(1, doubled) == pytest.approx(expected.tolist(), rel=1e-4)


def test_fedcvaes_score_is_the_mean_error_about_the_median_given_the_round(honest: HonestRounds) -> None:
    """Rounds beyond those it learnt are given the last one."""
    detector = CVAEDetector(FedCVAEOptions(epochs=2)).fit(honest)
    updates = list(honest.rounds[1])
    seen = torch.stack(detector.seen(updates))
    centred = [
        torch.stack(detector.seen(part)) - geometric_median(torch.stack(detector.seen(part)), iterations=500)
        for part in honest.rounds
    ]
    scale = torch.cat(centred).square().mean().sqrt()
    rows = (seen - geometric_median(seen, iterations=500)) / scale
    assert detector.network_ is not None
    for number, given in ((1, [1.0, 0.0]), (2, [0.0, 1.0]), (7, [0.0, 1.0])):
        rebuilt, _ = detector.network_(rows, torch.tensor([given] * len(rows)), None)
        expected = ((rows - rebuilt) ** 2).mean(1)
        assert detector.scores(number, updates) == pytest.approx(expected.tolist(), rel=1e-4)
    assert detector.scores(1, updates) != pytest.approx(detector.scores(2, updates), rel=1e-4)


def test_fedcleans_score_is_the_mean_error_about_the_median_given_the_class() -> None:
    config = FederationConfig.from_flat({**DIGITS, "model": "mlp"})
    network, triggers = build(config.spec(), seed=0), config.shares().trigger_fit
    options = CleanOptions(images=30, epochs=2, warm_up=1, snapshots=2)
    detector = CleanDetector(network, compute=choose_compute("cpu", "float32"), options=options).fit(triggers)
    honest = weights_of(network)
    updates = [{name: (1 + 0.2 * i) * w for name, w in honest.items()} for i in range(4)]
    seen = detector.seen(updates)
    centre = geometric_median(torch.stack(seen).flatten(1), iterations=200).view_as(seen[0])
    condition = torch.eye(10)[triggers.labels[:30]]
    assert detector.network_ is not None
    expected = []
    for maps in seen:
        rows = torch.sigmoid(maps - centre)
        expected.append(float((rows - detector.network_(rows, condition, None)[0]).square().mean()))
    assert detector.scores(1, updates) == pytest.approx(expected, rel=1e-4)


def test_fedclean_looks_at_every_hidden_layer() -> None:
    """Weights that the head's input forgives, for a later layer undoes them, are seen: the first layer's sign, and the second's columns."""
    config = FederationConfig.from_flat({**DIGITS, "model": "mlp"})
    network = build(config.spec(), seed=0)
    detector = CleanDetector(network, compute=choose_compute("cpu", "float32"))
    detector.fit(config.shares().trigger_fit)
    honest = weights_of(network)
    hidden = {
        **honest,
        "1.weight": honest["1.weight"] * 3,
        "1.bias": honest["1.bias"] * 3,
        "3.weight": honest["3.weight"] / 3,
    }
    scores = detector.scores(1, [honest, honest, honest, hidden])
    assert min(scores[:3]) < scores[3] / 3


def test_the_same_seed_gives_the_same_scores_and_another_seed_other_coordinates(honest: HonestRounds) -> None:
    def scores(seed: int) -> list[float]:
        options = FedCVAEOptions(epochs=5, seed=seed)
        return CVAEDetector(options).fit(honest).scores(1, list(honest.rounds[0]))

    assert scores(0) == scores(0)
    assert scores(0) != scores(1)


def test_weights_that_are_not_finite_score_infinite_and_move_nobody_elses_score(honest: HonestRounds) -> None:
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in honest.rounds[0][0].items()}
    for detector in (SpectralDetector(SpectralOptions(epochs=2, hidden=(20,))), CVAEDetector(FedCVAEOptions(epochs=2))):
        fitted = detector.fit(honest)
        updates = list(honest.rounds[0])
        together = fitted.scores(1, [*updates, broken])
        assert together == pytest.approx([*fitted.scores(1, updates), float("inf")], rel=1e-5)


def test_scoring_before_fitting_is_refused(honest: HonestRounds) -> None:
    for detector in (SpectralDetector(), CVAEDetector()):
        with pytest.raises(GuardError, match="has not been fitted"):
            detector.scores(1, honest.updates)


@pytest.mark.parametrize(
    "options",
    [
        lambda: SpectralOptions(latent=0),
        lambda: SpectralOptions(hidden=()),
        lambda: FedCVAEOptions(learning_rate=0),
        lambda: CleanOptions(gap=1.0),
        lambda: CleanOptions(images=0),
        lambda: CleanOptions(width=0),
        lambda: CleanOptions(snapshot_rate=0),
    ],
)
def test_options_that_cannot_be_are_refused(options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigurationError, match=r"must be|at least"):
        options()


def test_fedclean_on_a_model_without_a_penultimate_layer_is_refused() -> None:
    config = FederationConfig.from_flat({**DIGITS, "model": "logistic"})
    detector = CleanDetector(build(config.spec(), seed=0), compute=choose_compute("cpu", "float32"))
    with pytest.raises(VacuousGateError, match="nothing to look at"):
        detector.fit(config.shares().trigger_fit)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("PORTIER_DATA"), reason="$PORTIER_DATA names no folder of data sets")
@pytest.mark.parametrize(
    ("strategy", "attack", "attackers"), [*CASES, ("fedclean", "sign-flip", 3), ("fedclean", "add-noise", 3)]
)
def test_on_mnist_every_attacker_is_dropped_and_nobody_else(strategy: str, attack: str, attackers: int) -> None:
    found = played(strategy, attack, attackers, data="mnist", examples=6000, **{"learning-rate": 0.05}).detection
    assert found.f1 is not None
    assert found.f1 >= 0.95
