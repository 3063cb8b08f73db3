"""How often the comparison with the root release holds honest work, after one release and after ten.

A would-be release that is n merges away from the root is compared with references that are one fine-tune away from it. Here n
honest contributors follow each other, each fine-tuned from the release before it and merged with weight 1/2, and each
would-be release is ranked among three kinds of references of the root:

    single   the guard's own: one fine-tune, not merged (what Portier does)
    chain    n fine-tunes after each other, merged in the same way: exchangeable with the honest chain, K x n fine-tunes
    sum      the root + 1/2 of the sum of n of the guard's single updates: no training at all
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.laboratory import Laboratory, laboratory
from benchmarks.rates import clopper_pearson
from common.models import build
from common.weights import Weights
from owner.detectors import Evidence
from owner.detectors.base import forward_of
from owner.gatekeeper import GuardOptions, merge
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.rules import p_value

KINDS = ("single", "chain", "sum")
LEVEL = 0.10
"""Default quarantine level, at which the comparison with the root holds."""


def measure(seeds: int, releases: int, chains: int, *, detectors: str, architecture: str) -> dict[str, Any]:
    """p-values by kind and distance: over `seeds` bases with `chains` honest chains each."""
    found: dict[str, list[list[float]]] = {kind: [[] for _ in range(releases)] for kind in KINDS}
    for seed in range(seeds):
        one = _one_base(laboratory("digits", architecture, 1000 + seed), releases, chains, detectors)
        for kind, rows in one.items():
            for distance, values in enumerate(rows):
                found[kind][distance] += values
    return {
        "architecture": architecture,
        "detectors": detectors,
        "bases": seeds,
        "chains": seeds * chains,
        "level": LEVEL,
        "held": {kind: [_rate(values) for values in rows] for kind, rows in found.items()},
    }


def _rate(values: list[float]) -> dict[str, Any]:
    held = sum(p <= LEVEL for p in values)
    return {"held": held, "n": len(values), "ci": clopper_pearson(held, len(values))}


def _one_base(lab: Laboratory, releases: int, chains: int, detectors: str) -> dict[str, list[list[float]]]:
    options = GuardOptions(detectors=(detectors,))
    guard = lab.protection(lab.root, options).fit(progress=False).with_release(lab.root)
    count = options.references
    updates = [
        {name: tuned - lab.root[name] for name, tuned in lab.honest(lab.root, number, reference=True).items()}
        for number in range(count)
    ]
    played = [lab.root] * count
    honest = [lab.root] * chains
    out: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for distance in range(1, releases + 1):
        played = [
            _merged(release, lab.honest(release, 1000 * distance + k, reference=True))
            for k, release in enumerate(played)
        ]
        honest = [_merged(release, lab.honest(release, 1000 * distance + k)) for k, release in enumerate(honest)]
        # Each starts at another update, so that no two sums are equal where fewer than all are summed.
        sums = [_summed(lab.root, [updates[(k + i) % count] for i in range(distance)]) for k in range(count)]
        judged = [_score(lab, guard, release) for release in honest]
        among = {
            "single": [_headline(guard, reference.scores) for reference in guard.references],
            "chain": [_score(lab, guard, release) for release in played],
            "sum": [_score(lab, guard, release) for release in sums],
        }
        for kind in KINDS:
            out[kind].append([p_value(score, among[kind]) for score in judged])
    return out


def _headline(guard: Guard, scores: Mapping[str, float]) -> float:
    return guard.combination.score(scores) if guard.combined else scores[next(iter(guard.detectors))]


def _score(lab: Laboratory, guard: Guard, weights: Weights) -> float:
    model = build(lab.spec)
    model.load_state_dict(weights)
    calibration = guard.calibration

    forward = forward_of(model, head=guard.head, compute=lab.compute)
    seen = forward(calibration.inputs)
    evidence = Evidence(
        seen.features,
        seen.logits,
        calibration.labels,
        weights,
        guard.release_evidence,
        forward,
        calibration.inputs,
        network=model,
        compute=lab.compute,
    )
    return _headline(guard, guard.measure(evidence))


def _merged(release: Weights, returned: Weights) -> Weights:
    return merge("average", release, release, returned, 0.5)


def _summed(root: Weights, updates: list[dict[str, torch.Tensor]]) -> Weights:
    out = {}
    for name, tensor in root.items():
        if not tensor.is_floating_point():
            out[name] = tensor.clone()
            continue
        moved = tensor.double() + 0.5 * torch.stack([update[name].double() for update in updates]).sum(0)
        out[name] = (moved.clamp(min=0) if name.endswith("running_var") else moved).to(tensor.dtype)
    return out
