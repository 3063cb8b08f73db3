"""The calibrated gate beside the paper's rule: M of a part of the training set, K honest references on images M has not seen.

One guard tells three things of a model: what the gate of all standard detectors decides, the rank of the paper's own score
among the same references, and Eq. 4 with the same honest fine-tune. So what calibration and what the other detectors add
can be told apart.

Two groups are vetted. *contribution*: fine-tuned on the contributor's own unseen images, half of which of the source class are
attacked; a contributor's work, as the references assume. *whole*: fine-tuned on the whole training set as in the paper (the
models of Fig. 6), far longer than any reference.
"""

from __future__ import annotations

from typing import Any

from common.weights import load as load_weights
from owner.detectors import ActivationAutoEncoder
from owner.gatekeeper import Gatekeeper
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.rules import seed_threshold
from owner.gatekeeper.triggers import split_triggers
from owner.gatekeeper.verdict import Verdict
from owner.population import HonestPopulation
from owner.reproduce.detection import judged_by_equation_4
from owner.reproduce.engine import Engine
from owner.reproduce.images import Images
from owner.reproduce.records import Record, Work
from owner.reproduce.settings import Settings
from owner.reproduce.steps import KINDS, Step

SMOKE_REFERENCES = 4


def run_gate(
    step: Step, engine: Engine, images: Images, settings: Settings, work: Work, *, progress: bool | None
) -> Record:
    """Fits a guard for M of the part (resumable by reference), then vets what there is."""
    pool = images.references_pool(step.architecture, step.seed)
    short, _ = settings.durations(step.architecture)
    finetuning = settings.finetuning(step.architecture, step.seed)
    engine.load(load_weights(work.weights_path(step, "part")))
    gatekeeper = Gatekeeper.protect(
        engine.model,
        split_triggers(images.test, seed=step.seed),
        references_pool=pool,
        spec=engine.spec,
        finetuning=type(finetuning).from_json(finetuning.to_json() | {"epochs": short}),
        options=_options(settings, len(pool), step.seed),
        compute=engine.compute,
        utility=None,  # every p is told, whatever the model is worth
        directory=work.folder(step) / "gate",
        progress=progress,
        on_reference=lambda _done, _total, _scores: engine.check_deadline(),
    )
    guard, name = gatekeeper.guard, ActivationAutoEncoder.name
    threshold = seed_threshold(guard.owner_finetune.image_errors[name])
    verdicts = {}
    vetted = [f"contribution-{kind}" for kind in KINDS]
    vetted += [
        f"part-{kind}" for kind in KINDS if work.is_sound(step.sibling(f"part-{kind}"))
    ]  # Fig. 6's, where they are
    for made in map(step.sibling, vetted):
        group = "contribution" if made.group == "contribution" else "whole"
        for model in made.models:
            case = f"{group}-{model.removeprefix(f'{made.group}-')}"
            verdicts[case] = _told(gatekeeper.vet(load_weights(work.weights_path(step, model))), threshold)
    return {
        "of": {made: work.digests(step.sibling(made)) for made in dict.fromkeys((*step.needs, *vetted))},
        "references": len(guard.references),
        "reference_images": len(pool),
        "options": guard.options.to_json(),
        "detectors": sorted(guard.detectors),
        "reference_scores": [reference.scores[name] for reference in guard.references],
        "equation_4_threshold": threshold,
        "verdicts": verdicts,
    }


def _options(settings: Settings, pool: int, seed: int) -> GuardOptions:
    """References of half to all of the pool, which is as large as a contributor's share."""
    population = HonestPopulation(sizes=(max(1, pool // 2), pool))
    if settings.smoke:
        level = 1 / (SMOKE_REFERENCES + 1)
        return GuardOptions(
            references=SMOKE_REFERENCES,
            fitting_references=SMOKE_REFERENCES,
            reject_level=level,
            quarantine_level=level,
            seed=seed,
            epochs=settings.ae_epochs,
            population=population,
        )
    return GuardOptions(
        references=settings.references,
        seed=seed,
        hidden=settings.hidden,
        latent=settings.latent,
        epochs=settings.ae_epochs,
        population=population,
    )


def _told(verdict: Verdict, threshold: float) -> dict[str, Any]:
    """What a report needs of a verdict; `detected` is the paper's rule, on the same guard's own fine-tune."""
    paper = verdict.measurements.get("detectors", {}).get(ActivationAutoEncoder.name, {})
    score = paper.get("score")
    return {
        "decision": verdict.decision.value,
        "codes": list(verdict.codes),
        "p_value": verdict.p_value,
        "resolution": verdict.resolution,
        "fpr_bound_95": verdict.fpr_bound_95,
        "score": score,
        "score_p_value": paper.get("p_value"),
        "detected": None if score is None else judged_by_equation_4(score, threshold),
    }
