"""Surrogates are the same coordinates of every model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.errors import GuardError, ModelError
from owner.federated.surrogates import Surrogates


def layers() -> dict[str, torch.Tensor]:
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) + 100.0 * i)
    return dict(network.state_dict())


def test_the_seed_fixes_the_coordinates() -> None:
    weights = layers()
    rows = [Surrogates(weights, size=9, seed=seed).of([weights])[0].tolist() for seed in (1, 1, 2)]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]
    assert len(set(rows[0])) == 9


def test_all_coordinates_are_the_trained_tensors_in_order() -> None:
    weights = layers()
    trained = [n for n in weights if "running" not in n and "num_batches" not in n]
    assert (
        Surrogates(weights, size=None, seed=0)
        .of([weights])[0]
        .equal(torch.cat([weights[n].flatten() for n in trained]))
    )


@pytest.mark.parametrize("size", [None, 10_000])
def test_nothing_is_drawn_where_all_coordinates_are_taken(size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network of millions of weights the order alone took longer than what was done with them."""
    monkeypatch.setattr(torch, "randperm", lambda *_args, **_named: pytest.fail("an order was drawn"))
    weights = layers()
    assert Surrogates(weights, size=size, seed=0).of([weights, weights]).shape == (2, 63)


def test_weight_tensors_are_matrices_alone() -> None:
    weights = layers()
    surrogates = Surrogates(weights, size=10_000, seed=0, which="matrices")
    assert surrogates.of([weights])[0].equal(torch.cat([weights["0.weight"].flatten(), weights["2.weight"].flatten()]))


def test_another_layout_is_refused() -> None:
    weights = layers()
    with pytest.raises(GuardError, match=r"0\.weight"):
        Surrogates(weights, size=4, seed=0).of([{**weights, "0.weight": torch.zeros(6, 5)}])


def test_a_model_without_trained_tensors_is_refused() -> None:
    with pytest.raises(ModelError, match="no trained tensors"):
        Surrogates({"steps": torch.tensor(3)}, size=4, seed=0)
