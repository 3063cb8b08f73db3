"""Protect and vet, from plain Python: what an honest fine-tune gets, and what a crude attack, or broken weights, get."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor, nn

from common.activations import observe
from common.errors import ConfigurationError, GuardError, VacuousGateError
from common.evaluation import evaluate
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.poisoning import sign_flip
from common.training_options import TrainingOptions
from common.weights import save
from owner.detectors import DETECTORS, Detector, DetectorState, Evidence, register
from owner.gatekeeper import Decision, Gatekeeper, GuardOptions, MergePolicy, Triggers, UtilityLimits, Verdict, merge
from owner.gatekeeper.rules import p_value, seed_threshold


def noisy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gaussian noise of 0.3 on every weight: the additive-noise attack of the federated baselines."""
    generator = torch.Generator().manual_seed(0)
    return {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in weights.items()}


def checks(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.decision.value for check in verdict.checks}


def test_an_honest_fine_tune_is_scored_by_every_check(bench) -> None:  # type: ignore[no-untyped-def]
    verdict = bench.gatekeeper.vet(bench.honest())
    assert list(checks(verdict)) == [
        "admission",
        "activations",
        "activation-autoencoder",
        "merge",
        "utility-accuracy",
        "utility-recall",
    ]
    assert verdict.decision is Decision.ACCEPTED
    assert verdict.p_value is not None
    assert verdict.p_value > 0.1
    assert verdict.resolution == pytest.approx(0.1)
    assert all(check.seconds >= 0 for check in verdict.checks)
    assert sum(check.seconds for check in verdict.checks) <= verdict.seconds


def test_the_release_itself_is_accepted(bench) -> None:  # type: ignore[no-untyped-def]
    assert bench.gatekeeper.vet(bench.weights).decision is Decision.ACCEPTED


def test_a_checkpoint_around_the_weights_is_named_for_what_it_may_be(bench) -> None:  # type: ignore[no-untyped-def]
    verdict = bench.gatekeeper.vet({"state_dict": bench.weights, "epoch": 3})
    assert verdict.codes == ("UNSUPPORTED_TENSOR",)
    assert "'state_dict' is a dict and no tensor: is it a checkpoint" in verdict.checks[0].detail


def test_sign_flipped_weights_are_rejected(bench) -> None:  # type: ignore[no-untyped-def]
    """By utility: after a sign flip few units fire at all, and what is near zero an auto-encoder reproduces well."""
    verdict = bench.gatekeeper.vet(sign_flip(bench.weights, bench.weights))
    assert verdict.decision is Decision.REJECTED
    assert "UTILITY_ACCURACY" in verdict.codes


def test_weights_drowned_in_noise_are_rejected_by_the_detector(bench) -> None:  # type: ignore[no-untyped-def]
    verdict = bench.gatekeeper.vet(noisy(bench.weights), utility=UtilityLimits(1.0, 1.0))
    assert verdict.decision is Decision.REJECTED
    assert verdict.codes == ("ACTIVATION_AUTOENCODER",)
    assert verdict.p_value == pytest.approx(0.1)
    assert verdict.public_code == "review"


def test_score_and_p_value_are_those_of_an_independent_computation(bench) -> None:  # type: ignore[no-untyped-def]
    candidate = bench.honest()
    verdict = bench.gatekeeper.vet(candidate)
    guard = bench.gatekeeper.guard
    features = observe(candidate, bench.triggers.calibration.inputs, head="5", compute=guard.compute).features.double()
    tensors = guard.detectors["activation-autoencoder"].state().tensors
    layer = features
    for i in (0, 2, 4, 6):
        layer = layer @ tensors[f"network.{i}.weight"].double().T + tensors[f"network.{i}.bias"].double()
        layer = layer.clamp(min=0) if i < 6 else layer
    expected = float(((features - layer) ** 2).mean(1).mean())
    found = next(check for check in verdict.checks if check.name == "activation-autoencoder")
    assert found.score == pytest.approx(expected, rel=1e-4)
    assert verdict.p_value == p_value(expected, [r.scores["activation-autoencoder"] for r in guard.references])


