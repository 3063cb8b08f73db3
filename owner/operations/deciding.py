"""What a person decides: promoting a quarantined submission, rolling back, vetting weights that came by other ways."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DeclinedError, GuardError, LedgerError, StorageError
from common.weights import load, save
from owner import releases
from owner.assessment import StaleMergeError, accept, job_for, vet, with_check
from owner.gatekeeper.merging import merge
from owner.gatekeeper.supervisor import VettingWorker
from owner.gatekeeper.verdict import Check, Decision, Verdict
from owner.guards import guard_defect, import_detectors
from owner.ledger.records import GuardState, Release, Submission, SubmissionState
from owner.operations.guarding import calibrate
from owner.operations.opening import Office
from owner.suspicions import is_awaiting


@dataclass(frozen=True)
class Promotion:
    """A promoted submission, the verdict of the second vetting, and the release that came of it."""

    submission: Submission
    release: Release
    verdict: Verdict
    forced: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "submission": self.submission.id,
            "release": self.release.id,
            "number": self.release.number,
            "forced": self.forced,
            "verdict": self.verdict.to_json(),
        }


def promote(office: Office, identifier: str, *, reason: str = "", force: bool = False) -> Promotion:
    """Accept a quarantined submission by a person's decision.

    It is vetted and merged again against the release that is current now. Quarantined again, or accepted: it becomes the
    next release. Rejected: DeclinedError, unless `force`, which overrules detectors and utility checks, but never
    admission (format, digest, revocation) nor a vetting that found no answer. The ledger keeps the second verdict and
    that, and why, a person decided.
    """
    submission = office.store.submission(identifier)
    if submission.state is not SubmissionState.QUARANTINED:
        raise LedgerError(
            f"submission {submission.id[:12]} is {submission.state}; only a quarantined one can be promoted",
            hint="`portier-owner log --kind verdict` and `portier-owner show ID` tell how it was decided",
        )
    with _vetting_worker(office) as worker:
        while True:
            current = office.store.current()
            verdict = vet(
                office.workspace, office.store, office.settings, worker, submission, current, allow_old_base=True
            )
            forced = _may_accept(submission, verdict, force=force)
            if forced:
                _merge_anyway(office, submission, current)
            decided = _decided(verdict, reason, forced=forced)
            try:
                release = accept(
                    office.workspace, office.store, office.signing_key, office.settings, submission, current, decided
                )
            except StaleMergeError:
                continue
            return Promotion(office.store.submission(submission.id), release, decided, forced)


def rollback(office: Office, identifier: str, reason: str) -> Release:
    """Make an earlier release current again, and with it its guard. Releases after it are withdrawn for good, and
    submissions based on them will be rejected. Raises LedgerError, WeightsError where the release's file is damaged.
    """
    import_detectors(office.settings)
    target = office.store.release(identifier)
    releases.check(office.workspace, target, office.signing_key.public_key)
    with office.workspace.publishing():
        release = office.store.rollback(target.id, reason)
    defect = guard_defect(office.workspace, release) if release.guard_state is GuardState.READY else None
    if defect is not None:
        office.store.set_guard_state(release.id, GuardState.MISSING, error=defect)
    return office.store.release(release.id)


def vet_file(office: Office, weights: Path, *, base: str | None = None) -> Verdict:
    """`vet_files` of one."""
    ((_, verdict),) = vet_files(office, [weights], base=base)
    return verdict


def vet_files(office: Office, weights: Sequence[Path], *, base: str | None = None) -> Iterator[tuple[Path, Verdict]]:
    """Vet safetensors files that came by other ways, each as a submission based on release `base` (the current one), one after the
    other by one process. Nothing is written to the ledger. Where p alone would quarantine one and the guard has an escalation tier,
    that looks at it, calibrated now if need be. Raises StorageError where there is no such file, GuardError where the guard is
    missing, both before anything is vetted.

    >>> for path, verdict in vet_files(office, weights_files([Path("returned")])):  # doctest: +SKIP
    ...     print(path.name, verdict.decision, verdict.p_value)
    """
    store = office.store
    if missing := [str(path) for path in weights if not path.is_file()]:
        raise StorageError(f"there is no file {', '.join(missing)}")
    current = store.current()
    release = current if base is None else store.release(base)
    root = store.root()
    if release.guard_state is not GuardState.READY:
        raise GuardError(
            f"release {release.number} has no guard yet ({release.guard_state})",
            hint=f"portier-owner protect {release.id[:12]}",
        )

    def verdicts() -> Iterator[tuple[Path, Verdict]]:
        with (
            _vetting_worker(office) as worker,
            tempfile.TemporaryDirectory(prefix="portier-vet-") as scratch,
        ):
            for path in weights:
                job = job_for(
                    office.workspace,
                    office.settings,
                    release,
                    root,
                    current,
                    weights=path.absolute(),
                    would_be=Path(scratch, "would_be.safetensors"),
                )
                if root.guard_state is not GuardState.READY:
                    job = dataclasses.replace(job, root_guard=None)
                verdict = worker.vet(job)
                if is_awaiting(verdict.to_json()):
                    calibrate(office, release)
                    tier = office.workspace.release(release.id).escalation
                    verdict = worker.vet(dataclasses.replace(job, escalation=tier))
                yield path, verdict

    return verdicts()


def weights_files(paths: Sequence[Path]) -> list[Path]:
    """Of each folder its safetensors files by name, and every other path as it is. Raises StorageError for a folder without any."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not inside:
            raise StorageError(f"the folder {path} holds no .safetensors file")
        found += inside
    return found


