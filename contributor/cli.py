"""`portier-contributor`: join an owner, contribute to its model, see what became of it.

Commands import what they need when they run, so that `--help` and `join` do not wait for torch.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.table import Table
from typer.rich_utils import rich_format_error

from common.errors import ConfigurationError, DeclinedError, PortierError
from contributor.workspace import HOME_VARIABLE, ContributorWorkspace

INTERRUPTED = 130
DEBUG_VARIABLE = "PORTIER_DEBUG"
INVITATION_BYTES = 64 * 1024

errors = Console(stderr=True, highlight=False)

app = typer.Typer(
    name="portier-contributor",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help=(
        "Improve somebody's classifier with data that you keep.\n\n"
        "Two commands, once the owner has sent you an invitation:\n\n"
        "    portier-contributor join portier1:...\n\n"
        "    portier-contributor contribute --data ./my-images\n\n"
        "The model comes to you, is fine-tuned on your machine, and its weights go back, signed. The owner vets them "
        "before they touch the model. Interrupted commands go on where they were when you run them again."
    ),
    epilog=(
        "Exit codes: 0 done, and accepted where a verdict was waited for; 53 declined; 2 wrong usage; 10-14 a wrong option, name "
        "or data; 20-22 files; 30-33 identity; 50-52 the owner or the line; 130 interrupted."
    ),
)

Home = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar=HOME_VARIABLE, help="Your keys, downloads and submissions. Default: ~/.portier/contributor"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program on standard output.")]


@app.callback()
def _root(
    debug: Annotated[
        bool, typer.Option("--debug", envvar=DEBUG_VARIABLE, help="Show where an error came from (a traceback).")
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"  # read by `run`


@app.command()
def join(
    invitation: Annotated[
        str, typer.Argument(help="What the owner sent you: portier1:..., or a file that holds it.", show_default=False)
    ],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Enrol with an owner by an invitation. Once, before anything else.

    Makes your signing key, proves to the owner that you hold it, and gets a
    certificate in return. The invitation names the owner's keys, so that nobody
    else can pass for the owner. It works once.
    """
    from contributor import session  # noqa: PLC0415 - as the module says

    workspace = ContributorWorkspace.at(home)
    joined = session.join(workspace, _invitation(invitation))
    _say(as_json, joined, f"joined as {joined['name']}; next: portier-contributor contribute --data DATA")


@app.command()
def contribute(
    data: Annotated[
        str,
        typer.Option(
            help="Your data: an image folder (one sub-folder per class), a parquet folder, an examples file, or a known name: "
            "digits, cifar10, mnist, fashion-mnist, gtsrb.",
            show_default=False,
        ),
    ],
    data_dir: Annotated[
        Path | None, typer.Option(envvar="PORTIER_DATA", help="Folder of data sets that are given by name.")
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Use a part of the data only: iid:index=0,count=4 or dirichlet:alpha=0.5,index=0,count=4.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over your data. Default: as the owner recommends.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="Learning rate. Default: as the owner recommends.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step. Default: as the owner recommends.")] = None,
    optimiser: Annotated[str | None, typer.Option(help="sgd, adam or adamw. Default: as the owner recommends.")] = None,
    frozen_layers: Annotated[int | None, typer.Option(help="So many first layers are left as they are.")] = None,
    reinitialise_head: Annotated[
        bool, typer.Option("--reinitialise-head", help="Start the classification head anew, in the same shape.")
    ] = False,
    attack: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="For simulations: flip, pattern, sign-flip, add-noise, same-value or model-replacement, with options: "
            "flip:source=7,target=6,fraction=0.5",
        ),
    ] = None,
    release: Annotated[str, typer.Option(help="Start from this release. Default: the current one.")] = "",
    factory: Annotated[
        str | None,
        typer.Option(
            metavar="PACKAGE.MODULE:FACTORY",
            help="Allow this model of your own installation, where the release names it.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of data order and attack. Default: drawn at random.")] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Examples file on which the returned model is measured, for the report.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Keep this JSON file up to date with how the contribution stands.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Stay until the verdict, or leave once the owner has it all.")
    ] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew even where an interrupted contribution could go on.")
    ] = False,
    training_slots: Annotated[
        str | None,
        typer.Option(metavar="DIR:N", help="Train only while fewer than N processes that name DIR do."),
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to go on trying while the owner cannot be reached.")
    ] = 600.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Get the model, fine-tune it on your data, hand it in, and wait for the verdict.

    The owner's signature and the model's digest are verified before the model is
    touched. Run again after an interruption, with the same options, it goes on
    where it was, with the same submission. Where the owner no longer takes work
    on the release it began with, it ends with an error, and the next run begins
    anew from the current release.

    Exit code 0 says accepted, 53 declined. A submission that a person has to look
    at stays pending until that has happened; --no-wait does not wait for it.

        portier-contributor contribute --data ./my-images --epochs 5 --lr 0.002
    """
    from common.slots import TrainingSlots  # noqa: PLC0415 - as the module says
    from contributor import contributing, session  # noqa: PLC0415
    from contributor.reporting import Reporter  # noqa: PLC0415

    options = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "optimiser": optimiser,
        "frozen_layers": frozen_layers,
        "reinitialise_head": reinitialise_head or None,
    }
    request = contributing.Request(
        data=str(Path(data).absolute()) if Path(data).exists() else data,
        data_dir=str(data_dir.absolute()) if data_dir else None,
        partition=partition,
        options={name: value for name, value in options.items() if value is not None},
        attack=attack,
        factory=factory,
        release=release,
        seed=seed,
        held_out=str(held_out.absolute()) if held_out else None,
    )
    slots = TrainingSlots.parse(training_slots) if training_slots else None
    workspace = ContributorWorkspace.at(home)
    with session.connect(workspace, patience=patience) as owner:
        reporter = Reporter(owner.name, errors, report)
        done = contributing.contribute(
            workspace,
            owner,
            request,
            signing_key=session.signing_key(workspace),
            fresh=fresh,
            wait=wait,
            slots=slots,
            device=device,
            precision=precision,
            on_stage=reporter.stage,
            on_change=reporter.change,
        )
    document = reporter.document()
    if not done.verdict:
        _say(
            as_json,
            document,
            f"handed in as {done.submission}\nlater: portier-contributor watch {done.submission[:12]}",
        )
        return
    _say(as_json, document, f"{done.verdict}: submission {done.submission}" + (f" ({done.code})" if done.code else ""))
    _raise_if_declined(done.verdict, done.code)


@app.command()
def watch(
    submission: Annotated[str, typer.Argument(help="A submission's id, or how it begins.", show_default=False)],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Wait for the verdict of a submission handed in earlier.

    Exit code 0 says accepted, 53 declined. A submission that a person has to look
    at stays pending until that has happened.
    """
    from contributor import contributing, session  # noqa: PLC0415 - as the module says

    workspace = ContributorWorkspace.at(home)
    found = workspace.find(submission)
    if found is None and len(submission) != 64:
        raise ConfigurationError(
            f"no submission of this home begins with {submission!r}",
            hint="`portier-contributor status` lists them; for one made elsewhere give all 64 digits",
        )
    full = found.submission if found else submission
    with session.connect(workspace) as owner:
        standing = contributing.watch(
            workspace, owner, full, on_stage=lambda stage, _: errors.print(stage, highlight=False)
        )
    document = {"submission": full, "verdict": standing.state, "code": standing.code}
    _say(as_json, document, f"{standing.state}: submission {full}" + (f" ({standing.code})" if standing.code else ""))
    _raise_if_declined(standing.state, standing.code)


