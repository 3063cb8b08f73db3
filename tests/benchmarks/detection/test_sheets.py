"""Published scores: judged from as if the models were there, refused where they are of other models, named where they are old."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from benchmarks.detection import __main__ as command
from benchmarks.detection.config import Config
from benchmarks.detection.plans import plans
from benchmarks.detection.scores import columns
from benchmarks.detection.sheets import Entry, Sheet, path_of, plain, stratum
from benchmarks.detection.zoo import Zoo
from common.errors import ConfigurationError

BASE = 900


@pytest.fixture(scope="module")
def config() -> Config:
    return Config.load("badnet-cnn-mnist")


def sheet(config: Config, entries: list[Entry], **changed: object) -> Sheet:
    versions = {column.key: column.version for column in columns(config)}
    made_with = plain(config.made_with())
    return dataclasses.replace(Sheet(BASE, made_with, "a machine", versions, entries), **changed)  # type: ignore[arg-type]


def entries(config: Config, count: int | None = None) -> list[Entry]:
    """Scores that say which model they are of; one model whose training failed."""
    found = []
    for number, plan in enumerate(plans(config, BASE)[:count]):
        effective = True if plan.family else None
        kind = "" if plan.family else "mild skew"
        measures = {"cka": number / 7, "update-norm": float(number), "cka/worst": float("inf")}
        found.append(
            Entry(plan, "", f"{number:064x}", effective, number % 2 == 0, 0.9, stratum=kind, measures=measures)
        )
    return [*found[:-1], Entry(found[-1].plan, failed="the loss is not finite")]


def test_what_is_published_is_read_back_to_six_digits(config: Config, tmp_path: Path) -> None:
    written = sheet(config, entries(config, 60))
    path = path_of(tmp_path, config, BASE)
    written.write(path)
    read = Sheet.read(path, config, BASE)
    assert read is not None
    for one, other in zip(read.entries, written.entries, strict=True):
        assert dataclasses.replace(one, measures={}) == dataclasses.replace(other, measures={})
        assert dict(one.measures) == pytest.approx(dict(other.measures), rel=1e-5)
    assert dataclasses.replace(read, entries=[]) == dataclasses.replace(written, entries=[])
    first = path.read_bytes()
    read.write(path)
    assert path.read_bytes() == first
    judged = read.judged()
    assert len(judged.calibration) + len(judged.fitting) + len(judged.honest) + len(judged.attacked) == 60 - 1 - 1
    assert read.owner() == read.entries[0].measures


def test_the_papers_threshold_is_of_the_owners_own_fine_tune_or_of_none(config: Config) -> None:
    some = entries(config, 9)
    assert some[0].plan.role == "owner"
    assert sheet(config, some).owner() == some[0].measures
    assert sheet(config, [dataclasses.replace(some[0], failed="the loss is not finite"), *some[1:]]).owner() is None


def test_an_entry_tells_what_is_returned_from_what_comes_of_the_merge(config: Config) -> None:
    plan = next(plan for plan in plans(config, BASE) if plan.family)
    truth = {
        "returned": {"attack_effective": True, "attack_success": 0.9, "attack_success_unmarked": 0.1},
        "merged": {"attack_effective": False, "attack_success": 0.3},
    }
    record = {"report": {"accuracy": 0.8}, "truth": truth, "weights_sha256": "x", "passes_utility": True}
    columns = {"cka": {"measures": {"cka": 1}}, "probe-bank[-square]": {"measures": {"probe-bank": 2}}}
    found = Entry.of(plan, record, columns)
    assert (found.effective, found.attack_success, found.attack_success_unmarked) == (True, 0.9, 0.1)
    assert (found.merged_effective, found.merged_success) == (False, 0.3)
    assert found.measures == {"cka": 1.0, "probe-bank[-square]|probe-bank": 2.0}
    model = found.model()
    assert (model.effective, model.merged_effective, model.passes_utility) == (True, False, True)


def test_an_honest_contributor_is_of_the_first_kind_that_fits() -> None:
    plain_one = {"options": {"frozen_layers": [], "optimiser": "sgd"}}
    adam, frozen = {"frozen_layers": [], "optimiser": "adam"}, {"frozen_layers": ["0"], "optimiser": "adam"}
    for data, kind in (
        (plain_one, "as the pool"),
        (plain_one | {"alpha": 0.49}, "strong skew (alpha < 0.5)"),
        (plain_one | {"alpha": 0.5}, "mild skew"),
        ({"options": adam, "alpha": 0.3}, "other optimiser"),
        ({"options": frozen}, "frozen layer"),
        ({"options": frozen, "wrong_labels": 3}, "label noise"),
        ({"options": frozen, "wrong_labels": 3, "corruption": "blur"}, "other device"),
    ):
        assert stratum(data) == kind


def test_a_measure_that_a_model_lacks_is_lacking_when_it_is_read_back(config: Config, tmp_path: Path) -> None:
    some = entries(config, 3)
    some[1] = dataclasses.replace(some[1], measures={**some[1].measures, "maximum-margin": 0.25})
    path = path_of(tmp_path, config, BASE)
    sheet(config, some).write(path)
    read = Sheet.read(path, config, BASE)
    assert read is not None
    assert ["maximum-margin" in one.measures for one in read.entries] == [False, True, False]


def test_slow_scores_of_the_same_weights_are_kept_when_the_others_are_made_anew(config: Config) -> None:
    some = entries(config, 5)
    slow = [dataclasses.replace(e, measures={**e.measures, "maximum-margin/alone": 0.5}) for e in some]
    earlier = sheet(config, slow)
    earlier = dataclasses.replace(earlier, versions={**earlier.versions, "maximum-margin": "v"})
    other = dataclasses.replace(some[1], weights_sha256="of another training")
    found = sheet(config, [some[0], other, *some[2:]]).with_slow(earlier)
    assert ["maximum-margin/alone" in e.measures for e in found.entries] == [True, False, True, True, False]
    assert found.versions["maximum-margin"] == "v"
    assert earlier.with_slow(sheet(config, some)) is earlier


def test_scores_of_models_that_were_made_otherwise_are_refused(config: Config, tmp_path: Path) -> None:
    path = path_of(tmp_path, config, BASE)
    assert Sheet.read(path, config, BASE) is None
    sheet(config, entries(config, 4), made_with={"dataset": "mnist"}).write(path)
    with pytest.raises(ConfigurationError, match="other models than badnet-cnn-mnist"):
        Sheet.read(path, config, BASE)


def test_models_that_are_no_longer_planned_are_left_out(config: Config, tmp_path: Path) -> None:
    path = path_of(tmp_path, config, BASE)
    sheet(config, entries(config)).write(path)
    fewer = dataclasses.replace(config, honest=config.honest - 10)
    whole, less = (Sheet.read(path, one, BASE) for one in (config, fewer))
    assert whole is not None
    assert less is not None
    assert len(whole.entries) - len(less.entries) == 10
    assert whole.complete(config)
    assert less.complete(fewer)
    assert not less.complete(config)


def test_the_page_names_bases_that_are_missing_incomplete_or_of_other_code(config: Config) -> None:
    one = dataclasses.replace(config, development=(BASE,), final=(3,))
    part = sheet(one, entries(one, 60))
    lacking = "Incomplete: base 3 has not been run."
    count = len(plans(one, BASE))
    incomplete = f"Incomplete: 60 of {count} models of base 900 were there."
    failed = "1 of {} models of base 900 gave nothing back: the loss is not finite."
    useless = sum(e.plan.role in {"fitting", "calibration"} and not e.passes_utility for e in part.entries)
    drawn_again = f"{useless} references of base 900 fail utility, however often they were drawn again."
    assert command.shortcomings(one, [part]) == [incomplete, failed.format(60), drawn_again, lacking]
    sound = [dataclasses.replace(e, passes_utility=True, failed="") for e in entries(one)]
    assert command.shortcomings(one, [sheet(one, sound)]) == [lacking]
    for column in ("cka", "trigger-inversion"):
        whole = sheet(one, sound)
        old = dataclasses.replace(whole, versions={**whole.versions, column: "of last year"})
        line, _ = command.shortcomings(one, [old])
        assert "other code than today's" in line
        assert line.endswith(f"in: {column}.")


@pytest.fixture
def arguments(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        work=tmp_path / "work",
        out=tmp_path / "out",
        stage="all",
        bases="development",
        afresh=False,
        slow="",
        slow_share=1.0,
        workers=1,
    )


def test_nothing_is_trained_where_all_scores_are_published(
    config: Config, arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    monkeypatch.setattr(command, "train", lambda _, __, models, ___: trained.append(models[0].base))
    monkeypatch.setattr(command, "write_report", lambda *_: None)
    one = dataclasses.replace(config, development=(BASE, 901), final=(3,))
    sheet(one, entries(one)).write(path_of(arguments.out, one, BASE))
    command.run(one, arguments)
    assert trained == [901]
    trained.clear()
    arguments.afresh = True
    command.run(one, arguments)
    assert trained == [BASE, 901]


def test_models_that_are_only_begun_do_not_take_the_place_of_published_scores(
    config: Config, arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = dataclasses.replace(config, development=(BASE,))
    published = sheet(one, entries(one, 6))
    published.write(path_of(arguments.out, one, BASE))
    begun = plans(one, BASE)[:2]
    monkeypatch.setattr(Zoo, "record", lambda _, plan: {"failed": "x"} if plan in begun else None)
    reported: list[list[Sheet]] = []
    monkeypatch.setattr(command, "write_report", lambda _, sheets, __: reported.append(sheets))
    arguments.stage = "report"
    command.run(one, arguments)
    assert [len(found.entries) for found in reported[0]] == [6]
    arguments.afresh = True
    command.run(one, arguments)
    assert [found.entries for found in reported[1]] == [[Entry(plan, failed="x") for plan in begun]]


def test_a_base_that_is_only_begun_does_not_stand_beside_whole_ones(config: Config) -> None:
    one = dataclasses.replace(config, development=(BASE, 901))
    whole, begun = sheet(one, entries(one)), dataclasses.replace(sheet(one, entries(one, 5)), base=901)
    assert command._whole_first(one, [whole, begun], one.development) == [whole]
    assert command._whole_first(one, [begun], one.development) == [begun]


def test_without_a_final_base_there_is_no_report(config: Config, arguments: argparse.Namespace) -> None:
    with pytest.raises(ConfigurationError, match="no final base"):
        command.write_report(config, [sheet(config, entries(config, 4))], arguments)
