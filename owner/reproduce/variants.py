"""How far Eq. 4's verdicts depend on what the paper leaves open: other auto-encoders on the same models, no training but theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from owner.detectors import ActivationAutoEncoder
from owner.reproduce.detection import described, evidence_of_all, options_of
from owner.reproduce.engine import Engine
from owner.reproduce.images import Images
from owner.reproduce.records import Record, Work
from owner.reproduce.settings import Settings
from owner.reproduce.steps import Step

VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "another initialisation": {"seed": 1000},
    "a third initialisation": {"seed": 2000},
    "a quarter as wide": {"hidden": 1 / 4, "latent": 1 / 4},
    "twice as wide": {"hidden": 2, "latent": 2},
    "trained a quarter as long": {"epochs": 1 / 4},
    "trained four times as long": {"epochs": 4},
    "each feature standardised": {"scaling": "feature"},
}
"""Auto-encoders by what is other: numbers are factors, but for the seed, to which they are added."""


def run_variants(step: Step, engine: Engine, images: Images, settings: Settings, work: Work) -> Record:
    """Mean and deviation of every model's errors under every variant."""
    evidence = evidence_of_all(step, ("short", "long"), engine, images, work)
    base = options_of(settings, step)
    found = {}
    for name, changes in VARIANTS.items():
        new = {key: _changed(key, getattr(base, key), change) for key, change in changes.items()}
        options = dataclasses.replace(base, **new)
        detector = ActivationAutoEncoder(options).fit(evidence[step.base])
        errors = {model: described(detector.image_scores(seen)) for model, seen in evidence.items()}
        found[name] = {"options": dataclasses.asdict(options), "models": errors}
    return {"of": {name: work.digests(step.sibling(name)) for name in step.needs}, "variants": found}


def _changed(key: str, value: Any, change: Any) -> Any:
    if key == "seed":
        return value + change
    return change if isinstance(change, str) else max(1, round(value * change))
