from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import ModelError, UnknownNameError
from common.model_spec import ModelSpec
from common.models import architectures, build

OF_IMAGES = tuple(name for name in architectures() if name != "gru")
SMALL = tuple(name for name in OF_IMAGES if name not in {"resnet152", "wrn-28-10"})


def parameters(spec: ModelSpec) -> int:
    return sum(p.numel() for p in build(spec, seed=0).parameters())


@pytest.mark.parametrize("name", OF_IMAGES)
def test_every_architecture_but_the_one_of_texts_runs_on_8x8_grey_images(name: str) -> None:
    model = build(ModelSpec(name, (1, 8, 8), 3), seed=0).eval()
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 17, 23), (3, 48, 48)])
def test_any_image_size_and_class_count_will_do(name: str, shape: tuple[int, ...]) -> None:
    model = build(ModelSpec(name, shape, 43), seed=0).eval()
    with torch.no_grad():
        assert model(torch.rand(2, *shape)).shape == (2, 43)


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("cnn", (3, 32, 32), 2_168_362),  # 896 + 9248 + 18496 + 36928 + 4096*512+512 + 5130
        ("badnet-cnn", (1, 28, 28), 416 + 12_832 + 512 * 512 + 512 + 5130),
        ("resnet18", (3, 32, 32), 11_173_962),  # the count of the common CIFAR-10 form
        ("vgg19", (3, 32, 32), 20_040_522),
        ("logistic", (1, 28, 28), 7_850),  # Li et al., 2020: "all 7 850"
        ("linear-svm", (100,), 1_010),
        ("gru", (32,), 10_000 * 64 + 2 * 3 * 64 * 64 + 2 * 3 * 64 + 650),
    ],
)
def test_parameters_are_as_many_as_the_papers_say(name: str, shape: tuple[int, ...], count: int) -> None:
    assert parameters(ModelSpec(name, shape, 10)) == count


def test_large_images_keep_the_stem_made_for_imagenet() -> None:
    small, large = (build(ModelSpec("resnet18", (3, side, side), 10), seed=0) for side in (95, 96))
    assert small.conv1.stride == (1, 1)
    assert isinstance(small.maxpool, nn.Identity)
    assert large.conv1.stride == (2, 2)
    assert isinstance(large.maxpool, nn.MaxPool2d)


def test_large_grey_images_enter_through_one_channel() -> None:
    model = build(ModelSpec("resnet18", (1, 96, 96), 2), seed=0).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 1, 96, 96)).shape == (1, 2)


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_gives_the_same_weights_whatever_ran_before(name: str) -> None:
    spec = ModelSpec(name, (1, 8, 8), 3)
    torch.manual_seed(1)
    first = build(spec, seed=5).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build(spec, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = build(spec, seed=6).state_dict()
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", architectures())
def test_a_fresh_model_holds_finite_weights_of_a_sane_size(name: str) -> None:
    shape = (1, 8, 8) if name in OF_IMAGES else (32,)
    for key, tensor in build(ModelSpec(name, shape, 3), seed=0).state_dict().items():
        assert tensor.device.type == "cpu", key
        assert tensor.double().abs().max() < 10, key


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        ModelSpec("resnet19", (3, 32, 32), 10)
    assert "did you mean resnet18?" in caught.value.hint


def test_a_spec_survives_json() -> None:
    spec = ModelSpec("my.models:two_view", (2, 224, 224), 4, head="classifier")
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 1},
        {"classes": "10"},
        {"classes": True},
        {"classes": 1 << 40},
        {"input_shape": [3, 0, 32]},
        {"input_shape": [3, 1 << 20, 1 << 20]},
        {"input_shape": "3,32,32"},
        {"input_shape": [3.0, 32, 32]},
        {"head": 7},
        {"architecture": 7},
        {"weights": "x"},
    ],
)
def test_a_malformed_description_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        ModelSpec.from_json(ModelSpec("cnn", (3, 32, 32), 10).to_json() | change)


def test_a_description_without_its_classes_is_refused() -> None:
    with pytest.raises(ModelError, match="classes"):
        ModelSpec.from_json({"architecture": "cnn", "input_shape": [1, 8, 8]})


@pytest.mark.parametrize("name", sorted(set(OF_IMAGES) - {"mlp", "logistic", "linear-svm"}))
def test_an_image_too_small_is_refused_with_the_limit(name: str) -> None:
    with pytest.raises(ModelError, match="at least 4x4"):
        build(ModelSpec(name, (1, 3, 8), 10))


def test_a_table_is_refused_by_a_convolutional_network_and_taken_by_mlp() -> None:
    with pytest.raises(ModelError, match="takes images"):
        build(ModelSpec("cnn", (12,), 2))
    assert build(ModelSpec("mlp", (12,), 2), seed=0)(torch.rand(5, 12)).shape == (5, 2)


@pytest.mark.parametrize("name", ["mlp", "logistic", "linear-svm"])
def test_a_table_is_taken_by_the_models_that_know_no_neighbourhood(name: str) -> None:
    assert build(ModelSpec(name, (12,), 2), seed=0)(torch.rand(5, 12)).shape == (5, 2)


def test_images_are_refused_by_the_network_of_texts() -> None:
    with pytest.raises(ModelError, match="takes sequences of word numbers") as caught:
        build(ModelSpec("gru", (1, 8, 8), 2))
    assert "text and label" in caught.value.hint


def test_the_network_of_texts_reads_in_order_and_to_the_end() -> None:
    model = build(ModelSpec("gru", (4,), 3), seed=0).eval()
    texts = torch.tensor([[0, 0, 5, 6], [0, 0, 6, 5], [0, 0, 5, 7]])
    with torch.no_grad():
        logits = model(texts)
    assert logits.shape == (3, 3)
    assert not torch.allclose(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's own, importable by the name it returns."""
    (tmp_path / "own_models_of_a_test.py").write_text(
        "from torch import nn\n"
        "def good(input_shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], classes))\n"
        "def text(input_shape, classes):\n    return 'a model'\n"
        "def broken(input_shape, classes):\n    raise KeyError('no such layer')\n"
        "def other_arguments():\n    pass\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_models_of_a_test", raising=False)
    return "own_models_of_a_test"


def test_a_factory_of_the_users_own_is_called_with_shape_and_classes(own_models: str) -> None:
    model = build(ModelSpec(f"{own_models}:good", (6,), 4), seed=0)
    assert model(torch.rand(3, 6)).shape == (3, 4)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("text", "gave a str, not a torch.nn.Module"),
        ("broken", "KeyError: 'no such layer'"),
        ("other_arguments", "TypeError"),
        ("number", "a int, nothing to call"),
        ("absent", "cannot be imported: AttributeError"),
        ("", "must be package.module:factory"),
    ],
)
def test_a_factory_that_gives_no_model_is_explained(own_models: str, name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        build(ModelSpec(f"{own_models}:{name}", (6,), 4))


def test_a_factory_whose_module_is_absent_is_explained() -> None:
    with pytest.raises(ModelError, match="ModuleNotFoundError") as caught:
        build(ModelSpec("no_such_package_here.models:make", (6,), 4))
    assert "installed" in caught.value.hint


def test_a_spec_tells_whether_building_it_runs_foreign_code() -> None:
    assert ModelSpec("os:system", (1,), 2).is_factory
    assert not ModelSpec("cnn", (1, 8, 8), 2).is_factory
