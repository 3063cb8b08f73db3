"""`python -m owner.reproduce` is `portier-owner reproduce` without what only a service needs: no network, no database."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import typer
from rich.console import Console
from rich.text import Text
from typer.rich_utils import rich_format_error

from common.errors import PortierError
from owner.reproduce.cli import reproduce

INTERRUPTED = 130

app = typer.Typer(
    name="owner.reproduce",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
app.command()(reproduce)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, and prints errors to stderr."""
    errors = Console(stderr=True)
    try:
        command = typer.main.get_command(app)
        code = command.main(args=arguments, prog_name="python -m owner.reproduce", standalone_mode=False)
    except click.ClickException as error:
        rich_format_error(error)
        return error.exit_code
    except PortierError as error:
        errors.print(Text.assemble(("error: ", "bold red"), error.message), soft_wrap=True)
        if error.hint:
            errors.print(Text(f"  -> {error.hint}"), soft_wrap=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        errors.print("interrupted: nothing is lost, the same command goes on from here", style="yellow")
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(run())
