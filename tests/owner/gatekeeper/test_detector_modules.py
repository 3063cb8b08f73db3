"""Detectors of one's own that a module registers, which the owner's settings name."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ConfigurationError, GuardError, GuardMismatchError, UnknownNameError
from owner.detectors import DETECTORS
from owner.gatekeeper import GuardOptions
from owner.gatekeeper.detector_modules import import_modules
from owner.gatekeeper.fitting import main
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.own_detectors import own_code
from owner.gatekeeper.own_processes import command, environment
from tests.own_detectors import MOVED, Write, own_modules
from tests.owner.gatekeeper.conftest import fitting_job, protect

ONE = GuardOptions(detectors=("paper",), references=4, reject_level=0.2, quarantine_level=0.2)


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    with own_modules(tmp_path) as written:
        yield written


def test_what_a_module_registers_is_known_by_name_and_may_be_imported_again(write: Write) -> None:
    write("moving_of_a_test")
    for _ in range(2):
        import_modules(["moving_of_a_test"], named=["moved", "cka"])
    assert "moved" in DETECTORS


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        (None, "cannot be imported: ModuleNotFoundError", "PYTHONPATH"),
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError", "PYTHONPATH"),
        ("1 / 0", "cannot be imported: ZeroDivisionError", "PYTHONPATH"),
        ("import torch", "registers no detector", "@owner.detectors.register"),
        (
            "from owner.detectors import register\n@register\nclass Half:\n    name = 'half'\n    def fit(self, release): ...",
            "Half is no detector: it lacks score, explain, state, from_state",
            "owner.detectors.Detector",
        ),
        (
            "from owner.detectors import register\n@register\nclass Mine:\n    name = 'cka'",
            "wrong_of_a_test.*: the detector name 'cka' belongs to CKA",
            "another name",
        ),
    ],
    ids=["not there", "imports what is not there", "raises", "registers nothing", "half a protocol", "a taken name"],
)
def test_a_module_with_a_mistake_is_told_by_its_name_and_again(
    write: Write, text: str | None, told: str, hint: str
) -> None:
    if text is not None:
        write("wrong_of_a_test", text)
    known = dict(DETECTORS)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=told) as caught:
            import_modules(["wrong_of_a_test"])
        assert hint in caught.value.hint
        assert known == DETECTORS


def test_a_name_that_no_module_registers_is_told_with_what_is_known(write: Write) -> None:
    write("moving_of_a_test")
    with pytest.raises(UnknownNameError, match="'moves'") as caught:
        import_modules(["moving_of_a_test"], named=["moves"])
    assert "did you mean moved?" in caught.value.hint
    assert "guard.modules has moving_of_a_test" in caught.value.hint


def test_a_detector_that_needs_arguments_cannot_be_chosen_by_name(write: Write) -> None:
    text = "from tests.own_detectors import *\nexec(MOVED)\nMoved.__init__ = lambda self, scale: None\n"
    write("scaled_of_a_test", text)
    import_modules(["scaled_of_a_test"])
    with pytest.raises(ConfigurationError, match="the detector moved cannot be made") as caught:
        dataclasses.replace(ONE, detectors=("moved",)).unfitted_detectors()
    assert "Moved() must do" in caught.value.hint


def test_what_a_detector_of_ones_own_raises_says_whose_it_is(bench, write: Write) -> None:  # type: ignore[no-untyped-def]
    write("raising_of_a_test", "from tests.own_detectors import *\nexec(MOVED)\nMoved.compare = lambda *_: 1 / 0\n")
    import_modules(["raising_of_a_test"])
    with pytest.raises(ZeroDivisionError) as caught:
        protect(bench, dataclasses.replace(ONE, detectors=("moved",)))
    assert caught.value.__notes__ == ["raised by the detector moved (raising_of_a_test)"]


def test_a_guard_that_an_earlier_version_of_a_detector_fitted_is_refused(  # type: ignore[no-untyped-def]
    bench, write: Write, tmp_path: Path
) -> None:
    """Its references' scores would be compared with scores of another kind; the detector of the paper beside it has not changed."""
    write("moving_of_a_test")
    import_modules(["moving_of_a_test"])
    protect(bench, dataclasses.replace(ONE, detectors=("paper", "moved"))).guard.save(tmp_path / "guard")
    assert "moved" in Guard.load(tmp_path / "guard").detectors

    def import_again(text: str) -> None:
        DETECTORS.pop("moved")
        sys.modules.pop("moving_of_a_test")
        write("moving_of_a_test", text)
        import_modules(["moving_of_a_test"])

    import_again(MOVED.replace("abs()", "square()"))
    with pytest.raises(
        GuardMismatchError, match=r"another version of the detector moved \(moving_of_a_test\)"
    ) as caught:
        Guard.load(tmp_path / "guard")
    assert "as it was" in caught.value.hint
    import_again(MOVED)
    assert "moved" in Guard.load(tmp_path / "guard").detectors


def test_of_a_detector_that_was_typed_in_nobody_knows_when_it_changes(bench, write: Write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    exec(MOVED, typed := {"__name__": "typed_in_of_a_test"})
    assert own_code({"moved": typed["Moved"]()}) == {"moved": ""}
    protect(bench, dataclasses.replace(ONE, detectors=("paper", "moved"))).guard.save(tmp_path / "guard")
    DETECTORS.pop("moved")
    write("moving_of_a_test")
    import_modules(["moving_of_a_test"])
    assert "moved" in Guard.load(tmp_path / "guard").detectors


def test_the_fitting_process_imports_what_its_job_names_and_the_guard_names_no_code(  # type: ignore[no-untyped-def]
    bench, write: Write, tmp_path: Path
) -> None:
    write("moving_of_a_test")
    import_modules(["moving_of_a_test"])
    job = dataclasses.replace(
        fitting_job(bench, tmp_path, dataclasses.replace(ONE, detectors=("moved",))), modules=("moving_of_a_test",)
    )
    job.write(tmp_path / "job.json")
    asked = command("owner.gatekeeper.fitting", str(tmp_path / "job.json"))
    done = subprocess.run(asked, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(Guard.load(job.directory).detectors) == ["moved"]
    assert b"moving_of_a_test" not in b"".join(path.read_bytes() for path in job.directory.iterdir() if path.is_file())
    DETECTORS.pop("moved")
    with pytest.raises(GuardError, match="'moved', which this process does not know") as caught:
        Guard.load(job.directory)
    assert "guard.modules" in caught.value.hint


def test_a_job_whose_module_is_not_there_is_told_by_the_fitting_process(  # type: ignore[no-untyped-def]
    bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = dataclasses.replace(fitting_job(bench, tmp_path, ONE), modules=("nowhere_of_a_test",))
    job.write(tmp_path / "job.json")
    assert main([str(tmp_path / "job.json")]) == ConfigurationError.exit_code
    assert "the module 'nowhere_of_a_test' of guard.modules cannot be imported" in capsys.readouterr().err
