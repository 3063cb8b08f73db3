"""Commands about contributors: invite, contributors, revoke."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from owner.cli.options import HERE, AsJson, SetOption, WorkspaceOption, our_command
from owner.cli.rendering import coloured, console, errors, facts, moment, show, table, write_json
from owner.figures import number

PANEL = "Contributors"


def register(app: typer.Typer) -> None:
    for command in (invite, contributors, revoke):
        app.command(rich_help_panel=PANEL)(command)


def invite(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the contributor will be known by, for good.")],
    workspace: WorkspaceOption = HERE,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew", help="For somebody enrolled whose certificate ran out: good for the key they have alone."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the invitation to this file, mode 0600, instead of printing it."),
    ] = None,
    set_: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Invite a contributor: prints one line to send to them by a channel you trust.

    The invitation says where your service is, carries what they need to tell it from a stranger's, and a token that works
    once, until it expires. Whoever reads it first can join in its place. They then run
    `portier-contributor join INVITATION`. Inviting a name again withdraws its earlier invitation.

    A contributor who was away for longer than a certificate lives (service.certificate_days) cannot renew it. `--renew`
    invites the enrolled name again: `join`, run in the home that has joined, then gets a certificate for the same signing
    key, and your present addresses. Nobody else can use such an invitation.
    """
    from common.files import write_secret  # noqa: PLC0415
    from owner.operations.opening import open_office, parse_overrides  # noqa: PLC0415
    from owner.operations.people import invite as make  # noqa: PLC0415

    with open_office(workspace, parse_overrides(set_)) as office:
        invitation = make(office, name, renew=renew)
    text = invitation.to_string()
    if output is not None:
        write_secret(output, f"{text}\n".encode(), replace=True)
    about = {
        "name": name,
        "addresses": list(invitation.addresses),
        "enrolment_addresses": list(invitation.enrolment_addresses),
        "authority_sha256": invitation.ca_spki_sha256,
        "expires": invitation.expires.isoformat(),
    }
    if as_json:
        write_json({**about, **({"file": str(output)} if output else {"invitation": text})})
        return
    # Only the invitation goes to standard output, so that it can be piped; the facts about it do not.
    if output is None:
        typer.echo(text)
    errors.print(
        facts(
            {
                "for": name,
                "addresses": ", ".join(invitation.addresses),
                "good until": f"{invitation.expires:%Y-%m-%d %H:%M} UTC, once",
                "authority": f"{invitation.ca_spki_sha256[:16]}... (compare by telephone where the channel is not yours)",
                **({"written to": str(output)} if output else {}),
            }
        )
    )


def contributors(workspace: WorkspaceOption = HERE, as_json: AsJson = False) -> None:
    r"""List contributors, with what became of their submissions and what these say together.

    The e-value grows with every small p-value and shrinks with every large one. Above its threshold a submission waits for
    you, whatever its own p-value says (`\[history]` in the settings). Promoting it begins a new history.
    """
    from owner.operations.opening import open_office  # noqa: PLC0415
    from owner.operations.people import standings  # noqa: PLC0415

    with open_office(workspace) as office:
        found = standings(office)
    if as_json:
        write_json([one.to_json() for one in found])
        return
    if not found:
        console.print(f"nobody has joined yet: {our_command('invite NAME', workspace)}", markup=False, soft_wrap=True)
        return
    rows = [
        (
            one.contributor.name,
            coloured("revoked" if one.contributor.revoked else "enrolled"),
            moment(one.contributor.revoked or one.contributor.enrolled),
            ", ".join(f"{count} {state}" for state, count in sorted(one.submissions.items())) or "-",
            "-" if one.history is None else number(one.history.value, 3),
            "-" if one.history is None else number(one.history.threshold, 3),
        )
        for one in found
    ]
    show(table(("name", "state", "since (UTC)", "submissions", ">e-value", ">threshold"), rows))


def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    workspace: WorkspaceOption = HERE,
    reason: Annotated[str, typer.Option(help="Kept in the ledger.")] = "",
    as_json: AsJson = False,
) -> None:
    """Shut a contributor out, at once and for good.

    Their open connections are cut, their certificate is refused, submissions not yet decided are rejected when their turn
    comes. What was accepted stays; `portier-owner rollback` takes releases back.
    """
    from owner.operations.opening import open_office  # noqa: PLC0415
    from owner.operations.people import revoke as shut_out  # noqa: PLC0415

    with open_office(workspace) as office:
        undecided = shut_out(office, name, reason)
    if as_json:
        write_json({"name": name, "revoked": True, "undecided_submissions": undecided})
        return
    console.print(f"{name} is revoked" + (f"; {undecided} undecided submissions will be rejected" if undecided else ""))
