"""Options that several commands share, each written once."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

WORKSPACE_VARIABLE = "PORTIER_WORKSPACE"

WorkspaceOption = Annotated[
    Path,
    typer.Option(
        "--workspace",
        "-w",
        envvar=WORKSPACE_VARIABLE,
        help="The workspace, a folder made by `portier-owner init`.",
        show_default="the current folder",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program on standard output.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        help="Override a setting of portier.toml for this run, for example guard.references=39. May be repeated.",
        show_default=False,
    ),
]
HERE = Path()


def our_command(words: str, workspace: Path) -> str:
    """A command of ours for people to copy, of the same workspace.

    >>> our_command("protect", Path("my ward")), our_command("train", HERE)
    ("portier-owner protect -w 'my ward'", 'portier-owner train')
    """
    return f"portier-owner {words}" + ("" if workspace == HERE else f" -w {shlex.quote(str(workspace))}")
