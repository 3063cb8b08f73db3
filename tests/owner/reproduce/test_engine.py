"""Compiling: once an architecture, and in the surroundings that training has."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from common.devices import choose_compute
from common.examples import Examples
from common.model_spec import ModelSpec
from common.training_options import TrainingOptions
from owner.reproduce.engine import Engine

CPU = choose_compute("cpu", "float32")
OPTIONS = TrainingOptions(epochs=2, batch_size=8, learning_rate=0.01)


def train(engine: Engine) -> None:
    images = torch.arange(16 * 64).remainder(256).to(torch.uint8).view(16, 1, 8, 8)
    examples = Examples((images,), torch.tensor([0, 1] * 8), ("a", "b"))
    engine.start(0)
    engine.train(examples, OPTIONS, checkpoint=None, label="training", progress=False)


def test_a_network_is_compiled_once_for_all_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each further graph would cost a minute, and an error of the compiler while training nothing would catch."""
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="eager"))
    counters.clear()
    engine = Engine(ModelSpec("cnn", (1, 8, 8), 2), CPU, compile="on")
    train(engine)
    train(engine)
    assert engine.compiled
    assert counters["stats"]["unique_graphs"] == 1


def test_a_compiler_that_fails_is_an_error_where_compiling_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no compiler")

    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=broken))
    engine = Engine(ModelSpec("cnn", (1, 8, 8), 2), CPU, compile="on")
    with pytest.raises(Exception, match="no compiler"):
        train(engine)
