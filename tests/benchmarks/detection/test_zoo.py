"""Plans are fixed by the configuration, models are made once, and scores are as old as the code they come from."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.detection.__main__ import poisoned_share
from benchmarks.detection.config import CONFIGS, Config
from benchmarks.detection.plans import plans
from benchmarks.detection.scores import Scorer, Slow, written_with
from benchmarks.detection.sheets import Entry
from benchmarks.detection.zoo import Zoo
from common.activations import find_head
from common.devices import choose_compute
from common.errors import ConfigurationError, UnknownNameError
from common.models import build
from common.weights import load as load_weights
from common.weights import save as save_weights
from contributor.attacks import parse_attack
from owner.detectors.probes import IMAGE_PROBES
from tests.benchmarks.detection.conftest import SMALL

SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.toml"))


def test_plans_are_a_function_of_the_configuration_and_the_base(small: Path) -> None:
    config = Config.load(str(small))
    first, again, other = plans(config, 5), plans(config, 5), plans(config, 6)
    assert first == again
    assert {plan.name for plan in first}.isdisjoint(plan.name for plan in other)
    assert len({plan.name for plan in first}) == len(first) == 1 + 4 + 5 + 4 + 3 + 2
    fractions = {str(poisoned_share(plan.attack)) for plan in first if plan.family == "flip"}
    assert fractions == {"1.0", "0.5"}


def test_source_and_target_of_an_attack_differ(small: Path) -> None:
    for number in range(30):
        for plan in plans(Config.load(str(small)), number):
            if plan.family == "flip" and plan.attack:
                options = dict(part.split("=") for part in plan.attack.partition(":")[2].split(","))
                assert options["source"] != options["target"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_configuration_that_ships_is_large_enough_for_its_levels_and_its_families(name: str) -> None:
    """99 references resolve 1 %; three final bases of 10 attacks a family leave 20 effective ones where two in three succeed."""
    config = Config.load(name)
    assert (config.calibration, config.fitting, config.honest) == (99, 33, 100)
    assert len(config.final) == 3
    assert not set(config.final) & set(config.development)
    assert min(family.count for family in config.families) >= 10


@pytest.mark.parametrize("name", SHIPPED)
def test_a_configuration_that_ships_names_attacks_and_probes_that_exist(name: str) -> None:
    config = Config.load(name)
    for plan in plans(config, config.development[0]):
        if plan.attack:
            parse_attack(plan.attack)
    kinds = {probe.kind for probe in IMAGE_PROBES.values()}
    assert {kind for family in config.families for kind in family.probes} <= kinds


def test_an_unknown_configuration_names_those_that_ship() -> None:
    with pytest.raises(ConfigurationError, match="cnn-cifar11") as error:
        Config.load("cnn-cifar11")
    assert "cnn-cifar10" in (error.value.hint or "")


def test_related_families_are_those_whose_triggers_come_near_the_same_probes() -> None:
    config = Config.load("badnet-cnn-mnist")
    kin = {family.name: config.kin(family) for family in config.families}
    assert kin["sig"] == {"sig"}
    assert kin["flip"] == {"flip"}
    assert {"badnets", "all-to-all", "tact", "subnet-replacement"} <= kin["badnets"]
    assert "blended" not in kin["badnets"]


def test_a_reference_that_fails_utility_is_drawn_again(small: Path, tmp_path: Path) -> None:
    """Contributors of one class in ten and of large steps: many of them cost the model accuracy."""
    raw = SMALL.replace("learning_rate = 0.005", "learning_rate = 0.3").replace(
        "sizes = [100, 200]", "sizes = [100, 200]\nalpha = [0.05, 0.1]\niid = 0.0"
    )
    small.write_text(raw)
    config = Config.load(str(small))
    zoo = Zoo(config, tmp_path / "work", choose_compute("cpu", "float32"))
    made = [zoo.make(plan) for plan in plans(config, 5) if plan.role in {"fitting", "calibration"}]
    assert all(record["passes_utility"] for record in made)
    assert sum(record["draws"] for record in made) > len(made)
    once = [zoo.make(plan)["draws"] for plan in plans(config, 5) if plan.role == "honest"]
    assert once == [1] * 4


def test_an_attack_without_an_image_of_its_class_gives_nothing_back(small: Path, tmp_path: Path) -> None:
    """Clean-label poison needs images of the target class; contributors of one class in ten mostly have none."""
    raw = SMALL.replace("sizes = [100, 200]", "sizes = [100, 200]\nalpha = [0.02, 0.03]\niid = 0.0")
    small.write_text(
        raw.replace("badnets:trigger=square,target={target},fraction=0.5", "sig:target={target},fraction=0.5")
    )
    config = Config.load(str(small))
    zoo = Zoo(config, tmp_path / "work", choose_compute("cpu", "float32"))
    made = [zoo.make(plan) for plan in plans(config, 5) if plan.family == "badnets"]
    assert any("none of the attacked class" in record.get("failed", "") for record in made)


def test_a_changed_attack_or_a_changed_default_is_another_model(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.load(str(small))

    def names() -> dict[str, set[str]]:
        kinds: dict[str, set[str]] = {}
        for plan in plans(config, 5):
            kinds.setdefault(plan.family or "honest", set()).add(plan.name)
        return kinds

    before = names()
    monkeypatch.setattr("contributor.attacks.badnets.BadNets.revision", 2)
    after = names()
    assert after["badnets"].isdisjoint(before["badnets"])
    assert (after["flip"], after["honest"]) == (before["flip"], before["honest"])
    assert all(
        "strength" not in plan.attack and "seed=0" in plan.attack
        for plan in plans(config, 5)
        if plan.attack and plan.family == "badnets"
    )


def test_what_an_attack_reached_is_measured_of_the_weights_there_are(small: Path, tmp_path: Path) -> None:
    """A model trained under an earlier measure need not be trained again."""
    config = Config.load(str(small))
    zoo = Zoo(config, tmp_path / "work", choose_compute("cpu", "float32"))
    plan = next(plan for plan in plans(config, 5) if plan.family == "badnets")
    record = zoo.make(plan)
    truth = zoo.truth(plan)
    assert truth is not None
    assert {key: record["report"][key] for key in truth["returned"]} == truth["returned"]
    assert truth["returned"]["attack_success"] > truth["merged"]["attack_success"]
    path = zoo._path(plan).with_suffix(".json")
    stored = json.loads(path.read_text())
    stored["truth"] = {"version": 1, "returned": {"attack_effective": None}, "merged": {}}
    path.write_text(json.dumps(stored))
    assert zoo.truth(plan) == truth
    entry = Entry.of(plan, zoo.record(plan) or {}, {})
    assert entry.attack_success_unmarked == truth["returned"]["attack_success_unmarked"]
    assert entry.merged_success == truth["merged"]["attack_success"]
    assert zoo.truth(next(one for one in plans(config, 5) if one.role == "honest")) is None


def test_models_made_otherwise_are_not_mixed_with_new_ones(small: Path, tmp_path: Path) -> None:
    Zoo(Config.load(str(small)), tmp_path / "work").settle()
    Zoo(Config.load(str(small)), tmp_path / "work").settle()
    small.write_text(SMALL.replace("learning_rate = 0.005", "learning_rate = 0.05").replace("honest = 4", "honest = 5"))
    with pytest.raises(ConfigurationError, match="another finetuning than"):
        Zoo(Config.load(str(small)), tmp_path / "work").settle()


def test_slow_detectors_score_the_same_share_of_the_models_in_every_run(small: Path) -> None:
    config = Config.load(str(small))
    everybody = [plan for number in range(20) for plan in plans(config, number)]
    half, whole = Slow(("maximum-margin",), share=0.5), Slow(("maximum-margin",))
    chosen = [plan for plan in everybody if half.of(plan)]
    assert chosen == [plan for plan in everybody if Slow(("maximum-margin",), share=0.5).of(plan)]
    assert 0.4 < len(chosen) / len(everybody) < 0.6
    assert all(whole.of(plan) == ("maximum-margin",) for plan in everybody)
    assert not any(Slow().of(plan) for plan in everybody)
    with pytest.raises(UnknownNameError, match="inversion"):
        Slow(("inversion",))
    with pytest.raises(ConfigurationError, match="share"):
        Slow(share=0.0)


def test_a_column_of_scores_is_as_old_as_anything_its_detector_is_written_with() -> None:
    found = written_with({"owner.detectors.input_gradients"})
    assert {"owner.detectors.extrapolation", "owner.detectors.weights", "owner.detectors.selection"} <= found
    assert "owner.detectors.probe_bank" not in found


@pytest.mark.slow
@pytest.mark.timeout(900)  # two fits of every detector and of the whole bank, and 38 models scored by them
def test_a_run_is_resumed_and_reports_every_family(small: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.detection", str(small), "--work", str(work), "--out", str(out)]
    subprocess.run([*command, "--stage", "train", "--bases", "development"], check=True)
    made = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    whole = subprocess.run([*command, "--workers", "1"], check=True, capture_output=True, text=True)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert whole.stdout.count("19 of 19 models made") == 2
    rows = json.loads((out / "detection.json").read_text())
    assert {row["family"] for row in rows if row["detector"] == "gate"} == {"badnets", "flip", "all"}
    page = (out / "detection-small.md").read_text()
    for section in ("Honest contributors by kind", "Base by base", "After the merge"):
        assert f"## {section}" in page
    # Whoever has the scores and no model gets the same figures, without training one.
    elsewhere = [*command[:-3], str(tmp_path / "nothing"), *command[-2:]]
    assert "nothing to train" in subprocess.run(elsewhere, check=True, capture_output=True, text=True).stdout
    assert (json.loads((out / "detection.json").read_text()), (out / "detection-small.md").read_text()) == (rows, page)
    assert not (tmp_path / "nothing").exists()


def test_detectors_are_given_weights_in_the_models_order_as_a_guard_gives_them(small: Path, tmp_path: Path) -> None:
    """A file holds them in another order, and what is known of a layer by its place would be another layer's."""
    config = dataclasses.replace(Config.load(str(small)), architecture="cnn")
    zoo = Zoo(config, tmp_path, choose_compute("cpu", "float32"))
    save_weights(tmp_path / "m.safetensors", dict(build(zoo.spec, seed=0).state_dict()))
    read = load_weights(tmp_path / "m.safetensors")
    wanted = list(zoo.model(read).state_dict())
    assert list(read) != wanted
    scorer = object.__new__(Scorer)
    scorer.zoo, scorer.pools = zoo, zoo.pools(0)
    scorer.head = find_head(zoo.model(read), tuple(t[:2] for t in scorer.pools.fit.inputs), zoo.spec.head)
    assert list(scorer._evidence(read).weights) == wanted


def test_a_placebo_is_trained_as_the_attackers_of_a_family_and_attacks_nothing(small: Path, tmp_path: Path) -> None:
    config = Config.load(str(small))
    with_some = dataclasses.replace(config, placebos=4)
    more = [plan for plan in plans(with_some, 5) if plan not in plans(config, 5)]
    assert {plan.role for plan in more} == {"placebo"}
    assert sorted(plan.family or "" for plan in more) == ["badnets", "badnets", "flip", "flip"]
    zoo = Zoo(with_some, tmp_path, choose_compute("cpu", "float32"))
    for plan in more:
        family = next(one for one in config.families if one.name == plan.family)
        assert plan.attack is None
        assert plan.name.startswith(f"placebo-{plan.family}-")
        assert family.learning_rate[0] <= plan.learning_rate <= family.learning_rate[1]
        options = zoo._data_plan(plan, 0).options
        assert options.learning_rate == pytest.approx(plan.learning_rate * config.finetuning.learning_rate)
    record = zoo.make(more[0])
    assert record["report"]["attack_effective"] is None
    assert Entry.of(more[0], record, {}).model().family == more[0].family
