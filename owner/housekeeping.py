"""What time undoes: quarantined submissions nobody promotes, weights and guards nobody needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from common import timestamps
from common.errors import LedgerError, WorkspaceError
from owner.assessment import with_check
from owner.gatekeeper import guard_files
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.ledger.records import GuardState, Submission, SubmissionState
from owner.ledger.store import Store
from owner.settings import OwnerSettings
from owner.workspace import Workspace

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Pruned:
    """Whose weights were removed, and how many bytes that freed. guards_in_use: of releases whose guard would have been removed, were
    it not being fitted, or the next one from it."""

    submissions: tuple[str, ...]
    guards: tuple[str, ...]
    bytes: int
    guards_in_use: tuple[str, ...] = ()


def expire_quarantine(store: Store, settings: OwnerSettings, *, clock: Clock = timestamps.now) -> list[str]:
    """Reject what nobody promoted within `quotas.quarantine_days`; returns the ids."""
    days = settings.quotas.quarantine_days
    limit = clock() - timedelta(days=days)
    expired = []
    for submission in store.submissions(state=SubmissionState.QUARANTINED):
        if timestamps.from_text(submission.updated) >= limit:
            continue
        verdict = with_check(
            Verdict.from_json(submission.verdict or {"decision": "quarantined"}),
            Check(
                "quarantine",
                Decision.REJECTED,
                code="QUARANTINE_EXPIRED",
                detail=f"nobody promoted it within {days:g} days (quotas.quarantine_days)",
            ),
        )
        with suppress(LedgerError):  # promoted at this very moment
            store.decide(submission.id, SubmissionState.REJECTED, verdict.to_json())
            expired.append(submission.id)
    return expired


def prune(
    workspace: Workspace,
    store: Store,
    settings: OwnerSettings,
    older_than: timedelta,
    *,
    clock: Clock = timestamps.now,
    dry_run: bool = False,
) -> Pruned:
    """Remove the weights of submissions rejected or expired longer ago than `older_than`, of accepted ones (the release
    holds what came of them), and the guards of releases that are no base any more. Ledger entries, manifests and
    verdicts stay; so do all releases, for `rollback` needs them. So does a guard that a process fits, or takes fine-tunes from,
    at this moment.
    """
    limit, freed = clock() - older_than, 0
    guards, in_use = [], []
    for release in _unneeded_guards(workspace, store, settings, limit):
        with ExitStack() as held:
            try:
                held.enter_context(workspace.guard_in_use(release))
            except WorkspaceError:
                in_use.append(release)
                continue
            freed += sum(path.stat().st_size for path in _guard_files(workspace, release))
            guards.append(release)
            if not dry_run:
                _remove_guard(workspace, store, release)
    pruned = []
    for submission in store.submissions():
        if submission.pruned is not None or not _prunable(submission, limit):
            continue
        files = workspace.submission(submission.id)
        found = [path for path in (files.weights, files.part, files.would_be) if path.is_file()]
        freed += sum(path.stat().st_size for path in found if path.stat().st_nlink == 1)
        pruned.append(submission.id)
        if not dry_run:
            for path in found:
                path.unlink(missing_ok=True)
            store.mark_pruned(submission.id)
    return Pruned(tuple(pruned), tuple(guards), freed, tuple(in_use))


def _unneeded_guards(workspace: Workspace, store: Store, settings: OwnerSettings, limit: datetime) -> list[str]:
    """Releases published before `limit` whose guards no submission can need."""
    needed = {*store.allowed_bases(settings.merge.bases_allowed)}
    waiting = {
        SubmissionState.RECEIVED,
        SubmissionState.AWAITING_GUARD,
        SubmissionState.VETTING,
        SubmissionState.QUARANTINED,
    }
    needed |= {one.base_release for one in store.submissions() if one.state in waiting}
    releases = store.releases()
    needed |= {store.root().id} if releases else set()
    return [
        release.id
        for release in releases
        if release.id not in needed
        and timestamps.from_text(release.published) < limit
        and workspace.release(release.id).guard.is_dir()
    ]


def _guard_files(workspace: Workspace, release: str) -> list[Path]:
    files = workspace.release(release)
    return [path for path in (*files.guard.rglob("*"), files.escalation) if path.is_file()]


def _remove_guard(workspace: Workspace, store: Store, release: str) -> None:
    # The state first: a crash in between leaves files nobody uses, never a promise without files.
    store.set_guard_state(release, GuardState.MISSING)
    guard = workspace.release(release).guard
    guard_files.remove(guard)
    for path in guard.parent.glob(f"{guard.name}.*work"):
        shutil.rmtree(path, ignore_errors=True)
    workspace.release(release).escalation.unlink(missing_ok=True)


def _prunable(submission: Submission, limit: datetime) -> bool:
    final = {SubmissionState.REJECTED, SubmissionState.EXPIRED, SubmissionState.ACCEPTED}
    return submission.state in final and timestamps.from_text(submission.updated) < limit
