"""Inviting and joining everybody, a few at a time, by the owner's and the contributors' own commands."""

from __future__ import annotations

from collections.abc import Sequence

from common.files import ensure_directory
from owner.simulate.layout import Layout
from owner.simulate.live import Board
from owner.simulate.processes import Child, Children
from owner.simulate.scenario import Participant


class Enrolment:
    """Those in `participants` who have not joined yet. `advance` until `done`.

    at_a_time: how many are being invited or joining at any moment.
    """

    def __init__(
        self, participants: Sequence[Participant], layout: Layout, children: Children, board: Board, *, at_a_time: int
    ) -> None:
        self._layout = layout
        self._children = children
        self._board = board
        self._at_a_time = at_a_time
        self._waiting = [one.name for one in participants if not self._joined(one.name)]
        self._inviting: dict[str, Child] = {}
        self._joining: dict[str, Child] = {}

    @property
    def done(self) -> bool:
        return not (self._waiting or self._inviting or self._joining)

    def advance(self) -> None:
        """Look after whoever is through with a step, and start the next. Raises ProcessFailedError."""
        for name, child in _ended(self._joining):
            child.require_success()
            self._board.contributor(name, "joined")
        for name, child in _ended(self._inviting):
            child.require_success()
            self._joining[name] = self._join(name)
        while self._waiting and len(self._inviting) + len(self._joining) < self._at_a_time:
            name = self._waiting.pop(0)
            self._board.contributor(name, "joining")
            self._inviting[name] = self._invite(name)

    def _invite(self, name: str) -> Child:
        invitation = self._layout.invitation(name)
        ensure_directory(invitation.parent)
        arguments = ("invite", name, "-w", str(self._layout.owner), "--output", str(invitation))
        return self._children.start(f"owner-invite-{name}", "owner", *arguments, threads=1)

    def _join(self, name: str) -> Child:
        arguments = ("join", str(self._layout.invitation(name)), "--home", str(self._layout.home(name)))
        return self._children.start(name, "contributor", *arguments, threads=1)

    def _joined(self, name: str) -> bool:
        return (self._layout.home(name) / "membership.json").is_file()


def _ended(children: dict[str, Child]) -> list[tuple[str, Child]]:
    """Take out those that run no more."""
    return [(name, children.pop(name)) for name, child in list(children.items()) if not child.running]
