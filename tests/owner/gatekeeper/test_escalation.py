"""The escalation tier: asked only about what p alone quarantined, calibrated once, and then it accepts, rejects or leaves it.

On the mlp and digits here trigger inversion does tell a backdoor from honest fine-tunes whose p in the cheap tier is like its own.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from common.errors import ConfigurationError, GuardError, ResolutionError, UnknownNameError
from common.examples import Examples
from common.model_spec import ModelSpec
from owner.detectors import MaximumMargin, TriggerInversion
from owner.gatekeeper import Decision, Gatekeeper, Guard, GuardOptions, MergePolicy, Triggers, Verdict, examination
from owner.gatekeeper import gatekeeper as module
from owner.gatekeeper.calibrating import calibrate
from owner.gatekeeper.escalation import Escalation, standing
from owner.gatekeeper.fine_tunes import FineTunes
from owner.gatekeeper.rules import fpr_bound_95, p_value
from owner.gatekeeper.verdict import Check
from tests.owner.gatekeeper.conftest import COMPUTE, FINETUNING, OPTIONS, Bench, protect

WIDE = dataclasses.replace(
    OPTIONS,
    quarantine_level=0.95,  # whoever is not rejected is in quarantine, unless it is the least suspicious of ten
    escalation="both",
    escalation_references=9,
    escalation_reject_level=0.1,
    escalation_quarantine_level=0.3,
)


def quick(bench: Bench, **changes: Any) -> GuardOptions:
    """One detector and few references, for tests of what happens when."""
    few = {"escalation": "maximum-margin", "escalation_references": 2, "escalation_reject_level": 0.4}
    return dataclasses.replace(WIDE, **{**few, "escalation_quarantine_level": 0.4, **changes})


@pytest.fixture(scope="session")
def escalated(bench: Bench) -> Gatekeeper:
    keeper = protect(bench, WIDE)
    keeper.calibrated(progress=False)
    return keeper


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> list[Guard]:
    """Grows with each time a tier is calibrated."""
    seen: list[Guard] = []

    def counted(guard: Guard, *given: Any, **options: Any) -> Escalation:
        seen.append(guard)
        return calibrate(guard, *given, **options)

    monkeypatch.setattr(module, "calibrate", counted)
    return seen


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with each model that the tier looks at."""
    seen: list[object] = []
    look = Escalation.look

    def counted(self: Escalation, evidence: Any, guard: Guard) -> Any:
        seen.append(evidence)
        return look(self, evidence, guard)

    monkeypatch.setattr(Escalation, "look", counted)
    return seen


def typical(bench: Bench) -> nn.Module:
    """As many images as the references have."""
    return bench.honest(bench.shares.unclaimed.take(torch.arange(100)), epochs=1)


def backdoored(bench: Bench) -> nn.Module:
    """A white corner of 3x3 pixels, on an eighth of the images, means class 3."""
    clean = bench.shares.unclaimed
    images, labels = clean.images.clone(), clean.labels.clone()
    images[::8, :, -3:, -3:] = 255
    labels[::8] = 3
    return bench.honest(clean.with_images(images).with_labels(labels), epochs=10)


def tier_check(verdict: Verdict) -> Check:
    (found,) = [check for check in verdict.checks if check.name == "escalation"]
    return found


def cheap(verdict: Verdict) -> Check:
    (found,) = [check for check in verdict.checks if check.name == "activation-autoencoder"]
    return found


def test_a_backdoor_that_the_cheap_tier_leaves_unclear_is_rejected_with_its_target_and_its_mark(
    bench: Bench, escalated: Gatekeeper
) -> None:
    verdict = escalated.vet(backdoored(bench))
    assert cheap(verdict).decision is Decision.QUARANTINED
    assert (verdict.decision, tier_check(verdict).decision) == (Decision.REJECTED, Decision.REJECTED)
    assert verdict.codes == ("ACTIVATION_AUTOENCODER", "ESCALATION")
    told = verdict.measurements["escalation"]
    assert told["p_value"] == tier_check(verdict).p_value == pytest.approx(0.1)
    assert (told["references"], told["resolution"]) == (9, pytest.approx(0.1))
    assert told["fpr_bound_95"] == fpr_bound_95(9, 0.1)
    assert (told["state"], told["suspected"]["target"]) == ("decided", "3")
    picture = Image.open(io.BytesIO(base64.b64decode(told["picture"]["png"])))
    assert (picture.format, picture.size) == ("PNG", (24, 8))


