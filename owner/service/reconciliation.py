"""What a killed owner may leave of an upload, put right at the next start; and uploads nobody goes on with, dropped.

The ledger row comes first and the files after it; `weights.safetensors` appears only after its digest was found right, and the row
becomes `received` after that. So each state a kill can leave is one of those below.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timedelta

from common import timestamps
from common.errors import LedgerError, PortierError
from common.files import ensure_directory, remove_unfinished, storage_errors
from common.weights import digest_file
from owner.ledger.records import Submission, SubmissionState
from owner.ledger.store import Store
from owner.service.part_file import discard
from owner.workspace import ID, Workspace

_log = logging.getLogger(__name__)
_UNDECIDED = (
    SubmissionState.RECEIVED,
    SubmissionState.AWAITING_GUARD,
    SubmissionState.VETTING,
    SubmissionState.QUARANTINED,
)


def reconcile(workspace: Workspace, store: Store) -> None:
    """Make files and ledger agree. Only for the process that serves, before it does. Raises StorageError, LedgerError."""
    rows = {submission.id: submission for submission in store.submissions()}
    remove_unfinished(ensure_directory(workspace.work))  # directly in it, only the service writes
    ensure_directory(workspace.submissions)
    for directory in sorted(workspace.submissions.iterdir()):
        if not ID.fullmatch(directory.name):
            continue
        files = workspace.submission(directory.name)
        submission = rows.get(directory.name)
        if submission is None:
            if files.weights.exists():
                _log.error("%s holds weights that the ledger does not know; they are left alone", directory)
            else:
                discard(files)
        elif submission.state is SubmissionState.EXPIRED:
            discard(files)
        else:
            # A `promote` may be at work in the folder of one in quarantine.
            if submission.state is not SubmissionState.QUARANTINED:
                remove_unfinished(directory)
            if submission.state is SubmissionState.UPLOADING and files.weights.exists():
                try:
                    finish(workspace, store, submission)
                except PortierError as error:
                    _log.error("submission %s could not be committed: %s", submission.id[:12], error.message)
    for submission in rows.values():
        if submission.state in _UNDECIDED and not workspace.submission(submission.id).weights.is_file():
            _log.error("submission %s (%s) has lost its weights", submission.id[:12], submission.state)


def expire_untouched(
    workspace: Workspace,
    store: Store,
    *,
    hours: float,
    hold: Callable[[str], AbstractContextManager[bool]],
    clock: Callable[[], datetime] = timestamps.now,
) -> list[str]:
    """Drop uploads that have not grown for `hours`; returns their ids. Raises StorageError, LedgerError.

    hold: keeps an upload from going on at this very moment; gives False where one does.
    """
    oldest = clock() - timedelta(hours=hours)
    dropped = []
    for submission in store.submissions(state=SubmissionState.UPLOADING):
        with hold(submission.id) as held:
            if not held or _touched(workspace, submission) > oldest:
                continue
            try:
                store.expire_upload(
                    submission.id, "UPLOAD_ABANDONED", f"nothing of it came for {hours:g} hours (quotas.upload_hours)"
                )
            except LedgerError as error:
                # It was finished or dropped since the list was made.
                _log.info("%s", error.message)
                continue
            discard(workspace.submission(submission.id))
            dropped.append(submission.id)
    return dropped


def finish(workspace: Workspace, store: Store, submission: Submission) -> Submission:
    """Of one whose upload came to its end, and whose commit did not: the file is whole, only the ledger does not know yet. Returns
    the submission as it is then, still uploading where the file is not what it should be. Raises StorageError, LedgerError."""
    files = workspace.submission(submission.id)
    if digest_file(files.weights) == submission.weights_sha256:
        with storage_errors("remove", files.part):
            files.part.unlink(missing_ok=True)
        return store.committed(submission.id)[0]
    with storage_errors("rename", files.weights):
        files.weights.replace(files.part)
    return submission


def _touched(workspace: Workspace, submission: Submission) -> datetime:
    created = timestamps.from_text(submission.created)
    files, times = workspace.submission(submission.id), [created]
    for path in (files.part, files.weights):
        with suppress(OSError):
            times.append(datetime.fromtimestamp(path.stat().st_mtime, created.tzinfo))
    return max(times)
