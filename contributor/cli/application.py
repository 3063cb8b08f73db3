"""The command tree, and the one place where errors become exit codes.

Commands import what they need when they run, so that `--help` and `join` do not wait for torch.
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

from common.errors import DeclinedError, PortierError
from common.version import version
from contributor.cli import contributing, enrolling
from contributor.cli.rendering import errors

INTERRUPTED = 130
DEBUG_VARIABLE = "PORTIER_DEBUG"

app = typer.Typer(
    name="portier-contributor",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help=(
        "Improve somebody's classifier with data that you keep.\n\n"
        "The owner of the model sends you an invitation; then two commands do it:\n\n"
        "    portier-contributor join lab-7.invitation\n\n"
        "    portier-contributor contribute --data ./my-images\n\n"
        "The model comes to you, is fine-tuned on your machine, and its weights go back, signed. Your data stay with you. "
        "The owner vets the weights before they touch the model. Interrupted commands go on where they were when you "
        "run them again.\n\n"
        "`join` writes contributor.toml into your home (~/.portier/contributor): what you would give as flags each "
        "time can stand there. A flag is stronger than the environment, the environment than the file."
    ),
    epilog=(
        "Exit codes:\n\n"
        "0 done; where a verdict was waited for, accepted\n\n"
        "53 the owner declined the submission\n\n"
        "2 wrong usage of the command line\n\n"
        "10 a setting or flag is wrong; 11 an unknown data set, attack or option\n\n"
        "13 the data cannot be read or do not fit the model; 14 the model\n\n"
        "20 a file; 21 the home: not joined, in use or damaged\n\n"
        "30 identity; 31 invitation; 32 signature; 33 the owner has revoked you\n\n"
        "40 what came from the owner, or its refusal; 41 weights; 42 a manifest\n\n"
        "50 the protocol; 51 the owner cannot be reached; 52 a quota is used up\n\n"
        "130 interrupted: the same command goes on from there; 1 a defect of Portier"
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        click.echo(f"portier-contributor {version()}")
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
        os.environ[DEBUG_VARIABLE] = "1"  # read by `run`


app.command()(enrolling.join)
app.command()(contributing.contribute)
app.command()(contributing.watch)
app.command()(enrolling.status)
app.command()(enrolling.renew)
app.command()(enrolling.address)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0, 2 for wrong usage, 130 when interrupted, else the code of `common.errors`."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, and prints errors to standard error."""
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        answer = command.main(args=given, prog_name="portier-contributor", standalone_mode=False)
        code = answer if isinstance(answer, int) else 0
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        code = error.exit_code
    except click.ClickException as error:
        rich_format_error(error)
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output went away: not an error, and no second complaint when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except DeclinedError as error:
        code = error.exit_code  # the verdict was printed, where a program reads it
    except PortierError as error:
        _complain(error.message, error.hint)
        code = error.exit_code
    except Exception as error:  # noqa: BLE001 - the last line of defence: report, never a bare traceback
        hint = "this is a defect of Portier; `portier-contributor --debug ...` shows where it came from"
        _complain(f"{type(error).__name__}: {error}", hint)
        code = PortierError.exit_code
    if code == INTERRUPTED:  # which typer itself returns for Ctrl-C, without a word
        errors.print("interrupted: nothing is lost, the same command goes on from here", style="yellow")
    return code


def _complain(message: str, hint: str) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    # Text, not markup: messages quote what people typed, brackets and all.
    errors.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    if hint:
        errors.print(Text(f"  -> {hint}"), soft_wrap=True)