def test_an_honest_submission_that_the_cheap_tier_leaves_unclear_is_accepted(
    bench: Bench, escalated: Gatekeeper
) -> None:
    verdict = escalated.vet(typical(bench))
    assert cheap(verdict).decision is Decision.QUARANTINED
    assert (verdict.decision, tier_check(verdict).decision) == (Decision.ACCEPTED, Decision.ACCEPTED)
    assert tier_check(verdict).detail.endswith("with 95 % confidence)")
    told = verdict.measurements["escalation"]
    assert (told["suspected"], told["picture"]) == (None, None)
    assert told["p_value"] > 0.3
    assert verdict.p_value == cheap(verdict).p_value
    assert Verdict.from_json(verdict.to_json()).decision is Decision.ACCEPTED


def test_between_its_levels_it_leaves_the_decision_to_a_person(bench: Bench, escalated: Gatekeeper) -> None:
    p = escalated.vet(typical(bench)).measurements["escalation"]["p_value"]
    stricter = dataclasses.replace(escalated.guard.options, escalation_quarantine_level=p)
    keeper = Gatekeeper(
        dataclasses.replace(escalated.guard, options=stricter), bench.model, escalation=escalated.escalation
    )
    verdict = keeper.vet(typical(bench))
    assert verdict.decision is Decision.QUARANTINED
    assert tier_check(verdict).code == "ESCALATION"
    assert verdict.measurements["escalation"]["state"] == "undecided"


def test_what_the_cheap_tier_accepts_or_rejects_is_neither_looked_at_nor_a_reason_to_calibrate(
    bench: Bench, calibrations: list[Guard], looks: list[object]
) -> None:
    keeper = protect(bench, quick(bench, quarantine_level=0.1))
    generator = torch.Generator().manual_seed(0)
    drowned = {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in bench.weights.items()}
    found = [keeper.vet(candidate) for candidate in (typical(bench), drowned)]
    assert [one.decision for one in found] == [Decision.ACCEPTED, Decision.REJECTED]
    assert all("escalation" not in one.measurements for one in found)
    assert (calibrations, looks) == ([], [])


def test_what_drifted_from_the_root_too_is_not_looked_at(
    bench: Bench, calibrations: list[Guard], looks: list[object]
) -> None:
    root = bench.gatekeeper.guard
    unmoved = root.measure(root.release_evidence)
    still = tuple(dataclasses.replace(one, scores=unmoved) for one in root.references)
    another = dataclasses.replace(root, references=still, release_sha256="of another release")
    verdict = protect(bench, quick(bench)).vet(typical(bench), root=another)
    assert (verdict.decision, verdict.codes) == (Decision.QUARANTINED, ("ACTIVATION_AUTOENCODER", "ROOT_DRIFT"))
    assert "escalation" not in verdict.measurements
    assert (calibrations, looks) == ([], [])


def test_drift_from_the_root_is_no_reason_of_its_own_where_the_root_is_the_base(
    bench: Bench, looks: list[object]
) -> None:
    keeper = protect(bench, quick(bench))
    verdict = keeper.vet(typical(bench), root=keeper.guard, merge=MergePolicy("replace"))
    assert verdict.codes[:2] == ("ACTIVATION_AUTOENCODER", "ROOT_DRIFT")
    assert len(looks) == 1
    assert verdict.decision is tier_check(verdict).decision


@pytest.mark.parametrize("conditioned", [True, False])
def test_what_fails_utility_too_is_not_looked_at(
    bench: Bench, calibrations: list[Guard], looks: list[object], monkeypatch: pytest.MonkeyPatch, conditioned: bool
) -> None:
    keeper = protect(bench, quick(bench), **({} if conditioned else {"utility": None}))
    useless = Check("utility-accuracy", Decision.REJECTED, code="UTILITY_ACCURACY")
    monkeypatch.setattr(examination, "check_accuracy", lambda *_, **__: useless)
    verdict = keeper.vet(typical(bench))
    assert cheap(verdict).decision is (Decision.ACCEPTED if conditioned else Decision.QUARANTINED)
    assert verdict.decision is Decision.REJECTED
    assert (calibrations, looks) == ([], [])


