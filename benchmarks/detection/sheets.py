"""What is published of a base: every model's plan, truth and scores, in one small file. Who has it judges gates without a model.

The file is `<results>/scores/<configuration>-<base>.json.gz`: `{"format", "truth", "made_with", "hardware", "versions", "measures", "models"}`, where
`measures` names the numbers of each model's `values` (null where a detector was not run on it) and `versions` the code that each column of
scores was made with. Numbers have six significant digits; the benchmark itself judges what it reads from there.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.detection.config import Config
from benchmarks.detection.judge import Base, Model
from benchmarks.detection.plans import Plan, plans
from benchmarks.detection.scores import BANK
from benchmarks.detection.zoo import TRUTH_VERSION
from common.errors import ConfigurationError
from common.files import ensure_directory, write_atomically
from owner.detectors import ESCALATION
from owner.detectors.combination import detector_of

FORMAT = 2


@dataclass(frozen=True)
class Entry:
    """One model that was made.

    failed: why its training gave nothing back, "" where it did; then it has neither truth nor measures.
    weights_sha256: of the weights it returned, accuracy of theirs on the held-out images. effective, attack_success, attack_success_unmarked: of the weights that the
    attack aims at, as a fine-tuning reports them. merged_effective, merged_success: of the release that averages the returned ones in. stratum: of an honest one.
    """

    plan: Plan
    failed: str = ""
    weights_sha256: str = ""
    effective: bool | None = None
    passes_utility: bool = False
    accuracy: float | None = None
    attack_success: float | None = None
    attack_success_unmarked: float | None = None
    merged_effective: bool | None = None
    merged_success: float | None = None
    stratum: str = ""
    measures: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, record: Mapping[str, Any], columns: Mapping[str, Any]) -> Entry:
        """record: the zoo's. columns: the scorer's; empty where the training failed."""
        if "failed" in record:
            return cls(plan, failed=record["failed"])
        report, truth = record["report"], record.get("truth", {"returned": {}, "merged": {}})
        returned, merge = truth["returned"], truth["merged"]
        return cls(
            plan,
            weights_sha256=record["weights_sha256"],
            effective=returned.get("attack_effective"),
            passes_utility=record["passes_utility"],
            accuracy=report["accuracy"],
            attack_success=returned.get("attack_success"),
            attack_success_unmarked=returned.get("attack_success_unmarked"),
            merged_effective=merge.get("attack_effective"),
            merged_success=merge.get("attack_success"),
            stratum=stratum(record["data"]) if plan.family is None else "",
            measures=merged(columns),
        )

    def model(self) -> Model:
        return Model(
            self.plan.base,
            self.plan.name,
            self.plan.family,
            self.effective,
            self.passes_utility,
            self.measures,
            self.stratum,
            self.merged_effective,
        )


@dataclass(frozen=True)
class Sheet:
    """The models of one base in the order of their plans.

    made_with: the configuration's. hardware: they were trained on. versions: of the columns of scores, by key.
    """

    base: int
    made_with: Mapping[str, Any]
    hardware: str
    versions: Mapping[str, str]
    entries: Sequence[Entry]

    def judged(self) -> Base:
        def of(role: str) -> list[Entry]:
            return [one for one in self.entries if one.plan.role == role and not one.failed]

        return Base(
            self.base,
            [one.measures for one in of("fitting")],
            [one.measures for one in of("calibration")],
            [one.model() for one in of("honest")],
            [one.model() for one in of("attacked")],
            [one.model() for one in of("placebo")],
        )

    def owner(self) -> Mapping[str, float] | None:
        """Measures of M_f, the owner's own fine-tune, which the paper's rule takes its threshold from."""
        return next((one.measures for one in self.entries if one.plan.role == "owner" and not one.failed), None)

    def with_slow(self, earlier: Sheet) -> Sheet:
        """With the earlier scores of the escalation tier's detectors, of models of the same weights, where this sheet lacks that detector:
        seconds a model, which whoever scores the others anew need not spend again."""
        lacking = [name for name in ESCALATION if name in earlier.versions and name not in self.versions]
        if not lacking:
            return self
        known = {one.weights_sha256: one.measures for one in earlier.entries if one.weights_sha256}
        entries = [
            dataclasses.replace(
                one,
                measures={
                    **one.measures,
                    **{n: v for n, v in known.get(one.weights_sha256, {}).items() if detector_of(n) in lacking},
                },
            )
            for one in self.entries
        ]
        versions = {**self.versions, **{name: earlier.versions[name] for name in lacking}}
        return dataclasses.replace(self, versions=versions, entries=entries)

    def complete(self, config: Config) -> bool:
        return {one.plan for one in self.entries} == set(plans(config, self.base))

    def write(self, path: Path) -> None:
        names = sorted({name for one in self.entries for name in one.measures})
        models = []
        for one in self.entries:
            fields = {
                f.name: getattr(one, f.name) for f in dataclasses.fields(one) if f.name not in {"plan", "measures"}
            }
            values = [_short(one.measures[name]) if name in one.measures else None for name in names]
            models.append({"plan": dataclasses.asdict(one.plan), **fields, "values": values})
        content = {
            "format": FORMAT,
            "truth": TRUTH_VERSION,
            "made_with": self.made_with,
            "hardware": self.hardware,
            "versions": self.versions,
            "measures": names,
            "models": models,
        }
        ensure_directory(path.parent)
        write_atomically(path, gzip.compress(json.dumps(content).encode(), mtime=0))

    @classmethod
    def read(cls, path: Path, config: Config, base: int) -> Sheet | None:
        """None where there is no such file. Raises ConfigurationError for one of models that were made otherwise."""
        if not path.exists():
            return None
        content = json.loads(gzip.decompress(path.read_bytes()))
        about = (content.get("format"), content.get("truth"), content["made_with"])
        if about != (FORMAT, TRUTH_VERSION, plain(config.made_with())):
            raise ConfigurationError(
                f"{path} is of other models than {config.name} has now, or of another measure of what attacks reach",
                hint="name another folder with --out, or remove it",
            )
        wanted, names = set(plans(config, base)), content["measures"]
        entries = []
        for raw in content["models"]:
            plan, values = Plan(**raw.pop("plan")), raw.pop("values")
            measures = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            if plan in wanted:
                entries.append(Entry(plan, measures=measures, **raw))
        return cls(base, content["made_with"], content["hardware"], content["versions"], entries)


def path_of(results: Path, config: Config, base: int) -> Path:
    return results / "scores" / f"{config.name}-{base}.json.gz"


def merged(columns: Mapping[str, Any]) -> dict[str, float]:
    """All measures of one model; those of a reduced probe bank under `<column>|<measure>`."""
    found: dict[str, float] = {}
    for key, column in columns.items():
        prefix = f"{key}|" if key.startswith(BANK) and key != BANK else ""
        found |= {prefix + name: float(value) for name, value in column["measures"].items()}
    return found


def stratum(data: Mapping[str, Any]) -> str:
    """The first of these that an honest contributor is: other device, noisy labels, frozen layer, other optimiser, strong or
    mild skew, none of it."""
    if data.get("corruption"):
        return "other device"
    if data.get("wrong_labels"):
        return "label noise"
    if data["options"]["frozen_layers"]:
        return "frozen layer"
    if data["options"]["optimiser"] != "sgd":
        return "other optimiser"
    alpha = data.get("alpha")
    if alpha is None:
        return "as the pool"
    return "strong skew (alpha < 0.5)" if alpha < 0.5 else "mild skew"


def plain(made_with: Mapping[str, Any]) -> Any:
    """As it is read back from JSON."""
    return json.loads(json.dumps(made_with))


def _short(value: float) -> float:
    """
    >>> _short(0.12345678), _short(123456789.0)
    (0.123457, 123457000.0)
    """
    return float(f"{value:.6g}") if math.isfinite(value) else value
