"""The activation gate on what are no images: texts through a recurrent network."""

from __future__ import annotations

import torch

from common.devices import choose_compute
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.training import train
from common.training_options import TrainingOptions
from owner.gatekeeper import Gatekeeper, GuardOptions

CPU = choose_compute("cpu", "float32")


def texts(count: int, seed: int) -> Examples:
    """Two classes that use other words."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    inputs = torch.randint(2, 30, (count, 8), generator=draws) + 30 * labels[:, None]
    return Examples((inputs,), labels, ("low", "high"))


def test_an_honest_fine_tune_is_accepted_and_negated_weights_are_not() -> None:
    data, spec = texts(300, 0), ModelSpec("gru", (8,), 2)
    model = build(spec, seed=0)
    train(model, data, TrainingOptions(epochs=10, learning_rate=0.01, optimiser="adam"), compute=CPU, progress=False)
    tuning = TrainingOptions(epochs=2, learning_rate=0.002, optimiser="adam", batch_size=16, schedule="constant")
    guard = Gatekeeper.protect(
        model,
        texts(300, 1),
        references_pool=texts(300, 2),
        spec=spec,
        finetuning=tuning,
        options=GuardOptions(references=9, reject_level=0.1, quarantine_level=0.1),
        compute=CPU,
        progress=False,
    )
    honest = build(spec)
    honest.load_state_dict(model.state_dict())
    train(honest, texts(100, 3), tuning, compute=CPU, progress=False)
    weights = {key: tensor.detach().clone() for key, tensor in honest.state_dict().items()}
    assert guard.vet(weights).decision == "accepted"
    assert guard.vet({key: -tensor for key, tensor in weights.items()}).decision == "rejected"
