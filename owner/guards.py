"""Which guards are needed, whether they can be used, and how they are fitted: one at a time, in a process of their own,
resumable. Escalation tiers, which submissions in quarantine wait for, come after them and in the same way: a guard that is due
ends a calibration, which goes on afterwards.

Every finished reference is kept beside the guard-to-be; the guard appears in its release's folder as a whole. The ledger's
guard state follows the files, never leads them: READY is written when the guard is there and reads. A guard that is lost or
damaged is fitted again, so many times as `TRIES` says; then it is FAILED, until the service starts again or a person mends
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Literal

from common.devices import choose_compute
from common.errors import PortierError, WireError, diagnostics
from common.files import is_shortage
from owner import releases
from owner.admission import check_base
from owner.assessment import merge_policy, utility_limits
from owner.choices import expand
from owner.escalations import AwaitingEscalation, leave_to_person
from owner.fitting_process import run_to_its_end
from owner.gatekeeper.detector_modules import import_modules
from owner.gatekeeper.fitting import FittingJob, work_path
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.guard_files import settle
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.own_processes import command
from owner.ledger.records import GuardState, Release, ReleaseStatus, SubmissionState
from owner.ledger.store import Store
from owner.settings import OwnerSettings
from owner.workspace import Workspace

log = logging.getLogger("portier.guards")

POLL_SECONDS = 0.5
FITTING = command("owner.gatekeeper.fitting")
TRIES = 3
"""Failures of one guard, in fitting or in use, before it is left alone."""
RETRY_SECONDS = 10.0
"""Pause after the first fitting that failed; it doubles with each failure."""
_Fingerprint = tuple[tuple[str, int, int], ...]
What = Literal["guard", "escalation"]
_NAMES: dict[What, str] = {"guard": "guard", "escalation": "escalation tier"}


def import_detectors(settings: OwnerSettings) -> None:
    """Import `guard.modules`, before anything fits or reads a guard in this process. Raises ConfigurationError, UnknownNameError for
    a detector in `guard.detectors` that is unknown even so."""
    import_modules(settings.guard.modules, named=expand(settings.guard.detectors))


def needed_guards(store: Store, settings: OwnerSettings, second_looks: Collection[str] = ()) -> list[Release]:
    """Releases whose guard should be fitted now, most urgent first. second_looks: bases of submissions that wait for one.

    The root's comes first, for nothing is vetted without it; then those that submissions wait for; then, where guards
    are fitted eagerly, the current release's. A guard that failed is left alone until somebody runs `protect` or starts the
    service again.
    """
    found = store.releases()
    if not found:
        return []
    waited_for = {*store.waiting(), *second_looks}
    eager = settings.guard.fit == "eager"
    root, current = store.root(), store.current()
    wanted = [root] if eager or waited_for or store.submissions(state=SubmissionState.RECEIVED) else []
    wanted += sorted((one for one in found if one.id in waited_for), key=lambda one: one.number)
    wanted += [current] if eager else []
    unique = {one.id: one for one in wanted if one.status is not ReleaseStatus.ROLLED_BACK}
    return [one for one in unique.values() if one.guard_state in (GuardState.MISSING, GuardState.FITTING)]


def guard_defect(workspace: Workspace, release: Release) -> str | None:
    """Why the guard of `release` cannot be used, None where it can. Reads every byte of it.

    Raises StorageError where this machine is too short of something to read it, which says nothing about the guard.
    """
    try:
        Guard.load(workspace.release(release.id).guard).check_release(release.weights_sha256)
    except PortierError as error:
        if is_shortage(error):
            raise
        return error.message
    return None


def provenance(workspace: Workspace, release: Release) -> Mapping[str, Any]:
    """How the fine-tunes of a guard came about, for the ledger. Nothing where it does not read: that will be noticed elsewhere."""
    try:
        return Guard.load(workspace.release(release.id).guard).provenance
    except PortierError:
        return {}


class GuardKeeper:
    """Fits what `needed_guards` names while the service runs, and tells whether a guard may be trusted."""

    def __init__(self, workspace: Workspace, settings: OwnerSettings, store: Store) -> None:
        """Raises as `import_detectors` does."""
        import_detectors(settings)
        self._workspace = workspace
        self._settings = settings
        self._store = store
        # Kept in memory: a new start is a new chance, after a setting was changed or a disk cleared.
        self._failures: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}
        self._sound: dict[str, _Fingerprint] = {}
        self._awaiting = AwaitingEscalation(store)
        self._given_up: dict[str, str] = {}

    def recover(self) -> None:
        """Bring the ledger's guard states in line with the files after a crash: READY are those that read, and no others."""
        for release in self._store.releases():
            if release.status is ReleaseStatus.ROLLED_BACK:
                continue
            guard = self._workspace.release(release.id).guard
            settle(guard)
            ready = release.guard_state is GuardState.READY
            expected = ready or guard.exists()
            defect = self.defect(release) if expected else None
            if defect is not None:
                self._store.set_guard_state(release.id, GuardState.MISSING, error=defect)
                log.warning("the guard of release %d will be fitted again: %s", release.number, defect)
            elif expected and not ready:
                # Where work lies beside it, its fitting goes on, or finds it done and tidies up.
                unfinished = work_path(guard).exists()
                self._store.set_guard_state(release.id, GuardState.MISSING if unfinished else GuardState.READY)
            elif not expected and release.guard_state is not GuardState.MISSING:
                self._store.set_guard_state(release.id, GuardState.MISSING)

    def defect(self, release: Release) -> str | None:
        """As `guard_defect`, but reads the guard again only where its files have changed since it was found sound."""
        fingerprint = self._fingerprint(release)
        if fingerprint and self._sound.get(release.id) == fingerprint:
            return None
        self._sound.pop(release.id, None)
        found = guard_defect(self._workspace, release)
        if found is None and fingerprint:
            self._sound[release.id] = fingerprint
        return found

    def distrust(self, release: Release, reason: str) -> None:
        """A guard that was ready cannot be used: it is fitted again, or given up after so many times."""
        # Where it is no longer ready (pruned meanwhile), it is fitted anew without our doing.
        if self._store.release(release.id).guard_state is not GuardState.READY:
            return
        self._sound.pop(release.id, None)
        state = self._failed(release)
        if self._failures[release.id] == 1:
            del self._not_before[release.id]
        self._store.set_guard_state(release.id, state, error=reason)
        log.error("the guard of release %d cannot be used: %s%s", release.number, reason, self._outlook(release, state))

    def distrust_escalation(self, release: Release, reason: str) -> None:
        """The escalation tier of a release cannot be calibrated or used: it is calibrated again, or given up after so many
        times, and what waits for it is left to a person."""
        self._workspace.release(release.id).escalation.unlink(missing_ok=True)
        failures = self._count_failure(_tier(release))
        if failures < TRIES:
            outlook = f"failure {failures} of {TRIES}, it will be calibrated again"
        else:
            outlook = "given up; what waits for it is left to a person"
            self._given_up[release.id] = reason
        log.error("the escalation tier of release %d: %s; %s", release.number, reason, outlook)

    def trust(self, *identifiers: str) -> None:
        """Guards that have just served: what went wrong with them before is forgotten."""
        for identifier in identifiers:
            self._failures.pop(identifier, None)
            self._not_before.pop(identifier, None)

    def _failed(self, release: Release) -> GuardState:
        return GuardState.MISSING if self._count_failure(release.id) < TRIES else GuardState.FAILED

    def _count_failure(self, what: str) -> int:
        self._failures[what] += 1
        self._not_before[what] = time.monotonic() + RETRY_SECONDS * 2 ** (self._failures[what] - 1)
        return self._failures[what]

    def _outlook(self, release: Release, state: GuardState) -> str:
        if state is GuardState.MISSING:
            return f"; failure {self._failures[release.id]} of {TRIES}, it will be fitted again where its files are not whole"
        return f"\n  -> mend that, then run `portier-owner protect {release.id[:12]}` or restart the service"

    def _fingerprint(self, release: Release) -> _Fingerprint:
        """Name, size and time of every file of the guard; nothing where they cannot be looked at."""
        try:
            found = [(path.name, path.stat()) for path in self._workspace.release(release.id).guard.iterdir()]
        except OSError:
            return ()
        return tuple(sorted((name, about.st_size, about.st_mtime_ns) for name, about in found))

    def _due(self, releases: list[Release]) -> Release | None:
        now = time.monotonic()
        return next((one for one in releases if self._not_before.get(one.id, 0.0) <= now), None)

    def _due_escalation(self) -> Release | None:
        """The release whose escalation tier should be calibrated now."""
        for release in self._awaiting.releases():
            due = release.id not in self._given_up and self._not_before.get(_tier(release), 0.0) <= time.monotonic()
            if due and not self._workspace.release(release.id).escalation.exists():
                return release
        return None

    def _needed(self) -> list[Release]:
        """As `needed_guards`; what waits for a second look that will never be is left to a person first."""
        waiting = self._awaiting.submissions()
        bases = {one.base_release for one in waiting}
        in_vain = {base: why for base in bases if (why := self._no_second_look(self._store.release(base))) is not None}
        for submission in waiting:
            if submission.base_release in in_vain:
                leave_to_person(self._store, submission, in_vain[submission.base_release])
        return needed_guards(self._store, self._settings, bases - in_vain.keys())

    def _no_second_look(self, base: Release) -> str | None:
        """Why none will come of submissions on `base`; None where one may."""
        try:
            check_base(self._store, self._settings, base)
        except WireError as error:
            return error.message
        for release in (base, self._store.root()):
            if release.guard_state is GuardState.FAILED:
                return f"the guard of release {release.number} was given up: {release.guard_error}"
        if base.id in self._given_up and not self._workspace.release(base.id).escalation.exists():
            return f"the escalation tier was given up: {self._given_up[base.id]}"
        return None

    async def run(self, stop: asyncio.Event) -> None:
        complaint = ""
        while not stop.is_set():
            try:
                needed = await asyncio.to_thread(self._needed)
                due = self._due(needed)
                if due is not None:
                    await self._fit(due, stop)
                    complaint = ""
                    continue
                tier = await asyncio.to_thread(self._due_escalation)
                if tier is not None:
                    await self._calibrate(tier, stop)
                    complaint = ""
                    continue
            except (PortierError, OSError) as error:
                if str(error) != complaint:  # said once, tried again all the same
                    log.error("guards are held up: %s", diagnostics(error))
                complaint = str(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)

    async def _fit(self, release: Release, stop: asyncio.Event) -> None:
        with self._workspace.fitting(release.id, release.parent):
            log.info("fitting the guard of release %d (%s)", release.number, release.id[:12])
            await asyncio.to_thread(self._store.set_guard_state, release.id, GuardState.FITTING)
            state, error = GuardState.MISSING, None
            try:
                if await self._run_process(release, stop):
                    state = GuardState.READY
            except PortierError as raised:
                state, error = self._failed(release), f"it cannot be fitted: {raised.message}"
                log.error("the guard of release %d: %s%s", release.number, error, self._outlook(release, state))
            finally:
                ready = state is GuardState.READY
                made = await asyncio.to_thread(provenance, self._workspace, release) if ready else {}
                await asyncio.to_thread(self._store.set_guard_state, release.id, state, error=error, made=made)

    async def _calibrate(self, release: Release, stop: asyncio.Event) -> None:
        with self._workspace.fitting(release.id):
            log.info("calibrating the escalation tier of release %d (%s)", release.number, release.id[:12])
            give_way = asyncio.Event()
            watching = asyncio.create_task(self._give_way(give_way, stop))
            try:
                await self._run_process(release, give_way, "escalation")
            except PortierError as raised:
                reason = f"it cannot be calibrated: {raised.message}"
                await asyncio.to_thread(self.distrust_escalation, release, reason)
            finally:
                watching.cancel()

    async def _give_way(self, give_way: asyncio.Event, stop: asyncio.Event) -> None:
        """Set `give_way` when the service stops or a guard is due: a calibration ends then, and goes on afterwards with the
        references that it has finished."""
        try:
            while not stop.is_set() and self._due(await asyncio.to_thread(self._needed)) is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), POLL_SECONDS)
        except (PortierError, OSError) as error:  # `run` meets it again, and tells
            log.debug("the calibration ends: %s", error)
        finally:
            give_way.set()

    async def _run_process(self, release: Release, stop: asyncio.Event, what: What = "guard") -> bool:
        """Whether the guard, or its escalation tier, stands; False where it was to stop before. Raises what keeps it from it."""
        started, before = time.perf_counter(), self._fingerprint(release)
        path = self._workspace.work / f"{what}-{release.id[:12]}.json"
        parent = None if release.parent is None else await asyncio.to_thread(self._store.release, release.parent)
        job = dataclasses.replace(fitting_job(self._workspace, self._settings, release, parent=parent), what=what)
        await asyncio.to_thread(job.write, path)
        about = f"{_NAMES[what]} of release {release.number}"
        stands = await run_to_its_end((*FITTING, str(path)), stop, about=about)
        path.unlink(missing_ok=True)
        if not stands:
            log.info("stopped fitting the %s; it goes on from here next time", about)
        elif what == "guard" and before and before == self._fingerprint(release):
            log.info("the %s stands whole as it was; it is tried again", about)
        else:
            log.info("the %s is ready after %.1f s", about, time.perf_counter() - started)
        return stands


