"""One submission, from admission to the ledger: what is asked of it, and how the answer takes effect.

Nothing here waits or loops over submissions; the service's vetting loop and `promote` both go through it.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from common.errors import GuardNotReadyError, LedgerError, RevokedError
from common.identity.keys import SigningKey
from common.receipts import Receipt
from owner import releases
from owner.admission import admit
from owner.e_process import judge_history
from owner.gatekeeper.decision import conclude, worst
from owner.gatekeeper.jobs import VettingJob
from owner.gatekeeper.merging import MergePolicy
from owner.gatekeeper.supervisor import VettingWorker
from owner.gatekeeper.utility import UtilityLimits
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.histories import CODE as HISTORY
from owner.histories import earlier, history_rule, judged
from owner.ledger.records import GuardState, Release, Submission, SubmissionState
from owner.ledger.store import Store
from owner.settings import OwnerSettings
from owner.suspicions import AWAITING, ESCALATED, is_awaiting
from owner.workspace import Workspace

_STATES = {
    Decision.ACCEPTED: SubmissionState.ACCEPTED,
    Decision.REJECTED: SubmissionState.REJECTED,
    Decision.QUARANTINED: SubmissionState.QUARANTINED,
}


def vet(
    workspace: Workspace,
    store: Store,
    settings: OwnerSettings,
    worker: VettingWorker,
    submission: Submission,
    current: Release,
    *,
    allow_old_base: bool = False,
    second_look: Path | None = None,
) -> Verdict:
    """Admission, then the guard and utility checks of the release that would follow `current`, then the contributor's history.
    Blocks for seconds.

    The merged weights are left in the submission's folder, as `would_be.safetensors`, unless it is rejected.
    second_look: lets the escalation tier decide, where p alone would quarantine; then the merged weights go to this file, for
        a person may be promoting the submission at the same time.
    """
    admission = admit(workspace, store, settings, submission, allow_old_base=allow_old_base)
    if not admission.passed:
        return conclude(admission.checks, seconds=sum(check.seconds for check in admission.checks))
    job = vetting_job(workspace, store, settings, submission, current)
    if second_look is not None:
        escalation = workspace.release(submission.base_release).escalation
        job = dataclasses.replace(job, would_be=second_look, escalation=escalation)
    found = worker.vet(job)
    found = with_history(found, store, settings, submission)
    return dataclasses.replace(
        found,
        checks=(*admission.checks, *found.checks),
        seconds=found.seconds + sum(check.seconds for check in admission.checks),
    )


def vetting_job(
    workspace: Workspace, store: Store, settings: OwnerSettings, submission: Submission, current: Release
) -> VettingJob:
    """What the vetting process needs to know. Raises GuardNotReadyError of the base's guard, or the root's."""
    base, root = store.release(submission.base_release), store.root()
    for role, release in (("base", base), ("root", root)):
        if release.guard_state is not GuardState.READY:
            raise GuardNotReadyError(
                f"the guard of release {release.number} ({role}) is {release.guard_state}",
                hint=f"portier-owner protect {release.id[:12]}",
            )
    files = workspace.submission(submission.id)
    return job_for(workspace, settings, base, root, current, weights=files.weights, would_be=files.would_be)


def job_for(
    workspace: Workspace,
    settings: OwnerSettings,
    base: Release,
    root: Release,
    current: Release,
    *,
    weights: Path,
    would_be: Path,
) -> VettingJob:
    return VettingJob(
        submission_weights=weights,
        base_weights=workspace.release(base.id).weights,
        current_weights=workspace.release(current.id).weights,
        guard=workspace.release(base.id).guard,
        root_guard=workspace.release(root.id).guard,
        root_weights=workspace.release(root.id).weights,
        evaluation=workspace.share("evaluation"),
        spec=releases.read_manifest(base).spec,
        merge=merge_policy(settings),
        utility=utility_limits(settings),
        root_action=settings.guard.root_action,
        would_be=would_be,
    )


def utility_limits(settings: OwnerSettings) -> UtilityLimits:
    """Of every submission, and of the references it is compared with."""
    return UtilityLimits(settings.utility.accuracy_drop, settings.utility.recall_drop)


def merge_policy(settings: OwnerSettings) -> MergePolicy:
    return MergePolicy(settings.merge.policy, settings.merge.weight)


def with_history(verdict: Verdict, store: Store, settings: OwnerSettings, submission: Submission) -> Verdict:
    """The verdict with the check `history`, where it has a p-value that can be added to the contributor's.

    A submission that fails utility has none where the references pass it (`Verdict.p_value`): how it compares with them says
    nothing. The check never rejects: a contributor whose data differ from what the references assume, always in the same way, has small
    p-values again and again and is honest all the same. Promoting what was held for it begins a new history.
    """
    started = time.perf_counter()
    newest = judged(verdict.p_value, verdict.resolution)
    if newest is None:
        return verdict
    rule = history_rule(settings.history)
    finding = judge_history(
        [*earlier(store, submission.contributor, rule.submissions - 1, before=submission), newest], rule
    )
    holds = finding.alarm and settings.history.action == "quarantine"
    if holds and is_awaiting(verdict.to_json()):
        verdict = without_second_look(verdict, f"the history of {submission.contributor} holds it too")
    check = Check(
        "history",
        Decision.QUARANTINED if holds else Decision.ACCEPTED,
        time.perf_counter() - started,
        score=finding.value,
        threshold=finding.threshold,
        code=HISTORY if finding.alarm else None,
        detail=f"e-value of the newest {finding.submissions} submissions of {submission.contributor}, over "
        f"{finding.references} references; {rule.submissions} honest ones give an alarm with probability at most "
        f"{rule.level:g}",
    )
    return dataclasses.replace(
        verdict,
        decision=worst([verdict.decision, check.decision]),
        checks=(*verdict.checks, check),
        codes=(*verdict.codes, *([HISTORY] if holds else [])),
        seconds=verdict.seconds + check.seconds,
        measurements=verdict.measurements | {"history": finding.to_json() | {"rule": dataclasses.asdict(rule)}},
    )


def settle(
    workspace: Workspace,
    store: Store,
    signing_key: SigningKey,
    settings: OwnerSettings,
    submission: Submission,
    current: Release,
    verdict: Verdict,
) -> Release | None:
    """Write the verdict into the ledger, and with it, in one transaction, the release an acceptance makes.

    An acceptance becomes a rejection where the contributor was revoked meanwhile. Returns the new release, None where
    there is none. Raises StaleMergeError where another release has become current
    since the submission was merged: vet again, nothing has been written.
    """
    verdict = _within_quarantine(store, settings, submission, verdict)
    if verdict.decision is Decision.ACCEPTED:
        try:
            return accept(workspace, store, signing_key, settings, submission, current, verdict)
        except RevokedError as error:
            verdict = with_check(
                verdict,
                Check("enrolment", Decision.REJECTED, code="REVOKED", detail=f"while it was vetted: {error.message}"),
            )
    store.decide(submission.id, _STATES[verdict.decision], verdict.to_json())
    workspace.submission(submission.id).would_be.unlink(missing_ok=True)
    return None


class StaleMergeError(LedgerError):
    """The current release is no longer the one that was merged against."""


def accept(
    workspace: Workspace,
    store: Store,
    signing_key: SigningKey,
    settings: OwnerSettings,
    submission: Submission,
    current: Release,
    verdict: Verdict,
    *,
    merged: Path | None = None,
    instead_of: Receipt | None = None,
) -> Release:
    """Publish the submission's merged weights (`would_be.safetensors`, or the file `merged`) as the release after `current`, and
    write the verdict that accepts it, in one transaction; instead_of: as in `Store.decide`. Raises StaleMergeError, RevokedError,
    LedgerError where it was decided meanwhile; nothing has been written then."""
    merged = merged or workspace.submission(submission.id).would_be
    with workspace.publishing():
        if store.current().id != current.id:
            raise StaleMergeError(f"release {current.number} is no longer current")
        parent = releases.read_manifest(current)
        prepared = releases.prepare(
            workspace,
            store,
            signing_key,
            merged,
            parent=current.id,
            spec=parent.spec,
            class_names=parent.class_names,
            finetuning=settings.finetuning,
            note=f"merged submission {submission.id[:12]} of {submission.contributor}",
        )
        try:
            _, release, _ = store.decide(
                submission.id,
                SubmissionState.ACCEPTED,
                verdict.to_json(),
                release=(prepared.manifest, prepared.signature),
                instead_of=instead_of,
            )
        except BaseException:
            # A commit may have gone through although its caller was told otherwise; then the files belong to a release.
            if all(release.id != prepared.id for release in store.releases()):
                releases.discard(workspace, prepared)
            raise
        assert release is not None  # noqa: S101 - one was handed in
        releases.published(workspace, release)
    merged.unlink(missing_ok=True)
    return release


def _within_quarantine(store: Store, settings: OwnerSettings, submission: Submission, verdict: Verdict) -> Verdict:
    """Quarantine has room for so many, and for so many of one contributor; what comes on top is rejected, or one contributor
    could bury the owner in work, and take the others' places."""
    if verdict.decision is not Decision.QUARANTINED:
        return verdict
    waiting = store.submissions(state=SubmissionState.QUARANTINED)
    theirs = sum(one.contributor == submission.contributor for one in waiting)
    quotas = settings.quotas
    for count, limit, code, detail in (
        (
            theirs,
            quotas.quarantine_per_contributor,
            "QUARANTINE_SHARE_FULL",
            f"{theirs} submissions of {submission.contributor} wait for a person already (quotas.quarantine_per_contributor)",
        ),
        (
            len(waiting),
            quotas.quarantine,
            "QUARANTINE_FULL",
            f"{len(waiting)} submissions wait for a person already (quotas.quarantine)",
        ),
    ):
        if count >= limit:
            full = Check(
                "quarantine", Decision.REJECTED, score=float(count), threshold=float(limit), code=code, detail=detail
            )
            return with_check(verdict, full)
    return verdict


def without_second_look(verdict: Verdict, why: str) -> Verdict:
    """The verdict with the reason why the escalation tier, which it waits for, will not look."""
    code = "ESCALATION_NOT_RUN"
    check = Check(ESCALATED, Decision.QUARANTINED, code=code, detail=why)
    return dataclasses.replace(
        verdict,
        checks=(*(one for one in verdict.checks if one.name != ESCALATED), check),
        codes=(*(one for one in verdict.codes if one != AWAITING), code),
        measurements=verdict.measurements
        | {ESCALATED: {**verdict.measurements.get(ESCALATED, {}), "state": "not-run"}},
    )


def with_check(verdict: Verdict, check: Check) -> Verdict:
    """The verdict with one more check, which decides."""
    codes = (*verdict.codes, *([check.code] if check.code else []))
    return dataclasses.replace(verdict, decision=check.decision, checks=(*verdict.checks, check), codes=codes)
