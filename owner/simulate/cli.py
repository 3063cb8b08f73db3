"""`portier-owner simulate`."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import ConfigurationError
from common.files import write_atomically
from owner.figures import number, percent

BY_FLAGS = "A scenario by flags"


def simulate(
    scenario: Annotated[
        str | None,
        typer.Argument(
            help="A scenario by name (demo, cifar10) or a TOML file of your own. Default: demo, or the scenario that the flags "
            "describe.",
            metavar="SCENARIO",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Data set, by name (digits, cifar10, ...) or path.", rich_help_panel=BY_FLAGS
        ),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(metavar="NAME", help="The owner's model: cnn, resnet18, ...", rich_help_panel=BY_FLAGS)
    ] = None,
    honest: Annotated[
        int | None,
        typer.Option(min=0, max=999, help="How many honest contributors. Default: 4.", rich_help_panel=BY_FLAGS),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="One attacker, as `portier-contributor contribute --attack` takes it: flip:source=7,target=1. Give it once "
            "for each attacker.",
            rich_help_panel=BY_FLAGS,
        ),
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="How honest contributors differ: iid (default), dirichlet:alpha=0.5, pathological:classes=2, or natural "
            "for data that come divided among clients.",
            rich_help_panel=BY_FLAGS,
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Any setting of portier.toml, above those of a scenario: guard.references=39. Can be given many times.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Overrides every seed of the scenario.")
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            help="Where everything goes, and stays. Given again after an interruption, the simulation goes on there. "
            "Default: a new folder below portier-simulations/."
        ),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Contributors that train at a time. Default: one per core.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON here.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Also write the HTML report here.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep workspaces, models and ledger too (always so with --directory).")
    ] = False,
) -> None:
    """Owner and contributors, honest and attacking, as processes on this machine.

    The owner's and the contributors' own commands are started, a process each, and
    talk gRPC over mutual TLS on loopback. All contributors fetch the first release
    and stay connected; as many train at a time as there are cores.

    At the end: who attacked how, with what success on held-out images, and what the
    gatekeeper made of it, right or wrong. The exit code says whether the simulation
    ran, not whether the verdicts were right.

    Without a file, flags describe the scenario:

        portier-owner simulate --data digits --architecture cnn --honest 4
            --attack flip:source=7,target=1 --attack sign-flip

    A scenario file names owner settings, contributors, their shares of the data and
    their attacks; copy one of the two that ship (owner/simulate/scenarios). cifar10
    reads $PORTIER_DATA/cifar10/{train,test}.parquet.
    """
    from owner.operations.opening import open_office  # noqa: PLC0415 - `--help` waits for nothing
    from owner.simulate.layout import Layout  # noqa: PLC0415
    from owner.simulate.live import Board, Row  # noqa: PLC0415
    from owner.simulate.processes import Interruption, ProcessFailedError  # noqa: PLC0415
    from owner.simulate.runner import Simulation, cores  # noqa: PLC0415
    from owner.simulate.scenario import HONEST, compose, load  # noqa: PLC0415

    interruption = Interruption()
    interruption.listen()  # SIGTERM ends it as Ctrl-C does: children first
    flags = {"--data": data, "--architecture": architecture, "--honest": honest, "--partition": partition}
    described = [(flag, str(value)) for flag, value in flags.items() if value is not None]
    described += [("--attack", one) for one in attack or ()]
    if scenario is not None and described:
        raise ConfigurationError(
            f"the scenario {scenario} says who takes part, and so does {described[0][0]}",
            hint="leave the scenario out, or the flags; to change a setting of a scenario use --set section.key=value",
        )
    if described:
        chosen = compose(
            data=data,
            architecture=architecture,
            honest=HONEST if honest is None else honest,
            attacks=attack or (),
            partition=partition,
            settings=setting or (),
            seed=seed,
        )
    else:
        chosen = load(scenario or "demo", seed=seed, settings=setting or ())
    from owner.simulate import checking  # noqa: PLC0415 - torch, which mistakes in the flags do not wait for

    checking.check(chosen)
    started = datetime.now(UTC)
    root = directory or Path("portier-simulations") / f"{chosen.name}-{started:%Y%m%d-%H%M%S}"
    layout = Layout(root.absolute())
    described += [("--set", one) for one in setting or ()]
    again = _again(scenario, described, seed, root)
    console = Console()
    rows = [Row(one.name, one.attack) for one in chosen.contributors]
    with Board(console, rows, title=f"{chosen.title} (seed {chosen.settings.data.seed})") as board:
        simulation = Simulation(chosen, root, parallel=parallel or cores(), board=board, interruption=interruption)
        try:
            simulation.run()
            interruption.check()
        except (ProcessFailedError, KeyboardInterrupt):
            console.print(f"what is done is kept; to go on: {again}", soft_wrap=True)
            raise
        board.owner("measuring the releases")
        from owner.simulate import report, results  # noqa: PLC0415 - imports torch, which nothing above needs

        with open_office(layout.owner, environment={}) as office:
            document = results.collect(
                chosen, layout, office, seconds=simulation.seconds, command=_command(), started=started.isoformat()
            )
    page, result = report.render(document).encode(), results.write(document)
    for path, content in ((layout.result, result), (layout.html, page), (json_file, result), (html_file, page)):
        if path is not None:
            write_atomically(path, content)
    print_result(console, document)
    console.print(f"\nreport  {layout.html}\nresult  {layout.result}\nlogs    {layout.logs}", soft_wrap=True)
    if directory is None and not keep:
        for path in layout.bulk:
            shutil.rmtree(path, ignore_errors=True)


def print_result(console: Console, document: Mapping[str, Any]) -> None:
    """The table of contributors, the rates, and the release before and after."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("contributor", "attack (ground truth)"):
        table.add_column(name, no_wrap=True)
    for name in ("attack\nsuccess", "accuracy", "AE error", "p-value"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("verdict", "", "reasons"):
        table.add_column(name)
    for one in document["contributors"]:
        right = {True: Text("right", "green"), False: Text("wrong", "bold red"), None: Text("")}[one["right"]]
        table.add_row(
            one["name"],
            one["attack"] or Text("none", "dim"),
            percent(one["attack_success"]),
            percent(one["accuracy"]),
            number(one["ae_error"]),
            number(one["p_value"]),
            one["fate"] or "none",
            right,
            Text(" ".join(one["codes"]), "dim"),
        )
    console.print()
    (console if console.is_terminal else Console(width=200)).print(table)
    found, release = document["rates"], document["release"]
    console.print()
    for key, text in (("tpr", "attackers caught (TPR)"), ("fpr", "honest contributors turned away (FPR)")):
        rejected, stopped = found[f"{key}_rejected"], found[f"{key}_stopped"]
        line = f"{text:<38} rejected {_share(rejected)}, rejected or held for a person {_share(stopped)}"
        console.print(line, highlight=False, soft_wrap=True)
    before, after = release["before"], release["after"]
    facts = {
        "accuracy of the release": f"{percent(before['accuracy'])} before (release {before['number']}), "
        f"{percent(after['accuracy'])} after (release {after['number']})",
        "time": f"{sum(document['seconds'].values()):.0f} s, seed {document['seed']}, {document['hardware']}",
    }
    for name, fact in facts.items():
        console.print(f"{name:<38} {fact}", highlight=False, soft_wrap=True)


def _share(rate: Mapping[str, Any]) -> str:
    return f"{rate['hits']} of {rate['n']} ({percent(rate['value'])})"


def _command() -> list[str]:
    return ["portier-owner", *sys.argv[1:]]


def _again(scenario: str | None, described: Iterable[tuple[str, str]], seed: int | None, root: Path) -> str:
    words = [
        "portier-owner",
        "simulate",
        *((scenario,) if scenario else ()),
        *(word for one in described for word in one),
    ]
    words += [*(("--seed", str(seed)) if seed is not None else ()), "--directory", str(root)]
    return shlex.join(words)
