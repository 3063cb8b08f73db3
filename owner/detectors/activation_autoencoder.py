"""The activation-map auto-encoder (El Moadine, Coatrieux, Bellafqira, ICDF2C 2022, section 3).

M's activations on clean images, g_M(t), lie on a thin set. An auto-encoder fitted on them reproduces what lies there and
reproduces badly what does not; the activations of a poisoned model have moved away.

The score is one-sided, as in the paper: activations near zero are reproduced well, so that a model most of whose units have
fallen silent (every weight's sign flipped, say) scores low. Such a model classifies nothing: the utility check stops it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from common.errors import ConfigurationError, GuardError, UnknownNameError
from owner.detectors.base import DetectorState, Evidence
from owner.detectors.comparison import class_sums, per_class
from owner.detectors.sums import squared_distances

Scaling = Literal["none", "scalar", "feature"]


@dataclass(frozen=True)
class AutoEncoderOptions:
    """hidden, latent: widths; the layers are d-hidden-latent-hidden-d, ReLU after all but the last.
    epochs, learning_rate, batch_size: of Adam on the mean squared error. The paper says 256-64-256 and 60 epochs and
        leaves the rest open; rate and batch are Adam's and PyTorch's customary ones.
    scaling: what the input is divided by. The paper has none, and neither has the default: activations after a ReLU
        are of the order of one in the paper's models, where Adam at 1e-3 converges. Where a model's are far from
        that (a fixed step is large against small activations, small against large ones), `scalar` divides by their
        root mean square, which keeps the weight of every feature in the error; `feature` standardises each feature.
    seed: of the initial weights and the order of the images.
    """

    hidden: int = 256
    latent: int = 64
    epochs: int = 60
    learning_rate: float = 1e-3
    batch_size: int = 128
    scaling: Scaling = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "latent", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"the auto-encoder's {name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ConfigurationError(f"the auto-encoder's learning_rate must be positive, not {self.learning_rate}")
        if self.scaling not in get_args(Scaling):
            raise UnknownNameError("scaling", self.scaling, get_args(Scaling))


class ActivationAutoEncoder:
    """Scores a model by E_MSE = mean_i e_i, e_i = (1/d) sum_j (x_ij - x'_ij)^2, x_i = g(t_i) (the paper's Eq. 1).

    >>> x = torch.rand(64, 12, generator=torch.Generator().manual_seed(0))
    >>> normal = Evidence(x, torch.zeros(64, 2), torch.zeros(64, dtype=torch.int64))
    >>> detector = ActivationAutoEncoder(AutoEncoderOptions(hidden=16, latent=4, epochs=5)).fit(normal)
    >>> moved = Evidence(x + 3, normal.logits, normal.labels)
    >>> detector.score(moved) > detector.score(normal)
    True
    """

    name: ClassVar[str] = "activation-autoencoder"

    def __init__(self, options: AutoEncoderOptions | None = None) -> None:
        self.options = options or AutoEncoderOptions()
        self.network_: nn.Sequential | None = None
        self.mean_: Tensor | None = None
        self.scale_: Tensor | None = None

    def fit(self, release: Evidence) -> Self:
        """Fit on M's activations on T_ae, always on the CPU in float32, so that a seed gives one auto-encoder.

        Detectors of equal options that are fitted on one evidence share the auto-encoder.
        Raises GuardError where the activations are not finite or the fit diverges.
        """
        network, mean, scale = release.once(("activation auto-encoder", self.options), lambda: self._learn(release))
        self.network_, self.mean_, self.scale_ = network, mean, scale
        return self

    def _learn(self, release: Evidence) -> tuple[nn.Sequential, Tensor, Tensor]:
        features = release.features.detach().to("cpu", torch.float32)
        check_learnable(features)
        mean, scale = _scaling(features, self.options.scaling)
        inputs = (features - mean) / scale
        generator = torch.Generator().manual_seed(self.options.seed)
        network = _network(inputs.shape[1], self.options)
        _minimise(network, inputs, self.options, generator)
        network.eval().requires_grad_(False)
        with torch.inference_mode():
            diverged = not bool(torch.isfinite((network(inputs).double() - inputs.double()).square().sum()))
        if diverged:
            raise GuardError(
                "the auto-encoder diverged on the release's activations",
                hint="set its scaling to 'scalar' or lower its rate",
            )
        return network, mean, scale

    def image_scores(self, evidence: Evidence) -> Tensor:
        """e_i, (N,) float64. Raises GuardError before `fit`, or where the activations have another width."""
        network, _, _ = self._fitted()
        key = ("auto-encoder errors", network)
        return evidence.once(key, lambda: self._errors(evidence.features.detach().to("cpu", torch.float32)))

    def score(self, evidence: Evidence) -> float:
        return float(self.image_scores(evidence).mean())

    def explain(self, evidence: Evidence) -> dict[str, Any]:
        """E_MSE, the spread of e_i, and its mean per class (None for a class without images)."""
        errors = self.image_scores(evidence)
        sums, counts = class_sums(errors, evidence.labels, evidence.logits.shape[1])
        low, middle, high = (float(v) for v in torch.quantile(errors, errors.new_tensor([0.05, 0.5, 0.95])))
        return {
            "e_mse": float(errors.mean()),
            "std": float(errors.std(correction=0)),
            "p05": low,
            "median": middle,
            "p95": high,
            "per_class": per_class(sums / counts.clamp(min=1), counts),
        }

    def state(self) -> DetectorState:
        network, mean, scale = self._fitted()
        tensors = {f"network.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
        return DetectorState(tensors | {"mean": mean.clone(), "scale": scale.clone()}, dataclasses.asdict(self.options))

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        """Raises GuardError for tensors that do not fit the options."""
        detector = cls(AutoEncoderOptions(**state.options))
        try:
            detector.mean_, detector.scale_ = state.tensors["mean"], state.tensors["scale"]
            network = _network(len(detector.mean_), detector.options)
            network.load_state_dict({name: state.tensors[f"network.{name}"] for name in network.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise GuardError(f"the stored auto-encoder does not fit its options: {error}") from error
        detector.network_ = network.eval().requires_grad_(False)
        return detector

    def _fitted(self) -> tuple[nn.Sequential, Tensor, Tensor]:
        if self.network_ is None or self.mean_ is None or self.scale_ is None:
            raise GuardError(
                "the activation auto-encoder has not been fitted", hint="call fit(evidence_of_the_release) first"
            )
        return self.network_, self.mean_, self.scale_

    def _errors(self, features: Tensor) -> Tensor:
        network, mean, scale = self._fitted()
        if features.ndim != 2 or features.shape[1] != len(mean):
            raise GuardError(f"the auto-encoder was fitted on {len(mean)} features, not on {tuple(features.shape)[1:]}")
        inputs = (features - mean) / scale
        with torch.inference_mode():
            rebuilt: Tensor = network(inputs)
        # Squares in float64: a model with activations of 1e20 must score 1e40, not infinity.
        return squared_distances(rebuilt, inputs) / inputs.shape[1]


def check_learnable(features: Tensor) -> None:
    """Raises GuardError where there is nothing, or nothing finite, to learn what is normal from."""
    if not len(features):
        raise GuardError("the auto-encoder needs activations to learn from, and there are none")
    if not bool(torch.isfinite(features).all()):
        raise GuardError("the release's own activations are not finite: its auto-encoder cannot be fitted")


def _scaling(features: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """(d,) to subtract and (d,) to divide by. A feature that never moves is left at its own scale."""
    zero, one = torch.zeros(features.shape[1]), torch.ones(features.shape[1])
    if scaling == "none":
        return zero, one
    if scaling == "scalar":
        rms = features.square().mean().sqrt()
        return zero, one * (rms if rms > 0 else 1.0)
    std = features.std(dim=0, correction=0)
    return features.mean(dim=0), torch.where(std > 0, std, one)


def _network(width: int, options: AutoEncoderOptions) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return nn.Sequential(
            nn.Linear(width, options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, options.latent),
            nn.ReLU(),
            nn.Linear(options.latent, options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, width),
        )


def _minimise(network: nn.Sequential, inputs: Tensor, options: AutoEncoderOptions, generator: torch.Generator) -> None:
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate, fused=True)
    with torch.enable_grad():
        for _ in range(options.epochs):
            order = torch.randperm(len(inputs), generator=generator)
            for start in range(0, len(inputs), options.batch_size):
                target = inputs[order[start : start + options.batch_size]]
                optimiser.zero_grad(set_to_none=True)
                nn.functional.mse_loss(network(target), target).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
