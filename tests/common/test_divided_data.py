"""Data that come divided among clients, and data that are no images: Synthetic, Vehicle, Sentiment140."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from common.datasets import DataSet, find, load, load_examples, part_of_original, save_examples
from common.datasets.synthetic import Synthetic, generate
from common.devices import choose_compute
from common.errors import ConfigurationError, DataError, UnknownNameError
from common.examples import Examples, join
from common.federation import FederatedTask
from common.model_spec import ModelSpec
from common.models import build
from common.training import evaluate, train
from common.training_options import TrainingOptions
from common.vocabulary import LENGTH, Vocabulary

CPU = choose_compute("cpu", "float32")
HELD = Path(os.environ.get("PORTIER_DATA", "/nowhere"))


def held(name: str) -> DataSet:
    if not (HELD / name.replace("-", "_")).is_dir():
        pytest.skip(f"$PORTIER_DATA holds no {name}")
    return load(name, data_dir=HELD)


def of_clients() -> Examples:
    return Examples((torch.arange(6)[:, None],), torch.tensor([0, 1] * 3), ("a", "b"), torch.tensor([4, 4, 7, 7, 7, 9]))


def test_whose_an_example_is_goes_with_it() -> None:
    assert of_clients().take(torch.tensor([5, 0])).clients.tolist() == [9, 4]  # type: ignore[union-attr]
    assert of_clients().with_labels(torch.ones(6, dtype=torch.int64)).clients is not None
    both = join(of_clients(), of_clients()).clients
    assert both is not None
    assert both.tolist() == [4, 4, 7, 7, 7, 9] * 2


def test_examples_joined_with_some_that_nobody_divided_are_nobodys() -> None:
    alone = Examples(of_clients().inputs, of_clients().labels, ("a", "b"))
    assert join(of_clients(), alone).clients is None


@pytest.mark.parametrize("clients", [torch.zeros(5, dtype=torch.int64), torch.zeros(6), torch.zeros(6, 1).long()])
def test_clients_of_another_shape_than_the_labels_are_refused(clients: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"clients must be int64 of shape \(6,\)"):
        Examples(of_clients().inputs, of_clients().labels, ("a", "b"), clients)


def test_clients_survive_a_file(tmp_path: Path) -> None:
    save_examples(tmp_path / "e.safetensors", of_clients())
    found = load_examples(tmp_path / "e.safetensors").clients
    assert found is not None
    assert found.tolist() == [4, 4, 7, 7, 7, 9]


def write(path: Path, labels: list[int], **columns: object) -> None:
    table = pa.table({**columns, "label": labels})
    features = {"label": {"_type": "ClassLabel", "names": ["bad", "good"]}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)


def test_a_column_of_clients_is_read(tmp_path: Path) -> None:
    vectors = pa.array([[float(i), 0.0] for i in range(8)], pa.list_(pa.float32(), 2))
    write(tmp_path / "train.parquet", [0, 1] * 4, features=vectors, client=[3, 3, 1, 1, 1, 0, 0, 0])
    data = load(str(tmp_path))
    whole = join(data.train, data.test)
    assert whole.clients is not None
    by_row = dict(zip(whole.inputs[0][:, 0].tolist(), whole.clients.tolist(), strict=True))
    assert [by_row[i] for i in range(8)] == [3, 3, 1, 1, 1, 0, 0, 0]


def test_a_column_of_clients_with_gaps_names_the_row(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 4, text=["a"] * 8, client=[0, None] * 4)
    with pytest.raises(DataError, match=r"row 1 of .* has no client"):
        load(str(tmp_path))


TRAIN = ["good good day", "bad bad day", "good film", "bad film"]
TEST = ["good bad strange", "strange day"]


def test_texts_become_numbers_by_the_words_of_the_training_part(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [1, 0, 1, 0], text=TRAIN)
    write(tmp_path / "test.parquet", [1, 0], text=TEST)
    data = load(str(tmp_path))
    assert data.train.class_names == ("bad", "good")
    assert torch.equal(data.train.inputs[0], Vocabulary.of(TRAIN).encode(TRAIN))
    assert data.test.inputs[0].shape == (2, LENGTH)
    assert data.test.inputs[0][0, -3:].tolist() == [3, 2, 1]


def test_words_of_held_out_texts_are_not_counted(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 8, text=[f"word{'abcdefghijklmnop'[i]} " * 3 for i in range(16)])
    data = load(str(tmp_path))
    assert int(data.train.inputs[0].min()) == 0
    assert not bool((data.train.inputs[0] == 1).any())
    assert data.test.inputs[0][:, -3:].unique().tolist() == [1]


def test_a_vocabulary_beside_the_texts_is_taken(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [1, 0, 1, 0], text=TRAIN)
    write(tmp_path / "test.parquet", [1, 0], text=TEST)
    (tmp_path / "vocabulary.txt").write_text("strange\nday\n")
    assert load(str(tmp_path)).test.inputs[0][:, -2:].tolist() == [[1, 2], [2, 3]]


def test_numbers_that_are_kept_are_of_the_same_texts_and_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("common.datasets.cache.WORTH_SECONDS", 0.0)
    write(tmp_path / "train.parquet", [1, 0, 1, 0], text=TRAIN)
    write(tmp_path / "test.parquet", [1, 0], text=TEST)
    first = load(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr("common.datasets.parquet.Vocabulary", None)
        again = load(str(tmp_path))
    assert torch.equal(again.train.inputs[0], first.train.inputs[0])
    assert torch.equal(again.test.inputs[0], first.test.inputs[0])
    (tmp_path / "vocabulary.txt").write_text("strange\nday\n")
    assert load(str(tmp_path)).test.inputs[0][:, -2:].tolist() == [[1, 2], [2, 3]]
    (tmp_path / "vocabulary.txt").unlink()
    write(tmp_path / "test.parquet", [1, 0], text=["good", "bad"])
    assert load(str(tmp_path)).test.inputs[0][:, -1].tolist() == [3, 2]


@pytest.mark.parametrize(
    ("texts", "says"),
    [(["a", None] * 8, "row 1 of .* has no text"), ([1, 2] * 8, "column text must hold texts, not int64")],
)
def test_a_column_of_texts_with_something_else_in_it_is_refused(tmp_path: Path, texts: list[object], says: str) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 8, text=texts)
    with pytest.raises(DataError, match=says):
        load(str(tmp_path))


def test_a_test_part_without_texts_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [1, 0, 1, 0], text=TRAIN)
    write(tmp_path / "test.parquet", [1, 0], sound=TEST)
    with pytest.raises(DataError, match=r"test\.parquet has no column `text`"):
        load(str(tmp_path))


def test_a_synthetic_data_set_is_fixed_by_its_name() -> None:
    first, again = load("synthetic:alpha=0.5,beta=0.5,clients=3"), load("Synthetic:clients=3,beta=0.5,alpha=0.5")
    assert first.name == "Synthetic(0.5, 0.5)"
    assert torch.equal(first.train.inputs[0], again.train.inputs[0])
    assert not torch.equal(first.train.inputs[0][0], load("synthetic:clients=3,seed=1").train.inputs[0][0])
    assert first.train.input_shape == (60,)
    assert first.train.classes == 10


def test_the_name_alone_is_the_data_set_of_the_paper() -> None:
    examples = generate(Synthetic())
    assert examples.clients is not None
    sizes = examples.clients.bincount()
    assert len(sizes) == 30
    assert int(sizes.min()) >= 50


def test_inputs_of_a_client_have_the_published_variances() -> None:
    examples = generate(Synthetic(clients=200))
    assert examples.clients is not None
    largest = int(examples.clients.bincount().argmax())
    variances = examples.inputs[0][examples.clients == largest].double().var(0).numpy()
    assert np.abs(variances / np.arange(1, 61) ** -1.2 - 1).max() < 0.2


def test_beta_is_how_far_the_clients_inputs_lie_apart() -> None:
    def apart(beta: float) -> float:
        examples = generate(Synthetic(beta=beta, clients=60))
        assert examples.clients is not None
        means = [float(examples.inputs[0][examples.clients == k].mean()) for k in range(60)]
        return float(np.std(means))

    # A client's mean over 60 inputs is N(B, 1 / 60) about its centre B ~ N(0, beta).
    assert apart(0.0) == pytest.approx(60**-0.5, rel=0.3)
    assert apart(3.0) == pytest.approx(3.0, rel=0.3)


def test_alpha_is_how_much_the_clients_label_otherwise() -> None:
    """u_k shifts all weights of a client alike, which argmax does not see; what differs is every client's own draw."""
    examples = generate(Synthetic(alpha=0, beta=0, clients=20))
    assert examples.clients is not None
    model = build(ModelSpec("logistic", (60,), 10), seed=0)
    mine = examples.take(examples.clients == 0)
    train(model, mine, TrainingOptions(epochs=60, batch_size=32), compute=CPU, progress=False)
    own = evaluate(model, mine, compute=CPU).accuracy
    others = evaluate(model, examples.take(examples.clients != 0), compute=CPU).accuracy
    assert own > 0.9
    assert others < 0.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("synthetic:alpha=-1", "alpha must be from 0"),
        ("synthetic:clients=0", "clients must be from 1"),
        ("synthetic:beta=nan", "beta must be from 0"),
        ("synthetic:alpha=one", "alpha must be a number"),
    ],
)
def test_an_impossible_synthetic_data_set_is_refused_before_it_is_made(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        find(text)


def test_a_misspelt_option_of_synthetic_gets_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError) as caught:
        find("synthetic:aplha=1")
    assert "did you mean alpha?" in caught.value.hint