@app.command()
def status(home: Home = None, as_json: AsJson = False) -> None:
    """Whom you have joined, and what became of your contributions.

    Reads your own files only; asks nobody.
    """
    from contributor import session  # noqa: PLC0415 - as the module says

    workspace = ContributorWorkspace.at(home)
    membership = session.describe(workspace)
    contributions = [one.to_json() for one in workspace.contributions()]
    if as_json:
        _print_json({**membership, "contributions": contributions})
        return
    console = Console(highlight=False)
    for name, value in membership.items():
        console.print(f"{name.replace('_', ' '):<20} {value}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("contribution", "step", "release", "submission", "verdict", "data"):
        table.add_column(column, no_wrap=True)
    for one in workspace.contributions():
        verdict = f"{one.verdict} {one.code}".strip() or "-"
        table.add_row(
            one.label, one.step, one.release[:12] or "-", one.submission[:12] or "-", verdict, str(one.request["data"])
        )
    if contributions:
        console.print()
        (console if console.is_terminal else Console(width=200)).print(table)


@app.command()
def renew(home: Home = None, as_json: AsJson = False) -> None:
    """Get a new certificate. `contribute` does so by itself before yours runs out."""
    from contributor import session  # noqa: PLC0415 - as the module says

    workspace = ContributorWorkspace.at(home)
    renewed = session.renew(workspace)
    _say(as_json, renewed, f"the certificate of {renewed['name']} holds until {renewed['certificate_until']}")


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
        _show(error.message, error.hint)
        code = error.exit_code
    except Exception as error:  # noqa: BLE001 - the last line of defence: report, never a bare traceback
        hint = "this is a defect of Portier; `portier-contributor --debug ...` shows where it came from"
        _show(f"{type(error).__name__}: {error}", hint)
        code = PortierError.exit_code
    if code == INTERRUPTED:  # which typer itself returns for Ctrl-C, without a word
        errors.print("interrupted: nothing is lost, the same command goes on from here", style="yellow")
    return code


def _show(message: str, hint: str) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    errors.print(f"[bold red]error:[/] {_escaped(message)}", soft_wrap=True)
    if hint:
        errors.print(f"  -> {_escaped(hint)}", soft_wrap=True)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def _invitation(given: str) -> str:
    """The text of an invitation, out of a file where `given` is not one itself."""
    path = Path(given)
    if given.startswith("portier") and ":" in given:
        return given
    try:
        with path.open("rb") as file:
            return file.read(INVITATION_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{given!r} is no invitation, and no file that can be read as one ({error})",
            hint="an invitation begins with portier1: and comes from the owner",
        ) from None


def _say(as_json: bool, document: dict[str, Any], text: str) -> None:
    if as_json:
        _print_json(document)
    else:
        Console(highlight=False).print(text, soft_wrap=True, markup=False)


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def _raise_if_declined(verdict: str, code: str) -> None:
    if verdict == "declined":
        raise DeclinedError(f"the owner declined the submission ({code})")
