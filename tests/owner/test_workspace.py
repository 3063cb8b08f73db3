"""Where things lie, and that one process at a time holds a lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import WorkspaceError
from owner.workspace import Workspace

HOLDER = """
import sys, pathlib
from owner.workspace import Workspace
with Workspace(pathlib.Path(sys.argv[1])).lock("serve"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_opening_a_folder_that_is_no_workspace_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="is not a workspace") as caught:
        Workspace.open(tmp_path)
    assert "portier-owner init" in caught.value.hint


def test_a_half_made_workspace_is_told_from_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    with pytest.raises(WorkspaceError, match="never finished") as caught:
        Workspace.open(tmp_path)
    assert "delete" in caught.value.hint


@pytest.mark.parametrize("identifier", ["", "abc", "../" + "a" * 61, "A" * 64, "a" * 65])
def test_only_a_full_id_names_a_folder(workspace: Workspace, identifier: str) -> None:
    with pytest.raises(ValueError, match="not a full identifier"):
        workspace.submission(identifier)
    with pytest.raises(ValueError, match="not a full identifier"):
        workspace.release(identifier)


def test_only_a_known_share_has_a_file(workspace: Workspace) -> None:
    assert workspace.share("evaluation").name == "evaluation.safetensors"
    with pytest.raises(ValueError, match="no share"):
        workspace.share("../keys/signing.key")


def test_a_lock_held_by_another_process_names_that_process(workspace: Workspace) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workspace.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(WorkspaceError, match=rf"pid {holder.pid}\b"), workspace.lock("serve"):
            pass
        holder.kill()
        holder.wait()
        assert holder.stdin is not None
        holder.stdin.close()
    with workspace.lock("serve"):  # a killed holder leaves no lock behind
        assert (workspace.locks / "serve.lock").read_text().strip() == str(os.getpid())


def test_two_holders_in_one_process_exclude_each_other_too(workspace: Workspace) -> None:
    with workspace.lock("serve"), pytest.raises(WorkspaceError, match=str(os.getpid())), workspace.lock("serve"):
        pass


def test_locks_of_different_names_do_not_exclude_each_other(workspace: Workspace) -> None:
    with workspace.lock("serve"), workspace.lock("guard"):
        assert {path.name for path in workspace.locks.iterdir()} == {"serve.lock", "guard.lock"}


def test_a_lock_is_waited_for_as_long_as_asked(workspace: Workspace) -> None:
    with workspace.lock("publishing"), pytest.raises(WorkspaceError), workspace.lock("publishing", wait_seconds=0.15):
        pass