def test_a_federation_takes_its_clients_from_the_data() -> None:
    task = FederatedTask(data="synthetic:clients=5", model="linear-svm", clients=5, partition="natural")
    for client in range(5):
        found = task.examples_of(client).clients
        assert found is not None
        assert found.unique().tolist() == [client]


def test_vehicle_has_23_sensors_and_says_that_it_is_a_part() -> None:
    data = held("vehicle-sensors")
    assert data.train.input_shape == (100,)
    assert data.train.clients is not None
    assert data.train.clients.unique().tolist() == list(range(23))
    assert part_of_original(data) == "1,860 of the original's 43,695 examples"
    task = FederatedTask(
        data="vehicle-sensors", data_dir=str(HELD), model="linear-svm", clients=23, partition="natural"
    )
    sizes = [len(task.examples_of(client)) for client in range(23)]
    assert sum(sizes) == len(task.shares().unclaimed)
    assert min(sizes) >= 1


def test_vehicle_can_be_learnt_by_a_support_vector_machine() -> None:
    data = held("vehicle-sensors")
    model = build(ModelSpec("linear-svm", (100,), 2), seed=0)
    train(model, data.train, TrainingOptions(epochs=20, learning_rate=0.02), compute=CPU, progress=False)
    assert evaluate(model, data.test, compute=CPU).accuracy > 0.75


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sentiment140_can_be_learnt_by_a_recurrent_network() -> None:
    data = held("sentiment140")
    assert part_of_original(data) == "99,347 of the original's 1,600,498 examples"
    model = build(ModelSpec("gru", data.train.input_shape, 2), seed=0)
    options = TrainingOptions(epochs=2, learning_rate=0.003, batch_size=128, optimiser="adam")
    train(model, data.train, options, compute=CPU, progress=False)
    assert evaluate(model, data.test, compute=CPU).accuracy > 0.74
