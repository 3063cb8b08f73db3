"""Commands by which a person decides: vet, promote, rollback, prune."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from common.errors import ConfigurationError, DeclinedError
from owner.cli.options import HERE, AsJson, SetOption, WorkspaceOption
from owner.cli.rendering import console, short, show, size, write_json
from owner.cli.verdicts import headline, verdict_table

PANEL = "Decide"
_AGE = re.compile(r"(\d+(?:\.\d+)?)([hdw])")
_HOURS = {"h": 1, "d": 24, "w": 168}


def register(app: typer.Typer) -> None:
    for command in (vet, promote, rollback, prune):
        app.command(rich_help_panel=PANEL)(command)


def vet(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Weights, as safetensors files or folders of such files.")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="RELEASE", help="The release it was fine-tuned from.", show_default="the current one"
        ),
    ] = None,
    workspace: WorkspaceOption = HERE,
    set_: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Vet weights that came by other ways than the service. Nothing changes, nothing is written to the ledger.

    One file is told in full. Of several, or a folder, each is told in a line as soon as it is vetted (with --json one JSON object a
    line). Exit code 0 where all would be accepted, 53 where one would be rejected or quarantined.
    """
    from owner.operations.deciding import vet_file, vet_files, weights_files  # noqa: PLC0415
    from owner.operations.opening import open_office, parse_overrides  # noqa: PLC0415

    decisions: Counter[str] = Counter()
    with open_office(workspace, parse_overrides(set_)) as office:
        if len(files) == 1 and not files[0].is_dir():
            verdict = vet_file(office, files[0], base=base)
            decisions[verdict.decision] += 1
            if as_json:
                write_json(verdict.to_json())
            else:
                show(*verdict_table(verdict.to_json()))
        else:
            for path, verdict in vet_files(office, weights_files(files), base=base):
                decisions[verdict.decision] += 1
                if as_json:
                    typer.echo(json.dumps({"file": str(path), **verdict.to_json()}, ensure_ascii=False))
                else:
                    show(Text.assemble(f"{path}  ", headline(verdict.to_json())))
            if not as_json:
                show(Text(", ".join(f"{count} {decision}" for decision, count in sorted(decisions.items())), "bold"))
    if set(decisions) != {"accepted"}:
        raise typer.Exit(DeclinedError.exit_code)


def promote(
    identifier: Annotated[
        str, typer.Argument(metavar="ID", help="A quarantined submission, or the first digits of its id.")
    ],
    workspace: WorkspaceOption = HERE,
    reason: Annotated[str, typer.Option(help="Kept in the ledger.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Accept even where detectors or utility checks reject it by now.")
    ] = False,
    set_: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Accept a quarantined submission: your decision, which the ledger records as such.

    It is vetted and merged again, against the release that is current now. Where that comes out worse than quarantine,
    --force is needed. What admission refuses (format, digest, a revoked contributor) no force accepts.
    """
    from owner.operations.deciding import promote as accept  # noqa: PLC0415
    from owner.operations.opening import open_office, parse_overrides  # noqa: PLC0415

    with open_office(workspace, parse_overrides(set_)) as office:
        promotion = accept(office, identifier, reason=reason, force=force)
    if as_json:
        write_json(promotion.to_json())
        return
    show(*verdict_table(promotion.verdict.to_json()))
    release = promotion.release
    console.print(f"release {release.number} ({short(release.id)}) is current; `serve` or `protect` fits its guard")


def rollback(
    release: Annotated[
        str, typer.Argument(metavar="RELEASE", help="The earlier release to go back to, or its first digits.")
    ],
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger.", show_default=False)],
    workspace: WorkspaceOption = HERE,
    as_json: AsJson = False,
) -> None:
    """Go back to an earlier release, and to its guard with it.

    The releases after it are withdrawn for good: nobody is offered them again, and submissions based on them are rejected.
    They stay on disk and in the ledger. Where `prune` has removed the guard of the release gone back to, `serve` or `protect`
    fits it again; until then submissions wait.
    """
    from owner.operations.deciding import rollback as restore  # noqa: PLC0415
    from owner.operations.looking import release_facts  # noqa: PLC0415
    from owner.operations.opening import open_office  # noqa: PLC0415

    with open_office(workspace) as office:
        restored = restore(office, release, reason)
    if as_json:
        write_json(release_facts(restored))
        return
    console.print(
        f"release {restored.number} ({short(restored.id)}) is current; its guard is {restored.guard_state.value}"
    )


def prune(
    older_than: Annotated[str, typer.Option("--older-than", metavar="AGE", help="Such as 12h, 30d or 8w.")] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    workspace: WorkspaceOption = HERE,
    as_json: AsJson = False,
) -> None:
    """Free disk space: remove the weights of submissions decided longer ago, and guards no submission can need any more.

    Releases stay, for `rollback`. So do manifests, verdicts and ledger entries: what was handed in, by whom, with which
    digest and what came of it can still be shown. A release that `rollback` goes back to after its guard was pruned has its
    guard fitted again, which takes as long as the first time. A guard stays while it is being fitted, or the next one from it.
    """
    from owner.housekeeping import prune as remove  # noqa: PLC0415
    from owner.operations.opening import open_office  # noqa: PLC0415

    with open_office(workspace) as office:
        pruned = remove(office.workspace, office.store, office.settings, parse_age(older_than), dry_run=dry_run)
    if as_json:
        write_json(
            {
                "submissions": list(pruned.submissions),
                "guards": list(pruned.guards),
                "guards_in_use": list(pruned.guards_in_use),
                "bytes": pruned.bytes,
                "dry_run": dry_run,
            }
        )
        return
    verb = "would remove" if dry_run else "removed"
    stay = f"; {len(pruned.guards_in_use)} more in use just now" if pruned.guards_in_use else ""
    console.print(
        f"{verb} the weights of {len(pruned.submissions)} submissions and {len(pruned.guards)} guards: {size(pruned.bytes)}{stay}"
    )


def parse_age(text: str) -> timedelta:
    """
    >>> parse_age("36h") == parse_age("1.5d")
    True

    Raises ConfigurationError for what is no age.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None or float(match[1]) * _HOURS[match[2]] > 24 * 365 * 1000:
        raise ConfigurationError(f"{text!r} is not an age", hint="write a number and h, d or w: 12h, 30d, 8w")
    return timedelta(hours=float(match[1]) * _HOURS[match[2]])
