"""Classifiers by name, for any input size and class count, and a user's own through `package.module:factory`.

Images below 96 pixels a side get the small-image form that CIFAR experiments use: ResNets start with a 3x3 stride-1
convolution and no max-pool (He et al., 2016, section 4.2), VGG ends in one linear layer, and its pools round up so that no
map vanishes. From 96 pixels on, torchvision's own stem and head stay.

`vgg19` is torchvision's `vgg19_bn`, the form with BatchNorm: the usual one in CIFAR experiments, and easier to train than plain
VGG19. Which of the two the paper's 93.9 % belong to, it does not say.
"""

from __future__ import annotations

import importlib
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import ModelError
from common.losses import multiclass_hinge
from common.model_spec import ARCHITECTURES, ModelSpec
from common.randomness import random_state
from common.recurrent import Gru
from common.wide_resnet import WideResNet

LARGE_IMAGE = 96
"""Pixels of the shorter side from which a model keeps the stem and head made for ImageNet."""


def architectures() -> tuple[str, ...]:
    """The built-in names, sorted.

    >>> architectures()
    ('badnet-cnn', 'cnn', 'gru', 'linear-svm', 'logistic', 'mlp', 'resnet152', 'resnet18', 'vgg19', 'wrn-28-10')
    """
    return ARCHITECTURES


