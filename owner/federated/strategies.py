"""The federated baselines as Flower strategies: FedAvg behind a fitted detector, and Flower's own robust strategies, observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from flwr.app import RecordDict
from flwr.serverapp.strategy import Bulyan, Krum, MultiKrum, Strategy
from flwr.serverapp.strategy.multikrum import select_multikrum

from common.weights import Weights
from owner.federated.clean import CleanDetector
from owner.federated.cvae import CVAEDetector
from owner.federated.replies import MOST_SAMPLES
from owner.federated.spectral import SpectralDetector
from owner.federated.surrogates import Surrogates
from owner.federated.thresholds import Cut
from owner.federated.vetted import Judgement, VettedStrategy


class RoundDetector(Protocol):
    """What scores the clients of one round and cuts it; see `SpectralDetector`."""

    def scores(self, number: int, updates: Sequence[Weights]) -> list[float]: ...

    def cut(self, scores: Sequence[float]) -> Cut: ...


Fitted = TypeVar("Fitted", bound=RoundDetector)


class _ByDetector(VettedStrategy, Generic[Fitted]):
    """Drops whom its detector cuts off; the others' weights in the mean are renormalised by the inner strategy."""

    def __init__(
        self,
        detector: Fitted,
        inner: Strategy | None = None,
        *,
        wait_seconds: float = 60.0,
        most_samples: float = MOST_SAMPLES,
    ) -> None:
        super().__init__(inner, wait_seconds=wait_seconds, most_samples=most_samples)
        self.detector = detector

    def judge(self, number: int, updates: Sequence[Weights]) -> Judgement:
        scores = self.detector.scores(number, updates)
        cut = self.detector.cut(scores)
        reasons = [cut.rule if dropped else "" for dropped in cut.dropped]
        return Judgement(reasons, scores, cut.threshold, cut.rule)


class SpectralVAE(_ByDetector[SpectralDetector]):
    """Li et al. 2020 (arXiv 2002.00211). detector: fitted on honest updates made on public data."""

    name: ClassVar[str] = "spectral-vae"

    def describe(self) -> list[str]:
        o = self.detector.options
        return [
            f"VAE {'-'.join(map(str, o.hidden))}, latent {o.latent}, on {o.size or 'all'} weights fixed by seed {o.seed}",
            "Drops clients whose error + KL exceeds the round's mean (Li et al. 2020)",
        ]


class FedCVAE(_ByDetector[CVAEDetector]):
    """Gu & Yang 2021 (IPDPS). detector: fitted on honest rounds on public data."""

    name: ClassVar[str] = "fedcvae"

    def describe(self) -> list[str]:
        o = self.detector.options
        return [
            f"CVAE {o.hidden} tanh, latent {o.latent}, given the round, on {o.size} weights fixed by seed {o.seed}",
            "Drops clients whose error is at or above the round's mean (Gu & Yang 2021)",
        ]


class FedCLEAN(_ByDetector[CleanDetector]):
    """Ben Ghali et al. 2025 (arXiv 2501.12123). detector: fitted on the owner's own fine-tuning of the release."""

    name: ClassVar[str] = "fedclean"

    def describe(self) -> list[str]:
        o = self.detector.options
        return [
            f"CVAE {o.hidden} tanh, latent {o.latent}, given the class, on all hidden layers' maps of up to {o.images} triggers",
            f"Keeps clients by ascending error up to a gap of more than {o.gap:g} of the range (FedCLEAN)",
        ]


class RobustStrategy(VettedStrategy):
    """A strategy of Flower as it is, behind the same admission and order; records whom Krum, MultiKrum or Bulyan leaves out.

    FedAvg leaves nobody out, FedMedian and FedTrimmedAvg work coordinate by coordinate: with them only admission drops.
    """

    name: ClassVar[str] = "robust"

    def __init__(self, inner: Strategy, *, wait_seconds: float = 60.0, most_samples: float = MOST_SAMPLES) -> None:
        super().__init__(inner, wait_seconds=wait_seconds, most_samples=most_samples)

    def observe(self, contents: list[RecordDict], judgement: Judgement) -> Judgement:
        inner = self.inner
        if not isinstance(inner, (Krum, MultiKrum, Bulyan)):
            return judgement
        malicious = inner.num_malicious_nodes
        if isinstance(inner, Bulyan):
            if len(contents) < 4 * malicious + 3:
                return judgement  # Bulyan itself then merges nothing, and says so
            chosen = inner.selection_rule(contents, malicious, len(contents) - 2 * malicious)
        else:
            chosen = select_multikrum(contents, malicious, inner.num_nodes_to_select)
        kept = {id(content) for content in chosen}
        rule = f"not among the {len(chosen)} that {type(inner).__name__} selects"
        reasons = ["" if id(content) in kept else rule for content in contents]
        return Judgement(reasons, krum_scores(_vectors(contents), malicious), None, rule)

    def describe(self) -> list[str]:
        return ["Flower's own strategy behind Portier's admission: usable weights only, in the order of partitions"]


def krum_scores(vectors: torch.Tensor, malicious: int) -> list[float]:
    """Of each of n vectors, the summed squared distance to its n - f - 2 nearest others (Blanchard et al. 2017), f = malicious.

    vectors: (n, d). At least one neighbour is taken, as Flower does.

    >>> krum_scores(torch.tensor([[0.0], [1.0], [9.0]]), 0)
    [1.0, 1.0, 64.0]
    """
    x = vectors.double()
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    distances.fill_diagonal_(0)
    near = max(1, len(x) - malicious - 2)
    ordered = distances.sort(dim=1).values[:, 1 : near + 1]
    return [float(score) for score in ordered.sum(1)]


def _vectors(contents: Sequence[RecordDict]) -> torch.Tensor:
    models = [
        {name: torch.from_numpy(array.numpy().copy()) for name, array in next(iter(c.array_records.values())).items()}
        for c in contents
    ]
    return Surrogates(models[0], size=None, seed=0).of(models)
