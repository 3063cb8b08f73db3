"""A contributor's home: where it is, what it keeps, which contribution is gone on with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from common.errors import ConfigurationError, WorkspaceError
from contributor.workspace import HOME_VARIABLE, Contribution, ContributorWorkspace, Step

REQUEST = {"data": "digits", "options": {"epochs": 3}}


@pytest.fixture
def workspace(tmp_path: Path) -> ContributorWorkspace:
    return ContributorWorkspace(tmp_path)


def _start(workspace: ContributorWorkspace, **changes: object) -> Contribution:
    begun = dataclasses.replace(workspace.start(REQUEST, seed=1, nonce="ab" * 16), **changes)  # type: ignore[arg-type]
    workspace.save(begun)
    return begun


def test_the_home_is_what_was_given_else_the_variable_else_below_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    assert ContributorWorkspace.at().home == tmp_path / ".portier" / "contributor"
    monkeypatch.setenv(HOME_VARIABLE, "/variable")
    assert ContributorWorkspace.at().home == Path("/variable")
    assert ContributorWorkspace.at(Path("/given")).home == Path("/given")


def test_a_contribution_is_read_back_as_it_was_saved(workspace: ContributorWorkspace) -> None:
    begun = _start(workspace, step=Step.SIGNED, submission="cd" * 32, measured={"samples": 3})
    assert workspace.contributions() == [begun]


def test_the_newest_undecided_contribution_with_an_equal_request_is_the_open_one(
    workspace: ContributorWorkspace,
) -> None:
    _start(workspace, step=Step.TRAINED)
    newer = _start(workspace, step=Step.SIGNED)
    _start(workspace, step=Step.DECIDED)
    assert workspace.open_contribution(dict(REQUEST)) == newer
    assert workspace.open_contribution({**REQUEST, "options": {"epochs": 4}}) is None


def test_a_submission_is_found_by_how_its_id_begins(workspace: ContributorWorkspace) -> None:
    one, other = _start(workspace, submission="ab" * 32), _start(workspace, submission="ac" * 32)
    assert (workspace.find("ab"), workspace.find("ac" * 32), workspace.find("ff")) == (one, other, None)
    with pytest.raises(ConfigurationError, match="begins 2"):
        workspace.find("a")


def test_labels_go_on_after_the_newest(workspace: ContributorWorkspace) -> None:
    assert [_start(workspace).label for _ in range(2)] == ["000001", "000002"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "step": "flying"}', "\xff"]
)
def test_a_damaged_state_is_named_and_not_overlooked(workspace: ContributorWorkspace, content: str) -> None:
    path = workspace.contribution_directory(_start(workspace).label) / "state.json"
    path.write_text(content, "latin-1")
    with pytest.raises(WorkspaceError) as caught:
        workspace.contributions()
    assert "state" in caught.value.diagnostics()


def test_a_state_with_a_field_this_version_does_not_know_is_refused(workspace: ContributorWorkspace) -> None:
    path = workspace.contribution_directory(_start(workspace).label) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    with pytest.raises(WorkspaceError, match="later"):
        workspace.contributions()


def test_a_lock_is_free_again_afterwards(workspace: ContributorWorkspace) -> None:
    label = _start(workspace).label
    with workspace.lock(label), pytest.raises(WorkspaceError, match="another process"), workspace.lock(label):
        pass
    with workspace.lock(label):
        pass
