"""Variational auto-encoders on activations: plain (named as future work by El Moadine et al. 2022) and class-conditional.

The class-conditional one is FedCLEAN's (arXiv 2501.12123): a CVAE over activations, conditioned on the class of the trigger,
100 tanh units, latent 8, sigmoid output, squared error + 0.5 KL. What differs here, because a gate sees one submission at a
time and its detectors learn from M alone: it learns from M's activations on T_ae and not from ten snapshots of the owner's own
fine-tuning; the geometric median that centres activations is taken over those images and not over the clients of a round; the
score is judged against honest reference models and not by a gap in the ordered errors of a round.

Both score with the mean of the latent distribution, so that one model has one score.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from common.errors import ConfigurationError, GuardError
from owner.detectors.activation_autoencoder import check_learnable
from owner.detectors.base import DetectorState, Evidence
from owner.detectors.comparison import class_sums, per_class
from owner.detectors.geometric_median import geometric_median
from owner.detectors.sums import squared_distances
from owner.detectors.variational import Variational


@dataclass(frozen=True)
class VAEOptions:
    """hidden, latent: widths. epochs, learning_rate, batch_size: of Adam. kl_weight: of the KL term beside the error.
    seed: of the initial weights, the order of the images and the latent noise.
    """

    hidden: int = 256
    latent: int = 32
    epochs: int = 60
    learning_rate: float = 1e-3
    batch_size: int = 128
    kl_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "latent", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"the VAE's {name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ConfigurationError(f"the VAE's learning_rate must be positive, not {self.learning_rate}")
        if not self.kl_weight >= 0:
            raise ConfigurationError(f"the VAE's kl_weight must not be negative, not {self.kl_weight}")


@dataclass(frozen=True)
class CVAEOptions(VAEOptions):
    """As FedCLEAN has them; the error is summed over features, as a Gaussian likelihood is."""

    hidden: int = 100
    latent: int = 8
    kl_weight: float = 0.5


Options = TypeVar("Options", bound=VAEOptions)


class _VariationalDetector(Generic[Options]):
    """What the two share: fitting, state, explanation."""

    name: ClassVar[str]
    options_class: ClassVar[type[VAEOptions]]

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.options_class()
        self.network_: Variational | None = None
        self.centre_: Tensor | None = None
        self.scale_: Tensor | None = None
        self.classes_: int = 0

    def fit(self, release: Evidence) -> Self:
        """On M's activations on T_ae, on the CPU in float32. Raises GuardError where they are not finite or the fit diverges."""
        features = release.features.detach().to("cpu", torch.float32)
        check_learnable(features)
        self.centre_, self.scale_ = self._standard(features)
        self.classes_ = release.logits.shape[1]
        options = self.options
        network = self._network(features.shape[1])
        x, condition = self._prepared(features), self._condition(release.labels)
        generator = torch.Generator().manual_seed(options.seed)
        optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate, fused=True)
        with torch.enable_grad():
            for _ in range(options.epochs):
                order = torch.randperm(len(x), generator=generator)
                for start in range(0, len(x), options.batch_size):
                    rows = order[start : start + options.batch_size]
                    noise = torch.randn(len(rows), options.latent, generator=generator)
                    optimiser.zero_grad(set_to_none=True)
                    rebuilt, kl = network(x[rows], condition[rows], noise)
                    self._loss(x[rows], rebuilt, kl).mean().backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
        self.network_ = network.eval().requires_grad_(False)
        if not bool(torch.isfinite(self.image_scores(release)).all()):
            self.network_ = None
            raise GuardError(f"the {self.name} diverged on the release's activations", hint="lower its learning_rate")
        return self

    def image_scores(self, evidence: Evidence) -> Tensor:
        """One error per image, (N,) float64. Raises GuardError before `fit`, or where the activations have another width."""
        return evidence.once((self.name, self._fitted()), lambda: self._measured(evidence))

    def _measured(self, evidence: Evidence) -> Tensor:
        network, features = self._fitted(), evidence.features.detach().to("cpu", torch.float32)
        assert self.centre_ is not None  # noqa: S101 - for the type checker: fitted
        if features.ndim != 2 or features.shape[1] != len(self.centre_):
            raise GuardError(
                f"the {self.name} was fitted on {len(self.centre_)} features, not on {tuple(features.shape)[1:]}"
            )
        x = self._prepared(features)
        with torch.inference_mode():
            rebuilt, kl = network(x, self._condition(evidence.labels), None)
            errors = self._errors(x, rebuilt, kl)
        errors = torch.where(torch.isfinite(features).all(1), errors, torch.inf)
        return errors.clone()

    def score(self, evidence: Evidence) -> float:
        return float(self.image_scores(evidence).mean())

    def explain(self, evidence: Evidence) -> dict[str, Any]:
        """Mean, spread, and the mean per class (None for a class without images)."""
        errors = self.image_scores(evidence)
        sums, counts = class_sums(errors, evidence.labels, evidence.logits.shape[1])
        return {
            "mean": float(errors.mean()),
            "std": float(errors.std(correction=0)),
            "per_class": per_class(sums / counts.clamp(min=1), counts),
        }

    def state(self) -> DetectorState:
        network = self._fitted()
        assert self.centre_ is not None  # noqa: S101 - for the type checker: fitted
        assert self.scale_ is not None  # noqa: S101
        tensors = {f"network.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
        tensors |= {"centre": self.centre_.clone(), "scale": self.scale_.clone()}
        return DetectorState(tensors, dataclasses.asdict(self.options) | {"classes": self.classes_})

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        """Raises GuardError for tensors that do not fit the options."""
        options = dict(state.options)
        try:
            classes = int(options.pop("classes"))
            detector = cls(cls.options_class(**options))  # type: ignore[arg-type]
            detector.classes_ = classes
            detector.centre_, detector.scale_ = state.tensors["centre"], state.tensors["scale"]
            network = detector._network(len(detector.centre_))
            network.load_state_dict({name: state.tensors[f"network.{name}"] for name in network.state_dict()})
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise GuardError(f"the stored {cls.name} does not fit its options: {error}") from error
        detector.network_ = network.eval().requires_grad_(False)
        return detector

    def _fitted(self) -> Variational:
        if self.network_ is None:
            raise GuardError(f"the {self.name} has not been fitted", hint="call fit(evidence_of_the_release) first")
        return self.network_

    def _network(self, width: int) -> Variational:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            return self._made(width)

    def _made(self, width: int) -> Variational:
        raise NotImplementedError

    def _standard(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(d,) to subtract and (1,) to divide by."""
        raise NotImplementedError

    def _prepared(self, features: Tensor) -> Tensor:
        assert self.centre_ is not None  # noqa: S101 - for the type checker: fitted
        assert self.scale_ is not None  # noqa: S101
        return (features - self.centre_) / self.scale_

    def _condition(self, labels: Tensor) -> Tensor:
        """(N, 0): unconditional."""
        return torch.zeros(len(labels), 0)

    def _loss(self, x: Tensor, rebuilt: Tensor, kl: Tensor) -> Tensor:
        raise NotImplementedError

    def _errors(self, x: Tensor, rebuilt: Tensor, kl: Tensor) -> Tensor:
        raise NotImplementedError


class ActivationVAE(_VariationalDetector[VAEOptions]):
    """e_i = (1/d) (1/2 ||x_i - x'_i||^2 + w KL(q(z|x_i) || N(0, I))), x = g(t) over its root mean square on T_ae.

    d-256-ReLU, latent 32, 256-ReLU-d; the negative evidence lower bound per feature under unit Gaussian noise.
    """

    name = "activation-vae"
    options_class = VAEOptions

    def _made(self, width: int) -> Variational:
        return Variational(width, 0, (self.options.hidden,), self.options.latent, nn.ReLU, sigmoid=False)

    def _standard(self, features: Tensor) -> tuple[Tensor, Tensor]:
        rms = features.double().square().mean().sqrt().float()
        return torch.zeros(features.shape[1]), (rms if rms > 0 else torch.ones(())).reshape(1)

    def _loss(self, x: Tensor, rebuilt: Tensor, kl: Tensor) -> Tensor:
        return 0.5 * (x - rebuilt).double().square().sum(1) + self.options.kl_weight * kl

    def _errors(self, x: Tensor, rebuilt: Tensor, kl: Tensor) -> Tensor:
        squared = squared_distances(x, rebuilt)
        return (0.5 * squared + self.options.kl_weight * kl.double()) / x.shape[1]


class ActivationCVAE(_VariationalDetector[CVAEOptions]):
    """e_i = (1/d) ||x_i - x'_i||^2, x = sigmoid(g(t) - geometric median), given the class of t (FedCLEAN, see the module).

    The sigmoid bounds what one feature can add to the score: huge activations count no more than large ones.
    """

    name = "activation-cvae"
    options_class = CVAEOptions

    def _made(self, width: int) -> Variational:
        options = self.options
        return Variational(width, self.classes_, (options.hidden,), options.latent, nn.Tanh, sigmoid=True)

    def _standard(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return geometric_median(features), torch.ones(1)

    def _prepared(self, features: Tensor) -> Tensor:
        return super()._prepared(features).sigmoid()

    def _condition(self, labels: Tensor) -> Tensor:
        return nn.functional.one_hot(labels, self.classes_).float()

    def _loss(self, x: Tensor, rebuilt: Tensor, kl: Tensor) -> Tensor:
        return (x - rebuilt).double().square().sum(1) + self.options.kl_weight * kl

    def _errors(self, x: Tensor, rebuilt: Tensor, kl: Tensor) -> Tensor:
        return squared_distances(x, rebuilt) / x.shape[1]