def test_it_is_off_unless_asked_for(bench: Bench) -> None:
    options = dataclasses.replace(OPTIONS, quarantine_level=0.95)
    verdict = Gatekeeper(dataclasses.replace(bench.gatekeeper.guard, options=options), bench.model).vet(typical(bench))
    assert GuardOptions().escalation == "off"
    assert verdict.decision is Decision.QUARANTINED
    assert [check.name for check in verdict.checks if check.name == "escalation"] == []


def test_it_is_calibrated_when_first_needed_and_then_kept_also_on_disk(
    bench: Bench, calibrations: list[Guard], tmp_path: Path
) -> None:
    keeper = protect(bench, quick(bench))
    assert calibrations == []
    first = keeper.vet(typical(bench))
    second = keeper.vet(typical(bench))
    assert len(calibrations) == 1
    keeper.save(tmp_path / "guard")
    loaded = Gatekeeper.load(tmp_path / "guard", bench.model)
    scores = [tier_check(one).score for one in (first, second, loaded.vet(typical(bench)))]
    assert scores[0] == scores[1] == scores[2]
    assert len(calibrations) == 1


def test_without_the_reference_pool_it_waits_and_with_it_it_goes_on(bench: Bench, tmp_path: Path) -> None:
    protect(bench, quick(bench)).save(tmp_path / "guard")
    waiting = Gatekeeper.load(tmp_path / "guard", bench.model).vet(typical(bench))
    assert waiting.decision is Decision.QUARANTINED
    assert tier_check(waiting).code == "AWAITING_ESCALATION"
    able = Gatekeeper.load(tmp_path / "guard", bench.model, references_pool=bench.shares.references)
    assert tier_check(able.vet(typical(bench))).p_value is not None


def test_an_interrupted_calibration_goes_on_and_comes_out_the_same(bench: Bench, tmp_path: Path) -> None:
    options = quick(bench, escalation_references=3)
    keeper = protect(bench, options)
    whole = keeper.calibrated(progress=False)
    made = FineTunes(bench.model, bench.shares.references, options, FINETUNING, COMPUTE)

    class Killed(Exception):
        pass

    def kill(done: int, *_: object) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        calibrate(keeper.guard, made, directory=tmp_path, progress=False, on_reference=kill)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(files) == 2
    resumed = calibrate(keeper.guard, made, directory=tmp_path, progress=False)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert whole is not None
    assert [one.scores for one in resumed.references] == [one.scores for one in whole.references]


def test_its_references_are_the_guards_own_made_again(bench: Bench, escalated: Gatekeeper) -> None:
    tier = escalated.calibrated()
    assert tier is not None
    for again, first in zip(tier.references, escalated.guard.references, strict=True):
        assert again.plan["options"] == first.plan["options"]
        assert again.accuracy == first.accuracy
    assert tier.seconds > 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_rejects(
    bench: Bench, escalated: Gatekeeper, monkeypatch: pytest.MonkeyPatch, broken: float
) -> None:
    monkeypatch.setattr(MaximumMargin, "score", lambda *_: broken)
    verdict = escalated.vet(typical(bench))
    assert verdict.decision is Decision.REJECTED
    assert tier_check(verdict).code == "NONFINITE_SCORE"
    assert verdict.to_json()["measurements"]["escalation"]["score"] is None


def test_a_reference_that_is_not_finite_makes_no_tier(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaximumMargin, "score", lambda *_: float("nan"))
    with pytest.raises(GuardError, match="not finite"):
        protect(bench, quick(bench)).calibrated(progress=False)


def test_a_tier_that_tells_no_fine_tune_from_another_is_refused_for_it_would_accept_anything(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MaximumMargin, "score", lambda *_: 0.0)
    with pytest.raises(GuardError, match="alike"):
        protect(bench, quick(bench)).calibrated(progress=False)


