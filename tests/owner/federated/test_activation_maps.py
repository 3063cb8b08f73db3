"""What FedCLEAN looks at: hidden layers before their nonlinearities, pooled where pooling directly follows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.devices import choose_compute
from common.errors import GuardError, ModelError
from common.model_spec import ModelSpec
from common.models import build
from owner.federated.activation_maps import ActivationMaps, HiddenLayer

COMPUTE = choose_compute("cpu", "float32")


class Released(nn.Module):
    """The network that the released code's configuration is for, 22464 hidden numbers: Conv-ReLU, twice Conv-Pool-ReLU, Linear-ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5)
        self.conv2 = nn.Conv2d(32, 32, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(32, 64, 5)
        self.pool3 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(576, 256)
        self.fc2 = nn.Linear(256, 10)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.pool2(self.conv2(x)))
        x = self.relu(self.pool3(self.conv3(x)))
        return self.fc2(self.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> Released:
    torch.manual_seed(0)
    return Released()


def test_of_the_released_network_they_are_what_its_configuration_says(network: Released) -> None:
    maps = ActivationMaps(network, (images(1),), head="fc2", width=22464)
    assert [layer.width for layer in maps.layers] == [18432, 3200, 576, 256]
    found = maps.of(network, (images(),), compute=COMPUTE, batch_size=2)
    with torch.no_grad():
        x1 = network.conv1(images())
        x2 = nn.functional.max_pool2d(network.conv2(x1.relu()), 2)
        x3 = nn.functional.max_pool2d(network.conv3(x2.relu()), 2)
        x4 = network.fc1(x3.relu().flatten(1))
    by_hand = torch.cat([x.flatten(1) for x in (x1, x2, x3, x4)], 1)
    assert found.shape == (3, 22464)
    assert found.dtype == torch.float32
    assert torch.allclose(found, by_hand, atol=1e-6)
    assert (found < 0).any()


def test_the_largest_maps_are_averaged_until_they_fit(network: Released) -> None:
    maps = ActivationMaps(network, (images(1),), head="fc2", width=6000)
    assert [layer.places for layer in maps.layers] == [(6, 6), (10, 10), (3, 3), ()]
    found = maps.of(network, (images(),), compute=COMPUTE)
    with torch.no_grad():
        first = nn.functional.avg_pool2d(network.conv1(images()), 4).flatten(1)
    assert torch.allclose(found[:, : first.shape[1]], first, atol=1e-6)


def test_pooling_behind_the_nonlinearity_is_none_of_the_layer() -> None:
    """In place or not: what is taken is the convolution's own output."""
    for inplace in (True, False):
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(inplace=inplace), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(338, 3)
        )
        maps = ActivationMaps(model, (images(1),), head="4", width=5000)
        assert maps.layers == (HiddenLayer("0", 2, (26, 26)),)
        assert (maps.of(model, (images(),), compute=COMPUTE) < 0).any()


def test_a_pooling_that_two_layers_share_stands_for_neither() -> None:
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.pool, self.head = (
                nn.Conv2d(1, 2, 3),
                nn.Conv2d(2, 2, 3),
                nn.AvgPool2d(2),
                nn.Linear(50, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.b(self.pool(self.a(x)))).flatten(1))  # type: ignore[no-any-return]

    maps = ActivationMaps(Sharing(), (images(1),), head="head", width=5000)
    assert [layer.name for layer in maps.layers] == ["a", "b"]


def test_of_an_odd_number_of_places_the_larger_half_is_left() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(50, 3))
    maps = ActivationMaps(network, (torch.zeros(1, 1, 5, 5),), head="2", width=20)
    assert [layer.places for layer in maps.layers] == [(3, 3)]


def test_of_layers_over_words_places_are_averaged_and_features_are_not() -> None:
    class OverWords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x).relu().mean(1))  # type: ignore[no-any-return]

    model, x = OverWords(), torch.randn(5, 8, 4, generator=torch.Generator().manual_seed(0))
    maps = ActivationMaps(model, (x[:1],), head="head", width=6)
    assert maps.layers == (HiddenLayer("inner", 6, (1,)),)
    with torch.no_grad():
        assert torch.allclose(maps.of(model, (x,), compute=COMPUTE), model.inner(x).mean(1), atol=1e-6)


def test_a_recurrent_model_is_looked_at_where_its_head_is() -> None:
    spec = ModelSpec("gru", (12,), 2)
    model, texts = build(spec, seed=0), torch.randint(1, 50, (4, 12), generator=torch.Generator().manual_seed(0))
    head = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    maps = ActivationMaps(model, (texts[:1],), head=head, width=100)
    assert maps.layers == ()
    assert maps.of(model, (texts,), compute=COMPUTE).shape == (4, model.get_submodule(head).in_features)


def test_layers_that_nothing_can_make_fit_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 200_000), nn.ReLU(), nn.Linear(200_000, 1))
    with pytest.raises(GuardError, match=r"200000, come from '0'"):
        ActivationMaps(model, (torch.zeros(1, 2),), head="2", width=100)


def test_a_layer_of_another_size_is_refused(network: Released) -> None:
    maps = ActivationMaps(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), (torch.zeros(1, 4),), head="1", width=100)
    with pytest.raises(ModelError, match="numbers, not"):
        maps.of(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), (torch.zeros(2, 4),), compute=COMPUTE)
