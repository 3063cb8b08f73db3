"""What a gate of few references is worth: an owner's default is 19 that fit and 19 that calibrate, the benchmark's 33 and 99.

    python -m benchmarks.detection.few badnet-cnn-mnist

From the references of the development bases, as `benchmarks.detection` has scored them, so many are drawn again and again; the detectors
are those of the preset `standard`. Writes docs/results/detection-few.md. No final base is looked at, no model trained or scored.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, pstdev

from benchmarks.detection.config import Config
from benchmarks.detection.development import arguments, development, told
from benchmarks.detection.gates import Choice
from benchmarks.detection.judge import PRIMARY, Base, judge
from benchmarks.records import hardware
from owner.choices import PRESETS, STANDARD
from owner.detectors.combination import Method

NUMBERS = ((19, 19), (19, 99), (33, 99))
"""How many fit the scales, and K."""
METHODS: tuple[Method, ...] = ("families", "detectors")
DRAWS = 20
LEVEL = 0.05


@dataclass(frozen=True)
class Outcome:
    """Of one draw: shares that are rejected at the level, of effective attacks that pass utility and of honest models that do."""

    found: float
    honest: float


def main() -> None:
    given = arguments(__doc__)
    config = Config.load(given.config)
    bases = development(config, given.out)
    models = sum(len(base.honest) + len(base.attacked) for base in bases)
    lines = [
        "# Gates of few references",
        "",
        f"`python -m benchmarks.detection.few {given.config}`, on {hardware()}. {config.architecture} on {config.dataset}, development base "
        f"{', '.join(str(base.number) for base in bases)}, {models} models; {DRAWS} draws of references for each row, all methods on the same ones. The gate of the preset `standard` "
        f"at its nominal {100 * LEVEL:.0f} %: mean over draws and, in brackets, their standard deviation. All draws are from the same references and judge the same "
        "models, and the detectors were designed on them: the rows compare with each other and promise nothing of other models.",
        "",
        "| fit the scales | K | combination | given the size of the update | effective attacks rejected | honest rejected |",
        "|---|---|---|---|---|---|",
    ]
    for fitting, calibration in NUMBERS:
        for method in METHODS:
            for given_size in (False, True):
                choice = Choice(method, PRESETS[STANDARD], given_size)
                found = [one for base in bases for one in outcomes(base, choice, fitting, calibration)]
                cells = (spread([one.found for one in found]), spread([one.honest for one in found]))
                lines.append(
                    f"| {fitting} | {calibration} | {method} | {'yes' if given_size else 'no'} | {' | '.join(cells)} |"
                )
    path = given.out / "detection-few.md"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"written: {path}")


def outcomes(base: Base, choice: Choice, fitting: int, calibration: int) -> Iterator[Outcome]:
    """The same draws for every choice."""
    draws = random.Random(f"{base.number} {fitting} {calibration}")
    references = [*base.calibration, *base.fitting]
    honest = [model for model in base.honest if model.passes_utility]
    attacked = [model for model in base.attacked if model.belongs(PRIMARY)]
    for _ in range(DRAWS):
        drawn = draws.sample(references, fitting + calibration)
        group = judge(
            replace(base, fitting=drawn[:fitting], calibration=drawn[fitting:], honest=honest), choice.fit, attacked
        )
        yield Outcome(*(mean(one.p <= LEVEL for one in models) for models in (group.attacked, group.honest)))


def spread(shares: Sequence[float]) -> str:
    """
    >>> spread([0.5, 0.7])
    '60 % (10)'
    """
    return f"{100 * mean(shares):.0f} % ({100 * pstdev(shares):.0f})"


if __name__ == "__main__":
    told(main)
