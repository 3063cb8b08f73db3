"""One federation: the task that both sides share, and what the server alone decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from common.errors import ConfigurationError, UnknownNameError
from common.federation import FederatedTask
from common.specs import in_range

STRATEGIES: Final = (
    "fedavg",
    "krum",
    "multikrum",
    "bulyan",
    "fedmedian",
    "fedtrimmedavg",
    "spectral-vae",
    "fedcvae",
    "fedclean",
    "gated",
)
"""The names `strategy` may have. The first six are Flower's own."""

ENGINES: Final = ("ray", "inline")

NEEDED: Final = {"krum": (2, 3), "multikrum": (2, 3), "bulyan": (4, 3)}
"""a, b of the a * f + b clients that a strategy's theory asks for."""


@dataclass(frozen=True)
class FederationConfig(FederatedTask):
    """strategy: one of STRATEGIES. rounds: of federated training.
    release_epochs: of the owner's own training, on its own share, before the first round; 0 federates from scratch. `gated`
        protects a release, and wants one that is trained.
    assumed_malicious: f, which Krum, MultiKrum, Bulyan and the share that FedTrimmedAvg cuts are given; -1 is the true number
        of attackers, their best chance.
    pretraining_rounds, pretraining_contributors: honest rounds on public data for spectral-vae and fedcvae; 0 rounds: as many as
        the federation has.
    detector_epochs: of training a VAE or CVAE; 0: the detector's own default.
    refresh: of the guard: never, when-left, or a number of rounds.
    guard_references: K of the guard. guard_detectors: by name, with commas.
    utility_drop: accuracy a client's weights alone may cost; 1 leaves it to the guard's detectors. Small shares cost some honestly.
    engine: ray (Flower's simulation engine) or inline (one client after the other, in this process).
    client_cpus: of one client on Ray. ray_address: of a running Ray cluster; "" starts one here.
    timeout: seconds a round may wait for replies.
    client_app: `package.module` of the ClientApp, which has `app`, `client_app(task)` and `check(task)`.
    """

    strategy: str = "fedavg"
    rounds: int = 3
    release_epochs: int = 0
    assumed_malicious: int = -1
    pretraining_rounds: int = 0
    pretraining_contributors: int = 8
    detector_epochs: int = 0
    refresh: str = "when-left"
    guard_references: int = 19
    guard_detectors: str = "paper"
    utility_drop: float = 1.0
    engine: str = "ray"
    client_cpus: float = 1.0
    ray_address: str = ""
    timeout: float = 3600.0
    client_app: str = "contributor.federated"

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, name, choices in (("strategy", self.strategy, STRATEGIES), ("engine", self.engine, ENGINES)):
            if name not in choices:
                raise UnknownNameError(what, name, choices)
        in_range("federation", "rounds", self.rounds, 1, 1_000_000)
        in_range("federation", "release_epochs", self.release_epochs, 0, 1_000_000)
        in_range("federation", "assumed_malicious", self.assumed_malicious, -1, self.clients)
        in_range("federation", "pretraining_rounds", self.pretraining_rounds, 0, 1_000_000)
        in_range("federation", "pretraining_contributors", self.pretraining_contributors, 2, 100_000)
        in_range("federation", "detector_epochs", self.detector_epochs, 0, 1_000_000)
        in_range("federation", "guard_references", self.guard_references, 1, 9999)
        in_range("federation", "utility_drop", self.utility_drop, 0, 1)
        in_range("federation", "timeout", self.timeout, 1e-3, 1e9)
        in_range("federation", "client_cpus", self.client_cpus, 1e-3, 1e4)
        _ = self.guard_refresh
        if self.strategy in NEEDED:
            factor, more = NEEDED[self.strategy]
            need = factor * self.malicious + more
            if self.clients < need:
                raise ConfigurationError(
                    f"{self.strategy} against {self.malicious} malicious clients needs at least {need} clients "
                    f"({factor}f + {more}), and there are {self.clients}",
                    hint="raise clients, or lower assumed_malicious",
                )
        if self.strategy == "fedtrimmedavg" and 2 * self.malicious >= self.clients:
            raise ConfigurationError(
                f"fedtrimmedavg cannot cut {self.malicious} of {self.clients} replies off both ends",
                hint="lower assumed_malicious below half of the clients",
            )

    @property
    def malicious(self) -> int:
        return self.attackers if self.assumed_malicious < 0 else self.assumed_malicious

    @property
    def guard_refresh(self) -> str | int:
        """Raises ConfigurationError for what is neither a name nor a number of rounds."""
        if self.refresh in ("never", "when-left"):
            return self.refresh
        if self.refresh.isascii() and self.refresh.isdigit() and int(self.refresh) >= 1:
            return int(self.refresh)
        raise ConfigurationError(f"refresh must be never, when-left or a number of rounds from 1, not {self.refresh!r}")