def fitting_job(
    workspace: Workspace,
    settings: OwnerSettings,
    release: Release,
    *,
    parent: Release | None = None,
    fresh: bool = False,
) -> FittingJob:
    """Everything that decides the guard of `release`. parent: the release before it, whose fine-tunes may be taken over; fresh:
    they are not. Raises ConfigurationError, ResolutionError."""
    import_detectors(settings)
    manifest = releases.read_manifest(release)
    files = workspace.release(release.id)
    options = settings.guard
    return FittingJob(
        weights=files.weights,
        trigger_fit=workspace.share("trigger_fit"),
        trigger_calibration=workspace.share("trigger_calibration"),
        evaluation=workspace.share("evaluation"),
        references_pool=workspace.share("references"),
        directory=files.guard,
        spec=manifest.spec,
        options=GuardOptions(
            detectors=options.detectors,
            combination=options.combination,
            given_size=options.given_size,
            fitting_references=options.fitting_references,
            references=options.references,
            rule=options.rule,
            reject_level=options.reject_level,
            quarantine_level=options.quarantine_level,
            seed=options.seed,
            hidden=options.hidden,
            latent=options.latent,
            epochs=options.epochs,
            population=settings.population,
            escalation=options.escalation,
            escalation_references=options.escalation_references,
            escalation_reject_level=options.escalation_reject_level,
            escalation_quarantine_level=options.escalation_quarantine_level,
            incremental=options.incremental,
            incremental_news=options.incremental_news,
            incremental_generations=options.incremental_generations,
        ),
        # What the manifest asks contributors to do, whatever the settings have become since.
        finetuning=manifest.finetuning,
        compute=choose_compute(settings.model.device, settings.model.precision),
        parent_guard=None if parent is None else workspace.release(parent.id).guard,
        parent_weights=None if parent is None else workspace.release(parent.id).weights,
        fresh=fresh,
        utility=utility_limits(settings),
        merging=merge_policy(settings),
        modules=options.modules,
    )


def _tier(release: Release) -> str:
    """What failures of its escalation tier are counted under, apart from the guard's."""
    return f"escalation {release.id}"
