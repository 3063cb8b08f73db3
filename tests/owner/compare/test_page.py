"""The page and the numbers that come of records."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from common.errors import StorageError
from owner.compare.configuration import Comparison, PoisonedData, parse
from owner.compare.poisoned import read_poisoned
from owner.compare.report import markdown, numbers_of, read_records, take_over, write_report
from owner.federated import provenance
from owner.federated.compare import TAKEN_OVER, older_records, run_grid


@pytest.fixture(scope="module")
def records(comparison: Comparison, finished: Path) -> dict[str, Any]:
    return read_records(comparison, finished)


def page(comparison: Comparison, records: dict[str, Any]) -> str:
    return markdown(comparison, records, command="portier-owner compare small.toml", figures={})


def rows(text: str, heading: str, number: int = 0) -> list[list[str]]:
    """Of table `number` below a heading, without its head."""
    below = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    tables = [part for part in below.strip().split("\n\n") if part.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[number].splitlines()[2:]]


def columns(text: str, heading: str, number: int = 0) -> dict[str, dict[str, str]]:
    """The cells of table `number` below a heading by line and column."""
    below = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    tables = [part for part in below.strip().split("\n\n") if part.startswith("|")]
    head = [cell.strip() for cell in tables[number].splitlines()[0].strip("|").split("|")]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows(text, heading, number)}


def mean_of(records: dict[str, Any], strategy: str, attack: str, measure: str = "accuracy") -> str:
    """Over seeds, of the cells in rounds."""
    found = [
        one["result"]["summary"][measure]
        for one in records.values()
        if done(one, strategy, attack) and one["values"].get("setting") is None
    ]
    return f"{100 * statistics.fmean(found):.1f} ± {100 * statistics.stdev(found):.1f}"


FLIP = "flip:source=7,target=1"


def test_accuracy_stands_beside_attack_success_over_the_scenes_that_have_one_and_by_itself_over_the_others(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    text = page(comparison, records)
    krum = columns(text, "in rounds")["krum"]
    assert krum["targeted: accuracy %"] == mean_of(records, "krum", FLIP)
    assert krum["attack success %"] == mean_of(records, "krum", FLIP, "attack_success")
    assert krum["untargeted: accuracy %"] == mean_of(records, "krum", "sign-flip")
    line = rows(text, "The paper's Table 4, from measurements", 1)[0]
    assert line[5:8] == [
        mean_of(records, "fedavg", FLIP),
        mean_of(records, "fedavg", FLIP, "attack_success"),
        mean_of(records, "fedavg", "sign-flip"),
    ]
    assert line[10:13] == [
        krum[what] for what in ("targeted: accuracy %", "attack success %", "untargeted: accuracy %")
    ]


def with_effect(records: dict[str, Any], effective: dict[str, bool]) -> dict[str, Any]:
    """As if the attacks had been so effective where nobody defended."""
    return {
        name: {**one, "result": {**one["result"], "attack_effective": effective[one["values"]["attack"]]}}
        if one["status"] == "done" and one["values"]["strategy"] == "fedavg"
        else one
        for name, one in records.items()
    }


def test_f1_is_shown_over_the_scenes_too_whose_attack_takes_where_nobody_defends(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    told = page(comparison, with_effect(records, {"sign-flip": True, FLIP: False}))
    krum = columns(told, "in rounds")["krum"]
    alone = {name: one for name, one in records.items() if one["values"]["attack"] == "sign-flip"}
    assert krum["F1 where the attack took"] == columns(page(comparison, alone), "in rounds")["krum"]["F1"]
    assert rows(told, "The paper's Table 4, from measurements", 1)[0][9] == krum["F1 where the attack took"]
    nowhere = columns(page(comparison, with_effect(records, {"sign-flip": False, FLIP: False})), "in rounds")["krum"]
    assert (nowhere["F1 where the attack took"], nowhere["F1"]) == ("-", krum["F1"])


def test_what_attackers_weigh_is_told_and_that_fewer_attack_than_were_wanted(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    text = page(comparison, records).split("## in rounds")[1].split("\n## ")[0]
    assert "- digits, iid, 20 % attackers: 20 % of the images." in text
    heavy = {
        name: {
            **one,
            "result": {**one["result"], "attackers_wanted": 2, "attackers_weight": 0.24 + one["values"]["seed"] / 2},
        }
        if one["status"] == "done" and one["values"]["attack"] == FLIP
        else one
        for name, one in records.items()
        if one["values"]["attack"] == FLIP
    }
    text = page(comparison, heavy).split("## in rounds")[1].split("\n## ")[0]
    assert (
        f"20 % attackers: 24 to 74 % of the images; no more can attack than 1 of the 2 that were wanted for `{FLIP}`."
        in text
    )


def test_the_page_says_who_is_told_what_and_what_the_gate_goes_without(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    told = page(comparison, records).split("## What the strategies are told")[1].split("\n## ")[0]
    assert "Krum keeps one client by construction" in told
    assert "- krum: 0.40 (1 of 5)" in told
    assert "without the gatekeeper's check of utility" in told


def test_the_page_says_what_is_known_of_sizes_where_data_come_divided_by_nature(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    known = "the smallest and the largest number of examples that a client declares are known, too"
    assert known not in page(comparison, records)
    natural = {n: {**one, "values": {**one["values"], "partition": "natural"}} for n, one in records.items()}
    assert known in page(comparison, natural)


QUIET = """
[federation]
model = "logistic"
clients = 4
rounds = 1
engine = "inline"
device = "cpu"
[grid]
attack = ["flip:source=7,target=1", "sign-flip"]
attacker-share = [0, 0.25]
strategy = ["fedavg", "krum"]
seed = [0]
"""


def test_what_becomes_of_honest_clients_alone_stands_apart_and_in_no_other_mean(tmp_path: Path) -> None:
    comparison = parse(QUIET, "quiet")
    assert len(comparison.cells) == 6
    run_grid(comparison.cells, tmp_path, progress=False)
    records = read_records(comparison, tmp_path)
    text = page(comparison, records)
    krum, undefended = (columns(text, "quiet")[who] for who in ("krum", "fedavg"))
    assert krum["nobody attacks: honest dropped %"] == "75.0"
    assert undefended["nobody attacks: honest dropped %"] == "-"
    accuracies = {
        (one["values"]["strategy"], one["values"]["attack"], one["values"]["attacker-share"]): one["result"]["summary"][
            "accuracy"
        ]
        for one in records.values()
    }
    assert krum["nobody attacks: accuracy %"] == f"{100 * accuracies['krum', FLIP, 0]:.1f}"
    assert krum["targeted: accuracy %"] == f"{100 * accuracies['krum', FLIP, 0.25]:.1f}"
    assert float(krum["honest dropped %"]) < 75.1
    assert [row[0] for row in rows(text, "quiet", 1)] == [
        "nobody attacks",
        f"25 % attackers, {FLIP}",
        "25 % attackers, sign-flip",
    ]


def test_a_cell_is_mean_and_spread_over_seeds(comparison: Comparison, records: dict[str, Any]) -> None:
    found = [
        record["result"]["summary"]["accuracy"]
        for record in records.values()
        if record["values"].get("setting") is None
        and (record["values"]["strategy"], record["values"]["attack"]) == ("krum", "sign-flip")
    ]
    expected = f"{100 * statistics.fmean(found):.1f} ± {100 * statistics.stdev(found):.1f}"
    scene = next(row for row in rows(page(comparison, records), "in rounds", 1) if row[0] == "sign-flip")
    assert scene[2].split(" / ")[1] == expected


def test_what_the_gate_cannot_serve_is_not_applicable_and_says_why(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    text = page(comparison, records)
    assert {row[3] for row in rows(text, "in rounds", 1)} == {"n/a"}
    assert "gated: n/a: the input of the head '1' of logistic does not depend on the model's weights" in text


def test_the_papers_table_names_who_was_tested_where_and_what_is_not_at_hand(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    text = page(comparison, records)
    ours, missing = rows(text, "The paper's Table 4, from measurements", 1)
    assert ours[:5] == ["Li et al. 2020", "federated", "digits*", "logistic", "2"]
    assert ours[13:18] == ["n/a"] * 5
    assert missing[:3] == ["Li et al. 2020", "not at hand", "femnist"]


def test_a_data_set_that_is_a_part_of_the_original_is_marked(comparison: Comparison, records: dict[str, Any]) -> None:
    text = page(comparison, records)
    assert rows(text, "The paper's Table 4, from measurements", 1)[0][2] == "digits*"
    assert "\\* digits: scikit-learn's 1,797 of the original's 5,620." in text


def test_what_records_know_of_a_part_stands_before_the_configurations_note(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    part = "1,797 of the original's 5,620 examples"
    done = {name: one for name, one in records.items() if one["status"] == "done"}
    told = {name: {**one, "data": {**one["data"], "part": part}} for name, one in done.items()}
    assert f"\\* digits: {part}; scikit-learn's 1,797" in page(comparison, told)


def test_a_block_says_how_many_training_examples_it_had(comparison: Comparison, records: dict[str, Any]) -> None:
    text = page(comparison, records)
    assert "training examples of digits" in text.split("## in rounds")[1].split("\n## ")[0]


CELL = {"data": "mnist", "attack": "flipping", "fraction": 0.1}


def test_the_row_of_a_method_that_judges_data_is_made_of_its_own_records(
    comparison: Comparison, tmp_path: Path
) -> None:
    written = [
        {
            "cell": {**CELL, "attack": attack, "seed": seed},
            "victim": {"attacked": 0.8},
            "rows": [
                {"alpha": 0.66, "learnt_from": "clean", "f1": f1, "accuracy": 0.9},
                {"alpha": 1.0, "learnt_from": "clean", "f1": 1.0, "accuracy": 1.0},
            ],
        }
        for seed, attack, f1 in [(0, "flipping", 0.4), (0, "optimal", 0.6), (1, "flipping", 0.7), (1, "optimal", 0.7)]
    ]
    (tmp_path / "cae.json").write_text(json.dumps({"cells": written}))
    with_row = dataclasses.replace(comparison, poisoned=PoisonedData("Razmi & Xiong 2021", ("mnist", "cifar10")))
    write_report(with_row, {}, tmp_path, command="x", figures={})
    text = (tmp_path / "federated.md").read_text()
    first, second = rows(text, "The paper's Table 4, from measurements", 1)[:2]
    assert first[:13] == [
        *("Razmi & Xiong 2021", "poisoned training data", "mnist", "linear-svm", "2"),
        *("-", "-", "80.0 ± 0.0", "0.60 ± 0.14", "-", "-", "-", "90.0 ± 0.0"),
    ]
    assert first[-3:] == ["n/a"] * 3
    assert set(second[4:-3]) == {"not run"}


def test_damaged_records_of_poisoned_data_are_named(tmp_path: Path) -> None:
    (tmp_path / "cae.json").write_text('{"cells": [{}]}')
    with pytest.raises(StorageError, match=r"cae\.json"):
        read_poisoned(tmp_path / "cae.json", ["mnist"])


def test_what_was_not_run_says_so_and_a_part_of_the_seeds_too(comparison: Comparison, records: dict[str, Any]) -> None:
    first_seed = {name: one for name, one in records.items() if one["values"]["seed"] == 0}
    text = page(comparison, first_seed)
    assert "(1 of 2 seeds)" in rows(text, "in rounds", 1)[0][1]
    assert "Nothing of it was run." in page(comparison, {}).split("## in rounds")[1]


def done(record: dict[str, Any], strategy: str, attack: str) -> bool:
    return record["values"]["strategy"] == strategy and record["values"]["attack"] == attack


def test_scenes_of_which_nothing_was_run_are_counted_and_not_listed(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    flips = {name: one for name, one in records.items() if one["values"]["attack"] != "sign-flip"}
    text = page(comparison, flips).split("## in rounds")[1].split("\n## ")[0]
    assert "Scenes of which nothing was run: 1." in text
    assert "sign-flip" not in text


def test_a_strategy_stands_beside_what_no_defence_came_to_in_the_same_scenes(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    partly = {
        name: one
        for name, one in records.items()
        if not (one["values"]["strategy"] == "krum" and one["values"]["attack"] != "sign-flip")
    }
    lines = columns(page(comparison, partly), "in rounds")
    same = [
        one["result"]["summary"]["accuracy"]
        for one in records.values()
        if done(one, "fedavg", "sign-flip") and one["values"].get("setting") is None
    ]
    undefended = "no defence, untargeted: accuracy %"
    assert lines["krum"][undefended] == f"{100 * statistics.fmean(same):.1f} ± {100 * statistics.stdev(same):.1f}"
    assert lines["krum"]["no defence, targeted: accuracy %"] == lines["krum"]["no defence: attack success %"] == "-"
    assert lines["fedavg"][undefended] == lines["fedavg"]["untargeted: accuracy %"]
    assert lines["fedavg"]["no defence, targeted: accuracy %"] == lines["fedavg"]["targeted: accuracy %"] != "-"


def test_the_papers_table_takes_its_means_over_scenes_that_all_have_run(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    partly = {name: one for name, one in records.items() if not done(one, "fedavg", "sign-flip")}
    (ours, *_) = rows(page(comparison, partly), "The paper's Table 4, from measurements", 1)
    assert ours[4] == "1 of 2"


def test_the_adaptation_of_submissions_that_come_alone_is_stated(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    text = page(comparison, records)
    assert "krum selects among the replies of a round" in text
    below = text.split("## one at a time")[1]
    assert "K honest references" in below


def test_the_numbers_hold_a_record_a_cell_and_seed(comparison: Comparison, records: dict[str, Any]) -> None:
    found = json.loads(numbers_of(comparison, records, command="x"), parse_constant=pytest.fail)
    assert len(found["records"]) == len(comparison.cells) == 24
    assert {(one["cell"], one["values"]["seed"]) for one in found["records"]} == {
        (cell.name, cell.values["seed"]) for cell in comparison.cells
    }
    one = next(r for r in found["records"] if r["status"] == "done" and r["values"]["strategy"] == "krum")
    assert [(r["number"], r["kept"] + r["dropped"]) for r in one["result"]["rounds"]] == [(1, 5), (2, 5)]


def test_curves_over_rounds_are_drawn_a_figure_a_data_set_and_model(
    comparison: Comparison, records: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from owner.compare.drawings import draw_all

    names = draw_all(comparison, records, tmp_path)
    assert [name.rsplit("-", 1)[1] for name in names["in rounds"]] == ["accuracy.png", "success.png"]
    assert names["one at a time"] == []
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names["in rounds"])


def test_work_goes_on_from_published_numbers(comparison: Comparison, records: dict[str, Any], tmp_path: Path) -> None:
    """A cell that failed is left to be run again; nothing that is there already is overwritten; the page is the same."""
    failed, *_ = records
    others = {**records, failed: {**records[failed], "status": "failed", "reason": "the disk is full", "result": {}}}
    page, numbers = write_report(comparison, records, tmp_path / "out", command="compare", figures={})
    (tmp_path / "failed.json").write_text(numbers_of(comparison, others, command="compare"))
    assert take_over(comparison, tmp_path / "failed.json", tmp_path / "runs") == len(records) - 1
    assert take_over(comparison, numbers, tmp_path / "runs") == 1
    assert take_over(comparison, numbers, tmp_path / "runs") == 0
    taken = read_records(comparison, tmp_path / "runs")
    again = write_report(comparison, taken, tmp_path / "again", command="compare", figures={})
    assert [path.read_text() for path in again] == [page.read_text(), numbers.read_text()]


def test_values_that_take_more_than_six_digits_still_name_their_cell(tmp_path: Path) -> None:
    values = 'learning-rate = 0.123456789\nattackers = 5\nattack = "sign-flip"'  # more than Bulyan serves: nothing to wait for
    comparison = parse(f'[federation]\n{values}\n[grid]\nstrategy = ["bulyan:assumed-malicious=9"]\nseed = [0]\n', "x")
    run_grid(comparison.cells, tmp_path / "runs", progress=False)
    _, numbers = write_report(
        comparison, read_records(comparison, tmp_path / "runs"), tmp_path, command="x", figures={}
    )
    assert take_over(comparison, numbers, tmp_path / "others") == 1


def test_a_record_under_the_name_of_another_cell_is_refused(
    comparison: Comparison, records: dict[str, Any], tmp_path: Path
) -> None:
    found = json.loads(numbers_of(comparison, records, command="x"))
    first, second, *_ = found["records"]
    first["cell"], second["cell"] = second["cell"], first["cell"]
    (tmp_path / "numbers.json").write_text(json.dumps(found))
    with pytest.raises(StorageError, match="the name of a cell that has other values"):
        take_over(comparison, tmp_path / "numbers.json", tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*.json"))


def older(record: dict[str, Any]) -> dict[str, Any]:
    """As records were before they told their code, precision and data."""
    environment = {key: record["environment"][key] for key in ("python", "torch", "threads")}
    values = {key: value for key, value in record["values"].items() if key != "precision"}
    if record["status"] != "done":
        return {**{key: value for key, value in record.items() if key != "environment"}, "values": values}
    data = {key: value for key, value in record["data"].items() if key != "digest"}
    return {**record, "values": values, "environment": environment, "data": data}


def test_published_records_of_other_code_count_and_every_line_says_how_many_it_has(
    comparison: Comparison, records: dict[str, Any], tmp_path: Path
) -> None:
    """What was published before digests were recorded, beside cells that ran since."""
    published = {name: older(one) for name, one in records.items() if done(one, "krum", "sign-flip")}
    (tmp_path / "numbers.json").write_text(numbers_of(comparison, published, command="x"))
    work = tmp_path / "runs"
    assert take_over(comparison, tmp_path / "numbers.json", work) == len(published)
    taken = read_records(comparison, work)
    assert taken.keys() == published.keys()
    assert older_records(work, comparison.cells) == 0
    text = page(comparison, {**records, **taken})
    code, before = provenance.code(), "code before digests were recorded"
    assert f"Most are of `{code}` (6 of 8); of others: krum 2 of 4 ({before})." in text.split("## in rounds")[1]
    row = "Li et al. 2020, federated, digits, logistic 2 of 8"
    assert f"of others: {row} ({before})." in text.split("## in rounds")[0]
    assert f"2 cells: Python {records[next(iter(taken))]['environment']['python']}" in text
    assert f"precision not recorded, {before}" in text
    assert f"In 2 of {sum(one['status'] == 'done' for one in records.values())} cells, of {before}" in text
    again = json.loads(numbers_of(comparison, {**records, **taken}, command="x"))
    assert all(TAKEN_OVER not in record for record in again["records"])


def test_the_page_of_published_records_alone_can_still_be_made(
    comparison: Comparison, records: dict[str, Any], tmp_path: Path
) -> None:
    text = page(comparison, {name: older(one) for name, one in records.items()})
    assert "precision not recorded" in text
    assert "Not all of these cells" not in text
    assert rows(text, "in rounds") == rows(page(comparison, records), "in rounds")


def test_a_page_of_one_code_says_so_once_and_nothing_of_differences(
    comparison: Comparison, records: dict[str, Any]
) -> None:
    text = page(comparison, records)
    assert text.count(provenance.code()) == 1
    assert "float32" in text
    assert "Not all of these cells" not in text


def test_cells_of_different_copies_of_the_data_are_told(comparison: Comparison, records: dict[str, Any]) -> None:
    others = {
        name: {**one, "data": {**one["data"], "digest": "0123456789ab"}}
        if done(one, "krum", "sign-flip") and "data" in one
        else one
        for name, one in records.items()
    }
    assert "the same copy of digits. Most are of" in page(comparison, others)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"records": [1]}', '{"records": [{}]}'])
def test_what_is_no_published_numbers_is_refused(text: str, comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "numbers.json").write_text(text)
    with pytest.raises(StorageError, match="no published records"):
        take_over(comparison, tmp_path / "numbers.json", tmp_path / "runs")