def test_the_seed_rule_uses_the_errors_of_the_owners_own_fine_tune(bench) -> None:  # type: ignore[no-untyped-def]
    guard = dataclasses.replace(bench.gatekeeper.guard, options=GuardOptions(detectors=("paper",), rule="seed"))
    errors = guard.owner_finetune.image_errors["activation-autoencoder"]
    keeper = Gatekeeper(guard, bench.model)
    honest, attacked = keeper.vet(bench.honest()), keeper.vet(noisy(bench.weights))
    assert next(c for c in honest.checks if c.name == "activation-autoencoder").threshold == seed_threshold(errors)
    assert honest.decision is Decision.ACCEPTED
    assert "ACTIVATION_AUTOENCODER" in attacked.codes
    assert honest.p_value is None


def test_histograms_count_every_trigger_of_submission_release_and_references(bench) -> None:  # type: ignore[no-untyped-def]
    verdict = bench.gatekeeper.vet(bench.honest())
    histogram = verdict.measurements["detectors"]["activation-autoencoder"]["histogram"]
    n = len(bench.triggers.calibration)
    assert {name: sum(histogram[name]) for name in ("submission", "release", "owner_finetune", "references")} == {
        "submission": n,
        "release": n,
        "owner_finetune": n,
        "references": 9 * n,
    }
    assert len(histogram["edges"]) == len(histogram["submission"]) + 1


def test_measured_accuracies_are_those_of_submission_and_would_be_release(bench) -> None:  # type: ignore[no-untyped-def]
    candidate = bench.honest()
    measured = bench.gatekeeper.vet(candidate).measurements
    compute = bench.gatekeeper.guard.compute
    assert measured["calibration"]["submission"]["accuracy"] == pytest.approx(
        evaluate(candidate, bench.triggers.calibration, compute=compute).accuracy
    )
    would_be = build(ModelSpec("mlp", (1, 8, 8), 10))
    would_be.load_state_dict(merge("average", bench.weights, bench.weights, candidate.state_dict(), 0.5))
    assert measured["evaluation"]["would_be"]["accuracy"] == pytest.approx(
        evaluate(would_be, bench.triggers.evaluation, compute=compute).accuracy
    )


def test_a_verdict_is_json_small_enough_for_the_ledger(bench) -> None:  # type: ignore[no-untyped-def]
    for candidate in (bench.honest(), sign_flip(bench.weights, bench.weights)):
        verdict = bench.gatekeeper.vet(candidate, root=bench.gatekeeper.guard)
        written = json.dumps(verdict.to_json(), allow_nan=False)
        assert len(written) < 32_000
        assert Verdict.from_json(json.loads(written)).decision is verdict.decision


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda w: w | {"1.weight": w["1.weight"] * torch.nan}, "NON_FINITE"),
        (lambda w: w | {"1.weight": w["1.weight"] + 1e20}, "MAGNITUDE"),
        (lambda w: {k: v for k, v in w.items() if k != "5.bias"}, "TENSOR_MISSING"),
        (lambda w: w | {"9.bias": w["5.bias"]}, "TENSOR_EXTRA"),
        (lambda w: w | {"5.bias": w["5.bias"][:5]}, "SHAPE_MISMATCH"),
        (lambda w: w | {"5.bias": w["5.bias"].double()}, "DTYPE_MISMATCH"),
        (lambda w: {k: v * 0 + 1e14 for k, v in w.items()}, "NONFINITE_ACTIVATION"),
    ],
)
def test_malformed_weights_are_rejected_and_no_further_check_runs(bench, spoil, code) -> None:  # type: ignore[no-untyped-def]
    verdict = bench.gatekeeper.vet(spoil(bench.weights))
    assert (verdict.decision, verdict.codes, verdict.public_code) == (Decision.REJECTED, (code,), "format")
    assert verdict.checks[-1].code == code


