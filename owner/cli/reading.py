"""Commands that look and change nothing: status, log, show, verify-ledger."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from common.errors import DataError, LedgerTamperedError
from common.files import write_atomically
from owner.cli.options import HERE, AsJson, WorkspaceOption, our_command
from owner.cli.rendering import coloured, console, errors, facts, moment, short, show, size, table, write_json
from owner.cli.verdicts import verdict_table

if TYPE_CHECKING:
    from owner.ledger.store import Store

PANEL = "Look"
FOLLOW_SECONDS = 0.5


def register(app: typer.Typer) -> None:
    for command in (status, log, show_one, verify_ledger):
        name = {"show_one": "show", "verify_ledger": "verify-ledger"}.get(command.__name__)
        app.command(name, rich_help_panel=PANEL)(command)


def status(workspace: WorkspaceOption = HERE, as_json: AsJson = False) -> None:
    """The workspace on one screen: current release and guard, submissions by state, contributors, ledger head."""
    from owner.operations.looking import status as look  # noqa: PLC0415
    from owner.operations.opening import open_office  # noqa: PLC0415

    with open_office(workspace) as office:
        found = look(office)
        releases = office.store.releases()
    if as_json:
        write_json(found)
        return
    release = found["release"]
    people, ledger = found["contributors"], found["ledger"]
    states = found["submissions"]
    lines: dict[str, Any] = {"workspace": found["workspace"]}
    if release is None:
        lines["release"] = f"none yet: {our_command('train', workspace)}"
    else:
        lines["release"] = (
            f"{release['number']} ({short(release['id'])}), {release['architecture']}, {size(release['weights_bytes'])}, "
            f"published {moment(release['published'])}"
        )
        lines["guard"] = _guard(release["guard"], found["root_guard"], our_command("protect", workspace))
    for one in found["guard_errors"]:
        lines[f"guard of {one['number']}"] = coloured(one["guard"]).append(f": {one['error']}", style="default")
    lines["submissions"] = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
    if found["waiting_for_guard"]:
        lines["waiting"] = "for the guard of " + ", ".join(short(one) for one in found["waiting_for_guard"])
    lines["contributors"] = f"{people['enrolled']} enrolled, {people['revoked']} revoked"
    lines["ledger"] = f"{ledger['entries']} entries, head {short(ledger['head'])}"
    show(facts(lines))
    if len(releases) > 1:
        rows = [
            (
                one.number,
                short(one.id),
                coloured(one.status.value),
                coloured(one.guard_state.value),
                short(one.submission_id),
            )
            for one in releases[-10:]
        ]
        console.print()
        show(table((">release", "id", "status", "guard", "from submission"), rows))
    if states.get("quarantined"):
        console.print("\nquarantined ones wait for you: `portier-owner log --kind verdict`, `show ID`, `promote ID`")


def log(
    workspace: WorkspaceOption = HERE,
    kind: Annotated[
        str | None,
        typer.Option(help="Only entries of this kind: submission, verdict, release, guard, enrolment, refusal ..."),
    ] = None,
    contributor: Annotated[str | None, typer.Option(help="Only entries about this contributor.")] = None,
    last: Annotated[int | None, typer.Option("--last", "-n", min=1, help="Only so many, the newest.")] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on with new entries as they come; Ctrl-C ends it, with exit code 0."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ledger entries, oldest first. With --json one JSON object a line."""
    from owner.operations.looking import entries  # noqa: PLC0415
    from owner.operations.opening import open_office  # noqa: PLC0415

    # Whoever ends a `--follow` has got what they wanted: there is nothing to resume, and no error.
    with suppress(KeyboardInterrupt) if follow else nullcontext(), open_office(workspace) as office:
        after, first = -1, last
        seen = None
        while True:
            with _unbroken():
                found = entries(office, kind=kind, contributor=contributor, after=after, last=first)
            for entry in found:
                if as_json:
                    typer.echo(json.dumps(dataclasses.asdict(entry), ensure_ascii=False))
                else:
                    console.print(_line(entry.index, entry.time, entry.kind, entry.body), soft_wrap=True)
            if not follow:
                return
            after, first = max([after, *(entry.index for entry in found)]), None
            while (counter := _counter(office.store)) == seen:
                time.sleep(FOLLOW_SECONDS)
            seen = counter


def _counter(store: Store) -> int:
    with _unbroken():
        return store.change_counter()