def build(spec: ModelSpec, *, seed: int | None = None) -> nn.Module:
    """A freshly initialised model on the CPU, in training mode, mapping (N, *input_shape) to logits (N, classes).

    seed: of the initialisation; the global random state is neither used nor moved. Without one, torch's global state is.

    Raises ModelError where a factory cannot be imported or gives no nn.Module, or where the input does not suit the architecture.

    >>> build(ModelSpec("logistic", (1, 8, 8), 10), seed=0)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if seed is None:
        return _build(spec)
    with random_state(seed):
        return _build(spec)


def _build(spec: ModelSpec) -> nn.Module:
    if spec.is_factory:
        return _build_with_factory(spec)
    return _BUILDERS[spec.architecture](spec)


def _build_with_factory(spec: ModelSpec) -> nn.Module:
    module_name, _, name = spec.architecture.partition(":")
    if not module_name or not name:
        raise ModelError(f"model {spec.architecture!r} must be package.module:factory")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # importing runs a user's file, which may raise anything
        raise ModelError(
            f"the model factory {spec.architecture!r} cannot be imported: {type(error).__name__}: {error}",
            hint="its package must be installed or on PYTHONPATH, for the owner and for every contributor",
        ) from error
    if not callable(factory):
        raise ModelError(f"the model factory {spec.architecture!r} is a {type(factory).__name__}, nothing to call")
    try:
        model = factory(spec.input_shape, spec.classes)
    except Exception as error:  # a user's function may raise anything
        raise ModelError(
            f"the model factory {spec.architecture!r} failed: {type(error).__name__}: {error}",
            hint=f"it is called as {name}(input_shape, classes), here {name}({spec.input_shape}, {spec.classes})",
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model factory {spec.architecture!r} gave a {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def _image_shape(spec: ModelSpec, smallest: int) -> tuple[int, int, int]:
    """(channels, height, width). Raises ModelError where the input is no image or too small a one."""
    if len(spec.input_shape) != 3:
        raise ModelError(
            f"{spec.architecture} takes images (channels, height, width), not inputs of shape {spec.input_shape}",
            hint="mlp, logistic and linear-svm take numbers of any shape, gru texts; a model of your own takes what you like: package.module:factory",
        )
    channels, height, width = spec.input_shape
    if min(height, width) < smallest:
        raise ModelError(
            f"{spec.architecture} needs images of at least {smallest}x{smallest} pixels, not {height}x{width}"
        )
    return channels, height, width


def _cnn(spec: ModelSpec) -> nn.Module:
    """The method paper's CNN: 32C3-32C3-MP2-64C3-64C3-MP2-512FC-10FC, the convolutions padded to keep their size.

    Pooling stands before ReLU where they meet: the same function and gradient at a quarter of the work.
    """
    channels, height, width = _image_shape(spec, 4)
    return _plain(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(inplace=True),
        nn.Linear(512, spec.classes),
    )


def _badnet_cnn(spec: ModelSpec) -> nn.Module:
    """BadNets' MNIST network (Gu et al., 2017, Table 1): 16C5-AP2-32C5-AP2-512FC-10FC.

    Its convolutions are not padded; below 16 pixels, where nothing would be left, they are.
    """
    channels, height, width = _image_shape(spec, 4)
    padding = 2 if min(height, width) < 16 else 0
    lost = 4 - 2 * padding
    after = [((side - lost) // 2 - lost) // 2 for side in (height, width)]
    return _plain(
        nn.Conv2d(channels, 16, 5, padding=padding),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 5, padding=padding),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * after[0] * after[1], 512),
        nn.ReLU(inplace=True),
        nn.Linear(512, spec.classes),
    )


def _mlp(spec: ModelSpec) -> nn.Module:
    return _plain(
        nn.Flatten(),
        nn.Linear(math.prod(spec.input_shape), 256),
        nn.ReLU(inplace=True),
        nn.Linear(256, 128),
        nn.ReLU(inplace=True),
        nn.Linear(128, spec.classes),
    )


def _logistic(spec: ModelSpec) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(spec.input_shape), spec.classes))


class LinearSvm(nn.Sequential):
    """A linear classifier that is trained on the hinge loss: with weight decay, a soft-margin support vector machine."""

    def training_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return multiclass_hinge(logits, labels)


def _linear_svm(spec: ModelSpec) -> nn.Module:
    return LinearSvm(nn.Flatten(), nn.Linear(math.prod(spec.input_shape), spec.classes))


def _gru(spec: ModelSpec) -> nn.Module:
    if len(spec.input_shape) != 1:
        raise ModelError(
            f"gru takes sequences of word numbers (length,), not inputs of shape {spec.input_shape}",
            hint="texts become such sequences when they are loaded: a parquet file with the columns text and label",
        )
    return Gru(spec.classes)


def _torchvision_models() -> Any:
    # Imported when one of its models is wanted: it takes as long as torch itself, and every process would wait for it.
    return importlib.import_module("torchvision.models")


def _resnet(name: str) -> Callable[[ModelSpec], nn.Module]:
    def make(spec: ModelSpec) -> nn.Module:
        channels, height, width = _image_shape(spec, 4)
        model: Any = getattr(_torchvision_models(), name)(num_classes=spec.classes)
        if min(height, width) < LARGE_IMAGE:
            model.conv1 = _he_initialised(nn.Conv2d(channels, 64, 3, padding=1, bias=False))
            model.maxpool = nn.Identity()
        elif channels != 3:
            model.conv1 = _he_initialised(nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False))
        made: nn.Module = model
        return made

    return make


def _vgg19(spec: ModelSpec) -> nn.Module:
    channels, height, width = _image_shape(spec, 4)
    if min(height, width) >= LARGE_IMAGE:
        model: nn.Module = _torchvision_models().vgg19_bn(num_classes=spec.classes)
        if channels != 3:
            setattr(model.features, "0", _he_initialised(nn.Conv2d(channels, 64, 3, padding=1)))
        return model
    # Made without storage first: torchvision's own head has 120 million parameters, which would only be thrown away.
    with torch.device("meta"):
        features = _torchvision_models().vgg19_bn(init_weights=False).features
    features[0] = nn.Conv2d(channels, 64, 3, padding=1, device="meta")
    features.to_empty(device="cpu")
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            _he_initialised(layer)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        elif isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    parts = {"features": features, "avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(parts, classifier=nn.Linear(512, spec.classes)))


def _wide_resnet(spec: ModelSpec) -> nn.Module:
    channels, height, width = _image_shape(spec, 4)
    return WideResNet(channels, spec.classes, depth=28, width=10, large=min(height, width) >= LARGE_IMAGE)


def _plain(*layers: nn.Module) -> nn.Sequential:
    """Layers in a row, all but the head started for ReLU (He et al., 2015). Without normalisation this decides whether
    they learn: 3 epochs of 6,400 CIFAR-10 images took `cnn` to 42 % this way and to 14 % from torch's default."""
    for layer in layers[:-1]:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def _he_initialised(layer: nn.Conv2d) -> nn.Conv2d:
    """As torchvision starts the convolutions of its ResNets and VGGs (He et al., 2015)."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


_BUILDERS: dict[str, Callable[[ModelSpec], nn.Module]] = {
    "badnet-cnn": _badnet_cnn,
    "cnn": _cnn,
    "gru": _gru,
    "linear-svm": _linear_svm,
    "logistic": _logistic,
    "mlp": _mlp,
    "resnet152": _resnet("resnet152"),
    "resnet18": _resnet("resnet18"),
    "vgg19": _vgg19,
    "wrn-28-10": _wide_resnet,
}
