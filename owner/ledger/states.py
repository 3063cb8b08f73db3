"""The moves a submission may make, in one table.

    uploading -> received <-> awaiting-guard
        |            ^ |
        v            | v
     expired       vetting -> accepted | rejected | quarantined
                              quarantined -> accepted (promote) | rejected (expiry) | quarantined

vetting -> received is a crash of the process that was vetting. quarantined -> quarantined is a second look, by the escalation
tier, that left it to a person: its verdict takes the first one's place, which stays in the ledger. Accepted, rejected and expired are final.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from common.errors import LedgerError
from owner.ledger.records import SubmissionState

_S = SubmissionState
TRANSITIONS: Final[Mapping[SubmissionState, frozenset[SubmissionState]]] = {
    _S.UPLOADING: frozenset({_S.RECEIVED, _S.EXPIRED}),
    _S.RECEIVED: frozenset({_S.AWAITING_GUARD, _S.VETTING}),
    _S.AWAITING_GUARD: frozenset({_S.RECEIVED}),
    _S.VETTING: frozenset({_S.RECEIVED, _S.ACCEPTED, _S.REJECTED, _S.QUARANTINED}),
    _S.QUARANTINED: frozenset({_S.ACCEPTED, _S.REJECTED, _S.QUARANTINED}),
    _S.ACCEPTED: frozenset(),
    _S.REJECTED: frozenset(),
    _S.EXPIRED: frozenset(),
}
FINAL: Final = frozenset(state for state, moves in TRANSITIONS.items() if not moves)
DECIDED: Final = frozenset({_S.ACCEPTED, _S.REJECTED, _S.QUARANTINED})
UNCOMMITTED: Final = frozenset({_S.UPLOADING, _S.EXPIRED})


class DecidedMeanwhileError(LedgerError):
    """The verdict that another was to take the place of no longer stands."""


def check_move(submission: str, old: SubmissionState, new: SubmissionState) -> None:
    """Raises LedgerError where a submission may not go from `old` to `new`.

    >>> check_move("ab" * 32, SubmissionState.REJECTED, SubmissionState.ACCEPTED)
    Traceback (most recent call last):
    common.errors.LedgerError: submission abababababab is rejected and cannot become accepted
    """
    if new not in TRANSITIONS[old]:
        moves = sorted(TRANSITIONS[old])
        hint = f"from {old} it may become {' or '.join(moves)}" if moves else f"{old} is final"
        raise LedgerError(f"submission {submission[:12]} is {old} and cannot become {new}", hint=hint)
