"""What the owner assumes of honest clients: the one population that everything is drawn from which learns from, or is compared with,
honest updates that the owner makes itself.

Nobody may look at what clients hold to set a detector up: that is what they federate to keep to themselves. Known are how many they
are and how many examples they have together, which both are announced, and how they are asked to train. Where data come divided by
nature (sensors, generated clients) and sizes differ by a hundred times, the smallest and largest number of examples are known, too:
every reply says how many its client has, to be weighed by, an attacker's as an honest one's.
"""

from __future__ import annotations

from common.partitions import Natural
from owner.federated.config import FederationConfig
from owner.population import HonestPopulation

SPREAD = 2.0
"""By how much a client's share is assumed to be larger or smaller than an equal one, at most."""


def honest_clients(config: FederationConfig, *, pool: int) -> HonestPopulation:
    """Shares of half to twice an equal one, of a natural division from the smallest to the largest that clients say they have; class mixes as
    Portier assumes them of contributors of whom it knows nothing.

    pool: images at hand to play them with; a share cannot be larger.
    """
    if divided_by_nature(config):
        said = config.sizes()
        sizes: tuple[float, float] = min(said), max(said)
    else:
        equal = len(config.shares().unclaimed) / config.clients
        sizes = equal / SPREAD, equal * SPREAD
    smallest, largest = (min(max(round(size), 1), pool) for size in sizes)
    return as_told((smallest, largest))


def divided_by_nature(config: FederationConfig) -> bool:
    return isinstance(config.share_of(0), Natural)


def as_told(sizes: tuple[int, int] | None = None) -> HonestPopulation:
    """They differ by their data alone, for the server tells them all how to train. sizes: of `HonestPopulation`."""
    return HonestPopulation(
        sizes=sizes,
        learning_rate=(1.0, 1.0),
        epochs=(1.0, 1.0),
        other_optimiser=0.0,
        other_augmentation=0.0,
        noisy=0.0,
        other_images=0.0,
        frozen=0.0,
    )