@contextmanager
def _unbroken() -> Iterator[None]:
    """Ctrl-C takes effect after the block: in the middle of a query it has SQLAlchemy complain, or leaves its locks in disorder."""
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        signal.raise_signal(signal.SIGINT)  # by the handler of before, which may ignore it


def show_one(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="Of a submission or a release, or its first digits.")],
    workspace: WorkspaceOption = HERE,
    picture: Annotated[
        Path | None,
        typer.Option(help="Write the suspected mark of a submission to this PNG file.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Everything about one submission or release; of a submission the full verdict, check by check.

    A check's score is better the lower it is, and passes up to its threshold. p is the share of honest reference models
    that score as high; it cannot be finer than the resolution, 1/(K+1).
    """
    from owner.ledger.records import Release  # noqa: PLC0415
    from owner.operations.looking import find, release_facts, submission_facts  # noqa: PLC0415
    from owner.operations.opening import open_office  # noqa: PLC0415

    with open_office(workspace) as office:
        found = find(office, identifier)
        facts_found = release_facts(found) if isinstance(found, Release) else submission_facts(found)
    if picture is not None:
        _write_picture(picture, facts_found.get("verdict"))
    if as_json:
        write_json(facts_found)
        return
    verdict = facts_found.pop("verdict", None)
    expiry = facts_found.pop("expiry", None)
    if expiry is not None:
        facts_found["expired because"] = f"{expiry['detail']} ({expiry['code']})"
    show(facts({key.replace("_", " "): _value(value) for key, value in facts_found.items() if value not in (None, "")}))
    if verdict is not None:
        console.print()
        show(*verdict_table(verdict))


def _write_picture(path: Path, verdict: Mapping[str, Any] | None) -> None:
    from owner.suspicions import png_bytes  # noqa: PLC0415

    measured = (verdict or {}).get("measurements") or {}
    # What was searched for on this very submission, before the nearest of the probes that everybody is shown.
    pictures = ((measured.get(tier) or {}).get("picture") for tier in ("escalation", "gate"))
    content = next(filter(None, map(png_bytes, pictures)), None)
    if content is None:
        raise DataError(
            "the verdict holds no picture of a suspected mark",
            hint="one is kept where several detectors, a probe bank among them, or the escalation tier's trigger-inversion, do not "
            "let a submission pass",
        )
    write_atomically(path, content)


def verify_ledger(
    workspace: WorkspaceOption = HERE,
    receipt: Annotated[
        list[Path] | None,
        typer.Option("--receipt", help="A receipt file a contributor holds; may be repeated.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every hash and signature of the ledger, and that the tables agree with it. Exit code 61 where anything does not.

    The chain alone cannot show that its end was cut off, or that all of it was replaced by an older copy. Receipts can:
    contributors get one when a submission is taken and one when it is decided.
    """
    from owner.operations.looking import verify_ledger as verify  # noqa: PLC0415
    from owner.operations.opening import open_office  # noqa: PLC0415

    with open_office(workspace) as office:
        report = verify(office, receipt or [])
    if as_json:
        write_json({"ok": report.ok, "entries": report.entries, "problems": report.problems})
    else:
        for problem in report.problems:
            errors.print(Text(f"- {problem}"), soft_wrap=True)
    if not report.ok:
        raise LedgerTamperedError(
            f"{len(report.problems)} problems in {report.entries} ledger entries",
            hint="compare with a backup; whatever was altered was altered after it was written",
        )
    if not as_json:
        console.print(
            f"{report.entries} entries agree" + (f", and {len(receipt)} receipts with them" if receipt else "")
        )


def _guard(current: str, root: str, protect: str) -> Text:
    line = coloured(current)
    if root != "ready":
        line.append(f"; the root's is {root}, and nothing is vetted before it is ready: {protect}")
    elif current != "ready":
        line.append(f"; `serve` fits it, or {protect}")
    return line


def _line(index: int, when: str, kind: str, body: Mapping[str, Any]) -> Text:
    line = Text(f"{index:>6}  {moment(when)}  ", style="dim")
    line.append(f"{kind:<12}", style="bold not dim")
    for key, value in body.items():
        if value in (None, "", []):
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        shown = shown[:12] if isinstance(shown, str) and len(shown) == 64 else shown
        line.append(f" {key}=", style="dim")
        line.append(str(shown), style="not dim " + str(coloured(str(value)).style))
    return line


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)
