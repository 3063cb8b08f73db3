"""What may run beside what, and what a failure keeps from running."""

from __future__ import annotations

from common.errors import ModelError
from owner.reproduce.schedule import Schedule, duration
from owner.reproduce.settings import Settings
from owner.reproduce.steps import Step, all_steps

SETTINGS = Settings(improve=("cnn",))


def steps(*experiments: str) -> list[Step]:
    return all_steps(["cnn"], [0], experiments, SETTINGS)


def begun(schedule: Schedule) -> list[str]:
    """Everything that may begin now."""
    found = []
    while (step := schedule.begin()) is not None:
        found.append(step.name)
    return found


def test_steps_that_need_nothing_of_each_other_begin_together() -> None:
    schedule = Schedule(steps("tables", "gate"))
    assert begun(schedule) == ["genuine", "part"]
    schedule.end(Step("cnn", 0, "genuine"))
    assert begun(schedule) == ["honest", "flip", "pattern"]
    for name in ("honest", "flip"):
        schedule.end(Step("cnn", 0, name))
    assert begun(schedule) == []
    schedule.end(Step("cnn", 0, "pattern"))
    assert begun(schedule) == ["detect"]


def test_what_is_there_already_is_not_waited_for() -> None:
    assert begun(Schedule([Step("cnn", 0, "honest"), Step("cnn", 0, "detect")])) == ["honest"]


def test_the_gate_waits_for_the_models_of_figure_6_where_they_are_run_too() -> None:
    schedule = Schedule([Step("cnn", 0, "part-flip"), Step("cnn", 0, "gate")])
    assert begun(schedule) == ["part-flip"]
    schedule.end(Step("cnn", 0, "part-flip"), ModelError("diverged"))
    assert begun(schedule) == ["gate"]


def test_a_failure_takes_with_it_what_needs_the_step_and_nothing_else() -> None:
    schedule = Schedule(steps("tables", "gate"))
    begun(schedule)
    schedule.end(Step("cnn", 0, "genuine"), ModelError("diverged"))
    assert {step.name for step in schedule.failed} == {"genuine", "honest", "flip", "pattern", "detect"}
    schedule.end(Step("cnn", 0, "part"))
    assert schedule
    assert begun(schedule)[0] == "contribution-honest"


def test_two_at_a_time_take_as_long_as_the_longest_way_through() -> None:
    seconds = {"genuine": 80.0, "honest": 50.0, "flip": 50.0, "pattern": 50.0, "detect": 1.0}
    tables = steps("tables")
    assert [duration(tables, lambda step: seconds[step.name], n) for n in (1, 2, 3)] == [231.0, 181.0, 131.0]
