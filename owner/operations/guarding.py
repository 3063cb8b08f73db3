"""Fitting the guard of a release, here and now, with progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from common.errors import PortierError
from common.training import Evaluation
from owner.choices import PAPER, PRESETS, expand
from owner.gatekeeper.escalation import Escalation
from owner.gatekeeper.fitting import fit, fit_escalation
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.rules import fpr_bound_95
from owner.guards import fitting_job
from owner.ledger.records import GuardState, Release
from owner.levels import resolution
from owner.operations.opening import Office
from owner.settings import GuardSettings

_PRUNE_SECONDS = 60.0
"""`prune` holds a guard no longer than it takes to remove it."""


@dataclass(frozen=True)
class Protected:
    """A guard that stands, and what it can tell."""

    release: Release
    guard: Guard

    @property
    def evaluation(self) -> Evaluation:
        """Of the release itself on the evaluation share."""
        examples = self.guard.evaluation
        return Evaluation.from_logits(self.guard.release_evaluation_logits, examples.labels, examples.classes)

    def to_json(self) -> dict[str, Any]:
        options = self.guard.options
        conformal = options.rule == "conformal"
        guard = self.guard
        return {
            "release": self.release.id,
            "number": self.release.number,
            "rule": options.rule,
            "detectors": list(guard.detectors),
            "combination": options.combination if guard.combined else None,
            "fitting_references": len(guard.fitting),
            "references": options.references_to_fit,
            "resolution": resolution(options.references) if conformal else None,
            "reject_level": options.reject_level if conformal else None,
            "quarantine_level": options.quarantine_level if conformal else None,
            "fpr_bound_95": fpr_bound_95(options.references, options.reject_level) if conformal else None,
            "escalation": _escalation(guard),
            "thresholds": guard.thresholds,
            "provenance": dict(guard.provenance),
            "conditioning": guard.conditioning,
            "accuracy": self.evaluation.accuracy,
            "head": self.guard.head,
            "device": str(self.guard.compute.device),
            "dtype": str(self.guard.compute.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }


def _escalation(guard: Guard) -> dict[str, Any] | None:
    """What the escalation tier will be able to tell; None where there is none."""
    options = guard.options
    if not options.escalation_names:
        return None
    return {
        "detectors": list(options.escalation_names),
        "references": options.escalation_references,
        "resolution": resolution(options.escalation_references),
        "reject_level": options.escalation_reject_level,
        "quarantine_level": options.escalation_quarantine_level,
        "fpr_bound_95": fpr_bound_95(options.escalation_references, options.escalation_reject_level),
    }


def plan(settings: GuardSettings) -> str:
    """What `protect` is about to fit, in one sentence."""
    names = expand(settings.detectors)
    if settings.rule == "seed":
        return "fitting the activation auto-encoder and one honest fine-tune (Eq. 4), which sets no false-positive rate"
    what = "the activation auto-encoder" if names == PRESETS[PAPER] else f"{len(names)} detectors ({', '.join(names)})"
    scales = f", {settings.fitting_references} that fit the scales of their combined score" if len(names) > 1 else ""
    return (
        f"fitting {what} and honest fine-tunes: the owner's own{scales}, {settings.references} that calibrate; the finest "
        f"p-value is {resolution(settings.references):.3g}"
    )


def protect(
    office: Office, identifier: str | None = None, *, incremental: bool | None = None, progress: bool | None = None
) -> Protected:
    """Fit the guard of the current release, or of the one whose id begins with `identifier`. Goes on where an interrupted
    fit stopped; where the guard stands already, it is only read.

    incremental: take the fine-tunes of the release before over where this one is small news, and keep this guard's own for the next
    (True); train them in any case (False); as the settings say (None).

    Raises VacuousGateError where the gate could tell nothing, GuardError, WorkspaceError where another process fits one.
    """
    store, workspace = office.store, office.workspace
    release = store.current() if identifier is None else store.release(identifier)
    parent = None if release.parent is None else store.release(release.parent)
    job = fitting_job(workspace, office.settings, release, parent=parent, fresh=incremental is False)
    if incremental:
        job = dataclasses.replace(job, options=dataclasses.replace(job.options, incremental=True))
    with workspace.fitting(release.id, release.parent, wait_seconds=_PRUNE_SECONDS):
        store.set_guard_state(release.id, GuardState.FITTING)
        state, why = GuardState.MISSING, None
        made: Mapping[str, Any] = {}
        try:
            guard = fit(job, progress=progress)
            state, made = GuardState.READY, guard.provenance
        except PortierError as error:
            why = f"it cannot be fitted: {error.message}"
            raise
        finally:
            store.set_guard_state(release.id, state, error=why, made=made)
    return Protected(store.release(release.id), guard)


def calibrate(office: Office, release: Release, *, progress: bool | None = None) -> Escalation:
    """The escalation tier of a release whose guard stands, calibrated now where it is not yet; an interrupted one goes on.

    Raises GuardError where the guard has no such tier, WorkspaceError where another process fits a guard.
    """
    job = dataclasses.replace(fitting_job(office.workspace, office.settings, release), what="escalation")
    with office.workspace.fitting(release.id, wait_seconds=_PRUNE_SECONDS):
        return fit_escalation(job, progress=progress)
