"""Eq. 4 under other readings, from records worked out by hand."""

from __future__ import annotations

from typing import Any

from owner.reproduce.readings import ALONE, readings
from owner.reproduce.results import Results
from owner.reproduce.settings import Settings
from owner.reproduce.steps import Step
from owner.reproduce.tables import table_readings

CASES = ("flip-short", "flip-long", "pattern-short", "pattern-long")


def models(attacked: float) -> dict[str, Any]:
    honest = {"honest-short": {"mean": 1.0, "std": 1.0}, "honest-long": {"mean": 4.0, "std": 2.0}}
    return honest | {case: {"mean": attacked, "std": 1.0} for case in CASES}


RESULTS = Results(
    {
        Step("cnn", 0, "detect"): {"models": models(5.0)},
        Step("cnn", 0, "alone-detect"): {"models": models(6.0)},
        Step("cnn", 0, "variants"): {"variants": {"another": {"models": models(9.0)}}},
    }
)


def test_one_m_f_judges_the_attacks_of_both_durations() -> None:
    short, long, *_ = readings(RESULTS, Settings(), "cnn")
    assert all(short.deviations[case] == [4.0] and long.detected(case) == [False] for case in CASES)
    assert (short.deviations["honest-long"], "honest-short" in short.deviations) == ([3.0], False)


def test_another_auto_encoder_judges_as_the_settings_say() -> None:
    another = readings(RESULTS, Settings(), "cnn")[-1]
    assert (another.deviations["flip-short"], another.deviations["flip-long"]) == ([8.0], [2.5])
    assert (another.deviations["honest-short"], another.deviations["honest-long"]) == ([-1.5], [3.0])
    assert readings(RESULTS, Settings(honest_epochs="short"), "cnn")[-1].deviations["flip-long"] == [8.0]


def test_attacks_on_their_own_images_alone_are_a_reading() -> None:
    (alone,) = (reading for reading in readings(RESULTS, Settings(), "cnn") if reading.title == ALONE)
    assert (alone.deviations["flip-short"], alone.deviations["flip-long"]) == ([5.0], [1.0])


def test_the_settings_own_reading_is_not_told_twice() -> None:
    titles = [reading.title for reading in readings(RESULTS, Settings(honest_epochs="short"), "cnn")]
    assert titles == ["M_f of 50 epochs for all", ALONE, "another"]


def test_without_records_there_is_nothing_to_tell() -> None:
    assert table_readings(Results({}), Settings()) == ["Not run."]
    assert "| CNN | another | yes; +8.00 | yes; +2.50 |" in "\n".join(table_readings(RESULTS, Settings()))
