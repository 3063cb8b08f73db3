"""What a person sees while a simulation runs."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from owner.simulate.live import Board, Row


@pytest.fixture
def rows() -> list[Row]:
    return [Row("ada", None), Row("eve", "flip:source=7,target=1")]


def test_without_a_terminal_each_change_is_one_line(rows: list[Row]) -> None:
    out = io.StringIO()
    with Board(Console(file=out, width=120), rows, title="two people") as board:
        board.owner("train")
        board.owner("train")
        board.contributor("ada", "uploading", "10 %")
        board.contributor("ada", "uploading", "20 %")
        board.contributor("ada", "accepted")
    lines = [re.sub(r"^\[ *[0-9.]+ s\] ", "", line) for line in out.getvalue().splitlines()]
    assert lines == ["two people", "owner: train", "ada: uploading (10 %)", "ada: accepted"]


def test_on_a_terminal_a_table_shows_everybody_as_they_stand(rows: list[Row]) -> None:
    out = io.StringIO()
    with Board(Console(file=out, width=120, force_terminal=True), rows, title="two people") as board:
        board.owner("serve")
        board.contributor("eve", "uploading", "42 %")
    shown = out.getvalue()
    for expected in ("two people", "ada", "waiting to join", "flip:source=7,target=1", "uploading", "42 %", "serve"):
        assert expected in shown


def test_a_line_longer_than_the_console_stays_one_line(rows: list[Row]) -> None:
    out = io.StringIO()
    with Board(Console(file=out, width=40), rows, title="a title of more than forty characters, as titles are"):
        pass
    assert len(out.getvalue().splitlines()) == 1
