"""The result document of a simulation: what the ledger, the contributors' reports and the releases say, put together."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.datasets import load_examples
from common.devices import choose_compute
from common.manifest import parse_release
from common.models import build
from common.specs import split_spec
from common.training import Evaluation, evaluate
from common.weights import load as load_weights
from owner.ledger.records import Release, Submission
from owner.operations.opening import Office
from owner.simulate.layout import Layout, read_report
from owner.simulate.outcome import Result, rates
from owner.simulate.runner import FATES, cores, latest
from owner.simulate.scenario import Participant, Scenario
from owner.suspicions import ESCALATED

FORMAT = 1
DETECTOR = "activation-autoencoder"
_PACKAGES = ("portier", "torch", "torchvision", "grpcio", "cryptography", "numpy", "safetensors")


@dataclass(frozen=True)
class Measured:
    """A release and how it does on the evaluation share."""

    release: Release
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.release.id,
            "number": self.release.number,
            "accuracy": float(self.evaluation.accuracy),
            "recall": [_finite(value) for value in self.evaluation.recall.tolist()],
        }


def collect(
    scenario: Scenario,
    layout: Layout,
    office: Office,
    *,
    seconds: Mapping[str, float],
    command: Sequence[str],
    started: str,
) -> dict[str, Any]:
    """Everything a program or the HTML report needs, as JSON values. Measures the first and the current release."""
    before = _measure(office, layout.evaluation, office.store.root())
    after = _measure(office, layout.evaluation, office.store.current())
    found = [
        _result(one, latest(office, one.name), read_report(layout.report(one.name))) for one in scenario.contributors
    ]
    submissions = {one.name: latest(office, one.name) for one in scenario.contributors}
    return {
        "format": FORMAT,
        "scenario": scenario.to_json(),
        "seed": scenario.settings.data.seed,
        "command": " ".join(command),
        "started": started,
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **_versions()},
        "compute": office.compute().to_json(),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "release": {"before": before.to_json(), "after": after.to_json()},
        "contributors": [one.to_json() for one in found],
        "rates": rates(found).to_json(),
        "errors": _errors(scenario, submissions),
    }


def hardware() -> str:
    """Processor, cores at hand, and whether a GPU was used.

    >>> "cores" in hardware()
    True
    """
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{model}, {cores()} cores, {choose_compute().device.type}"


def _measure(office: Office, evaluation: Path, release: Release) -> Measured:
    spec = parse_release(release.manifest).spec
    model = build(spec)
    model.load_state_dict(load_weights(office.workspace.release(release.id).weights, digest=release.weights_sha256))
    return Measured(release, evaluate(model, load_examples(evaluation), compute=office.compute()))


def _result(one: Participant, submission: Submission | None, report: Mapping[str, Any]) -> Result:
    measured: Mapping[str, Any] = report.get("measured", {})
    verdict: Mapping[str, Any] = (submission.verdict if submission else None) or {}
    return Result(
        name=one.name,
        attack=one.attack,
        fate=FATES.get(submission.state) if submission else None,
        attack_success=measured.get("attack_success"),
        effective=measured.get("attack_effective"),
        accuracy=measured.get("accuracy"),
        ae_error=_ae_error(verdict),
        p_value=verdict.get("p_value"),
        codes=tuple(verdict.get("codes", ())),
        samples=measured.get("samples"),
        partition=one.partition,
        submission=submission.id if submission else "",
        fpr_bound_95=verdict.get("fpr_bound_95"),
        gate=verdict.get("measurements", {}).get("gate"),
        escalation=_escalation(verdict),
        seconds={"vetting": verdict.get("seconds", 0.0), "training": measured.get("seconds", 0.0)},
    )


def _escalation(verdict: Mapping[str, Any]) -> dict[str, Any] | None:
    decision = next((check["decision"] for check in verdict.get("checks", ()) if check["name"] == ESCALATED), None)
    return None if decision is None else {**verdict["measurements"][ESCALATED], "decision": decision}


def _ae_error(verdict: Mapping[str, Any]) -> float | None:
    """None where the auto-encoder is not among the guard's detectors, or the submission did not get as far."""
    found: float | None = verdict.get("measurements", {}).get("detectors", {}).get(DETECTOR, {}).get("score")
    return found


def _errors(scenario: Scenario, submissions: Mapping[str, Submission | None]) -> dict[str, Any] | None:
    """Histograms of per-image errors, those of release and references once. None where no verdict has any."""
    rows: list[dict[str, Any]] = []
    shared: Mapping[str, Any] | None = None
    for one in scenario.contributors:
        submission = submissions[one.name]
        verdict = (submission.verdict if submission else None) or {}
        histogram = verdict.get("measurements", {}).get("detectors", {}).get(DETECTOR, {}).get("histogram")
        if histogram is None:
            continue
        shared = shared or histogram
        rows.append(
            {
                "label": one.name,
                "kind": "honest" if one.honest else "attack",
                "counts": histogram["submission"],
                "mean": _ae_error(verdict),
                "note": f"{split_spec(one.attack, 'attack')[0] if one.attack else 'honest'}: {verdict['decision']}",
            }
        )
    if shared is None:
        return None
    background = [{"label": "release", "kind": "genuine", "counts": shared["release"], "note": "genuine M"}]
    if "references" in shared:
        note = f"{scenario.settings.guard.references} fine-tunes"
        background.append({"label": "references", "kind": "references", "counts": shared["references"], "note": note})
    return {
        "log10_edges": [math.log10(edge) for edge in shared["edges"]],
        "threshold": shared["threshold"],
        "histograms": background + rows,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write(document: Mapping[str, Any]) -> bytes:
    """The document as a JSON file; NaN and infinity, which no JSON has, would raise ValueError."""
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
