"""Which guards are needed, and how they are fitted: one at a time, in a process of their own, resumable.

Every finished reference is kept beside the guard-to-be; the guard appears in its release's folder as a whole. The ledger's guard state follows the files, never leads them: READY is written when the guard is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time

from common.devices import choose_compute
from common.errors import PortierError
from owner import releases
from owner.gatekeeper.fitting import FittingJob
from owner.gatekeeper.options import GuardOptions
from owner.ledger.records import GuardState, Release, ReleaseStatus
from owner.ledger.store import Store
from owner.settings import OwnerSettings
from owner.workspace import Workspace

log = logging.getLogger("portier.guards")

POLL_SECONDS = 0.5
_KEPT_BYTES = 8192


def needed_guards(store: Store, settings: OwnerSettings) -> list[Release]:
    """Releases whose guard should be fitted now, most urgent first.

    The root's comes first, for nothing is vetted without it; then those that submissions wait for; then, where guards
    are fitted eagerly, the current release's. A guard that failed is left alone until somebody runs `protect`.
    """
    found = store.releases()
    if not found:
        return []
    waited_for = set(store.waiting())
    eager = settings.guard.fit == "eager"
    root, current = store.root(), store.current()
    wanted = [root] if eager or waited_for else []
    wanted += sorted((one for one in found if one.id in waited_for), key=lambda one: one.number)
    wanted += [current] if eager else []
    unique = {one.id: one for one in wanted if one.status is not ReleaseStatus.ROLLED_BACK}
    return [one for one in unique.values() if one.guard_state in (GuardState.MISSING, GuardState.FITTING)]


class GuardKeeper:
    """Fits what `needed_guards` names while the service runs."""

    def __init__(self, workspace: Workspace, settings: OwnerSettings, store: Store) -> None:
        self._workspace = workspace
        self._settings = settings
        self._store = store

    def recover(self) -> None:
        """Bring the ledger's guard states in line with the files after a crash."""
        for release in self._store.releases():
            present = (self._workspace.release(release.id).guard / "guard.json").is_file()
            if present and release.guard_state is not GuardState.READY:
                self._store.set_guard_state(release.id, GuardState.READY)
            elif not present and release.guard_state is not GuardState.MISSING:
                # FAILED too: a new start is a new chance, after a setting was changed or a disk cleared.
                self._store.set_guard_state(release.id, GuardState.MISSING)

    async def run(self, stop: asyncio.Event) -> None:
        complaint = ""
        while not stop.is_set():
            try:
                needed = await asyncio.to_thread(needed_guards, self._store, self._settings)
                if needed:
                    await self._fit(needed[0], stop)
                    complaint = ""
                    continue
            except PortierError as error:
                if error.message != complaint:  # said once, tried again all the same
                    log.error("guards are held up: %s", error.diagnostics())
                complaint = error.message
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)

    async def _fit(self, release: Release, stop: asyncio.Event) -> None:
        with self._workspace.lock("guard", wait_seconds=0.0):
            log.info("fitting the guard of release %d (%s)", release.number, release.id[:12])
            await asyncio.to_thread(self._store.set_guard_state, release.id, GuardState.FITTING)
            state = GuardState.MISSING
            try:
                state = await self._run_process(release, stop)
            finally:
                await asyncio.to_thread(self._store.set_guard_state, release.id, state)

    async def _run_process(self, release: Release, stop: asyncio.Event) -> GuardState:
        started = time.perf_counter()
        job = self._workspace.work / f"guard-{release.id[:12]}.json"
        await asyncio.to_thread(fitting_job(self._workspace, self._settings, release).write, job)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "owner.gatekeeper.fitting",
            str(job),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is for the service, which then ends this process itself.
            start_new_session=True,
        )
        ending = asyncio.create_task(_follow(process, release))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                log.info("stopped fitting the guard of release %d; it goes on from here next time", release.number)
                return GuardState.MISSING
            complaint = ending.result()
        finally:
            stopping.cancel()
            await _end(process, ending)
        job.unlink(missing_ok=True)
        if process.returncode == 0:
            seconds = time.perf_counter() - started
            log.info("the guard of release %d is ready after %.1f s", release.number, seconds)
            return GuardState.READY
        log.error(
            "the guard of release %d cannot be fitted (exit code %s): %s\n"
            "  -> mend that, then run `portier-owner protect %s` or restart the service",
            release.number,
            process.returncode,
            complaint,
            release.id[:12],
        )
        return GuardState.FAILED


def fitting_job(workspace: Workspace, settings: OwnerSettings, release: Release) -> FittingJob:
    """Everything that decides the guard of `release`. Raises ConfigurationError, ResolutionError."""
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
            references=options.references,
            rule=options.rule,
            reject_level=options.reject_level,
            quarantine_level=options.quarantine_level,
            seed=options.seed,
            hidden=options.hidden,
            latent=options.latent,
            epochs=options.epochs,
            population=settings.population,
        ),
        # What the manifest asks contributors to do, whatever the settings have become since.
        finetuning=manifest.finetuning,
        compute=choose_compute(settings.model.device, settings.model.precision),
    )


async def _follow(process: asyncio.subprocess.Process, release: Release) -> str:
    """Log the process's progress until it ends; returns the end of what it complained about."""
    assert process.stdout is not None  # noqa: S101 - both are pipes
    assert process.stderr is not None  # noqa: S101
    errors = asyncio.create_task(_last_words(process.stderr))
    while line := await process.stdout.readline():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            done = json.loads(line)
            log.debug("guard of release %d: %d of %d honest fine-tunes", release.number, done["done"], done["total"])
    await process.wait()
    return await errors


async def _last_words(stream: asyncio.StreamReader) -> str:
    kept = b""
    while chunk := await stream.read(4096):
        kept = (kept + chunk)[-_KEPT_BYTES:]
    return kept.decode("utf-8", "replace").strip()


async def _end(process: asyncio.subprocess.Process, ending: asyncio.Task[str]) -> None:
    """Nothing is lost by killing it: finished references are on disk, and it writes the guard as a whole or not."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await asyncio.wait({ending})
