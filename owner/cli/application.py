"""The command tree, and the one place where errors become exit codes.

Commands import what they need when they run, so that `--help` answers at once and `status` does not wait for torch.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import click
import typer
from rich.text import Text
from typer.rich_utils import rich_format_error

from common.errors import PortierError
from common.version import version
from owner.cli import deciding, founding, people, reading, serving
from owner.cli.rendering import errors

INTERRUPTED = 130
DEBUG_VARIABLE = "PORTIER_DEBUG"

app = typer.Typer(
    name="portier-owner",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help=(
        "Let others improve your classifier without trusting them.\n\n"
        "You share a trained model; contributors fine-tune it on data they keep; the gatekeeper vets every model they "
        "return before it is accepted.\n\n"
        "A workspace in four commands:\n\n"
        "    portier-owner init ward --data digits\n\n"
        "    portier-owner train -w ward\n\n"
        "    portier-owner protect -w ward\n\n"
        "    portier-owner serve -w ward"
    ),
    epilog="Exit codes: 0 done, 2 wrong usage, 130 interrupted; all others, and every setting, in docs/settings.md.",
)


def _version(wanted: bool) -> None:
    if wanted:
        click.echo(f"portier-owner {version()}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[
        bool, typer.Option("--debug", envvar=DEBUG_VARIABLE, help="Show where an error came from (a traceback).")
    ] = False,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"  # read by `main`, and by the processes this one starts


for _room in (founding, serving, people, reading, deciding):
    _room.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0, 2 for wrong usage, 130 when interrupted, else the code of `common.errors`."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, and prints errors to stderr."""
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = command.main(args=given, prog_name="portier-owner", standalone_mode=False)
    except Exception as error:  # noqa: BLE001 - the last line of defence: report, never a bare traceback
        return _report(error)
    except KeyboardInterrupt:
        return _interrupted()
    if code == INTERRUPTED:  # typer has caught the interruption before us
        return _interrupted()
    return code if isinstance(code, int) else 0


def _report(error: Exception) -> int:
    """Say what went wrong, and what to do; returns the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help())
        return error.exit_code
    if isinstance(error, click.ClickException):
        rich_format_error(error)
        return error.exit_code
    if isinstance(error, click.Abort):
        return _interrupted()
    if isinstance(error, BrokenPipeError):
        # The reader of our output went away (`log | head`): not an error, and no second complaint when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    if isinstance(error, PortierError):
        _complain(error.message, error.hint)
        return error.exit_code
    # A detector of somebody's own is named in a note.
    whose = "; ".join(getattr(error, "__notes__", ())) or "this is a defect of Portier"
    _complain(f"{type(error).__name__}: {error}", f"{whose}; `portier-owner --debug ...` shows where")
    return PortierError.exit_code


def _interrupted() -> int:
    errors.print("interrupted: nothing is lost, the same command goes on from here", style="yellow")
    return INTERRUPTED


def _complain(message: str, hint: str) -> None:
    # Text, not markup: messages quote what people typed, brackets and all.
    errors.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    if hint:
        errors.print(Text(f"  -> {hint}"), soft_wrap=True)
