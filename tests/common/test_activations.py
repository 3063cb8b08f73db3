from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.activations import activations_depend_on_parameters, find_head, observe
from common.devices import choose_compute
from common.errors import ModelError
from common.examples import as_model_inputs
from common.model_spec import ModelSpec
from common.models import architectures, build

CPU = choose_compute("cpu", "float32")


def example_of(name: str) -> tuple[ModelSpec, tuple[Tensor, ...]]:
    """A small specification of the architecture, and six inputs for it: images, or texts."""
    if name == "gru":
        return ModelSpec(name, (9,), 4), (torch.randint(0, 10_000, (6, 9), generator=torch.Generator().manual_seed(0)),)
    return ModelSpec(name, (1, 8, 8), 4), images(6, 1, 8, 8)


def images(count: int, *shape: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8),)


@pytest.mark.parametrize("name", architectures())
def test_the_head_of_the_features_is_the_model(name: str) -> None:
    spec, inputs = example_of(name)
    model = build(spec, seed=0)
    head = find_head(model, inputs)
    seen = observe(model, inputs, head=head, compute=CPU, batch_size=4)
    with torch.no_grad():
        torch.testing.assert_close(model.get_submodule(head)(seen.features), seen.logits)
        # In another memory order a deep network rounds otherwise.
        torch.testing.assert_close(model.eval()(*as_model_inputs(inputs, "cpu")), seen.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", architectures())
def test_only_linear_models_have_activations_that_training_cannot_move(name: str) -> None:
    spec, inputs = example_of(name)
    model = build(spec, seed=0)
    head = find_head(model, inputs)
    expected = name not in {"logistic", "linear-svm"}
    assert activations_depend_on_parameters(model, head) is expected
    assert activations_depend_on_parameters(model, head, inputs) is expected


class Scaled(nn.Module):
    """Logistic regression with a temperature after its head."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) / self.temperature


def test_weights_behind_the_head_do_not_count_once_the_model_is_run() -> None:
    assert activations_depend_on_parameters(Scaled(), "head", (torch.ones(1, 4),)) is False


class TwoViews(nn.Module):
    """Registers its head first and runs it last; takes an image and a text."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(7, 3)
        self.words = nn.Embedding(10, 4)
        self.picture = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
        self.unused = nn.Linear(2, 2)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.head(torch.cat([self.picture(image), self.words(text).mean(1)], 1))


def test_the_head_is_the_last_linear_to_run_not_the_last_registered() -> None:
    model = TwoViews()
    inputs = (torch.zeros(5, 1, 3, 3, dtype=torch.uint8), torch.zeros(5, 6, dtype=torch.int64))
    assert find_head(model, inputs) == "head"
    assert observe(model, inputs, head="head", compute=CPU, batch_size=2).features.shape == (5, 7)


def test_another_module_can_be_named_head() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    inputs = (torch.ones(2, 4),)
    assert find_head(model, inputs, override="1") == "1"
    assert observe(model, inputs, head="1", compute=CPU).features.shape == (2, 4)


def test_a_named_head_that_does_not_exist_or_does_not_run_is_refused() -> None:
    inputs = (torch.zeros(5, 1, 3, 3), torch.zeros(5, 6, dtype=torch.int64))
    with pytest.raises(ModelError, match="no module 'tail'"):
        find_head(TwoViews(), inputs, override="tail")
    with pytest.raises(ModelError, match="'unused' does not run"):
        find_head(TwoViews(), inputs, override="unused")


def test_a_model_without_a_linear_layer_asks_for_the_name_of_its_head() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError) as caught:
        find_head(model, images(1, 1, 8, 8))
    assert "name the module" in caught.value.hint
    assert observe(model, images(2, 1, 8, 8), head="1", compute=CPU).features.shape == (2, 2 * 6 * 6)


def test_observing_leaves_modes_weights_and_hooks_as_they_were() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).train()
    model[1].eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    first = observe(model, (torch.rand(3, 4),), head="3", compute=CPU)
    second = observe(model, (torch.rand(3, 4),), head="3", compute=CPU)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not model[3]._forward_pre_hooks
    assert not torch.equal(first.features, second.features)


def test_a_failing_model_is_put_back_and_explained() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 2)).train()
    with pytest.raises(ModelError, match=r"does not run on inputs \(3, 4\) float32"):
        observe(model, (torch.rand(3, 4),), head="1", compute=CPU)
    assert model.training
    assert not model[1]._forward_pre_hooks


def test_observed_features_can_be_trained_on() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    features = observe(model, (torch.rand(3, 4),), head="1", compute=CPU).features
    coder = nn.Linear(3, 3)
    (coder(features) - features).square().mean().backward()
    assert coder.weight.grad is not None


def test_the_batch_size_changes_nothing() -> None:
    model = build(ModelSpec("cnn", (1, 8, 8), 4), seed=0)
    inputs = images(7, 1, 8, 8)
    whole = observe(model, inputs, head="13", compute=CPU, batch_size=100)
    parts = observe(model, inputs, head="13", compute=CPU, batch_size=3)
    torch.testing.assert_close(whole.features, parts.features)
    torch.testing.assert_close(whole.logits, parts.logits)


def test_non_finite_activations_come_out_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    assert observe(model, (torch.rand(3, 4),), head="1", compute=CPU).features.isnan().all()


def test_bfloat16_gives_float32_results_near_those_of_float32() -> None:
    model = build(ModelSpec("cnn", (3, 8, 8), 4), seed=0)
    inputs = images(6, 3, 8, 8)
    exact = observe(model, inputs, head="13", compute=CPU)
    rounded = observe(model, inputs, head="13", compute=choose_compute("cpu", "bfloat16"))
    assert rounded.features.dtype == rounded.logits.dtype == torch.float32
    torch.testing.assert_close(rounded.features, exact.features, atol=0.02, rtol=0.05)
    assert not torch.equal(rounded.features, exact.features)


def test_nothing_to_observe_is_refused() -> None:
    with pytest.raises(ModelError, match="no examples"):
        observe(nn.Sequential(nn.Linear(4, 2)), (torch.rand(0, 4),), head="0", compute=CPU)
