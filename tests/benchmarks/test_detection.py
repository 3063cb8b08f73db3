"""The detection benchmark, small: plans are fixed by the configuration, work that is done is not done again, figures are of models."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from benchmarks.detection import across
from benchmarks.detection.config import CONFIGS, Config
from benchmarks.detection.gates import Choice, Chooser, Parts, deciding, divided, in_bank
from benchmarks.detection.judge import Base, Model, figures, judge
from benchmarks.detection.metrics import auroc, bootstrap_auroc, oracle_tpr, pooled_auroc
from benchmarks.detection.plans import plans
from benchmarks.detection.report import Table, rows
from benchmarks.detection.scores import Slow, without, written_with
from benchmarks.detection.zoo import Zoo
from common.devices import choose_compute
from common.errors import ConfigurationError, UnknownNameError
from contributor.attacks import parse_attack
from owner.detectors.probes import IMAGE_PROBES
from owner.gatekeeper.combined import CombinedScore

SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.toml"))

SMALL = """
dataset = "digits"
classes = 10
architecture = "mlp"
honest = 4
[bases]
development = [5]
final = [6]
[references]
calibration = 5
fitting = 4
[shares]
train = 0.4
references = 0.3
fit = 0.3
calibration = 0.3
evaluation = 0.2
[training]
epochs = 10
[finetuning]
epochs = 2
learning_rate = 0.005
[population]
sizes = [100, 200]
[[families]]
name = "badnets"
specs = ["badnets:trigger=square,target={target},fraction=0.5"]
count = 3
learning_rate = [6.0, 8.0]
epochs = [8.0, 9.0]
probes = ["square"]
[[families]]
name = "flip"
specs = ["flip:source={source},target={target},fraction=1.0", "flip:source={source},target={target},fraction=0.5"]
count = 2
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def models(values: list[float], family: str | None = None, **kinds: bool) -> list[Model]:
    flags = {"effective": True if family else None, "passes_utility": True} | kinds
    return [Model(0, f"{family}-{i}", family, measures={"a": v, "b": 0.0}, **flags) for i, v in enumerate(values)]


def base(honest: list[Model], attacked: list[Model], references: int = 99) -> Base:
    spread = [{"a": i / references, "b": float(i % 7)} for i in range(references)]
    return Base(0, spread[::3], spread, honest, attacked)


def test_plans_are_a_function_of_the_configuration_and_the_base(small: Path) -> None:
    config = Config.load(str(small))
    first, again, other = plans(config, 5), plans(config, 5), plans(config, 6)
    assert first == again
    assert {plan.name for plan in first}.isdisjoint(plan.name for plan in other)
    assert len({plan.name for plan in first}) == len(first) == 1 + 4 + 5 + 4 + 3 + 2
    fractions = {plan.attack.rpartition("=")[2] for plan in first if plan.family == "flip" and plan.attack}
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


def test_the_auroc_is_that_of_the_rank_sum_test() -> None:
    honest, attacked = [0.1, 0.2, 0.2, 0.9, 0.4], [0.2, 0.8, 1.0]
    u = mannwhitneyu(attacked, honest).statistic
    assert auroc(honest, attacked) == pytest.approx(u / 15)
    assert math.isnan(auroc([], attacked))


def test_scores_of_different_bases_never_meet() -> None:
    assert pooled_auroc([[0.0, 1.0], [100.0, 101.0]], [[2.0], [102.0]]) == 1.0


def test_the_oracle_does_not_resolve_what_the_honest_models_do_not() -> None:
    assert oracle_tpr([0.0] * 50, [1.0], 0.01) is None
    assert oracle_tpr([0.0] * 100, [1.0], 0.01) == 1.0


