"""Which detectors a gate of the benchmark is made of: what it is chosen on, and what it may not see."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import pytest

from benchmarks.detection import across
from benchmarks.detection.gates import Choice, Chooser, Parts, by_equation_4, deciding, divided, in_bank
from benchmarks.detection.judge import Base, Model, judge
from benchmarks.detection.metrics import Rate, pooled_auroc
from benchmarks.detection.scores import without
from common.errors import ConfigurationError
from owner.gatekeeper.combined import CombinedScore
from tests.benchmarks.detection.conftest import base, models


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


def test_a_choice_is_worth_the_mean_over_families_of_auroc_and_both_rates() -> None:
    """Over the divisions of the base, of what passes utility; a family none of which does is worth nothing, and counts for none."""
    x, y = models([5.0, 0.9, 0.99, 0.2], "x"), [*models([0.7, 1.0], "y"), *models([9.0], "y", passes_utility=False)]
    made = base(models([0.1, 0.5, 0.95, 1.2, 3.0]), [*x, *y, *models([9.0], "z", passes_utility=False)])
    whole = Choice("detectors", ("a", "b"))
    expected = []
    for family in (x, y[:2]):
        parts = [judge(part, whole.fit, family) for part in divided(made)]
        scores = (
            [[one.score for one in group.honest] for group in parts],
            [[o.score for o in g.attacked] for g in parts],
        )
        ps = [one.p for group in parts for one in group.attacked]
        rates = [sum(p <= level + 1e-9 for p in ps) / len(ps) for level in (0.05, 0.01)]
        expected.append((pooled_auroc(*scores) + sum(rates)) / 3)
    assert 0 < expected[1] < expected[0] < 1
    assert Chooser([made], ("a", "b"))._worth(whole, ()) == pytest.approx(sum(expected) / 2)


def test_the_papers_rule_rejects_above_mean_and_deviation_of_the_owners_fine_tune() -> None:
    owner = {"activation-autoencoder": 1.0, "activation-autoencoder/deviation": 0.5}

    def rejected(*scores: float) -> Rate:
        models = [Model(0, str(s), "x", True, True, {"activation-autoencoder": s}) for s in scores]
        return by_equation_4(base([], []), owner, models)

    assert rejected(1.2, 1.5, 1.6) == Rate(1, 3)
    assert rejected(math.inf, math.nan) == Rate(2, 2)


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


def test_a_reduced_bank_takes_the_place_of_the_whole_one() -> None:
    measures = {"probe-bank": 9.0, "probe-bank/cell": 8.0, f"{without(('square',))}|probe-bank": 1.0, "a": 2.0}
    assert in_bank(measures, without(("square",))) == {"probe-bank": 1.0, "a": 2.0}


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
