"""Evidence: a model is run once for each thing that is asked of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from common.activations import Activations
from common.devices import choose_compute
from common.errors import GuardError, ModelError
from common.examples import Examples
from owner.detectors import AutoEncoderOptions, Evidence, UpdateNorm, gather_evidence, measures_of, standard_detectors


def evidence(calls: list[int] | None = None) -> Evidence:
    """Of a model that gives its inputs back, and notes in `calls` how many it was shown."""

    def forward(inputs: tuple[Tensor, ...]) -> Activations:
        assert calls is not None
        calls.append(len(inputs[0]))
        return Activations(inputs[0], inputs[0])

    return Evidence(
        torch.zeros(2, 3),
        torch.zeros(2, 3),
        torch.zeros(2, dtype=torch.int64),
        forward=None if calls is None else forward,
    )


def test_a_probe_is_computed_once_and_shared() -> None:
    calls: list[int] = []
    shown = evidence(calls)
    first = shown.probe("noise", lambda: (torch.ones(5, 3),))
    assert shown.probe("noise", lambda: (torch.zeros(9, 3),)) is first
    assert calls == [5]


def test_two_sets_of_weights_are_compared_without_a_guard() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    clean = Examples((torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8),), torch.arange(30) % 3, ("a", "b", "c"))
    doubled = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    shown = gather_evidence(model, clean, compute=choose_compute("cpu", "float32"))
    other = gather_evidence(model, clean, weights=doubled, release=shown)
    assert UpdateNorm().fit(shown).score(other) == pytest.approx(1)
    assert torch.equal(model.state_dict()["1.weight"] * 2, doubled["1.weight"])
    for detector in standard_detectors(AutoEncoderOptions(hidden=8, latent=2, epochs=1)):
        assert all(map(math.isfinite, measures_of(detector.fit(shown), other).values()))
    with pytest.raises(ModelError, match="the weights are not of this model"):
        gather_evidence(model, clean, weights={"1.weight": torch.zeros(2)})


def test_a_probe_without_the_model_is_a_clear_error() -> None:
    with pytest.raises(GuardError, match="'noise' needs the model"):
        evidence().probe("noise", lambda: (torch.zeros(1, 3),))


def test_probes_that_are_not_known_yet_run_together() -> None:
    calls: list[int] = []
    shown = evidence(calls)
    known = shown.probe("b", lambda: (torch.full((2, 3), 7.0),))
    found = shown.probes(
        ["a", "b", "c"], lambda missing: (torch.arange(12.0).view(4, 3) if missing == ["a", "c"] else torch.zeros(0),)
    )
    assert calls == [2, 4]
    assert found["b"] is known
    assert found["a"].logits.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["c"].logits.tolist() == [[6, 7, 8], [9, 10, 11]]


def test_probe_outputs_that_a_guard_stored_need_no_model() -> None:
    stored = {"a": Activations(torch.ones(1, 3), torch.ones(1, 3))}
    shown = Evidence(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), probed=stored)
    assert shown.probe("a", lambda: ()) is stored["a"]


def test_probes_that_cannot_share_their_inputs_evenly_are_refused() -> None:
    with pytest.raises(GuardError, match="evenly"):
        evidence([]).probes(["a", "b"], lambda _missing: (torch.zeros(3, 3),))
