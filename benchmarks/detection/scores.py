"""Every detector's scores of every model. A detector that is new, or whose code or options changed, is scored; no model is trained.

Scores of one model stand in `<base>/scores/<name>.json`: by column, the measures of one detector and what they were made with.
A column is a detector, `probe-bank` once whole and once without each family's kinds of probes. Detectors of the escalation tier
follow gradients for seconds a model: they are scored where they are asked for, on a share of the models if need be.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.detection.config import Config
from benchmarks.detection.plans import Plan
from benchmarks.detection.zoo import Zoo
from common import canonical
from common.activations import find_head
from common.errors import ConfigurationError, UnknownNameError
from common.files import ensure_directory, write_atomically
from common.randomness import derived_seed
from common.weights import Weights
from owner.detectors import (
    ESCALATION,
    Detector,
    Evidence,
    ImageDetector,
    ProbeBank,
    measures_of,
    standard_detectors,
)
from owner.detectors.base import forward_of

Measures = dict[str, float]
BANK = "probe-bank"
PACKAGE = "owner.detectors"


@dataclass(frozen=True)
class Column:
    """key: of its scores. detector: unfitted."""

    key: str
    detector: Detector

    @property
    def version(self) -> str:
        """Digest of the detector's options and of all of the package of detectors that it is written with."""
        modules = {kind.__module__ for kind in type(self.detector).__mro__ if kind.__module__.startswith(PACKAGE)}
        sources = [inspect.getsource(sys.modules[name]) for name in sorted(written_with(modules))]
        return hashlib.sha256(canonical.encode([_options(self.detector), *sources])).hexdigest()[:16]


def written_with(modules: Iterable[str]) -> set[str]:
    """These modules and, to the last, those of the package of detectors that they import from.

    >>> sorted(written_with({"owner.detectors.predictions"}))[:3]
    ['owner.detectors.base', 'owner.detectors.comparison', 'owner.detectors.predictions']
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imported_by(name)
    return found


@functools.cache
def _imported_by(module: str) -> tuple[str, ...]:
    """Modules of the package of detectors, the package itself left out: it is the list of them all."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    named = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE)
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    ]
    return tuple(name for name in named if name != PACKAGE and name in sys.modules)


def without(kinds: Iterable[str]) -> str:
    """Key of the probe bank without these kinds.

    >>> without(("sinusoid",)), without(())
    ('probe-bank[-sinusoid]', 'probe-bank')
    """
    listed = ",".join(sorted(kinds))
    return f"{BANK}[-{listed}]" if listed else BANK


def columns(config: Config) -> list[Column]:
    """All that is scored: the standard detectors as an owner gets them by name, and the probe bank without some kinds."""
    found = [Column(detector.name, detector) for detector in standard_detectors()]
    removed = dict.fromkeys(tuple(sorted(family.probes)) for family in config.families if family.probes)
    found.extend(Column(without(kinds), ProbeBank(without=kinds)) for kinds in removed)
    return found


@dataclass(frozen=True)
class Slow:
    """Which detectors of the escalation tier are scored, and on which models.

    detectors: by name. share: of the models, drawn one by one by `seed` and their name, so that it is the same ones in every
    run, however many are there. Raises UnknownNameError, ConfigurationError.
    """

    detectors: tuple[str, ...] = ()
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.detectors:
            if name not in ESCALATION:
                raise UnknownNameError("detector of the escalation tier", name, ESCALATION)
        if not 0 < self.share <= 1:
            raise ConfigurationError(f"the share of models must be above 0 and at most 1, not {self.share:g}")

    def of(self, plan: Plan) -> tuple[str, ...]:
        """
        >>> half = Slow(("maximum-margin",), share=0.5)
        >>> 450 < sum(bool(half.of(Plan(0, "honest", number))) for number in range(1000)) < 550
        True
        """
        drawn = derived_seed(self.seed, f"slow {plan.base} {plan.name}") / 2**63
        return self.detectors if drawn < self.share else ()


class Scorer:
    """Detectors fitted on one base's M, and M's own evidence: what all its models are scored with."""

    def __init__(self, zoo: Zoo, base: int) -> None:
        self.zoo, self.base = zoo, base
        self.pools = zoo.pools(base)
        self.head = find_head(zoo.model(zoo.base(base)), tuple(t[:2] for t in self.pools.fit.inputs), zoo.spec.head)
        self.columns = [*columns(zoo.config), *(Column(name, kind()) for name, kind in ESCALATION.items())]
        fit = self._evidence(zoo.base(base), on_fit=True)
        self.fitted = {column.key: column.detector.fit(fit) for column in self.columns}
        self.release = self._evidence(zoo.base(base))
        self.versions = {column.key: column.version for column in self.columns}

    def score(self, plan: Plan, slow: Slow) -> dict[str, Any]:
        """Columns by key, those that are stored and current as they are, those that are asked for and not there made now."""
        path = self.zoo.scores_path(plan)
        stored: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        wanted = {key: self.versions[key] for key in self.versions if key not in ESCALATION or key in slow.of(plan)}
        missing = [key for key, version in wanted.items() if stored.get(key, {}).get("version") != version]
        if missing:
            evidence = self._evidence(self.zoo.weights(plan))
            for key in missing:
                started = time.perf_counter()
                measures = self._measures(self.fitted[key], evidence)
                seconds = round(time.perf_counter() - started, 4)
                stored[key] = {"version": self.versions[key], "measures": measures, "seconds": seconds}
            ensure_directory(path.parent)
            write_atomically(path, json.dumps(stored).encode())
        return {key: column for key, column in stored.items() if column["version"] == self.versions.get(key)}

    def _measures(self, detector: Detector, evidence: Evidence) -> Measures:
        found = measures_of(detector, evidence)
        if isinstance(detector, ImageDetector):  # for Eq. 4, whose threshold is mean + standard deviation over images
            found[f"{detector.name}/deviation"] = float(detector.image_scores(evidence).double().std(correction=0))
        return found

    def _evidence(self, weights: Weights, *, on_fit: bool = False) -> Evidence:
        model = self.zoo.model(weights)

        forward = forward_of(model, head=self.head, compute=self.zoo.compute)

        examples = self.pools.fit if on_fit else self.pools.calibration
        seen = forward(examples.inputs)
        return Evidence(
            seen.features,
            seen.logits,
            examples.labels,
            # In the model's order, as a guard has them: detectors of weights tell layers by it, and a file holds them in another one.
            weights={name: weights[name] for name in model.state_dict()},
            release=None if on_fit or not hasattr(self, "release") else self.release,
            forward=forward,
            inputs=examples.inputs,
            network=model,
            compute=self.zoo.compute,
        )


@functools.lru_cache(maxsize=2)
def _scorer(zoo: Zoo, base: int) -> Scorer:
    return Scorer(zoo, base)


def score(zoo: Zoo, plan: Plan, slow: Slow | None = None) -> dict[str, Any]:
    """Scores of one model, which must have been made, and what its attack reached. Detectors are fitted once a base and process."""
    zoo.truth(plan)
    return _scorer(zoo, plan.base).score(plan, slow or Slow())


def _options(detector: Detector) -> Any:
    options: Any = getattr(detector, "options", {})
    if callable(options):
        options = options()
    return json.loads(json.dumps(options if isinstance(options, dict) else dataclasses.asdict(options)))