def _vetting_worker(office: Office) -> VettingWorker:
    """Raises as `import_detectors` does: what is wrong with a module of the owner's is told here, before a process starts."""
    settings = office.settings
    import_detectors(settings)
    return VettingWorker(
        timeout_seconds=settings.vetting.timeout_seconds,
        memory_mib=settings.vetting.memory_mib,
        device=settings.model.device,
        modules=settings.guard.modules,
    )


def _may_accept(submission: Submission, verdict: Verdict, *, force: bool) -> bool:
    """Whether acceptance overrules the second vetting. Raises DeclinedError where it may not be accepted."""
    name = f"submission {submission.id[:12]}"
    codes = ", ".join(verdict.codes)
    if any(code.startswith("VETTING_") for code in verdict.codes):
        raise DeclinedError(
            f"vetting {name} again found no answer ({codes})",
            hint="raise vetting.timeout_seconds or vetting.memory_mib, for example with --set vetting.timeout_seconds=3600",
        )
    if verdict.decision is not Decision.REJECTED:
        return False
    if not all(_overrulable(check) for check in verdict.checks):
        raise DeclinedError(
            f"{name} cannot be accepted, forced or not: {codes}", hint=f"portier-owner show {name[11:]}"
        )
    if not force:
        raise DeclinedError(
            f"vetted again against the current release, {name} is rejected: {codes}",
            hint="--force accepts it all the same; the ledger will say so",
        )
    return True


def _overrulable(check: Check) -> bool:
    """Detectors and utility checks measure, and a person may weigh that otherwise. What has no score is no matter of degree:
    there is nothing sound to merge, or nobody who may hand it in."""
    if check.decision is not Decision.REJECTED:
        return True
    return check.score is not None and check.threshold is not None


def _merge_anyway(office: Office, submission: Submission, current: Release) -> None:
    """The vetting process merges only what it does not reject, so a forced promotion merges here."""
    files = office.workspace.submission(submission.id)
    merged = merge(
        office.settings.merge.policy,
        releases.load_weights(office.workspace, current),
        releases.load_weights(office.workspace, office.store.release(submission.base_release)),
        load(files.weights, digest=submission.weights_sha256),
        office.settings.merge.weight,
    )
    save(files.would_be, merged)


def _decided(verdict: Verdict, reason: str, *, forced: bool) -> Verdict:
    overruled = f"overruling {', '.join(verdict.codes)}" if forced else f"vetted again: {verdict.decision}"
    check = Check("person", Decision.ACCEPTED, detail=f"promoted; {overruled}" + (f"; {reason}" if reason else ""))
    return with_check(verdict, check)
