"""A guard on disk: whole, of this release, of this machine, or refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from common import canonical
from common.devices import Compute
from common.errors import GuardError, GuardMismatchError, StorageError
from common.model_spec import ModelSpec
from common.models import build
from owner.gatekeeper import Gatekeeper, Guard, GuardOptions
from owner.gatekeeper.guard_files import description_digest, release_digest, settle
from owner.gatekeeper.transplants import KEPT


@pytest.fixture
def copy(bench, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    shutil.copytree(bench.guard, tmp_path / "guard")
    return tmp_path / "guard"


def rewrite(directory: Path, **changes: object) -> None:
    """Alter guard.json and keep its digest true, as somebody would who knows how it is made."""
    write_description(directory, json.loads((directory / "guard.json").read_bytes()) | changes)


def write_description(directory: Path, about: dict[str, object]) -> None:
    del about["sha256"]
    about["sha256"] = hashlib.sha256(canonical.encode(about)).hexdigest()
    (directory / "guard.json").write_bytes(canonical.encode(about))


def test_a_loaded_gatekeeper_gives_the_verdict_of_the_one_that_was_saved(bench) -> None:  # type: ignore[no-untyped-def]
    candidate = bench.honest()
    saved, loaded = bench.gatekeeper.vet(candidate), Gatekeeper.load(bench.guard, bench.model).vet(candidate)
    assert loaded.decision is saved.decision
    assert [c.score for c in loaded.checks] == [c.score for c in saved.checks]
    assert loaded.measurements == saved.measurements


def test_a_guard_holds_json_and_safetensors_only(bench) -> None:  # type: ignore[no-untyped-def]
    assert {path.name for path in bench.guard.iterdir()} == {
        "guard.json",
        "detector-activation-autoencoder.safetensors",
        "references.safetensors",
        "release.safetensors",
        "triggers.safetensors",
    }


def test_guard_json_tells_how_the_guard_was_made(bench) -> None:  # type: ignore[no-untyped-def]
    about = json.loads((bench.guard / "guard.json").read_bytes())
    assert about["format"] == 1
    assert about["release_sha256"] == release_digest(bench.weights)
    assert about["compute"] == {"device": "cpu", "dtype": "float32"}
    assert about["options"]["references"] == 9
    assert len(about["references"]) == 9
    assert about["head"] == "5"
    assert {"torch", "portier", "python"} <= set(about["versions"])


def test_saving_over_a_guard_replaces_it_and_leaves_nothing_behind(bench, copy: Path) -> None:  # type: ignore[no-untyped-def]
    (copy / "stray").write_text("x")
    bench.gatekeeper.save(copy)
    assert description_digest(copy) == description_digest(bench.guard)
    assert [path.name for path in copy.parent.iterdir()] == ["guard"]
    assert not (copy / "stray").exists()


def save_killed(guard: Guard, directory: Path, kept: Path, *, at: int) -> int:
    """Exit code of a process that is killed when it is about to give a folder its name for the `at`-th time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads, of which the copy needs none
        process = os.fork()
    if process == 0:
        replace, left = Path.replace, [at]

        def counted(self: Path, target: Path) -> Path:
            left[0] -= self.is_dir()
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        try:
            Path.replace = counted  # type: ignore[method-assign,assignment]
            guard.save(directory, kept=[kept])
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize(
    ("stands", "at", "found"), [(True, 1, "old"), (True, 2, "new"), (False, 1, "new")], ids=["whole", "aside", "first"]
)
def test_killed_at_any_rename_it_leaves_a_whole_guard_and_the_fine_tunes_are_not_lost(
    bench,  # type: ignore[no-untyped-def]
    copy: Path,
    tmp_path: Path,
    stands: bool,
    at: int,
    found: str,
) -> None:
    if not stands:
        shutil.rmtree(copy)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "0000.json").write_text("{}")
    new = dataclasses.replace(bench.gatekeeper.guard, provenance={"trained": "anew"})
    assert save_killed(new, copy, tmp_path / "work", at=at) == -signal.SIGKILL
    settle(copy)
    assert Guard.load(copy).provenance == (new.provenance if found == "new" else {})
    assert (copy / KEPT / "0000.json").exists() == (found == "new")
    assert (tmp_path / "work" / "0000.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"guard", "work"}


def test_what_another_guard_beside_it_is_being_written_from_is_left_alone(copy: Path) -> None:
    theirs = copy.with_name(".guard-2-abc")  # of the guard in `guard-2`
    copy.replace(theirs)
    settle(copy)
    assert theirs.is_dir()
    assert not copy.exists()


def writing(directory: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of writing the guard in `directory`: it has said so, and goes on once it is told to."""
    code = """if True:
        import pathlib, sys
        from owner.gatekeeper import Guard, guard_files
        directory = pathlib.Path(sys.argv[1])
        guard = Guard.load(directory)
        describe = guard_files._describe
        def waiting(*given):
            print("half", flush=True)
            sys.stdin.readline()
            return describe(*given)
        guard_files._describe = waiting
        guard.save(directory)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def beside(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.parent.iterdir() if path != directory)


def test_a_guard_that_a_living_process_writes_is_left_alone_whatever_its_number(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(copy) as process:
        monkeypatch.setattr(os, "getpid", lambda: process.pid)  # as in a container beside it
        before = beside(copy)
        assert len(before) == 2
        settle(copy)
        assert beside(copy) == before
        process.communicate("go on\n")
    assert process.returncode == 0
    assert beside(copy) == []
    Guard.load(copy)


def test_what_a_killed_process_has_left_is_removed_though_its_number_lives_on(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(copy) as process:
        process.kill()
    monkeypatch.setattr(os, "kill", lambda *_: None)  # another one has the number now
    settle(copy)
    assert beside(copy) == []
    Guard.load(copy)


def test_who_writes_a_guard_waits_for_who_is_writing_it(
    bench,  # type: ignore[no-untyped-def]
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("owner.gatekeeper.guard_files._WAIT_SECONDS", 0.0)
    with writing(copy) as process:
        with pytest.raises(GuardError, match=f"pid {process.pid}"):
            bench.gatekeeper.save(copy)
        process.communicate("go on\n")
    bench.gatekeeper.save(copy)


def test_another_release_is_refused(bench) -> None:  # type: ignore[no-untyped-def]
    other = build(ModelSpec("mlp", (1, 8, 8), 10), seed=5)
    with pytest.raises(GuardMismatchError, match="the guard protects the release with weights") as caught:
        Gatekeeper.load(bench.guard, other)
    assert "portier-owner protect" in caught.value.hint


@pytest.mark.parametrize(
    "compute", [Compute(torch.device("cpu"), torch.bfloat16), Compute(torch.device("meta"), torch.float32)]
)
def test_another_device_or_dtype_is_refused(bench, compute: Compute) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(GuardMismatchError, match="fitted on cpu in float32") as caught:
        Gatekeeper.load(bench.guard, bench.model, compute=compute)
    assert "fit the guard again" in caught.value.hint


def test_a_guard_of_a_device_this_machine_lacks_is_refused(copy: Path) -> None:
    rewrite(copy, compute={"device": "cuda:99", "dtype": "float32"})
    with pytest.raises(GuardMismatchError, match="cuda:99"):
        Guard.load(copy)


@pytest.mark.parametrize("name", ["detector-activation-autoencoder", "references", "release", "triggers"])
def test_an_altered_file_is_found(copy: Path, name: str) -> None:
    path = copy / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(GuardError, match="damaged"):
        Guard.load(copy)


def test_an_altered_threshold_is_found(copy: Path) -> None:
    about = json.loads((copy / "guard.json").read_bytes())
    about["options"]["reject_level"] = 0.2
    (copy / "guard.json").write_bytes(canonical.encode(about))
    with pytest.raises(GuardError, match="altered"):
        Guard.load(copy)


def test_a_later_format_is_refused_by_number(copy: Path) -> None:
    rewrite(copy, format=2)
    with pytest.raises(GuardError, match="format 2, this version reads format 1"):
        Guard.load(copy)


@pytest.mark.parametrize("versions", [{"detectors": 64 * "0"}, {}])
def test_a_guard_that_other_code_of_detectors_fitted_is_refused(copy: Path, versions: dict[str, str]) -> None:
    """Its references' scores would be compared with scores of another kind."""
    rewrite(copy, versions=versions | {"portier": "0.0.9"})
    with pytest.raises(GuardMismatchError, match=r"other code of detectors \(portier 0\.0\.9\)"):
        Guard.load(copy)


@pytest.mark.parametrize("missing", ["guard.json", "triggers.safetensors"])
def test_a_missing_file_is_named(copy: Path, missing: str) -> None:
    (copy / missing).unlink()
    with pytest.raises(StorageError, match=missing):
        Guard.load(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format":true}', b'{"format":1}', b"\xff\xfe"])
def test_a_description_that_is_no_guard_is_refused(copy: Path, content: bytes) -> None:
    (copy / "guard.json").write_bytes(content)
    with pytest.raises(GuardError):
        Guard.load(copy)


@pytest.mark.parametrize("field", ["spec", "options", "detectors", "references", "class_names", "files"])
def test_a_description_with_a_field_of_another_kind_is_refused(copy: Path, field: str) -> None:
    rewrite(copy, **{field: 7})
    with pytest.raises(GuardError, match="damaged"):
        Guard.load(copy)


@pytest.mark.parametrize(
    "path",
    [
        "usefulness",
        "provenance",
        "key",
        "fitting",
        "versions",
        "own_code",
        "options.detectors",
        "options.population",
        "options.population.frozen",
        "options.escalation",
        "finetuning.epochs",
        "spec.head",
        "compute.dtype",
        "usefulness.utility.recall_drop",
        "usefulness.merge.weight",
        "detectors.activation-autoencoder.scaling",
    ],
)
def test_a_description_that_lacks_a_field_is_refused_by_its_name(copy: Path, path: str) -> None:
    about = json.loads((copy / "guard.json").read_bytes())
    *outer, name = path.split(".")
    inner = about
    for one in outer:
        inner = inner[one]
    del inner[name]
    write_description(copy, about)
    with pytest.raises(GuardError, match=rf"lacks? '?{name}\b") as caught:
        Guard.load(copy)
    assert caught.type is GuardError
    assert "again" in caught.value.hint


def test_rules_can_be_compared_on_one_guard(bench) -> None:  # type: ignore[no-untyped-def]
    by_seed = dataclasses.replace(bench.gatekeeper.guard, options=GuardOptions(detectors=("paper",), rule="seed"))
    assert by_seed.threshold("activation-autoencoder") != bench.gatekeeper.guard.threshold("activation-autoencoder")
