"""A small release and its guard, made once: scikit-learn's digits, an mlp in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.datasets import load, save_examples
from common.devices import Compute
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.splits import OwnerShares, owner_shares
from common.training import train
from common.training_options import TrainingOptions
from common.weights import Weights, save
from owner.gatekeeper import Gatekeeper, GuardOptions, Triggers
from owner.gatekeeper.fitting import FittingJob

COMPUTE = Compute(torch.device("cpu"), torch.float32)
SPEC = ModelSpec("mlp", (1, 8, 8), 10)
FINETUNING = TrainingOptions(epochs=2, learning_rate=0.005, batch_size=32, schedule="constant")
OPTIONS = GuardOptions(
    detectors=("paper",), references=9, reject_level=0.1, quarantine_level=0.1, hidden=64, latent=16, epochs=20
)


@dataclass(frozen=True)
class Bench:
    """Everything a test needs of one protected release."""

    shares: OwnerShares
    triggers: Triggers
    model: nn.Module
    gatekeeper: Gatekeeper
    guard: Path
    release: Path

    @property
    def weights(self) -> Weights:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def honest(self, examples: Examples | None = None, **changes: float) -> nn.Module:
        """The release, fine-tuned as recommended (but for `changes`) on images it has not seen."""
        model = build(SPEC)
        model.load_state_dict(self.model.state_dict())
        options = TrainingOptions(**{**FINETUNING.to_json(), "seed": 11, **changes})
        train(model, examples or self.shares.unclaimed, options, compute=COMPUTE, progress=False)
        return model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose more to threads waiting for each other than they gain, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shares() -> OwnerShares:
    return owner_shares(load("digits"), seed=0, train=0.5, references=0.3, trigger_fit=0.35, trigger_calibration=0.3)


@pytest.fixture(scope="session")
def bench(shares: OwnerShares, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("gatekeeper")
    model = build(SPEC, seed=0)
    train(model, shares.train, TrainingOptions(epochs=12, batch_size=32), compute=COMPUTE, progress=False)
    triggers = Triggers(shares.trigger_fit, shares.trigger_calibration, shares.evaluation)
    gatekeeper = Gatekeeper.protect(
        model,
        triggers,
        references_pool=shares.references,
        spec=SPEC,
        options=OPTIONS,
        finetuning=FINETUNING,
        compute=COMPUTE,
        progress=False,
    )
    gatekeeper.save(folder / "guard")
    save(folder / "release.safetensors", model.state_dict())
    return Bench(shares, triggers, model, gatekeeper, folder / "guard", folder / "release.safetensors")


STANDARD = GuardOptions(
    detectors=("standard",),
    fitting_references=6,
    references=9,
    reject_level=0.1,
    quarantine_level=0.1,
    hidden=64,
    latent=16,
    epochs=20,
)


def protect(bench: Bench, options: GuardOptions, **changes: Any) -> Gatekeeper:
    """The release of `bench` under a guard of these options."""
    return Gatekeeper.protect(
        bench.model,
        bench.triggers,
        references_pool=bench.shares.references,
        spec=SPEC,
        finetuning=FINETUNING,
        options=options,
        compute=COMPUTE,
        progress=False,
        **changes,
    )


def with_standard_detectors(bench: Bench, options: GuardOptions = STANDARD, **changes: Any) -> Gatekeeper:
    """The release of `bench` under every standard detector, combined."""
    return protect(bench, options, **changes)


def fitting_job(bench: Bench, folder: Path, options: GuardOptions) -> FittingJob:
    """Of the guard of `bench`'s release with these options, in `folder`, which gets the examples files too."""
    shares = bench.shares
    parts = {
        "trigger_fit": shares.trigger_fit,
        "trigger_calibration": shares.trigger_calibration,
        "evaluation": shares.evaluation,
        "references_pool": shares.references,
    }
    for name, examples in parts.items():
        save_examples(folder / f"{name}.safetensors", examples)
    return FittingJob(
        weights=bench.release,
        directory=folder / "guard",
        spec=SPEC,
        options=options,
        finetuning=FINETUNING,
        compute=COMPUTE,
        **{name: folder / f"{name}.safetensors" for name in parts},
    )


@pytest.fixture(scope="session")
def combined(bench: Bench) -> Gatekeeper:
    return with_standard_detectors(bench)
