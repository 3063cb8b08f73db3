"""Records of several machines: taken over, kept apart where their models differ, and made again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigurationError, StorageError
from owner.reproduce.drawings import draw_all
from owner.reproduce.records import Published, Work, torn_apart
from owner.reproduce.report import write_report
from owner.reproduce.runner import Runner
from owner.reproduce.settings import Settings
from owner.reproduce.steps import Step
from tests.owner.reproduce.conftest import SMOKE, TABLES, MakeRunner, lasting


def test_other_settings_need_another_folder(make_runner: MakeRunner, tmp_path: Path) -> None:
    make_runner(tmp_path)
    with pytest.raises(ConfigurationError, match=r"fraction 0\.5, now 0\.25"):
        make_runner(tmp_path, Settings(dataset="digits", smoke=True, improve=("cnn",), fraction=0.25))


def test_a_damaged_record_is_named(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    assert runner.run(TABLES[:1])
    runner.work.record_path(TABLES[0]).write_text("{")
    with pytest.raises(StorageError, match=r"genuine\.json"):
        runner.work.records()


def test_a_record_in_the_place_of_another_steps_is_named(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    assert runner.run(TABLES[:1])
    runner.work.record_path(TABLES[1]).write_bytes(runner.work.record_path(TABLES[0]).read_bytes())
    with pytest.raises(StorageError, match=r"honest\.json is the record of another step: cnn seed 0 genuine"):
        Work(tmp_path / "here").merge(runner.work)


def test_work_goes_on_from_published_numbers(finished: Runner, make_runner: MakeRunner, tmp_path: Path) -> None:
    """Everything but the pictures of attacked images comes back; where all steps of a seed are there, none is run again."""
    records = finished.work.records()
    _, numbers = write_report(records, finished.work.settings(), tmp_path / "out")
    runner = make_runner(tmp_path / "here")
    assert runner.work.merge(Published(numbers)) == len(records)
    assert runner.work.merge(Published(numbers)) == 0
    assert runner.pending(TABLES) == []
    again = write_report(runner.work.records(), runner.work.settings(), tmp_path / "again")
    assert [path.read_text() for path in again] == [
        path.read_text() for path in (tmp_path / "out" / "paper.md", numbers)
    ]
    figures = {path.name for path in draw_all(runner.work.records(), runner.work.settings(), tmp_path / "again")}
    assert "paper-histograms-cnn.png" in figures
    assert "paper-examples.png" not in figures


def published(architecture: str, seed: int, step: str) -> str:
    about = {"architecture": architecture, "seed": seed, "step": step, "environment": {}, "data": "digits"}
    return json.dumps({"format": 1, "settings": {}, "records": [about]})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "is no record of format"),
        ("{", "is no record"),
        ('{"format": 1}', "has no settings"),
        ('{"format": 1, "settings": {}, "records": {}}', "has no records"),
        ('{"format": 1, "settings": {}, "records": [{"seed": 0}]}', "without architecture"),
        ('{"format": 1, "settings": {}, "records": [NaN]}', "NaN is no number"),
        (published("../../elsewhere", 0, "genuine"), "of no step that there can be"),
        (published("cnn", -3, "genuine"), "of no step that there can be"),
        (published("cnn", 0, "../genuine"), "of no step that there can be"),
        ('{"format": 1, "settings": {}, "records": [{"architecture": "cnn", "seed": 0, "step": "jpeg"}]}', "without"),
    ],
)
def test_what_is_no_published_numbers_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "paper.json").write_text(text)
    published = Published(tmp_path / "paper.json")
    with pytest.raises(StorageError, match=says):
        (published.settings if "no settings" in says else published.records)()


def test_records_of_another_machine_are_taken_over_and_its_weights_made_anew(
    finished: Runner, make_runner: MakeRunner, tmp_path: Path
) -> None:
    for step in TABLES[:4]:
        (tmp_path / "other" / "cnn" / "seed-0").mkdir(parents=True, exist_ok=True)
        Work(tmp_path / "other").write(step, finished.work.record(step) or {})
    Work(tmp_path / "other").open(SMOKE)
    runner = make_runner(tmp_path / "here")
    assert runner.work.merge(Work(tmp_path / "other")) == 4
    assert runner.work.merge(Work(tmp_path / "other")) == 0
    assert [step.name for step in runner.pending(TABLES)] == ["genuine", "honest", "flip", "pattern", "detect"]
    assert runner.run(TABLES)
    detect = Step("cnn", 0, "detect")
    assert lasting(runner.work.records()[detect]) == lasting(finished.work.records()[detect])


def of_another_machine(record: dict[str, Any]) -> dict[str, Any]:
    """As the same step leaves it where the same seed gives other weights."""
    text = json.dumps({"weights": record.get("weights", {}), "of": record.get("of", {})})
    return record | json.loads(re.sub("[0-9a-f]{64}", "elsewhere", text))


def begun_elsewhere(finished: Runner, root: Path, *names: str) -> None:
    for name in names:
        step = Step("cnn", 0, name)
        Work(root).write(step, of_another_machine(finished.work.record(step) or {}))


def test_what_was_made_from_weights_that_came_out_otherwise_is_made_again(
    finished: Runner, make_runner: MakeRunner, tmp_path: Path
) -> None:
    begun_elsewhere(finished, tmp_path, "genuine", "honest", "flip", "pattern", "detect", "jpeg")
    runner = make_runner(tmp_path)
    variants, detect = Step("cnn", 0, "variants"), TABLES[-1]
    assert [one.step.name for one in runner.plan([variants])] == ["genuine", "honest", "flip", "pattern", "variants"]
    assert runner.perhaps_again([variants]) == [detect]
    assert runner.run([variants])
    assert torn_apart(runner.work.records()) == [detect]
    assert runner.pending([*TABLES, variants, Step("cnn", 0, "jpeg")]) == [detect]
    assert runner.run(TABLES)
    assert torn_apart(runner.work.records()) == []
    assert lasting(runner.work.records()[detect]) == lasting(finished.work.records()[detect])


def test_a_missing_model_makes_all_that_came_from_it_pending_in_the_same_run(
    finished: Runner, make_runner: MakeRunner, tmp_path: Path
) -> None:
    """The fine-tunes' weights are there, their M's are not: what is asked for is judged of fine-tunes of the M that is made now."""
    begun_elsewhere(finished, tmp_path, "genuine", "honest", "flip", "pattern")
    work = Work(tmp_path)
    for step in TABLES[1:4]:
        for name in step.models:
            shutil.copy(finished.work.weights_path(step, name), work.weights_path(step, name))
        work.write(step, (work.record(step) or {}) | {"weights": work.digests(step)})
    runner = make_runner(tmp_path)
    assert runner.pending(TABLES) == [TABLES[0], TABLES[-1]]
    assert runner.run(TABLES)
    found = runner.work.records()
    assert torn_apart(found) == []
    assert found[TABLES[-1]]["of"]["genuine"] == found[TABLES[0]]["weights"] == found[TABLES[1]]["of"]["genuine"]


def test_weights_newer_than_their_record_are_made_again(
    finished: Runner, make_runner: MakeRunner, tmp_path: Path
) -> None:
    """As a run leaves them that is killed after it has saved them, and before it has said what they are."""
    runner = make_runner(tmp_path)
    assert runner.run(TABLES[:1])
    path = runner.work.weights_path(TABLES[0], "genuine")
    path.write_bytes(finished.work.weights_path(TABLES[0], "jpeg").read_bytes())
    assert not runner.work.has_weights(TABLES[0])
    assert [step.name for step in runner.pending(TABLES[:2])] == ["genuine", "honest"]


@pytest.mark.parametrize("known_by", ["digest", "accuracy"])
def test_records_of_two_models_are_not_put_side_by_side(finished: Runner, known_by: str, tmp_path: Path) -> None:
    genuine, honest = (dict(finished.work.record(step) or {}) for step in TABLES[:2])
    if known_by == "digest":
        genuine = of_another_machine(genuine)
    else:
        genuine, honest = ({k: v for k, v in one.items() if k not in {"weights", "of"}} for one in (genuine, honest))
        genuine["accuracy"] = 2.0
    there, seed_1 = Work(tmp_path / "there"), Step("cnn", 1, "genuine")
    for work, step, record in (
        (Work(tmp_path / "here"), TABLES[0], genuine),
        (there, TABLES[1], honest),
        (there, seed_1, genuine | {"seed": 1}),
    ):
        work.open(SMOKE)
        work.write(step, record)
    with pytest.raises(
        ConfigurationError, match=r"1 records taken over, but none .* other models .*: cnn seed 0 honest"
    ):
        Work(tmp_path / "here").merge(there)
    assert set(Work(tmp_path / "here").records()) == {TABLES[0], seed_1}


def test_a_judgement_of_other_fine_tunes_is_torn_from_these(finished: Runner) -> None:
    records = {step: finished.work.record(step) or {} for step in TABLES}
    assert torn_apart(records) == []
    assert torn_apart(records | {TABLES[1]: of_another_machine(records[TABLES[1]])}) == [TABLES[1], TABLES[-1]]
    older = {k: v for k, v in records[TABLES[-1]].items() if k != "of"}
    assert torn_apart(records | {TABLES[-1]: older}) == [TABLES[-1]]
