"""The hinge loss is the textbook's, and a model that has a loss of its own is trained on it by whoever trains it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.metrics import hinge_loss
from sklearn.svm import SVC
from torch import Tensor, nn

from common.devices import choose_compute
from common.errors import ConfigurationError, ModelError
from common.examples import Examples
from common.losses import multiclass_hinge, training_loss
from common.model_spec import ModelSpec
from common.models import build
from common.training import evaluate, train
from common.training_options import TrainingOptions

CPU = choose_compute("cpu", "float32")


def scores(count: int, classes: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(classes)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (count - classes,), generator=draws)])
    return torch.randn(count, classes, generator=draws), labels


@pytest.mark.parametrize("classes", [3, 10])
def test_the_hinge_loss_of_many_classes_is_that_of_scikit_learn(classes: int) -> None:
    logits, labels = scores(50, classes)
    assert float(multiclass_hinge(logits, labels)) == pytest.approx(
        hinge_loss(labels.numpy(), logits.numpy()), rel=1e-6
    )


def test_of_two_classes_it_is_the_binary_hinge_loss_of_the_difference() -> None:
    logits, labels = scores(50, 2)
    assert float(multiclass_hinge(logits, labels)) == pytest.approx(
        hinge_loss(labels.numpy(), (logits[:, 1] - logits[:, 0]).numpy()), rel=1e-6
    )


def test_the_loss_is_cross_entropy_where_the_model_says_nothing() -> None:
    logits, labels = scores(20, 4)
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(training_loss(nn.Identity(), logits, labels, label_smoothing=0.1), expected)


def test_a_copy_of_a_support_vector_machine_keeps_its_loss() -> None:
    logits, labels = scores(20, 4)
    model = copy.deepcopy(build(ModelSpec("linear-svm", (5,), 4)))
    assert torch.equal(training_loss(model, logits, labels), multiclass_hinge(logits, labels))


def blobs(count: int = 200) -> Examples:
    """Two overlapping clouds in the plane."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    points = torch.randn(count, 2, generator=draws) + 1.2 * labels[:, None]
    return Examples((points,), labels, ("a", "b"))


def test_training_a_support_vector_machine_finds_scikit_learns_plane() -> None:
    examples = blobs()
    model = build(ModelSpec("linear-svm", (2,), 2), seed=0)
    options = TrainingOptions(epochs=200, batch_size=200, learning_rate=0.3, momentum=0.9, weight_decay=1e-2)
    train(model, examples, options, compute=CPU, progress=False)
    # Weight decay lambda / 2 |W|^2 of two opposite rows is lambda |w|^2 / 4 of their difference w: C = 2 / (lambda n).
    reference = SVC(kernel="linear", C=2 / (1e-2 * 200), tol=1e-6)
    reference.fit(examples.inputs[0].numpy(), examples.labels.numpy())
    head = model[1]  # type: ignore[index]
    found = (head.weight[1] - head.weight[0]).detach().numpy()
    theirs = reference.coef_[0]
    assert float(found @ theirs / np.linalg.norm(found) / np.linalg.norm(theirs)) > 0.999
    agreement = reference.predict(examples.inputs[0].numpy()) == model(examples.inputs[0]).argmax(1).numpy()
    assert agreement.mean() >= 0.98
    assert evaluate(model, examples, compute=CPU).accuracy == pytest.approx(
        reference.score(examples.inputs[0].numpy(), examples.labels.numpy()), abs=0.02
    )


def test_label_smoothing_is_refused_by_a_model_with_a_loss_of_its_own() -> None:
    model = build(ModelSpec("linear-svm", (2,), 2), seed=0)
    with pytest.raises(ConfigurationError, match="LinearSvm has a loss of its own"):
        train(model, blobs(), TrainingOptions(epochs=1, label_smoothing=0.1), compute=CPU, progress=False)


class Careless(nn.Linear):
    def training_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(ModelError, match="training_loss of Careless must give a scalar"):
        train(Careless(2, 2), blobs(), TrainingOptions(epochs=1), compute=CPU, progress=False)
