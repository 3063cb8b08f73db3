"""The paper's detection: an auto-encoder on M's penultimate activations over the test set, Eq. 4's threshold, every verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from common.weights import load as load_weights
from owner.detectors import ActivationAutoEncoder, AutoEncoderOptions, Evidence
from owner.gatekeeper.histograms import counts
from owner.gatekeeper.rules import judge_by_seed, seed_threshold
from owner.gatekeeper.verdict import Decision
from owner.reproduce.engine import Engine
from owner.reproduce.images import Images
from owner.reproduce.records import Record, Work
from owner.reproduce.settings import HonestEpochs, Settings
from owner.reproduce.steps import Step

BINS = 80


def run_detection(step: Step, engine: Engine, images: Images, settings: Settings, work: Work) -> Record:
    """E_MSE of M and of every fine-tune of it, with histograms, and Eq. 4's verdicts on them."""
    durations = ("short",) if step.group == "part" else ("short", "long")
    evidence = evidence_of_all(step, durations, engine, images, work)
    detector = ActivationAutoEncoder(options_of(settings, step)).fit(evidence[step.base])
    errors = {name: detector.image_scores(seen) for name, seen in evidence.items()}
    edges = even_edges(torch.cat(list(errors.values())))
    honest = {duration: errors[f"honest-{duration}"] for duration in durations}
    return {
        "of": {name: work.digests(step.sibling(name)) for name in step.needs},
        "features": int(evidence[step.base].features.shape[1]),
        "triggers": len(images.test),
        "models": {name: described(e) | {"counts": counts(e, edges)} for name, e in errors.items()},
        "edges": [float(f"{edge:.6g}") for edge in edges],
        "thresholds": {duration: seed_threshold(e) for duration, e in honest.items()},
        "verdicts": verdicts(errors, honest, settings.honest_epochs),
    }


def evidence_of_all(
    step: Step, durations: Sequence[str], engine: Engine, images: Images, work: Work
) -> dict[str, Evidence]:
    """What every model shows on the test set, M (by the name of its step) first: `genuine`, `honest-short`, `flip-short` ..."""
    names: dict[str, str] = {step.base: step.base}
    names |= {
        f"{kind}-{duration}": f"{made}-{duration}" for kind, made in step.judged.items() for duration in durations
    }
    found: dict[str, Evidence] = {}
    for name, weights in names.items():
        engine.load(load_weights(work.weights_path(step, weights)))
        seen = engine.observe(images.test.inputs)
        found[name] = Evidence(seen.features, seen.logits, images.test.labels)
    return found


def options_of(settings: Settings, step: Step) -> AutoEncoderOptions:
    return AutoEncoderOptions(settings.hidden, settings.latent, settings.ae_epochs, seed=step.seed)


def even_edges(errors: Tensor, bins: int = BINS) -> list[float]:
    """bins + 1 edges, evenly spaced in log10 from the smallest to the largest positive error.

    >>> [round(edge, 2) for edge in even_edges(torch.tensor([1.0, 100.0]), bins=2)]
    [1.0, 10.0, 100.0]
    """
    e = errors.double()
    e = e[(e > 0) & torch.isfinite(e)]
    low, high = (math.log10(float(v)) for v in (e.min(), e.max())) if len(e) else (0.0, 1.0)
    return [float(edge) for edge in torch.logspace(low, max(high, low + 1e-3), bins + 1, dtype=torch.float64)]


def verdicts(
    errors: Mapping[str, Tensor], honest: Mapping[str, Tensor], honest_epochs: HonestEpochs
) -> dict[str, dict[str, Any]]:
    """By Eq. 4, of each attacked model and of an honest one of another run (`again`); of M_f itself against the M_f of the other
    duration, the only honest comparison that one run leaves open.

    errors: e_i of each model, (N,). honest: of M_f by duration.

    >>> honest = {"short": torch.tensor([1.0, 3.0]), "long": torch.tensor([2.0, 2.0])}
    >>> verdicts({"flip-short": torch.tensor([3.0, 3.5])}, honest, "as-attack")["flip-short"]
    {'score': 3.25, 'threshold': 3.0, 'detected': True, 'deviations': 1.25}
    """
    found = {}
    for name, e in errors.items():
        kind, _, duration = name.partition("-")
        if kind in {"flip", "pattern", "again"}:
            judge = duration if honest_epochs == "as-attack" or honest_epochs not in honest else honest_epochs
        elif kind == "honest" and len(honest) > 1:
            judge = "long" if duration == "short" else "short"
        else:
            continue
        found[name] = _verdict(e, honest[judge])
    return found


def _verdict(errors: Tensor, honest: Tensor) -> dict[str, Any]:
    score, threshold = float(errors.mean()), seed_threshold(honest)
    deviation = float(honest.double().std(correction=0))
    away = (score - float(honest.double().mean())) / deviation if deviation > 0 else math.inf
    return {
        "score": score,
        "threshold": threshold,
        "detected": judged_by_equation_4(score, threshold),
        "deviations": away if math.isfinite(away) else None,
    }


def judged_by_equation_4(score: float, threshold: float) -> bool:
    """Whether the paper's rule rejects."""
    return judge_by_seed(score, threshold).decision is Decision.REJECTED


def described(errors: Tensor) -> dict[str, float]:
    """mean (E_MSE), standard deviation, median, and two numbers that are 0 of a Gaussian: skewness and excess kurtosis.

    >>> described(torch.tensor([1.0, 3.0]))["mean"]
    2.0
    """
    e = errors.double()
    mean, deviation = e.mean(), e.std(correction=0)
    z = (e - mean) / deviation.clamp_min(torch.finfo(torch.float64).tiny)
    return {
        "mean": float(mean),
        "std": float(deviation),
        "median": float(e.median()),
        "skewness": float(z.pow(3).mean()),
        "excess_kurtosis": float(z.pow(4).mean() - 3),
    }