def test_a_file_that_is_no_safetensors_file_is_rejected(bench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04K\x01.")
    verdict = bench.gatekeeper.vet(tmp_path / "weights.safetensors")
    assert (verdict.decision, verdict.public_code) == (Decision.REJECTED, "format")


def test_model_weights_and_file_get_the_same_score(bench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    candidate = bench.honest()
    save(tmp_path / "weights.safetensors", candidate.state_dict())
    verdicts = [bench.gatekeeper.vet(c) for c in (candidate, candidate.state_dict(), tmp_path / "weights.safetensors")]
    assert len({next(c.score for c in v.checks if c.name == "activation-autoencoder") for v in verdicts}) == 1


def test_vetting_changes_neither_candidate_nor_protected_model(bench) -> None:  # type: ignore[no-untyped-def]
    candidate = bench.honest()
    before = {name: t.clone() for name, t in candidate.state_dict().items()}
    release = bench.weights
    bench.gatekeeper.vet(candidate)
    assert all(torch.equal(t, before[name]) for name, t in candidate.state_dict().items())
    assert all(torch.equal(t, release[name]) for name, t in bench.model.state_dict().items())


def test_utility_is_judged_on_the_would_be_release_not_on_the_submission(bench) -> None:  # type: ignore[no-untyped-def]
    """A contributor that has one class only may forget others, where a small step towards it costs the release nothing."""
    shares = bench.shares
    skewed = bench.honest(shares.unclaimed.take(shares.unclaimed.labels < 3), epochs=20, learning_rate=0.02)
    # One image in 150 is 0.7 points here, so the limit of one point would judge single images.
    limits = UtilityLimits(accuracy_drop=0.03)
    verdict = bench.gatekeeper.vet(skewed, merge=MergePolicy("average", 0.05), utility=limits)
    measured = verdict.measurements
    assert measured["calibration"]["submission"]["accuracy"] < measured["calibration"]["release"]["accuracy"]
    assert checks(verdict)["utility-accuracy"] == "accepted"


def test_a_would_be_release_that_forgets_a_class_is_rejected(bench) -> None:  # type: ignore[no-untyped-def]
    weights = bench.weights
    weights["5.bias"][7] -= 100.0
    verdict = bench.gatekeeper.vet(weights)
    assert {"UTILITY_ACCURACY", "UTILITY_RECALL"} <= set(verdict.codes)
    assert verdict.public_code == "utility"


def test_merging_onto_a_later_release_compares_with_that_release(bench) -> None:  # type: ignore[no-untyped-def]
    worse = bench.weights
    worse["5.bias"][7] -= 100.0
    verdict = bench.gatekeeper.vet(bench.honest(), current=worse)
    measured = verdict.measurements["evaluation"]
    assert measured["current"]["recall"][7] == 0.0
    assert checks(verdict)["utility-accuracy"] == "accepted"


def test_replace_onto_another_release_is_rejected(bench) -> None:  # type: ignore[no-untyped-def]
    other = bench.weights
    other["5.bias"] += 0.1
    verdict = bench.gatekeeper.vet(bench.honest(), current=other, merge=MergePolicy("replace"))
    assert "BASE_NOT_CURRENT" in verdict.codes


@pytest.mark.parametrize(("action", "decision"), [("quarantine", "quarantined"), ("record", "accepted")])
def test_drift_from_the_root_release_waits_or_is_recorded(bench, action: str, decision: str) -> None:  # type: ignore[no-untyped-def]
    guard = bench.gatekeeper.guard
    elsewhere = dataclasses.replace(  # a root none of whose references moved at all
        guard,
        references=tuple(dataclasses.replace(r, scores={"activation-autoencoder": 0.0}) for r in guard.references),
    )
    verdict = bench.gatekeeper.vet(bench.honest(), root=elsewhere, root_action=action)
    assert verdict.decision == decision
    assert verdict.checks[-1].code == "ROOT_DRIFT"
    assert verdict.measurements["root"]["activation-autoencoder"]["drifted"] is True


def test_what_the_roots_guard_would_quarantine_has_drifted_too(bench) -> None:  # type: ignore[no-untyped-def]
    guard = bench.gatekeeper.guard
    strict = dataclasses.replace(guard, options=dataclasses.replace(guard.options, quarantine_level=0.99))
    verdict = bench.gatekeeper.vet(bench.honest(), root=strict, merge=MergePolicy("replace"))
    told = verdict.measurements["root"]["activation-autoencoder"]
    assert 0.1 < told["p_value"] < 1.0
    assert told["drifted"] is True
    assert (verdict.decision, verdict.checks[-1].code) == (Decision.QUARANTINED, "ROOT_DRIFT")


def test_other_evaluation_examples_can_be_used(bench) -> None:  # type: ignore[no-untyped-def]
    keeper = Gatekeeper(bench.gatekeeper.guard, bench.model)
    keeper.use_evaluation(bench.shares.references)
    assert keeper.vet(bench.honest()).measurements["evaluation"]["images"] == len(bench.shares.references)
    with pytest.raises(ConfigurationError, match="other classes"):
        keeper.use_evaluation(Examples((torch.zeros(2, 1, 8, 8),), torch.tensor([0, 1]), ("a", "b")))


def protect(bench, model: nn.Module, spec: ModelSpec, **changes):  # type: ignore[no-untyped-def]
    settings = {
        "references_pool": bench.shares.references,
        "finetuning": TrainingOptions(epochs=1, learning_rate=0.005, schedule="constant"),
        "options": GuardOptions(detectors=("paper",), references=1, reject_level=0.5, quarantine_level=0.5, epochs=1),
        "compute": bench.gatekeeper.guard.compute,
        "progress": False,
    }
    triggers = changes.pop("triggers", bench.triggers)
    return Gatekeeper.protect(model, triggers, spec=spec, **(settings | changes))


@pytest.mark.parametrize("name", ["logistic", "linear-svm"])
def test_a_model_without_layers_before_its_head_is_refused(bench, name: str) -> None:  # type: ignore[no-untyped-def]
    spec = ModelSpec(name, (1, 8, 8), 10)
    with pytest.raises(VacuousGateError, match="does not depend on the model's weights"):
        protect(bench, build(spec, seed=0), spec)


def test_too_small_a_reference_pool_is_refused(bench) -> None:  # type: ignore[no-untyped-def]
    spec = ModelSpec("mlp", (1, 8, 8), 10)
    with pytest.raises(GuardError, match="reference pool holds 10 images"):
        protect(bench, build(spec, seed=0), spec, references_pool=bench.shares.references.take(torch.arange(10)))


def test_fine_tuning_that_diverges_is_refused_with_the_way_out(bench) -> None:  # type: ignore[no-untyped-def]
    spec = ModelSpec("mlp", (1, 8, 8), 10)
    wild = TrainingOptions(epochs=2, learning_rate=900.0, schedule="constant")
    with pytest.raises(GuardError, match="honest fine-tuning as recommended fails") as caught:
        protect(bench, build(spec, seed=0), spec, finetuning=wild)
    assert "learning rate" in caught.value.hint


def test_one_set_of_triggers_is_split_by_seed(bench) -> None:  # type: ignore[no-untyped-def]
    keeper = protect(bench, bench.model, ModelSpec("mlp", (1, 8, 8), 10), triggers=bench.shares.references)
    total = len(bench.shares.references)
    assert len(keeper.guard.calibration) == pytest.approx(0.3 * total, abs=6)
    assert len(keeper.guard.evaluation) == pytest.approx(0.4 * total, abs=6)


def test_protecting_twice_gives_the_same_scores(bench) -> None:  # type: ignore[no-untyped-def]
    spec = ModelSpec("mlp", (1, 8, 8), 10)
    one, two = (protect(bench, bench.model, spec).guard for _ in range(2))
    assert one.references[0].scores == two.references[0].scores
    assert one.owner_finetune.scores == two.owner_finetune.scores


def test_an_interrupted_fit_goes_on_where_it_stopped(bench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    spec = ModelSpec("mlp", (1, 8, 8), 10)
    options = GuardOptions(detectors=("paper",), references=3, reject_level=0.25, quarantine_level=0.25, epochs=1)
    whole = protect(bench, bench.model, spec, options=options).guard

    class Stop(Exception):
        pass

    def stop(done: int, total: int, scores: object) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        protect(bench, bench.model, spec, options=options, directory=tmp_path, on_reference=stop)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(finished) == 2
    resumed = protect(bench, bench.model, spec, options=options, directory=tmp_path).guard
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert [r.scores for r in resumed.references] == [r.scores for r in whole.references]


def test_triggers_in_three_parts_share_no_image(bench) -> None:  # type: ignore[no-untyped-def]
    assert isinstance(bench.triggers, Triggers)
    rows = [{bytes(image.flatten().tolist()) for image in part.images} for part in bench.triggers.parts.values()]
    assert not rows[0] & rows[1] | rows[1] & rows[2] | rows[0] & rows[2]


class Widest:
    """The largest activation, in units of the release's own."""

    name: ClassVar[str] = "widest"

    def fit(self, release: Evidence) -> Self:
        self.scale_ = release.features.abs().max()
        return self

    def score(self, evidence: Evidence) -> float:
        return float(evidence.features.abs().max() / self.scale_)

    def explain(self, evidence: Evidence) -> dict[str, Any]:
        return {"widest": self.score(evidence)}

    def state(self) -> DetectorState:
        return DetectorState({"scale": self.scale_}, {})

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        restored = cls()
        restored.scale_ = state.tensors["scale"]
        return restored


def protect_with(  # type: ignore[no-untyped-def]
    bench, detectors: list[Detector], *, directory: Path | None = None, **options: Any
) -> Gatekeeper:
    return Gatekeeper.protect(
        bench.model,
        bench.triggers,
        references_pool=bench.shares.references,
        spec=bench.gatekeeper.guard.spec,
        finetuning=dataclasses.replace(bench.gatekeeper.guard.finetuning, epochs=1),
        options=GuardOptions(**({"references": 4, "reject_level": 0.2, "quarantine_level": 0.2} | options)),
        detectors=detectors,
        compute=bench.gatekeeper.guard.compute,
        directory=directory,
        progress=False,
    )


def test_a_detector_of_ones_own_vets_and_is_loaded_once_registered(  # type: ignore[no-untyped-def]
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = dict(DETECTORS)
    monkeypatch.setattr("owner.detectors.DETECTORS", known)
    monkeypatch.setattr("owner.gatekeeper.guard_files.DETECTORS", known)
    given = Widest()
    gatekeeper = protect_with(bench, [given])
    assert not hasattr(given, "scale_")
    blown_up = {name: 100 * tensor for name, tensor in bench.weights.items()}
    verdict = gatekeeper.vet(blown_up)
    assert checks(verdict)["widest"] == "rejected"
    assert "activation-autoencoder" not in checks(verdict)
    gatekeeper.save(tmp_path / "guard")
    with pytest.raises(GuardError, match="widest") as unknown:
        Gatekeeper.load(tmp_path / "guard", bench.model)
    assert "owner.detectors.register" in unknown.value.hint
    register(Widest)
    again = Gatekeeper.load(tmp_path / "guard", bench.model).vet(blown_up)
    assert [(check.name, check.score) for check in again.checks] == [(c.name, c.score) for c in verdict.checks]


class Scoreless:
    name = "scoreless"

    def fit(self, release: Evidence) -> Scoreless:
        return self


class Unfitted(Widest):
    def fit(self, release: Evidence) -> Any:
        super().fit(release)


class Vector(Widest):
    def score(self, evidence: Evidence) -> Any:
        return evidence.features


class NotANumber(Widest):
    def score(self, evidence: Evidence) -> float:
        return float("nan")


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (Widest, r"Widest is a class.*"),
        (Scoreless(), "Scoreless is no detector: it lacks score, explain, state, from_state"),
        (Unfitted(), "`fit` of the detector widest gives a NoneType and not the detector itself"),
        (Vector(), r"the detector widest gives a Tensor of shape \(\d+, \d+\) and not one number"),
        (NotANumber(), "its activations are finite, and widest scores it nan"),
    ],
    ids=["a class", "half a protocol", "fit without self", "many scores", "NaN"],
)
def test_a_detector_with_a_mistake_is_told_which(bench, detector: Any, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ConfigurationError, GuardError), match=message):
        protect_with(bench, [detector])


OWN = """
from owner.detectors import Comparison, ReleaseComparison

class Moved(ReleaseComparison):
    name, headline = "moved", "mean"

    def compare(self, evidence, release):
        return Comparison({"mean": FACTOR * float((evidence.features - release.features).abs().mean())})
"""


def test_references_are_known_again_by_the_code_of_ones_own_detectors(  # type: ignore[no-untyped-def]
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    scores = []
    for factor in (1, 2, 1):
        module = f"detectors_of_a_test_{factor}"
        (tmp_path / f"{module}.py").write_text(OWN.replace("FACTOR", str(factor)))
        kind = importlib.import_module(module).Moved
        guard = protect_with(bench, [kind()], directory=tmp_path / "work").guard
        scores.append(guard.references[0].scores["moved"])
    assert scores[1] == pytest.approx(2 * scores[0])
    assert scores[2] == scores[0]
    assert len(list((tmp_path / "work").iterdir())) == 2


@pytest.mark.parametrize(
    ("detectors", "options", "error"),
    [
        ([], {}, ConfigurationError),
        ([Widest(), Widest()], {}, ConfigurationError),
        ([Widest()], {"rule": "seed"}, GuardError),
    ],
    ids=["none", "two of one name", "no image scores under Eq. 4"],
)
def test_detectors_that_make_no_guard_are_refused_before_anything_is_trained(  # type: ignore[no-untyped-def]
    bench, detectors: list[Detector], options: dict[str, Any], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner.gatekeeper.fine_tunes.train", None)
    with pytest.raises(error):
        protect_with(bench, detectors, **options)
