"""Names an owner chooses detectors and their combination by: plain values, so that settings are read without loading torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from common.errors import ConfigurationError

PAPER, STANDARD = "paper", "standard"
DETECTOR_NAMES: tuple[str, ...] = (
    "activation-autoencoder",
    "activation-vae",
    "activation-cvae",
    "paired-autoencoder",
    "feature-drift",
    "drift-concentration",
    "cka",
    "feature-spectrum",
    "confusion-drift",
    "accuracy-drop",
    "recall-drop",
    "probe-bank",
    "prediction-noise-drift",
    "extrapolation",
    "input-gradient-drift",
    "head-drift",
    "batchnorm-drift",
    "channel-lipschitz",
    "update-norm",
    "update-spectrum",
)
"""Every detector but those of the escalation tier."""

PRESETS: Mapping[str, tuple[str, ...]] = {
    PAPER: ("activation-autoencoder",),
    STANDARD: (
        "activation-autoencoder",
        "drift-concentration",
        "accuracy-drop",
        "recall-drop",
        "probe-bank",
        "prediction-noise-drift",
        "extrapolation",
        "input-gradient-drift",
        "head-drift",
        "batchnorm-drift",
        "update-norm",
        "update-spectrum",
    ),
}
"""paper: the activation auto-encoder alone. standard, the default: what the detection benchmark chose on its development bases, and the two of
utility, which are measured and take no part in the combined score. `batchnorm-drift` is a constant 0 where there is no BatchNorm, and so far
the benchmark has judged no network with it."""


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Detectors by name, presets written out, each once and in order. Raises ConfigurationError for none.

    >>> expand(["paper", "cka", "activation-autoencoder"])
    ('activation-autoencoder', 'cka')
    """
    found = tuple(dict.fromkeys(name for given in names for name in PRESETS.get(given, (given,))))
    if not found:
        raise ConfigurationError("a guard needs at least one detector", hint="name some, or paper, or standard")
    return found


ESCALATIONS: Mapping[str, tuple[str, ...]] = {
    "off": (),
    "maximum-margin": ("maximum-margin",),
    "trigger-inversion": ("trigger-inversion",),
    "both": ("maximum-margin", "trigger-inversion"),
}
"""What a submission that the cheap tier leaves unclear is measured by; two become one score (docs/detectors.md)."""