def test_rates_are_at_the_level_the_references_set_and_not_where_the_attacks_would_like_it() -> None:
    honest, attacked = models([0.5, 0.97, 0.2, 0.1]), models([0.9, 0.96, 2.0], "x")
    found = figures([judge(base(honest, attacked), lambda _: lambda m: m["a"], attacked)], "effective")
    assert (found.tpr[0.05].hits, found.tpr[0.01].hits) == (2, 1)
    assert (found.fpr[0.05].hits, found.fpr[0.01].hits) == (1, 0)
    assert found.auroc == pytest.approx(10 / 12)


def test_a_level_finer_than_the_references_resolve_has_no_rate() -> None:
    few = base(models([0.5]), models([2.0] * 20, "x"), references=19)
    found = figures([judge(few, lambda _: lambda m: m["a"], few.attacked)], "effective").to_json()
    assert found["tpr_at_5"] == 1.0
    assert found["tpr_at_1"] is None


def test_failed_attacks_and_those_that_utility_stops_are_counted_apart() -> None:
    attacked = [*models([2.0], "x"), *models([3.0], "y", effective=False), *models([4.0], "z", passes_utility=False)]
    group = judge(base(models([0.5]), attacked), lambda _: lambda m: m["a"], attacked)
    counts = {p: figures([group], p).n_attacked for p in ("effective", "effective-passing-utility", "failed")}
    assert counts == {"effective": 2, "effective-passing-utility": 1, "failed": 1}


def test_attacks_that_pass_utility_are_compared_with_honest_models_that_do() -> None:
    honest = [*models([0.5, 0.6]), dataclasses.replace(models([9.0], passes_utility=False)[0], name="useless")]
    group = judge(base(honest, models([2.0], "x")), lambda _: lambda m: m["a"], models([2.0], "x"))
    passing, whole = (figures([group], population) for population in ("effective-passing-utility", "effective"))
    assert (passing.n_honest, passing.auroc, passing.fpr[0.05].hits) == (2, 1.0, 0)
    assert (whole.n_honest, whole.fpr[0.05].hits) == (3, 1)


def test_an_honest_model_that_several_gates_judge_counts_once() -> None:
    """Two families, two gates, four honest models: the first gate rejects two of them, the second none."""
    honest = models([0.5, 0.6, 2.0, 3.0])
    strict, blind = (judge(base(honest, []), lambda _, name=name: lambda m: m[name], ()) for name in "ab")
    found = figures([strict, blind], "effective")
    assert (found.n_honest, found.fpr[0.05].n, found.fpr[0.05].hits) == (4, 4, 1)


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


def test_the_whole_gate_counts_utility_on_both_sides() -> None:
    honest, attacked = models([0.5, 0.5], passes_utility=False), models([0.1], "z", passes_utility=False)
    group = judge(base(honest, attacked), lambda _: lambda m: m["a"], attacked)
    found = figures([group], "effective", whole_gate=True)
    assert (found.tpr[0.05].value, found.fpr[0.05].value) == (1.0, 1.0)


def test_honest_models_that_several_groups_share_are_drawn_once() -> None:
    """Fourteen families on one base say no more of its honest models than one family does: the interval is as wide."""
    random = np.random.default_rng(0)
    honest = [random.normal(size=30).tolist()]
    attacked = [random.normal(1, 1, size=200).tolist() for _ in range(14)]
    one = bootstrap_auroc(honest, attacked[:1], [0])
    shared = bootstrap_auroc(honest * 14, attacked, [0] * 14)
    apart = bootstrap_auroc(honest * 14, attacked, list(range(14)))
    assert shared[1] - shared[0] == pytest.approx(one[1] - one[0], rel=0.3)
    assert apart[1] - apart[0] < 0.5 * (shared[1] - shared[0])


