"""The commands about belonging to an owner: join, status, renew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import ConfigurationError
from contributor.cli.options import AsJson, Home
from contributor.cli.rendering import errors, say, write_json
from contributor.workspace import ContributorWorkspace

INVITATION_BYTES = 64 * 1024
JOIN_SECONDS = 60.0


def join(
    invitation: Annotated[str, typer.Argument(metavar="INVITATION", show_default=False)],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Enrol with an owner by an invitation, before anything else.

    INVITATION is what the owner sent you: a text that begins with portier1:,
    or a file that holds it. It works once.

    Makes your signing key, proves to the owner that you hold it, and gets a
    certificate in return. The invitation names the owner's keys, so that nobody
    else can pass for the owner. Keys stay in your home, readable by you alone;
    beside them lies contributor.toml, for settings you do not want to repeat.

    Where your certificate ran out, the owner invites you again (`portier-owner
    invite NAME --renew`): run in the same home, this gets a new certificate for
    the signing key you have, and where the owner is now. A home that belongs to
    another owner or name is left alone.

        portier-contributor join lab-7.invitation
    """
    from contributor import session  # noqa: PLC0415 - as the application says

    workspace = ContributorWorkspace.at(home)
    again = workspace.joined
    joined = session.join(
        workspace,
        _invitation(invitation),
        patience=JOIN_SECONDS,
        on_try=lambda address: errors.print(
            f"trying {address}, for up to {JOIN_SECONDS:.0f} s", soft_wrap=True, markup=False
        ),
    )
    if again:
        say(as_json, joined, f"the certificate of {joined['name']} holds until {joined['certificate_until']}")
        return
    say(
        as_json,
        joined | {"settings": str(workspace.settings_file)},
        f"joined as {joined['name']}; settings: {workspace.settings_file}\n"
        f"next: portier-contributor contribute --data DATA",
    )


def status(home: Home = None, as_json: AsJson = False) -> None:
    """Whom you have joined, and what became of your contributions.

    Reads your own files only; asks nobody. `step` is how far a contribution
    got: started, fetched, trained, signed, committed (the owner has it), decided.
    """
    from contributor import session  # noqa: PLC0415 - as the application says

    workspace = ContributorWorkspace.at(home)
    membership = session.describe(workspace)
    contributions = workspace.contributions()
    if as_json:
        write_json({**membership, "contributions": [one.to_json() for one in contributions]})
        return
    console = Console(highlight=False)
    for name, value in membership.items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        console.print(f"{name.replace('_', ' '):<20} {shown}", soft_wrap=True, markup=False)
    console.print()
    if not contributions:
        console.print("no contributions yet: portier-contributor contribute --data DATA")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("contribution", "step", "release", "submission", "verdict", "data"):
        table.add_column(column, no_wrap=True)
    for one in contributions:
        verdict = f"{one.verdict} {one.code}".strip() or "-"
        cells = (one.label, one.step, one.release[:12] or "-", one.submission[:12] or "-", verdict, one.request["data"])
        table.add_row(*(Text(str(cell)) for cell in cells))
    (console if console.is_terminal else Console(width=200)).print(table)


def renew(home: Home = None, as_json: AsJson = False) -> None:
    """Get a new certificate now. `contribute` does so by itself before yours runs out.

    Needed only where a home rests for long: once a certificate has run out, the
    owner has to invite you again (`portier-owner invite NAME --renew`), and `join`
    takes that invitation. `status` says until when yours holds.
    """
    from contributor import session  # noqa: PLC0415 - as the application says

    workspace = ContributorWorkspace.at(home)
    renewed = session.renew(workspace)
    say(as_json, renewed, f"the certificate of {renewed['name']} holds until {renewed['certificate_until']}")


def address(
    addresses: Annotated[str, typer.Argument(metavar="HOST:PORT[,HOST:PORT]", show_default=False)],
    patience: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Go on trying each address for so long.")
    ] = 10.0,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Call the owner somewhere else from now on: it has moved to another host or port.

    Several addresses are tried in order. The owner has to answer at one of them
    now, and to show that it is the one you have joined; else the old addresses
    stay. `status` shows them.

        portier-contributor address owner.example.org:7443
    """
    from contributor import session  # noqa: PLC0415 - as the application says

    workspace = ContributorWorkspace.at(home)
    given = [part.strip() for part in addresses.split(",") if part.strip()]
    moved, silent = session.move(workspace, given, patience=patience)
    for error in silent:
        errors.print(f"kept, though nobody answers there now: {error.message}", soft_wrap=True, markup=False)
    say(as_json, moved, f"the owner is called at {', '.join(moved['addresses'])}")


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
