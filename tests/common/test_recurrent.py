"""The recurrent classifier is torch's GRU between word vectors and a head, and learns what order means."""

from __future__ import annotations

import pytest
import torch

from common.devices import choose_compute
from common.errors import ModelError
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.recurrent import Gru
from common.training import evaluate, train
from common.training_options import TrainingOptions


def ordered(count: int = 400, length: int = 6) -> Examples:
    """Class 1 where word 5 comes before word 6, class 0 where it comes after; both occur once, in padding and other words."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    texts = torch.randint(10, 30, (count, length), generator=draws)
    places = torch.stack([torch.randperm(length, generator=draws)[:2].sort().values for _ in range(count)])
    texts[torch.arange(count), places[:, 0]] = torch.where(labels == 1, 5, 6)
    texts[torch.arange(count), places[:, 1]] = torch.where(labels == 1, 6, 5)
    return Examples((torch.cat([torch.zeros(count, 3, dtype=torch.int64), texts], 1),), labels, ("after", "before"))


def test_the_state_after_the_last_word_is_a_gated_recurrent_units_by_its_equations() -> None:
    torch.manual_seed(0)
    model = Gru(2, words=9, vectors=3, width=4)
    numbers = torch.tensor([[0, 3, 8, 2]])
    reset_in, update_in, new_in = model.gru.weight_ih_l0.chunk(3)
    reset_h, update_h, new_h = model.gru.weight_hh_l0.chunk(3)
    bias_in, bias_h = model.gru.bias_ih_l0.chunk(3), model.gru.bias_hh_l0.chunk(3)
    h = torch.zeros(4)
    for x in model.embedding(numbers)[0]:
        reset = torch.sigmoid(reset_in @ x + bias_in[0] + reset_h @ h + bias_h[0])
        update = torch.sigmoid(update_in @ x + bias_in[1] + update_h @ h + bias_h[1])
        new = torch.tanh(new_in @ x + bias_in[2] + reset * (new_h @ h + bias_h[2]))
        h = (1 - update) * new + update * h
    torch.testing.assert_close(model(numbers)[0], model.head.weight @ h + model.head.bias)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns_what_no_bag_of_words_can(precision: str) -> None:
    compute, examples = choose_compute("cpu", precision), ordered()
    model = build(ModelSpec("gru", examples.input_shape, 2), seed=0)
    options = TrainingOptions(epochs=20, learning_rate=0.01, batch_size=32, optimiser="adam")
    train(model, examples, options, compute=compute, progress=False)
    assert evaluate(model, examples, compute=compute).accuracy > 0.95


def test_padding_has_no_vector_of_its_own_to_learn() -> None:
    examples = ordered(64)
    model = build(ModelSpec("gru", examples.input_shape, 2), seed=0)
    train(model, examples, TrainingOptions(epochs=1), compute=choose_compute("cpu", "float32"), progress=False)
    assert not bool(model.get_submodule("embedding").get_parameter("weight")[0].any())


def test_a_number_beyond_the_vocabulary_is_a_model_error() -> None:
    few = Examples((torch.full((4, 3), 10_000),), torch.tensor([0, 1, 0, 1]), ("a", "b"))
    with pytest.raises(ModelError, match="does not run on inputs"):
        evaluate(build(ModelSpec("gru", (3,), 2)), few, compute=choose_compute("cpu", "float32"))