def test_the_papers_rule_is_judged_on_the_honest_models_that_the_others_are(small: Path) -> None:
    """Of those that utility turns away Eq. 4 rejects everybody; they count beside all effective attacks, and not beside those that pass."""
    useful, useless = models([0.1] * 30), models([9.0] * 10, passes_utility=False)
    honest = [dataclasses.replace(m, name=f"h{i}") for i, m in enumerate([*useful, *useless])]
    made = base(honest, models([2.0] * 25, "badnets"))
    seen = [dataclasses.replace(m, measures={"activation-autoencoder": m.measures["a"], **m.measures}) for m in honest]
    attacked = [dataclasses.replace(m, measures={"activation-autoencoder": 2.0, **m.measures}) for m in made.attacked]
    references = [{"activation-autoencoder": one["a"], **one} for one in made.calibration]
    made = dataclasses.replace(made, honest=seen, attacked=attacked, fitting=references, calibration=references)
    owners = {0: {"activation-autoencoder": 0.5, "activation-autoencoder/deviation": 0.5}}
    found, _ = rows(Config.load(str(small)), Table((made,), {}), Table((made,), owners))
    rates = {
        row["population"]: (row["n_honest"], row["realised_fpr"], row["tpr"])
        for row in found
        if row["detector"] == "the paper's rule (Eq. 4)"
    }
    assert rates["effective-passing-utility"] == (30, 0.0, 1.0)
    assert rates["effective"] == (40, 0.25, 1.0)


def test_related_families_are_those_whose_triggers_come_near_the_same_probes() -> None:
    config = Config.load("badnet-cnn-mnist")
    kin = {family.name: config.kin(family) for family in config.families}
    assert kin["sig"] == {"sig"}
    assert kin["flip"] == {"flip"}
    assert {"badnets", "all-to-all", "tact", "subnet-replacement"} <= kin["badnets"]
    assert "blended" not in kin["badnets"]


def test_without_models_to_choose_on_there_is_no_choice() -> None:
    with pytest.raises(ConfigurationError, match="nothing to choose a gate on"):
        Chooser([], ("a",))
    with pytest.raises(ConfigurationError, match="nothing to choose a gate on"):
        Chooser([base(models([0.1]), models([1.0], "x", effective=False))], ("a",))


def test_a_choice_never_sees_the_family_left_out() -> None:
    """`a` separates family x alone, `b` family y alone: each must be chosen by the other."""
    x, y = models([5.0] * 6, "x"), models([5.0] * 6, "y")
    y = [Model(0, m.name, "y", True, True, {"a": 0.5, "b": 50.0}) for m in y]
    bases = [base(models([0.1 * i for i in range(9)]), [*x, *y])]
    chooser = Chooser(bases, ("a", "b"))
    assert chooser.choose(leave_out={"y"}).detectors == ("a",)
    assert chooser.choose(leave_out={"x"}).detectors == ("b",)
    assert chooser.choose().detectors == ("a", "b")


def test_divisions_of_a_base_fit_other_references_each_time() -> None:
    references = [{"a": float(k)} for k in range(11)]
    found = list(divided(Base(0, references[:3], references[3:], [], [])))
    assert [one.fitting for one in found] == [references[:3], references[3:6], references[6:9]]
    for one in found:
        assert sorted(m["a"] for m in [*one.fitting, *one.calibration]) == list(range(11))


def test_what_owners_read_is_never_left_out_and_what_sees_nothing_is() -> None:
    draws = random.Random(1)
    names = ("update-norm", "activation-autoencoder", "probe-bank", "cka", "head-drift", "batchnorm-drift")

    def seen(family: str | None = None) -> Model:
        measures = {name: draws.gauss(0, 1) for name in names}
        measures["batchnorm-drift"] = 0.0  # there is no BatchNorm, which says nothing against the detector
        return Model(0, "m", family, family and True, True, measures | ({"head-drift": 9.0} if family else {}))

    references = [seen().measures for _ in range(60)]
    bases = [Base(0, references[:20], references[20:], [seen() for _ in range(30)], [seen("x") for _ in range(30)])]
    kept = Chooser(bases, names).choose().detectors
    assert set(names) - {"cka"} == set(kept)