def test_inputs_that_are_no_images_are_refused_before_anything_is_trained(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner.gatekeeper.fine_tunes.train", None)

    def flat(examples: Examples) -> Examples:
        return dataclasses.replace(examples, inputs=(examples.inputs[0].flatten(1),))

    parts = (flat(part) for part in bench.triggers.parts.values())
    with pytest.raises(GuardError, match="marks on images"):
        Gatekeeper.protect(
            bench.model,
            Triggers(*parts),
            references_pool=flat(bench.shares.references),
            spec=ModelSpec("mlp", (64,), 10),
            finetuning=FINETUNING,
            options=WIDE,
            compute=COMPUTE,
            progress=False,
        )


def test_two_detectors_make_one_score_in_which_references_and_submission_are_alike(escalated: Gatekeeper) -> None:
    """Whichever of the K + 1 is called the submission, each of them has the same score: what makes p exact."""
    tier, guard = escalated.escalation, escalated.guard
    assert tier is not None
    everybody = [dict(one.scores) for one in tier.references] + [{"maximum-margin": 2.0, "trigger-inversion": 0.1}]
    found = []
    for k, mine in enumerate(everybody):
        others = tuple(dataclasses.replace(tier.references[0], scores=s) for i, s in enumerate(everybody) if i != k)
        found.append(dataclasses.replace(tier, references=others).judge(mine, guard))
    scores = [score for score, _ in found]
    ranks = [p_value(score, scores[:k] + scores[k + 1 :]) for k, score in enumerate(scores)]
    assert [judgement.p_value for _, judgement in found] == ranks
    assert sorted(ranks) == pytest.approx([(k + 1) / 10 for k in range(10)])


def test_one_detector_is_judged_by_its_own_score(escalated: Gatekeeper) -> None:
    tier, guard = escalated.escalation, escalated.guard
    assert tier is not None
    alone = dataclasses.replace(tier, detectors={"trigger-inversion": TriggerInversion()})
    score, judgement = alone.judge({"trigger-inversion": 0.2}, guard)
    assert score == 0.2
    assert judgement.p_value == p_value(0.2, [one.scores["trigger-inversion"] for one in tier.references])


def test_a_tier_of_another_guard_or_a_damaged_one_does_not_stand(
    bench: Bench, escalated: Gatekeeper, tmp_path: Path
) -> None:
    tier, guard, path = escalated.escalation, escalated.guard, tmp_path / "tier.json"
    assert tier is not None
    tier.save(path)
    found = standing(path, guard)
    assert found is not None
    assert (found.key, found.references) == (tier.key, tier.references)
    assert standing(tmp_path / "none.json", guard) is None
    for changes in ({"escalation": "maximum-margin"}, {"escalation_references": 8, "escalation_reject_level": 0.2}):
        options = dataclasses.replace(guard.options, **changes)
        assert standing(path, dataclasses.replace(guard, options=options)) is None
    assert standing(path, dataclasses.replace(guard, key="another")) is None
    content = path.read_text()
    path.write_text(content.replace('"accuracy":', '"accuracy":1', 1))
    with pytest.raises(GuardError, match="altered"):
        Escalation.load(path)
    path.write_text("{")
    with pytest.raises(GuardError, match="damaged"):
        Escalation.load(path)
    dataclasses.replace(tier, detectors={"of-a-later-version": TriggerInversion()}).save(path)
    assert standing(path, guard) is None


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"escalation": "inversion"}, UnknownNameError, "inversion"),
        ({"escalation": "both", "escalation_references": 9}, ResolutionError, "0.05"),
        ({"escalation": "both", "escalation_references": 39}, ConfigurationError, "escalation_references"),
        ({"escalation": "both", "escalation_quarantine_level": 0.01}, ConfigurationError, "levels"),
        ({"escalation": "both", "rule": "seed"}, ConfigurationError, "Eq. 4"),
    ],
)
def test_a_tier_that_cannot_be_calibrated_is_refused_when_it_is_configured(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        GuardOptions(**options)


def test_a_tier_that_is_asked_for_later_keeps_the_references_that_are_there(bench: Bench, tmp_path: Path) -> None:
    plain = dataclasses.replace(WIDE, escalation="off")
    protect(bench, plain, directory=tmp_path)
    there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    protect(bench, WIDE, directory=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in there} == there


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_second_look_leaves_the_gatekeepers_models_as_they_were(bench: Bench, escalated: Gatekeeper) -> None:
    before = escalated.vet(typical(bench))
    escalated.vet(backdoored(bench))
    after = escalated.vet(weights_of(typical(bench)))
    assert [(c.name, c.score) for c in before.checks] == [(c.name, c.score) for c in after.checks]
