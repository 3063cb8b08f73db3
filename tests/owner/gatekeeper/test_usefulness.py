"""References that pass the utility check, as submissions have to: which are drawn, what they cost, and whom they judge."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import GuardError
from common.models import build
from owner.cli.verdicts import gate_lines
from owner.detectors import Evidence
from owner.gatekeeper import (
    Decision,
    Gatekeeper,
    Guard,
    GuardOptions,
    HonestPopulation,
    MergePolicy,
    UtilityLimits,
    merge,
)
from owner.gatekeeper.assistants import Share
from owner.gatekeeper.calibrating import calibrate
from owner.gatekeeper.guard_files import release_digest
from owner.gatekeeper.protection import Protection
from owner.gatekeeper.transplants import KeptReferences, Transplants
from owner.gatekeeper.usefulness import Usefulness
from tests.owner.gatekeeper.conftest import COMPUTE, FINETUNING, SPEC, Bench

HASTY = dataclasses.replace(FINETUNING, learning_rate=0.05)
"""What is recommended here makes a good part of the honest fine-tunes fail utility."""
OPTIONS = GuardOptions(
    detectors=("cka", "update-norm"),
    combination="max",
    fitting_references=3,
    references=5,
    reject_level=0.2,
    quarantine_level=0.2,
    incremental=True,
)
LIMITS = UtilityLimits()


def protection(bench: Bench, **changes: Any) -> Protection:
    given: dict[str, Any] = {
        "model": bench.model,
        "release_sha256": bench.gatekeeper.guard.release_sha256,
        "triggers": bench.triggers,
        "references_pool": bench.shares.references,
        "spec": SPEC,
        "options": OPTIONS,
        "finetuning": HASTY,
        "compute": COMPUTE,
        "utility": LIMITS,
    }
    return Protection(**(given | changes))


@pytest.fixture(scope="module")
def fitted(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Guard, KeptReferences]:
    """A guard where useless fine-tunes are common, and the weights of its references."""
    folder = tmp_path_factory.mktemp("fitted")
    guard = protection(bench, keep=True).fit(directory=folder, progress=False)
    return guard, KeptReferences(Protection.kept_in(folder, guard))


def utility_of(keeper: Gatekeeper, weights: Any) -> list[str]:
    """Utility checks that such a submission fails, as vetting finds them."""
    checks = keeper.vet(weights, utility=LIMITS).checks
    return [one.name for one in checks if one.name.startswith("utility") and one.decision is not Decision.ACCEPTED]


def test_every_reference_would_pass_utility_as_a_submission(bench: Bench, fitted: tuple[Guard, KeptReferences]) -> None:
    guard, kept = fitted
    for part, count in (("fitting", 3), ("calibrating", 5)):
        assert [utility_of(bench.gatekeeper, kept.read(part, k)[0]) for k in range(count)] == [[]] * count  # type: ignore[arg-type]
    assert guard.usefulness == Usefulness(LIMITS, MergePolicy())


def test_those_that_are_drawn_again_are_those_that_fail_and_every_one_is_counted(
    bench: Bench, fitted: tuple[Guard, KeptReferences]
) -> None:
    guard, _ = fitted
    tunes = protection(bench).fine_tunes
    away = 0
    for k, reference in enumerate(guard.references):
        attempt = int(reference.plan["attempt"])
        fates = [utility_of(bench.gatekeeper, tunes.make(k, one, head=guard.head)[0]) for one in range(attempt)]
        assert all(fates)
        assert reference.plan["turned_away"] == attempt
        away += attempt
    assert away > 0
    conditioning = guard.conditioning
    assert conditioning is not None
    assert (conditioning["drawn"], conditioning["turned_away"]) == (5 + away, away)
    assert conditioning["fitting_turned_away"] == sum(int(one.plan["turned_away"]) for one in guard.fitting)


TIER = dataclasses.replace(OPTIONS, escalation="maximum-margin", escalation_references=5, escalation_reject_level=0.2)


def test_the_escalation_tier_looks_at_the_very_ones_that_passed(
    bench: Bench, fitted: tuple[Guard, KeptReferences]
) -> None:
    guard = dataclasses.replace(fitted[0], options=TIER)
    tier = calibrate(guard, protection(bench).fine_tunes, progress=False)
    assert [one.plan["attempt"] for one in tier.references] == [one.plan["attempt"] for one in guard.references]
    assert [one.accuracy for one in tier.references] == [one.accuracy for one in guard.references]


def test_made_again_on_a_later_release_the_tiers_references_pass_utility_there(
    bench: Bench, fitted: tuple[Guard, KeptReferences]
) -> None:
    """What was transplanted passes; trained on the later release, some of the same plans do not."""
    base = bench.weights
    merged = merge("average", base, base, bench.honest(learning_rate=0.01, seed=12).state_dict(), 0.5)
    model = build(SPEC)
    model.load_state_dict(merged)
    old = fitted[0].release_sha256
    later = protection(
        bench,
        model=model,
        release_sha256=release_digest(merged),
        options=TIER,
        transplants=Transplants(fitted[1], base, old, old, generation=1, news=0.5, total_news=0.5),
    )
    guard, tunes = later.fit(progress=False), later.fine_tunes
    tier = calibrate(guard, tunes, progress=False)
    keeper = Gatekeeper(guard, model)
    made = [tunes.make(k, one.plan["attempt"], head=guard.head)[0] for k, one in enumerate(tier.references)]
    assert [utility_of(keeper, one) for one in made] == [[]] * 5
    assert [one.plan["attempt"] for one in tier.references] != [one.plan["attempt"] for one in guard.references]


def test_the_policy_by_which_they_are_merged_decides_too(bench: Bench) -> None:
    one = dataclasses.replace(OPTIONS, detectors=("cka",), references=2, reject_level=0.4, quarantine_level=0.4)
    whole, little = (
        protection(bench, options=one, merging=MergePolicy("average", weight)).fit(progress=False)
        for weight in (1.0, 0.01)
    )
    assert whole.conditioning is not None
    assert little.conditioning is not None
    assert whole.conditioning["turned_away"] > little.conditioning["turned_away"] == 0


def test_without_limits_whatever_is_honest_is_a_reference(bench: Bench) -> None:
    guard = protection(bench, utility=None).fit(progress=False)
    assert [one.plan["attempt"] for one in (*guard.references, *guard.fitting)] == [0] * 8
    assert all("turned_away" not in one.plan for one in guard.references)
    assert (guard.usefulness, guard.conditioning) == (None, None)
    assert "drawn" not in guard.judge_gate(0.0).detail


def test_under_the_rule_seed_there_is_nothing_to_condition(bench: Bench) -> None:
    seed = protection(bench, options=GuardOptions(detectors=("paper",), rule="seed", epochs=1, hidden=16, latent=4))
    assert seed.fit(progress=False).usefulness is None


def test_the_key_of_the_work_changes_with_limits_and_merging(bench: Bench) -> None:
    one = dataclasses.replace(OPTIONS, detectors=("cka",), references=1, reject_level=0.5, quarantine_level=0.5)
    given: list[dict[str, Any]] = [
        {"utility": None},
        {"utility": LIMITS},
        {"utility": UtilityLimits(0.02)},
        {"merging": MergePolicy("average", 0.4)},
    ]
    assert len({protection(bench, options=one, **changes).fit(progress=False).key for changes in given}) == 4


def test_interrupted_or_shared_it_ends_in_the_same_references(
    bench: Bench, fitted: tuple[Guard, KeptReferences], tmp_path: Path
) -> None:
    guard, _ = fitted

    class Stop(Exception):
        pass

    def stop(done: int, total: int, scores: object) -> None:
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        protection(bench).fit(directory=tmp_path, progress=False, on_reference=stop)
    protection(bench).assist(tmp_path, Share(1, 2))
    again = protection(bench).fit(directory=tmp_path, progress=False)
    for part in ("references", "fitting"):
        assert [one.scores for one in getattr(again, part)] == [one.scores for one in getattr(guard, part)]
    assert again.conditioning == guard.conditioning


def test_a_stored_guard_says_what_it_was_conditioned_on(fitted: tuple[Guard, KeptReferences], tmp_path: Path) -> None:
    guard, _ = fitted
    guard.save(tmp_path / "guard")
    loaded = Guard.load(tmp_path / "guard")
    assert (loaded.usefulness, loaded.conditioning) == (guard.usefulness, guard.conditioning)
    about = json.loads((tmp_path / "guard" / "guard.json").read_bytes())
    assert about["usefulness"]["utility"] == {"accuracy_drop": 0.01, "recall_drop": 0.05}


def test_the_verdict_tells_of_how_many_the_references_were_drawn(
    bench: Bench, fitted: tuple[Guard, KeptReferences]
) -> None:
    guard, _ = fitted
    assert guard.conditioning is not None
    verdict = Gatekeeper(guard, bench.model).vet(bench.honest(learning_rate=0.001))
    (gate,) = [check for check in verdict.checks if check.name == "gate"]
    assert f"5 references of {guard.conditioning['drawn']} honest fine-tunes drawn" in gate.detail
    assert verdict.measurements["gate"]["conditioning"] == guard.conditioning
    shown = " ".join(line.plain for line in gate_lines(verdict.measurements["gate"]))
    assert f"5 references of {guard.conditioning['drawn']} honest" in shown


def test_where_nobody_could_pass_fitting_ends_with_the_way_out(bench: Bench) -> None:
    """One class each, at a rate that forgets the others."""
    population = HonestPopulation(iid=0.0, alpha=(0.01, 0.01))
    options = dataclasses.replace(OPTIONS, population=population)
    forgetful = dataclasses.replace(FINETUNING, learning_rate=0.3)
    with pytest.raises(
        GuardError, match=r"30 of 30 honest fine-tunes drawn for one reference .*\d+ fail utility-recall"
    ) as caught:
        protection(bench, options=options, finetuning=forgetful).fit(progress=False)
    assert all(way in caught.value.hint for way in ("learning rate", "epochs", "[population]", "[utility]"))


@pytest.fixture(scope="module")
def skewed(bench: Bench) -> Any:
    """An honest contributor with three classes, who trained long: the others are forgotten."""
    images = bench.shares.unclaimed
    return bench.honest(images.take(images.labels < 3), epochs=20, learning_rate=0.05)


def unconditioned(guard: Guard) -> Guard:
    return dataclasses.replace(guard, usefulness=None)


def test_an_honest_submission_that_fails_utility_is_told_so_and_not_suspected(bench: Bench, skewed: Any) -> None:
    name = "activation-autoencoder"
    before = Gatekeeper(unconditioned(bench.gatekeeper.guard), bench.model).vet(skewed, utility=LIMITS)
    assert (before.public_code, before.p_value) == ("review", pytest.approx(0.1))

    verdict = bench.gatekeeper.vet(skewed, root=bench.gatekeeper.guard)
    assert verdict.decision is Decision.REJECTED
    assert verdict.public_code == "utility"
    assert set(verdict.codes) <= {"UTILITY_ACCURACY", "UTILITY_RECALL"}
    judged = {check.name: check for check in verdict.checks}
    for check in (judged[name], judged[f"root-{name}"]):
        assert (check.decision, check.code) == (Decision.ACCEPTED, None)
        assert "not judged: it fails utility, which the references pass" in check.detail
    assert judged[name].p_value == pytest.approx(0.1)
    assert (verdict.p_value, verdict.resolution) == (None, None)


def test_nothing_is_suspected_of_it_and_its_p_values_stay_for_people(bench: Bench, skewed: Any) -> None:
    guard = protection(bench, finetuning=FINETUNING).fit(progress=False)
    suspicious = Gatekeeper(unconditioned(guard), bench.model).vet(skewed, utility=LIMITS).measurements["gate"]
    assert suspicious["suspected"] is not None
    gate = Gatekeeper(guard, bench.model).vet(skewed).measurements["gate"]
    assert (gate["judged"], gate["suspected"], gate["picture"]) == (False, None, None)
    assert (gate["p_value"], gate["families"]) == (suspicious["p_value"], suspicious["families"])
    assert "decides nothing here" in " ".join(line.plain for line in gate_lines(gate))


def test_what_passes_utility_is_judged_as_ever(bench: Bench) -> None:
    candidate = {
        n: t + 0.05 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for n, t in bench.weights.items()
    }
    anything = UtilityLimits(1.0, 1.0)
    one, other = (
        Gatekeeper(guard, bench.model).vet(candidate, utility=anything)
        for guard in (bench.gatekeeper.guard, unconditioned(bench.gatekeeper.guard))
    )
    assert (one.decision, one.codes, one.p_value) == (other.decision, other.codes, other.p_value)
    assert one.p_value is not None


class Endless:
    """A detector whose score is not finite."""

    name = "activation-autoencoder"

    def score(self, evidence: Evidence) -> float:
        return math.inf

    def explain(self, evidence: Evidence) -> dict[str, Any]:
        return {}


def test_a_score_that_is_not_finite_rejects_whatever_the_submission_is_worth(bench: Bench, skewed: Any) -> None:
    guard = dataclasses.replace(bench.gatekeeper.guard, detectors={Endless.name: Endless()})
    verdict = Gatekeeper(guard, bench.model).vet(skewed)
    assert "NONFINITE_SCORE" in verdict.codes
    assert verdict.public_code == "review"
    assert verdict.p_value is None


def test_vetting_takes_the_limits_and_the_policy_that_the_guard_was_made_for(bench: Bench, skewed: Any) -> None:
    made_for = Usefulness(UtilityLimits(1.0, 1.0), MergePolicy("average", 0.25))
    keeper = Gatekeeper(dataclasses.replace(bench.gatekeeper.guard, usefulness=made_for), bench.model)
    mild = {check.name: check for check in keeper.vet(skewed).checks}
    assert mild["utility-accuracy"].decision is Decision.ACCEPTED
    assert mild["utility-accuracy"].threshold == 1.0
    quarter = build(SPEC)
    release, tuned = bench.weights, skewed.state_dict()
    quarter.load_state_dict({n: t + 0.25 * (tuned[n] - t) for n, t in release.items()})
    drop = bench.gatekeeper.vet(quarter, merge=MergePolicy("replace")).checks
    assert mild["utility-accuracy"].score == next(c.score for c in drop if c.name == "utility-accuracy")
