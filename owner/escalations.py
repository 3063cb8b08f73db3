"""Second looks: what p alone put into quarantine is vetted again once the escalation tier of its guard is calibrated.

Until then it is quarantined like any other, and a person may promote it at any time: a tier that takes long, or cannot be
calibrated at all, holds up nobody. The tier is calibrated in the process that fits guards, which has no limit of time; the second
look runs in the vetting process, which has.
"""

from __future__ import annotations

from contextlib import suppress

from common.errors import RevokedError
from common.identity.keys import SigningKey
from owner.assessment import StaleMergeError, accept, vet, without_second_look
from owner.gatekeeper.supervisor import VettingWorker
from owner.gatekeeper.verdict import Verdict
from owner.ledger.records import GuardState, Release, Submission, SubmissionState
from owner.ledger.states import DecidedMeanwhileError
from owner.ledger.store import Store
from owner.settings import OwnerSettings
from owner.suspicions import AWAITING, ESCALATED, is_awaiting
from owner.workspace import Workspace

LEFTOVERS = "second-look-*.safetensors"
"""Merged weights of second looks, in the folder for work in progress; of no use once the service starts anew."""


class AwaitingEscalation:
    """Quarantined submissions that wait for the escalation tier, read anew only when the ledger has changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen = -1
        self._found: list[Submission] = []

    def submissions(self) -> list[Submission]:
        """Oldest first."""
        counter = self._store.change_counter()
        if counter != self._seen:
            quarantined = self._store.submissions(state=SubmissionState.QUARANTINED)
            self._found = [one for one in quarantined if is_awaiting(one.verdict)]
            self._seen = counter
        return self._found

    def releases(self) -> list[Release]:
        """Those whose guard's tier they wait for, where that guard can be used."""
        bases = dict.fromkeys(one.base_release for one in self.submissions())
        found = [self._store.release(base) for base in bases]
        return [one for one in found if one.guard_state is GuardState.READY]


def leave_to_person(store: Store, submission: Submission, why: str) -> None:
    """Record that the tier will not look at a waiting submission; it stays in quarantine. What was decided meanwhile, by whomever,
    stands."""
    left = _left(submission, why).to_json()
    with suppress(DecidedMeanwhileError):
        store.decide(submission.id, SubmissionState.QUARANTINED, left, instead_of=submission.verdict_receipt)


def look_again(
    workspace: Workspace,
    store: Store,
    signing_key: SigningKey,
    settings: OwnerSettings,
    worker: VettingWorker,
    submission: Submission,
) -> Release | None:
    """Vet a waiting submission with the escalation tier, against the release that is current now; returns the release an
    acceptance makes. Blocks for seconds.

    Only the tier moves it: where anything else has come up since, or the tier gave no answer in time, it stays in quarantine for
    a person, and the verdict says why. What is decided meanwhile, by whomever, stands.

    Raises what `vet` raises.
    """
    merged, first = workspace.work / LEFTOVERS.replace("*", submission.id[:12]), submission.verdict_receipt
    try:
        while True:
            current = store.current()
            verdict = _ruled(
                submission, vet(workspace, store, settings, worker, submission, current, second_look=merged)
            )
            try:
                if verdict.accepted:
                    return accept(
                        workspace,
                        store,
                        signing_key,
                        settings,
                        submission,
                        current,
                        verdict,
                        merged=merged,
                        instead_of=first,
                    )
                decision = SubmissionState(verdict.decision.value)
                store.decide(submission.id, decision, verdict.to_json(), instead_of=first)
            except StaleMergeError:
                continue
            except RevokedError as error:
                leave_to_person(store, submission, f"not accepted: {error.message}")
            except DecidedMeanwhileError:
                pass
            return None
    finally:
        merged.unlink(missing_ok=True)


def _ruled(submission: Submission, found: Verdict) -> Verdict:
    looked = any(check.name == ESCALATED and check.code != AWAITING for check in found.checks)
    if looked:
        return found
    codes = ", ".join(found.codes) or "none"
    if any(code.startswith("VETTING_") for code in found.codes):
        return _left(submission, f"its second look found no answer ({codes})")
    return _left(submission, f"vetted again it would be {found.decision} without the escalation tier (codes: {codes})")


def _left(submission: Submission, why: str) -> Verdict:
    """The first verdict, with what became of the second look."""
    return without_second_look(Verdict.from_json(submission.verdict or {"decision": "quarantined"}), why)
