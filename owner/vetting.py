"""The vetting loop: takes received submissions one by one, and keeps guards fitted for those that wait.

It runs beside the service in one event loop. Everything slow runs elsewhere: vetting in a child process with limits,
guards in a child process of their own, the ledger in threads. Stopping is prompt: what was being vetted goes back to
`received`, what was being fitted goes on from its last reference next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import datetime

from common import timestamps
from common.errors import GuardError, GuardNotReadyError, LedgerError, PortierError, diagnostics
from common.identity.keys import SigningKey
from owner import releases
from owner.assessment import StaleMergeError, settle, vet
from owner.escalations import LEFTOVERS, AwaitingEscalation, look_again
from owner.gatekeeper.supervisor import VettingInterruptedError, VettingUnavailableError, VettingWorker
from owner.guards import GuardKeeper
from owner.housekeeping import expire_quarantine
from owner.ledger.records import GuardState, ReleaseStatus, Submission, SubmissionState
from owner.ledger.store import Store
from owner.settings import OwnerSettings
from owner.workspace import Workspace

log = logging.getLogger("portier.vetting")

POLL_SECONDS = 0.2
HOUSEKEEPING_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 300.0


class VettingLoop:
    """`run` it once, as long as the service runs.

    >>> loop = VettingLoop(workspace, settings, store)  # doctest: +SKIP
    >>> await loop.run(stop)  # doctest: +SKIP
    """

    def __init__(
        self,
        workspace: Workspace,
        settings: OwnerSettings,
        store: Store,
        *,
        worker: VettingWorker | None = None,
        clock: Callable[[], datetime] = timestamps.now,
    ) -> None:
        """worker: what vets, instead of a process of its own with the limits of the settings; `run` closes it."""
        self._workspace = workspace
        self._settings = settings
        self._store = store
        self._clock = clock
        self._signing_key = SigningKey.load(workspace.signing_key)
        self._guards = GuardKeeper(workspace, settings, store)
        self._awaiting = AwaitingEscalation(store)
        limits = settings.vetting
        self._worker = worker or VettingWorker(
            timeout_seconds=limits.timeout_seconds,
            memory_mib=limits.memory_mib,
            device=settings.model.device,
            modules=settings.guard.modules,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. Raises WorkspaceError where a release has lost its files."""
        await asyncio.to_thread(self._recover)
        jobs = (self._vet_all, self._guards.run, self._keep_house)
        # Not `stop` itself: the service would take a defect that sets it for an ordinary end.
        ending = asyncio.Event()
        stopping = asyncio.create_task(stop.wait())
        running = {asyncio.create_task(job(ending)) for job in jobs}
        try:
            # A defect in one of them must end the service, visibly, not leave it half alive.
            done, _ = await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
        finally:
            ending.set()
            stopping.cancel()
            # Closing kills the child, which ends the thread that waits for it.
            await asyncio.to_thread(self._worker.close)
            await asyncio.gather(stopping, *running, return_exceptions=True)
            await asyncio.to_thread(self._store.requeue_interrupted)

    def _recover(self) -> None:
        """What an earlier process left half done, in the order in which it would have gone on."""
        with self._workspace.publishing():
            for orphan in releases.reconcile(self._workspace, self._store):
                log.error(
                    "the ledger, an older copy it seems, does not know release %s: its folder is now %s%s; "
                    "stop the service and restore a newer ledger, or delete the folder",
                    orphan[:12],
                    releases.SET_ASIDE,
                    orphan,
                )
        # Merged weights of a vetting that will be done again, or was just decided. Those of quarantined submissions may
        # belong to a `promote` at work beside us.
        quarantined = {one.id for one in self._store.submissions(state=SubmissionState.QUARANTINED)}
        for leftover in self._workspace.submissions.glob("*/would_be.safetensors"):
            if leftover.parent.name not in quarantined:
                leftover.unlink(missing_ok=True)
        for leftover in self._workspace.work.glob(LEFTOVERS):
            leftover.unlink(missing_ok=True)
        requeued = self._store.requeue_interrupted()
        if requeued:
            log.info("%d interrupted vettings will be done again", requeued)
        self._guards.recover()

    async def _vet_all(self, stop: asyncio.Event) -> None:
        pause, interrupted = FIRST_PAUSE_SECONDS, False
        while not stop.is_set():
            try:
                if interrupted:
                    await asyncio.to_thread(self._store.requeue_interrupted)
                    interrupted = False
                submission = await asyncio.to_thread(self._next)
                if submission is None:
                    if not await self._look_again():
                        await _sleep(POLL_SECONDS, stop)
                    continue
                await self._one(submission, stop)
                pause = FIRST_PAUSE_SECONDS
            except (PortierError, OSError) as error:
                # The owner's disk, ledger or machine, never the submission: keep it and try again, ever more seldom.
                if stop.is_set():
                    return
                log.error("vetting is held up: %s; next try in %.0f s", diagnostics(error), pause)
                interrupted = True
                await _sleep(pause, stop)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _next(self) -> Submission | None:
        """The oldest submission that can be vetted; those whose guard is missing are marked as waiting for it."""
        store = self._store
        for identifier in store.waiting():
            base = store.release(identifier)
            if base.status is ReleaseStatus.ROLLED_BACK:
                store.guard_ready(base.id)  # there will be no guard: admission refuses what is based on it
        for submission in store.submissions(state=SubmissionState.RECEIVED):
            base = store.release(submission.base_release)
            if base.guard_state is not GuardState.READY and base.status is not ReleaseStatus.ROLLED_BACK:
                with contextlib.suppress(LedgerError):  # it has moved on at this very moment
                    store.await_guard(submission.id)
        # A would-be release is judged against the root too, so nothing is vetted before the root's guard stands.
        if not store.submissions(state=SubmissionState.RECEIVED) or store.root().guard_state is not GuardState.READY:
            return None
        return store.claim()

    async def _one(self, submission: Submission, stop: asyncio.Event) -> None:
        started = time.perf_counter()
        log.info("vetting submission %s of %s", submission.id[:12], submission.contributor)
        while True:
            current = await asyncio.to_thread(self._store.current)
            if await asyncio.to_thread(self._distrust, submission, None):
                return
            try:
                verdict = await asyncio.to_thread(
                    vet, self._workspace, self._store, self._settings, self._worker, submission, current
                )
            except VettingInterruptedError:
                return  # the service stops; the submission goes back to `received`
            except VettingUnavailableError:
                raise
            except PortierError as error:
                if not await asyncio.to_thread(self._distrust, submission, error):
                    raise
                return
            if any(check.score is not None for check in verdict.checks):
                self._guards.trust(submission.base_release, (await asyncio.to_thread(self._store.root)).id)
            try:
                release = await asyncio.to_thread(
                    settle,
                    self._workspace,
                    self._store,
                    self._signing_key,
                    self._settings,
                    submission,
                    current,
                    verdict,
                )
            except StaleMergeError:
                log.info("another release has become current; merging submission %s again", submission.id[:12])
                continue
            break
        found = await asyncio.to_thread(self._store.submission, submission.id)  # settling may have made it stricter
        codes = ", ".join((found.verdict or {}).get("codes", ()))
        seconds = time.perf_counter() - started
        log.info("submission %s: %s%s in %.1f s", found.id[:12], found.state, f" ({codes})" if codes else "", seconds)
        if release is not None:
            log.info("release %d (%s) is current", release.number, release.id[:12])

    async def _look_again(self) -> bool:
        """Whether there was a submission in quarantine for the escalation tier to look at. New ones come first."""
        submission = await asyncio.to_thread(self._next_second_look)
        if submission is None:
            return False
        if await asyncio.to_thread(self._distrust, submission, None):
            return True
        log.info("submission %s of %s: second look", submission.id[:12], submission.contributor)
        base = await asyncio.to_thread(self._store.release, submission.base_release)
        try:
            release = await asyncio.to_thread(
                look_again,
                self._workspace,
                self._store,
                self._signing_key,
                self._settings,
                self._worker,
                submission,
            )
        except (VettingInterruptedError, VettingUnavailableError):
            raise
        except GuardError as error:
            if error.of == "escalation":
                await asyncio.to_thread(self._guards.distrust_escalation, base, error.message)
            else:
                await asyncio.to_thread(self._distrust, submission, error)
            return True
        found = await asyncio.to_thread(self._store.submission, submission.id)
        log.info("submission %s: %s after a second look", found.id[:12], found.state)
        if release is not None:
            log.info("release %d (%s) is current", release.number, release.id[:12])
        return True

    def _next_second_look(self) -> Submission | None:
        waiting = self._awaiting.submissions()
        if not waiting or self._store.root().guard_state is not GuardState.READY:
            return None
        ready = {one.id for one in self._awaiting.releases() if self._workspace.release(one.id).escalation.exists()}
        return next((one for one in waiting if one.base_release in ready), None)

    def _distrust(self, submission: Submission, error: PortierError | None) -> bool:
        """Whether a guard keeps the submission from being vetted, as its files or `error` tell: that guard is fitted again,
        what needs it waits, and holds up nobody else. One that was not ready yet is not to blame: it is waited for."""
        base, root = self._store.release(submission.base_release), self._store.root()
        if base.status is ReleaseStatus.ROLLED_BACK:
            return False  # admission refuses it, and asks no guard
        guards = {one.id: one for one in (base, root)}.values()
        defects = {one: defect for one in guards if (defect := self._guards.defect(one)) is not None}
        not_ready = isinstance(error, GuardNotReadyError)
        if not defects and isinstance(error, GuardError) and not not_ready:
            defects = {root if error.of == "root" else base: error.message}
        for release, defect in defects.items():
            self._guards.distrust(release, defect)
        if defects or not_ready:
            self._store.requeue_interrupted()
        return bool(defects) or not_ready

    async def _keep_house(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                for identifier in await asyncio.to_thread(
                    expire_quarantine, self._store, self._settings, clock=self._clock
                ):
                    log.info("rejected quarantined submission %s, which nobody promoted", identifier[:12])
                # Else the counts of a quiet hour's refusals would wait outside the chain for the next refusal.
                await asyncio.to_thread(self._store.close_refusals)
            except (PortierError, OSError) as error:
                log.error("housekeeping is held up: %s", diagnostics(error))
            await _sleep(HOUSEKEEPING_SECONDS, stop)


async def _sleep(seconds: float, stop: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
