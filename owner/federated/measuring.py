"""The accuracy of a model of a federation, measured by the owner, once for equal weights."""

from __future__ import annotations

from torch import nn

from common.devices import Compute
from common.evaluation import evaluate
from common.weights import Weights
from owner.federated.config import FederationConfig
from owner.federated.memory import digest_of, memory


def accuracy_of(config: FederationConfig, model: nn.Module, weights: Weights, compute: Compute) -> float:
    """Of `weights` on the owner's evaluation share; `model` is given them."""

    def measure() -> float:
        model.load_state_dict(weights)
        return float(evaluate(model, config.shares().evaluation, compute=compute).accuracy)

    return memory().get(("accuracy", config.data_key, compute, digest_of(weights)), measure)