def test_a_forecast_for_a_base_never_comes_from_that_base(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cka` parts base 1 alone and `head-drift` base 2 alone: chosen on the other one, neither finds anything."""
    draws = random.Random(2)

    def seen(number: int, family: str | None = None) -> Model:
        measures = {"cka": draws.gauss(0, 1), "head-drift": draws.gauss(0, 1)}
        parting = {1: "cka", 2: "head-drift"}[number]
        return Model(
            number, f"{draws.random()}", family, family and True, True, measures | ({parting: 9.0} if family else {})
        )

    def scored(number: int) -> Base:
        fitting, calibration = ([seen(number).measures for _ in range(n)] for n in (30, 99))
        attacked = [seen(number, family) for family in ("badnets", "flip") for _ in range(20)]
        return Base(number, fitting, calibration, [seen(number) for _ in range(40)], attacked)

    monkeypatch.setattr(across, "development", lambda *_: [scored(1), scored(2)])
    monkeypatch.setattr(sys, "argv", ["across", str(small), "--out", str(tmp_path)])
    across.main()
    (page,) = tmp_path.glob("detection-across-*.md")
    crosswise, _, everything = page.read_text().split("\n## ")[1:]
    rates = [float(part[part.index("| all ") :].split("|")[4].split("%")[0]) for part in (crosswise, everything)]
    assert rates[0] < 30 < 90 < rates[1]


def test_what_decides_is_neither_utility_nor_of_the_escalation_tier_nor_a_part_of_a_bank() -> None:
    names = ["cka", "cka/worst", "accuracy-drop", "probe-bank", "probe-bank[-x]|probe-bank", "maximum-margin/alone"]
    assert deciding(names) == ("cka", "probe-bank")


def test_a_choice_scores_as_the_guard_that_is_configured_so() -> None:
    """Eq. 4's own number, measures that repeat their detector's and other detectors' are no part of the score."""
    fitting = [{"cka": k % 5 + 1.0, "cka/worst": k % 3 + 1.0, "head-drift": 1.0 + k % 4} for k in range(12)]
    seen = [one | {"cka/mean": one["cka"], "cka/deviation": 1.0 + k} for k, one in enumerate(fitting)]
    guard = CombinedScore.fit("sum", [{n: v for n, v in one.items() if n.startswith("cka")} for one in fitting])
    choice = Choice("sum", ("cka",)).fit(Base(0, seen, [], [], []))
    candidate = {"cka": 9.0, "cka/worst": 1.0, "cka/mean": 9.0, "cka/deviation": 1e9, "head-drift": 1e9}
    assert choice(candidate) == guard.score({"cka": 9.0, "cka/worst": 1.0})


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


def test_a_slow_detector_is_compared_on_the_models_it_was_run_on(small: Path) -> None:
    """All honest models and references score 0 or less there, every attacked one 1; half of each were scored."""

    def scored(names: list[Model], value: float) -> list[Model]:
        return [
            dataclasses.replace(m, measures={**m.measures, "activation-autoencoder": 0.0, **found})
            for i, m in enumerate(names)
            for found in [{"trigger-inversion": value} if i % 2 == 0 else {}]
        ]

    config = Config.load(str(small))
    attacked = [*scored(models([1.0] * 30, "badnets"), 1.0), *scored(models([1.0] * 20, "flip"), 1.0)]
    made = base(scored(models([0.1] * 8), 0.0), attacked, references=99)
    references = [
        {"activation-autoencoder": 0.0, **({"trigger-inversion": -float(i)} if i % 5 == 0 else {})} for i in range(99)
    ]
    made = dataclasses.replace(made, fitting=references, calibration=references)
    found, _ = rows(config, Table((made,), {}), Table((made,), {}))
    (row,) = [
        one
        for one in found
        if (one["detector"], one["family"], one["population"]) == ("trigger inversion alone", "all", "effective")
    ]
    assert (row["n_honest"], row["n_attacked"], row["auroc"]) == (4, 25, 1.0)
    assert (row["tpr_at_5"], row["tpr_at_1"]) == (1.0, None)
    assert {one["detector"] for one in found} >= {"activation-autoencoder", "gate", "trigger inversion alone"}
    (few,) = [
        one
        for one in found
        if (one["detector"], one["family"], one["population"]) == ("trigger inversion alone", "flip", "effective")
    ]
    assert few["n_attacked"] == 10
    assert {few[key] for key in ("auroc", "tpr_at_5", "tpr_at_1", "oracle_tpr_at_5")} == {None}


def test_a_reduced_bank_takes_the_place_of_the_whole_one() -> None:
    measures = {"probe-bank": 9.0, "probe-bank/cell": 8.0, f"{without(('square',))}|probe-bank": 1.0, "a": 2.0}
    assert in_bank(measures, without(("square",))) == {"probe-bank": 1.0, "a": 2.0}


def test_a_column_of_scores_is_as_old_as_anything_its_detector_is_written_with() -> None:
    found = written_with({"owner.detectors.input_gradients"})
    assert {"owner.detectors.extrapolation", "owner.detectors.weights", "owner.detectors.selection"} <= found
    assert "owner.detectors.probe_bank" not in found


def test_models_made_otherwise_are_not_mixed_with_new_ones(small: Path, tmp_path: Path) -> None:
    Zoo(Config.load(str(small)), tmp_path / "work").settle()
    Zoo(Config.load(str(small)), tmp_path / "work").settle()
    small.write_text(SMALL.replace("learning_rate = 0.005", "learning_rate = 0.05").replace("honest = 4", "honest = 5"))
    with pytest.raises(ConfigurationError, match="another finetuning than"):
        Zoo(Config.load(str(small)), tmp_path / "work").settle()


@pytest.mark.slow
@pytest.mark.timeout(900)  # two fits of every detector and of the whole bank, and 38 models scored by them
def test_a_run_is_resumed_and_reports_every_family(small: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.detection", str(small), "--work", str(work), "--out", str(out)]
    subprocess.run([*command, "--stage", "train", "--bases", "development"], check=True)
    made = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    whole = subprocess.run([*command, "--workers", "1"], check=True, capture_output=True, text=True)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert whole.stdout.count("19 of 19 models made") == 2
    rows = json.loads((out / "detection.json").read_text())
    assert {row["family"] for row in rows if row["detector"] == "gate"} == {"badnets", "flip", "all"}
    page = (out / "detection-small.md").read_text()
    assert "Honest contributors by kind" in page
    # Whoever has the scores and no model gets the same figures, without training one.
    elsewhere = [*command[:-3], str(tmp_path / "nothing"), *command[-2:]]
    assert "nothing to train" in subprocess.run(elsewhere, check=True, capture_output=True, text=True).stdout
    assert (json.loads((out / "detection.json").read_text()), (out / "detection-small.md").read_text()) == (rows, page)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("given_size", [False, True])
def test_the_parts_of_a_gate_are_the_gates_of_fewer_detectors(given_size: bool) -> None:
    source = random.Random(0)
    names = ["cka", "cka/worst", "head-drift", "probe-bank", "probe-bank/cell", "update-norm", "accuracy-drop"]

    def measures(shift: float) -> dict[str, float]:
        return {name: source.gauss(shift, 1) if name != "update-norm" else source.uniform(1, 3) for name in names}

    fitting, calibration = ([measures(0) for _ in range(20)] for _ in range(2))
    several = [Model(0, f"m{k}", "x", True, True, measures(2)) for k in range(5)]
    one = Base(0, fitting, calibration, [], several)
    known = Parts.of(one, Choice("detectors", deciding(names), given_size))
    for kept in (deciding(names), ("cka", "update-norm"), ("head-drift", "probe-bank", "update-norm")):
        choice = Choice("detectors", kept, given_size)
        alone, shared = judge(one, choice.fit, several), judge(known.base, Parts.fit(kept), known.base.attacked)
        assert [m.score for m in shared.attacked] == pytest.approx([m.score for m in alone.attacked])
        assert [m.p for m in shared.attacked] == [m.p for m in alone.attacked]
