"""One federation: the task that both sides share, and what the server alone decides."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final, Literal, get_args

from common.errors import ConfigurationError, UnknownNameError
from common.federation import FederatedTask
from common.partitions import Natural
from common.specs import from_options, in_range, split_spec
from owner.federated.clean import CleanOptions
from owner.federated.client_modules import OWN_CLIENTS, load_clients
from owner.federated.cvae import FedCVAEOptions
from owner.federated.spectral import SpectralOptions

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

"""Portier's own ClientApp, whose answers follow from the message and from `client_key` alone."""

Setting = Literal["federated", "incremental"]
"""federated: rounds, in which clients are judged beside each other. incremental: one submission at a time against one release."""

ALONE: Final = ("fedavg", "spectral-vae", "fedcvae", "fedclean", "gated")
"""The strategies that can judge a submission with none beside it; fedavg takes them all."""

DetectorOptions = SpectralOptions | FedCVAEOptions | CleanOptions
DETECTORS: Final[dict[str, type[DetectorOptions]]] = {
    "spectral-vae": SpectralOptions,
    "fedcvae": FedCVAEOptions,
    "fedclean": CleanOptions,
}
"""The strategies that `detector_options` can be given to."""

NEEDED: Final = {"krum": (2, 3), "multikrum": (2, 3), "bulyan": (4, 3), "fedtrimmedavg": (2, 1)}
"""a, b of the a * f + b clients that a strategy's theory asks for: 2f + 2 < n of Krum (Blanchard et al. 2017), 4f + 3 <= n of Bulyan
(El Mhamdi et al. 2018), 2f < n of the trimmed mean (Yin et al. 2018)."""


class UnservedError(ConfigurationError):
    """A strategy that cannot serve this federation, however it is configured: no mistake, but a cell of a comparison without figures."""


