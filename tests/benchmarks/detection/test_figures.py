"""Figures are of models, at the level the references set, and never of more than the models carry."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, mannwhitneyu

from benchmarks.detection.config import Config
from benchmarks.detection.gates import alone
from benchmarks.detection.judge import Model, figures, judge
from benchmarks.detection.metrics import auroc, bootstrap_auroc, oracle_tpr, pooled_auroc
from benchmarks.detection.report import Table, rows
from tests.benchmarks.detection.conftest import base, models


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


def test_the_oracle_finds_what_no_cut_of_that_rate_could_better() -> None:
    """By trying every cut; a model at the cut is not beyond it."""
    honest = [float(i % 23) for i in range(40)]
    for attacked in ([21.0, 22.0, 22.5], [20.0, 21.0, 21.5], [5.0, 30.0]):
        cuts = [c for c in (-math.inf, *honest) if np.mean(np.array(honest) > c) <= 0.05]
        assert oracle_tpr(honest, attacked, 0.05) == max(np.mean(np.array(attacked) > c) for c in cuts)


def test_groups_weigh_in_the_auroc_by_their_pairs() -> None:
    assert pooled_auroc([[0.0], [0.0] * 3, []], [[1.0], [-1.0] * 2, [5.0]]) == pytest.approx(1 / 7)


def test_the_interval_is_that_of_models_drawn_with_replacement_on_both_sides() -> None:
    """Drawn by hand; of either side alone the interval is a third narrower."""
    random = np.random.default_rng(1)
    honest, attacked = random.normal(0, 1, size=15), random.normal(1, 1, size=12)
    drawn = [auroc(random.choice(honest, 15), random.choice(attacked, 12)) for _ in range(4000)]
    found = bootstrap_auroc([honest.tolist()], [attacked.tolist()], [0], draws=4000)
    assert found == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.012)


def test_references_that_fit_the_scales_have_no_part_in_the_p_value() -> None:
    made = dataclasses.replace(base(models([0.5]), models([0.985], "x")), fitting=[{"a": 1e9, "b": 0.0}] * 50)
    (found,) = (group := judge(made, lambda _: lambda m: m["a"], made.attacked)).attacked
    assert (found.p, group.references) == (2 / 100, 99)


def test_models_of_different_bases_are_different_models_whatever_their_names() -> None:
    groups = []
    for number in (3, 4):
        honest = [dataclasses.replace(m, base=number) for m in models([0.5, 2.0])]
        groups.append(judge(base(honest, []), alone("a"), ()))
    found = figures(groups, "effective")
    assert (found.n_honest, found.fpr[0.05].n, found.fpr[0.05].hits) == (4, 4, 2)


def test_a_level_stands_only_where_the_references_of_every_group_resolve_it() -> None:
    made = [base(models([0.5]), models([2.0], "x"), references) for references in (19, 99)]
    found = figures([judge(one, lambda _: lambda m: m["a"], one.attacked) for one in made], "effective")
    assert (list(found.tpr), list(found.fpr)) == ([0.05], [0.05])


def test_the_oracle_of_several_groups_is_the_share_of_all_their_attacked_models() -> None:
    honest = [i / 100 for i in range(100)]
    made = [base(models(honest), models(attacked, "x")) for attacked in ([2.0], [0.5, 0.5, 0.5])]
    few = base(models(honest[:19]), models([2.0], "x"))
    groups = [judge(one, lambda _: lambda m: m["a"], one.attacked) for one in (*made, few)]
    assert figures(groups[:2], "effective").oracle == {0.05: 0.25, 0.01: 0.25}
    assert figures(groups, "effective").oracle == {0.05: None, 0.01: None}


def test_the_interval_of_groups_of_one_base_is_of_the_honest_models_they_share() -> None:
    honest, attacked = [0.1, 0.4, 0.8], [models([0.2, 0.9], "x"), models([0.3, 0.7, 1.0], "y")]
    groups = [judge(base(models(honest), mine), lambda _: lambda m: m["a"], mine) for mine in attacked]
    expected = bootstrap_auroc([honest] * 2, [[0.2, 0.9], [0.3, 0.7, 1.0]], [0, 0])
    assert figures(groups, "effective").auroc_interval == expected
    assert expected != bootstrap_auroc([honest] * 2, [[0.2, 0.9], [0.3, 0.7, 1.0]], [0, 1])


def test_rates_are_at_the_level_the_references_set_and_not_where_the_attacks_would_like_it() -> None:
    honest, attacked = models([0.5, 0.97, 0.2, 2.0]), models([0.9, 0.96, 2.0], "x")
    found = figures([judge(base(honest, attacked), lambda _: lambda m: m["a"], attacked)], "effective")
    assert (found.tpr[0.05].hits, found.tpr[0.01].hits) == (2, 1)
    assert (found.fpr[0.05].hits, found.fpr[0.01].hits) == (2, 1)
    assert found.auroc == pytest.approx(7.5 / 12)


def test_published_intervals_are_scipys_exact_ones_each_beside_its_own_rate() -> None:
    honest, attacked = models([0.5] * 27 + [0.96, 2.0, 2.0]), models([0.5] * 10 + [0.96] * 5 + [2.0] * 7, "x")
    found = figures([judge(base(honest, attacked), lambda _: lambda m: m["a"], attacked)], "effective").to_json()
    for name, hits, n in (
        ("tpr_at_5", 12, 22),
        ("tpr_at_1", 7, 22),
        ("realised_fpr_at_5", 3, 30),
        ("realised_fpr_at_1", 2, 30),
    ):
        expected = binomtest(hits, n).proportion_ci(0.95, "exact")
        assert found[name] == pytest.approx(hits / n)
        assert found["ci"][name] == pytest.approx([expected.low, expected.high])


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


def test_the_whole_gate_counts_utility_on_both_sides() -> None:
    honest, attacked = models([0.5, 0.5], passes_utility=False), models([0.1], "z", passes_utility=False)
    group = judge(base(honest, attacked), lambda _: lambda m: m["a"], attacked)
    found = figures([group], "effective", whole_gate=True)
    assert (found.tpr[0.05].value, found.fpr[0.05].value) == (1.0, 1.0)
    useful = judge(base(models([0.5, 0.6]), attacked), lambda _: lambda m: m["a"], attacked)
    assert [figures([useful], "effective", whole_gate=on).auroc for on in (False, True)] == [0.0, 1.0]


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
