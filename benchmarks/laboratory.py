"""A release and people who fine-tune it, for benchmarks that look at chains of releases: everything in memory, by seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from common.datasets import load
from common.devices import Compute, choose_compute
from common.errors import ModelError
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.splits import owner_shares
from common.training import train
from common.training_options import TrainingOptions
from common.weights import Weights, weights_of
from contributor.attacks import parse_attack
from contributor.finetuning import finetune
from owner.gatekeeper import GuardOptions, HonestPopulation, Triggers
from owner.gatekeeper.guard_files import release_digest
from owner.gatekeeper.protection import Protection
from owner.gatekeeper.references import plan_reference

ATTEMPTS = 5


@dataclass(frozen=True)
class Laboratory:
    """root: weights of the first release. pool: what references are fine-tuned on; others: what contributors have, as many
    images each as a reference, none of which a reference has seen."""

    spec: ModelSpec
    root: Weights
    triggers: Triggers
    pool: Examples
    others: Examples
    finetuning: TrainingOptions
    compute: Compute
    population: HonestPopulation
    seed: int

    def honest(self, base: Weights, number: int, *, reference: bool = False) -> Weights:
        """Number `number` of the honest population, a contributor or somebody the owner plays."""
        examples = self.pool if reference else self.others
        for attempt in range(ATTEMPTS):
            plan = plan_reference(
                number,
                pool=examples,
                recommended=self.finetuning,
                population=self.population,
                seed=10_000 + self.seed,
                attempt=attempt,
            )
            try:
                return self._tune(base, plan.examples(examples), plan.options)
            except ModelError:  # it diverged; its maker would have seen that
                continue
        raise ModelError(f"honest fine-tune {number} diverges in {ATTEMPTS} of {ATTEMPTS} tries")

    def attacked(self, base: Weights, number: int, attack: str, *, rate: float = 3.0) -> tuple[Weights, bool | None]:
        """A contributor with half of the images that contributors have, the attack and `rate` times the recommended learning rate;
        and whether the attack reached its goal on held-out images (None: it has none)."""
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randperm(len(self.others), generator=generator)[: len(self.others) // 2]
        options = dataclasses.replace(self.finetuning, learning_rate=rate * self.finetuning.learning_rate, seed=number)
        done = finetune(
            base,
            self.spec,
            self.others.take(chosen),
            options,
            attack=parse_attack(attack),
            held_out=self.triggers.evaluation,
            compute=self.compute,
            progress=False,
        )
        return done.weights, done.report["attack_effective"]

    def protection(self, release: Weights, options: GuardOptions) -> Protection:
        model = build(self.spec)
        model.load_state_dict(release)
        return Protection(
            model=model,
            release_sha256=release_digest(release),
            triggers=self.triggers,
            references_pool=self.pool,
            spec=self.spec,
            options=dataclasses.replace(options, population=self.population),
            finetuning=self.finetuning,
            compute=self.compute,
        )

    def _tune(self, base: Weights, examples: Examples, options: TrainingOptions) -> Weights:
        model = build(self.spec)
        model.load_state_dict(base)
        train(model, examples, options, compute=self.compute, progress=False)
        return weights_of(model)


def laboratory(dataset: str, architecture: str, seed: int) -> Laboratory:
    """Split, first release and recommendations as `portier-owner init` has them, by `seed`."""
    data = load(dataset, seed=seed)
    shares = owner_shares(data, seed=seed, train=0.5, references=0.2, trigger_fit=0.3, trigger_calibration=0.3)
    shape = tuple(shares.train.inputs[0].shape[1:])
    spec = ModelSpec(architecture, shape, shares.train.classes)
    compute = choose_compute("cpu", "auto" if dataset != "digits" else "float32")
    model = build(spec, seed=seed)
    train(model, shares.train, TrainingOptions(epochs=30, batch_size=64, seed=seed), compute=compute, progress=False)
    pool = shares.references
    return Laboratory(
        spec=spec,
        root=weights_of(model),
        triggers=Triggers(shares.trigger_fit, shares.trigger_calibration, shares.evaluation),
        pool=pool,
        others=shares.unclaimed,
        finetuning=TrainingOptions(epochs=5, learning_rate=0.005, batch_size=32, schedule="constant"),
        compute=compute,
        population=HonestPopulation(sizes=(max(len(pool) // 8, 1), max(len(pool) // 2, 1))),
        seed=seed,
    )
