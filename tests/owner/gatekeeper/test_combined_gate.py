"""Several detectors, one decision: what fits it, what calibrates it, what is told and what decides."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from common.errors import ConfigurationError, GuardError, UnknownNameError
from common.weights import save
from owner.choices import DETECTOR_NAMES, PRESETS, expand
from owner.detectors import Combination, standard_detectors
from owner.gatekeeper import Decision, Gatekeeper, Guard, GuardOptions, UtilityLimits, Verdict
from owner.gatekeeper.combined import CombinedScore
from owner.gatekeeper.rules import p_value
from owner.gatekeeper.verdict import Check
from tests.owner.gatekeeper.conftest import STANDARD, with_standard_detectors


def drowned(bench) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    return {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in bench.weights.items()}


def backdoored(bench) -> torch.nn.Module:  # type: ignore[no-untyped-def]
    """A white corner of 3x3 pixels on half of the images means class 3."""
    clean = bench.shares.unclaimed
    images, labels = clean.images.clone(), clean.labels.clone()
    images[::2, :, -3:, -3:] = 255
    labels[::2] = 3
    return bench.honest(clean.with_images(images).with_labels(labels), epochs=30, learning_rate=0.02)


def gate_check(verdict: Verdict) -> Check:
    (found,) = [check for check in verdict.checks if check.name == "gate"]
    return found


def without_times(verdict: Verdict) -> dict[str, Any]:
    found = verdict.to_json() | {"seconds": 0}
    return found | {"checks": [check | {"seconds": 0} for check in found["checks"]]}


def test_one_check_decides_for_all_detectors(bench, combined: Gatekeeper) -> None:  # type: ignore[no-untyped-def]
    verdict = combined.vet(bench.honest())
    names = [check.name for check in verdict.checks]
    assert names == ["admission", "activations", "gate", "merge", "utility-accuracy", "utility-recall"]
    assert verdict.decision is Decision.ACCEPTED
    assert gate_check(verdict).detail.startswith("consistent with honest fine-tuning")
    assert list(verdict.measurements["detectors"]) == list(PRESETS["standard"])


def test_the_overall_p_value_is_that_of_an_independent_computation(bench, combined: Gatekeeper) -> None:  # type: ignore[no-untyped-def]
    verdict, guard = combined.vet(bench.honest()), combined.guard
    used = tuple(combined.guard.combination.overall.scales_)
    combination = Combination("detectors", used, given_size=True).fit([reference.scores for reference in guard.fitting])
    explained = {name: found["explanation"] for name, found in verdict.measurements["detectors"].items()}
    scores = {name: found["score"] for name, found in verdict.measurements["detectors"].items()}
    scores |= {f"{name}/{m}": v for name, told in explained.items() for m, v in told.items() if f"{name}/{m}" in used}
    assert set(used) <= set(scores)
    assert gate_check(verdict).score == combination.score(scores)
    expected = p_value(combination.score(scores), [combination.score(r.scores) for r in guard.references])
    assert verdict.p_value == gate_check(verdict).p_value == expected
    assert verdict.resolution == pytest.approx(0.1)


def test_what_fits_the_scales_and_what_calibrates_are_different_fine_tunes(combined: Gatekeeper) -> None:
    guard = combined.guard
    assert (len(guard.fitting), len(guard.references)) == (6, 9)
    seeds = [one.plan["options"]["seed"] for one in (*guard.fitting, *guard.references)]
    assert len(set(seeds)) == 15
    for one in guard.fitting:
        assert one.scores not in [other.scores for other in guard.references]


def test_calibrating_references_have_no_part_in_the_scales_and_fitting_ones_none_in_the_p_value(
    combined: Gatekeeper,
) -> None:
    guard = combined.guard
    some, coarse = (
        dict(guard.references[0].scores),
        dataclasses.replace(STANDARD, reject_level=0.2, quarantine_level=0.2),
    )
    others = dataclasses.replace(guard, references=guard.references[:4], options=coarse)
    assert others.combination.score(some) == guard.combination.score(some)
    assert dataclasses.replace(guard, fitting=guard.fitting[:3]).combination.score(some) != guard.combination.score(
        some
    )
    assert [guard.judge_gate(1e300).p_value, others.judge_gate(1e300).p_value] == pytest.approx([1 / 10, 1 / 5])


def test_a_small_p_value_of_one_detector_or_family_does_not_decide(bench, combined: Gatekeeper) -> None:  # type: ignore[no-untyped-def]
    names = [name for name in combined.guard.references[0].scores if name.startswith("extrapolation")]
    far = {name: 1e6 * v for name, v in combined.guard.references[0].scores.items() if name.startswith("update-norm")}
    still = tuple(
        dataclasses.replace(one, scores={n: -1.0 if n in names else v for n, v in one.scores.items()} | far)
        for one in combined.guard.references
    )
    keeper = Gatekeeper(dataclasses.replace(combined.guard, references=still), bench.model)
    verdict = keeper.vet(bench.honest())
    assert verdict.measurements["gate"]["families"]["extrapolation"] == pytest.approx(0.1)
    assert verdict.measurements["detectors"]["extrapolation"]["p_value"] == pytest.approx(0.1)
    assert (verdict.decision, verdict.codes) == (Decision.ACCEPTED, ())
    assert verdict.p_value is not None
    assert verdict.p_value > 0.1


def test_wrecked_weights_are_rejected_by_the_gate(bench, combined: Gatekeeper) -> None:  # type: ignore[no-untyped-def]
    verdict = combined.vet(drowned(bench), utility=UtilityLimits(1.0, 1.0))
    assert gate_check(verdict).code == "GATE"
    assert verdict.p_value == pytest.approx(0.1)
    assert verdict.public_code == "review"
    assert gate_check(verdict).detail.startswith("not consistent with honest fine-tuning")


def test_what_is_told_of_each_detector_is_its_p_value_among_the_calibrating_references(
    bench,  # type: ignore[no-untyped-def]
    combined: Gatekeeper,
) -> None:
    found = combined.vet(bench.honest()).measurements["detectors"]
    for name, told in found.items():
        honest = [one.scores[name] for one in combined.guard.references]
        assert told["p_value"] == p_value(told["score"], honest)


def test_between_the_levels_waits_and_the_threshold_is_that_of_rejecting(combined: Gatekeeper) -> None:
    guard = dataclasses.replace(combined.guard, options=dataclasses.replace(STANDARD, quarantine_level=0.3))
    third, second, first = sorted(guard.combination.score(one.scores) for one in guard.references)[-3:]
    assert third < second < first
    assert guard.thresholds == {"gate": first}
    found = [guard.judge_gate(score).decision for score in (first + 1, first, second, third)]
    assert found == [Decision.REJECTED, Decision.QUARANTINED, Decision.QUARANTINED, Decision.ACCEPTED]


def test_a_backdoor_is_told_with_its_target_and_a_picture_of_the_mark(bench, combined: Gatekeeper) -> None:  # type: ignore[no-untyped-def]
    verdict = combined.vet(backdoored(bench))
    assert verdict.decision is Decision.REJECTED
    gate = verdict.measurements["gate"]
    assert gate["suspected"]["target"] == "3"
    assert gate["suspected"]["probe"] is not None
    picture = Image.open(io.BytesIO(base64.b64decode(gate["picture"]["png"])))
    assert (picture.format, picture.size) == ("PNG", (8, 8))
    assert len(json.dumps(verdict.to_json(), allow_nan=False)) < 64_000


def test_nothing_is_suspected_of_what_passes(bench, combined: Gatekeeper) -> None:  # type: ignore[no-untyped-def]
    gate = combined.vet(bench.honest()).measurements["gate"]
    assert (gate["suspected"], gate["picture"]) == (None, None)


def test_utility_is_no_part_of_the_overall_score_and_has_a_p_value_of_its_own(combined: Gatekeeper) -> None:
    guard = combined.guard
    scores = dict(guard.references[0].scores)
    worse = scores | {"accuracy-drop": 0.9, "recall-drop": 0.9}
    assert guard.combination.score(worse) == guard.combination.score(scores)
    assert guard.family_p_values(worse)["utility"] == pytest.approx(0.1)
    assert set(guard.family_p_values(scores)) == {
        "activations",
        "extrapolation",
        "gradients",
        "probes",
        "utility",
        "weights",
    }


def test_no_number_counts_twice(combined: Gatekeeper) -> None:
    used = set(combined.guard.combination.overall.scales_)
    assert {"head-drift", "probe-bank", "probe-bank/cell"} <= used
    assert not used & {"head-drift/row", "probe-bank/max", "input-gradient-drift/push"}


def test_a_measure_that_only_happens_to_equal_its_detectors_score_counts() -> None:
    rows = [{"cka": 1.0 + k, "cka/same": 1.0 + k, "cka/other": 3.0 - k} for k in range(3)]
    assert set(CombinedScore.fit("sum", rows).overall.scales_) == {"cka", "cka/other"}


def test_a_loaded_guard_gives_bit_for_bit_the_verdict_of_the_one_just_fitted(  # type: ignore[no-untyped-def]
    bench, combined: Gatekeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    combined.save(tmp_path / "guard")
    monkeypatch.setattr(Guard, "_run_release", None)  # M is not run on anything once its guard stands
    loaded = Gatekeeper.load(tmp_path / "guard", bench.model)
    for candidate in (bench.honest(), drowned(bench)):
        assert without_times(loaded.vet(candidate)) == without_times(combined.vet(candidate))


def test_model_weights_and_file_get_the_same_scores(bench, combined: Gatekeeper, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    candidate = bench.honest()
    save(tmp_path / "weights.safetensors", candidate.state_dict())
    backwards = dict(reversed(candidate.state_dict().items()))
    first, *others = (combined.vet(one) for one in (candidate, backwards, tmp_path / "weights.safetensors"))
    for other in others:
        assert without_times(other) == without_times(first)


def test_a_candidate_is_run_once_on_each_set_of_inputs(  # type: ignore[no-untyped-def]
    bench, combined: Gatekeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    from owner.gatekeeper import gatekeeper as module

    seen, observe = [], module.observe

    def counted(model, inputs, **options):  # type: ignore[no-untyped-def]
        seen.append(len(inputs[0]))
        return observe(model, inputs, **options)

    monkeypatch.setattr(module, "observe", counted)
    combined.vet(bench.honest())
    images = len(bench.triggers.calibration) + len(bench.triggers.evaluation) + 12 * 133 + 96
    images += 2 * (133 + 96)  # the candidate, extrapolated twice
    assert sum(seen) == images


@pytest.mark.parametrize(("action", "decision"), [("quarantine", "quarantined"), ("record", "accepted")])
def test_drift_from_the_root_is_judged_by_the_roots_combined_score(  # type: ignore[no-untyped-def]
    bench, combined: Gatekeeper, action: str, decision: str
) -> None:
    unmoved = combined.guard.measure(combined.guard.release_evidence)
    still = tuple(dataclasses.replace(one, scores=unmoved) for one in combined.guard.references)
    root = dataclasses.replace(combined.guard, references=still)
    candidate = drowned(bench)
    slightly = {name: t + 0.2 * (candidate[name] - t) for name, t in bench.weights.items()}
    verdict = combined.vet(slightly, root=root, root_action=action)
    assert verdict.checks[-1].name == "root-gate"
    assert verdict.checks[-1].code == "ROOT_DRIFT"
    assert verdict.checks[-1].decision == decision
    assert verdict.measurements["root"]["gate"]["drifted"] is True


def test_asking_for_more_references_goes_on_with_those_that_are_there(bench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    few = GuardOptions(
        detectors=("cka", "update-norm"), fitting_references=2, references=2, reject_level=0.4, quarantine_level=0.4
    )
    more = dataclasses.replace(few, fitting_references=3, references=4, combination="sum")
    other = dataclasses.replace(few, detectors=("cka", "update-norm", "head-drift"))
    with_standard_detectors(bench, options=few, directory=tmp_path)
    there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(there) == 5
    grown = with_standard_detectors(bench, options=more, directory=tmp_path).guard
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert (len(grown.fitting), len(grown.references)) == (3, 4)
    with_standard_detectors(bench, options=other, directory=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("method", ["max", "sum", "top3", "fisher", "mahalanobis", "families"])
def test_every_combination_can_be_asked_of_one_guard(bench, combined: Gatekeeper, method: str) -> None:  # type: ignore[no-untyped-def]
    options = dataclasses.replace(STANDARD, combination=method)
    keeper = Gatekeeper(dataclasses.replace(combined.guard, options=options), bench.model)
    honest, attacked = (gate_check(keeper.vet(weights)).p_value for weights in (bench.honest(), drowned(bench)))
    # By ranks alone one reference is as far out as this: fisher knows no more of what lies beyond all of them.
    assert attacked == pytest.approx(0.2 if method == "fisher" else 0.1)
    assert honest > attacked


def test_the_papers_detector_alone_needs_no_fitting_references(bench) -> None:  # type: ignore[no-untyped-def]
    guard = bench.gatekeeper.guard
    assert (guard.combined, guard.fitting, guard.release_probes) == (False, (), {})
    assert GuardOptions(detectors=("paper",)).detector_names == ("activation-autoencoder",)


def test_the_standard_preset_is_the_default_and_holds_what_owners_read_whatever_decides() -> None:
    assert GuardOptions().detector_names == PRESETS["standard"]
    names = tuple(detector.name for detector in standard_detectors())
    assert names == DETECTOR_NAMES
    assert (
        {"activation-autoencoder", "probe-bank", "accuracy-drop", "recall-drop"} < set(PRESETS["standard"]) < set(names)
    )
    assert expand(["head-drift", "standard", "head-drift"])[0] == "head-drift"
    assert len(expand(["head-drift", "standard"])) == len(PRESETS["standard"])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"detectors": ("cca",)}, UnknownNameError),
        ({"detectors": ()}, ConfigurationError),
        ({"combination": "median"}, UnknownNameError),
        ({"fitting_references": 1}, ConfigurationError),
    ],
)
def test_options_that_make_no_gate_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        GuardOptions(**options)


def test_the_papers_rule_refuses_detectors_without_an_error_per_image(bench) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(GuardError, match="one error per image"):
        with_standard_detectors(bench, options=GuardOptions(detectors=("standard",), rule="seed"))


def test_options_survive_json() -> None:
    assert GuardOptions.from_json(json.loads(json.dumps(STANDARD.to_json()))) == STANDARD


@pytest.mark.parametrize("name", PRESETS["standard"])
def test_every_detector_can_decide_alone(bench, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    options = dataclasses.replace(
        STANDARD, detectors=(name,), references=4, reject_level=0.2, quarantine_level=0.2, epochs=2
    )
    with_standard_detectors(bench, options=options).save(tmp_path / "guard")
    verdict = Gatekeeper.load(tmp_path / "guard", bench.model).vet(bench.honest())
    (check,) = [check for check in verdict.checks if check.name == name]
    assert check.p_value == verdict.p_value
    assert check.p_value in {0.2, 0.4, 0.6, 0.8, 1.0}