@dataclass(frozen=True)
class FederationConfig(FederatedTask):
    """setting: federated or incremental, see `Setting`. In the incremental one every client sends one submission, made from the
        release, and `rounds` plays no part.
    strategy: one of STRATEGIES. rounds: of federated training.
    release_epochs: of the owner's own training, on its own share, before the first round; 0 federates from scratch. `gated`
        protects a release, and wants one that is trained.
    assumed_malicious: f, which Krum, MultiKrum, Bulyan and the share that FedTrimmedAvg cuts are given; -1 is the same rule for all of
        them: the true number of attackers or, where that is less, the most that their theory allows for so many clients.
    pretraining_rounds, pretraining_contributors: honest rounds on public data for spectral-vae and fedcvae; 0 rounds: as many as
        the federation has.
    detector_epochs: of training a VAE or CVAE; 0: the detector's own default.
    detector_options: of a VAE or CVAE, as `latent=8,mean-factor=1.5`: fields of SpectralOptions, FedCVAEOptions, CleanOptions.
    level: the guard, and in the incremental setting every detector, drops whose p-value over guard_references honest ones is at most this;
        0: the finest that so many resolve, but at least 0.05.
    refresh: of the guard: never, when-left, or a number of rounds.
    guard_references: K of the guard. guard_detectors: by name, with commas or `+`; `paper`, not `GuardOptions`' own, is the default.
    utility_drop: accuracy a client's weights alone may cost; 1 leaves it to the guard's detectors. Small shares cost some honestly.
    engine: ray (Flower's simulation engine) or inline (one client after the other, in this process).
    client_cpus: of one client on Ray. ray_address: of a running Ray cluster; "" starts one here.
    timeout: seconds a round may wait for replies.
    client_app: `package.module` of the ClientApp, which has `app`, `client_app(task)` and `check(task)`, and `attacking(task)` where clients
        attack: the numbers of those who do.
    """

    setting: str = "federated"
    strategy: str = "fedavg"
    rounds: int = 3
    release_epochs: int = 0
    assumed_malicious: int = -1
    pretraining_rounds: int = 0
    pretraining_contributors: int = 8
    detector_epochs: int = 0
    detector_options: str = ""
    level: float = 0.0
    refresh: str = "when-left"
    guard_references: int = 19
    guard_detectors: str = "paper"
    utility_drop: float = 1.0
    engine: str = "ray"
    client_cpus: float = 1.0
    ray_address: str = ""
    timeout: float = 3600.0
    client_app: str = OWN_CLIENTS

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, name, choices in (
            ("setting", self.setting, get_args(Setting)),
            ("strategy", self.strategy, STRATEGIES),
            ("engine", self.engine, ENGINES),
        ):
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
        in_range("federation", "level", self.level, 0, 0.99)
        _ = self.guard_refresh, self.detector, self.reject_level
        if self.setting == "incremental" and self.strategy not in ALONE:
            raise UnservedError(
                f"{self.strategy} selects among the replies of a round, and a submission that comes alone has none beside it",
                hint=f"in the incremental setting choose one of {', '.join(ALONE)}",
            )
        least = 0 if self.assumed_malicious < 0 else self.assumed_malicious
        if (most := self.most_malicious) is not None and least > most:
            factor, more = NEEDED[self.strategy]
            raise UnservedError(
                f"{self.strategy} against {least} malicious clients needs at least {factor * least + more} clients "
                f"({factor}f + {more}), and there are {self.clients}",
                hint="raise clients, or lower assumed_malicious",
            )

    def client_key(self, kind: str, client: int) -> tuple[object, ...]:
        """What client number `client` answers follows from, beside the message: an honest one knows of no attack, and what it
        is asked to measure (`kind` evaluate) does not depend on which client is asked."""
        quiet = dataclasses.replace(self.task(), attackers=0, attack="")
        if kind == "evaluate":
            return self.client_app, quiet, self.attack
        return self.client_app, quiet, client, self.attack if client in self.attacking else ""

    @property
    def attacking(self) -> frozenset[int]:
        """Which clients attack, by number: fewer than `attackers` where no more can. Only their side knows what an attack takes.

        Raises ConfigurationError where their module does not say, DataError.
        """
        if not self.attackers:
            return frozenset()
        found: frozenset[int] = load_clients(self.client_app, attacked=True).attacking(self.task())
        return found

    @property
    def data_key(self) -> FederatedTask:
        """What the release and the owner's shares follow from."""
        return dataclasses.replace(self.task(), clients=1, partition="iid", attackers=0, attack="")

    @property
    def owner_key(self) -> FederationConfig:
        """What the owner's side follows from, beside what clients send: all but who attacks and how, and how clients' data differ, of which it
        knows what they say of their sizes where data come divided by nature."""
        told = {
            "attackers": 0,
            "attack": "",
            "partition": self.partition if isinstance(self.share_of(0), Natural) else "iid",
            "assumed_malicious": -1,
            "timeout": 1.0,
            "ray_address": "",
        }
        return dataclasses.replace(self, **told)  # type: ignore[arg-type]

    @property
    def most_malicious(self) -> int | None:
        """The largest f that the strategy's theory allows for so many clients, -1 where they are too few for any; None where it has no f.

        >>> [FederationConfig(strategy=name).most_malicious for name in ("krum", "bulyan", "fedtrimmedavg", "fedavg")]
        [3, 1, 4, None]
        """
        if self.strategy not in NEEDED:
            return None
        factor, more = NEEDED[self.strategy]
        return max((self.clients - more) // factor, -1)

    @property
    def malicious(self) -> int:
        """f. Raises as `attacking` does."""
        if self.assumed_malicious >= 0:
            return self.assumed_malicious
        attackers, most = len(self.attacking), self.most_malicious
        return attackers if most is None else min(attackers, most)

    @property
    def guard_refresh(self) -> str | int:
        """Raises ConfigurationError for what is neither a name nor a number of rounds."""
        if self.refresh in ("never", "when-left"):
            return self.refresh
        if self.refresh.isascii() and self.refresh.isdigit() and int(self.refresh) >= 1:
            return int(self.refresh)
        raise ConfigurationError(f"refresh must be never, when-left or a number of rounds from 1, not {self.refresh!r}")

    @property
    def reject_level(self) -> float:
        """Raises ConfigurationError for a level finer than the references resolve."""
        finest = 1 / (self.guard_references + 1)
        if self.level and self.level < finest - 1e-12:
            raise ConfigurationError(
                f"level {self.level:g} is finer than {finest:.3g} = 1/(K+1), what {self.guard_references} references resolve",
                hint="raise guard_references, or the level",
            )
        return self.level or max(0.05, finest)

    @property
    def detector(self) -> DetectorOptions | None:
        """The options of the VAE or CVAE that the strategy trains; None where it trains none.

        >>> FederationConfig(strategy="fedcvae", detector_options="size=32,mean-factor=2").detector.size
        32

        Raises ConfigurationError for options of a strategy that has none, or out of range; UnknownNameError.
        """
        kind = DETECTORS.get(self.strategy)
        if kind is None:
            if self.detector_options:
                raise ConfigurationError(
                    f"{self.strategy} has no detector to give options to",
                    hint=f"leave detector-options out, or choose one of {', '.join(DETECTORS)}",
                )
            return None
        given: dict[str, str] = {}
        if self.detector_epochs:
            given["epochs"] = str(self.detector_epochs)
        if self.detector_options:
            given |= split_spec(f"{self.strategy}:{self.detector_options}", "detector")[1]
        options = from_options(kind, given, f"detector {self.strategy}")
        return options if "seed" in given else dataclasses.replace(options, seed=self.seed)
