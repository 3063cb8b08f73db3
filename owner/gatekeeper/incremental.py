"""Whether a release is small enough news to be guarded by transplanted fine-tunes, and where these lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.devices import Compute
from common.errors import GuardError, PortierError
from common.model_spec import ModelSpec
from common.training_options import TrainingOptions
from common.weights import load as load_weights
from owner.gatekeeper.finished import Part
from owner.gatekeeper.guard import Guard
from owner.gatekeeper.options import GuardOptions
from owner.gatekeeper.transplants import KEPT, KeptReferences, Transplants, measure_news
from owner.gatekeeper.usefulness import Usefulness


class BigNewsError(GuardError):
    """The release cannot be guarded by transplanting: fine-tunes of it have to be trained."""


def small_news(
    guard: Path,
    old: Path,
    new: Mapping[str, Tensor],
    *,
    options: GuardOptions,
    spec: ModelSpec,
    finetuning: TrainingOptions,
    compute: Compute,
    usefulness: Usefulness | None = None,
) -> Transplants:
    """The fine-tunes of the guard in `guard`, which protects the weights in the file `old`, for a guard of `new` with these options.

    Raises BigNewsError, which says why: there is no such guard, it kept none or one is damaged, it followed other recommendations, another
    population or another utility check, too many transplants came before, or the news since they were trained exceeds `options.incremental_news`.
    """
    try:
        before = Guard.load(guard)
        weights = load_weights(old, digest=before.release_sha256)
    except PortierError as error:
        raise BigNewsError(f"the guard before it cannot be used: {error.message}") from error
    asked = (spec, finetuning, compute, options.population, options.seed)
    if asked != (before.spec, before.finetuning, before.compute, before.options.population, before.options.seed):
        raise BigNewsError("model, recommendation, population, device or seed differ from those of the guard before it")
    if usefulness != before.usefulness:
        raise BigNewsError("the utility check that its references pass differs from that of the guard before it")
    made = before.provenance
    generation = int(made.get("generation", 0)) + 1
    if generation > options.incremental_generations:
        raise BigNewsError(
            f"{generation - 1} transplants came before it, the limit is {options.incremental_generations}"
        )
    kept = KeptReferences(guard / KEPT)
    several = options.rule == "conformal" and len(options.detector_names) > 1
    needed: dict[Part, int] = {
        "owner": 1,
        "fitting": options.fitting_references if several else 0,
        "calibrating": options.references_to_fit,
    }
    if not all(kept.holds(part, k) for part, count in needed.items() for k in range(count)):
        raise BigNewsError("the guard before it did not keep that many fine-tunes")
    if set(weights) != set(new):
        raise BigNewsError("the release before it has other tensors")
    try:
        # Read before anything is made of them: afterwards it would be too late to train instead.
        for part in ("owner", "fitting"):
            for k in range(needed[part]):
                kept.read(part, k)
        news = measure_news(weights, {n: t.cpu() for n, t in new.items()}, kept, options.references_to_fit)
    except GuardError as error:
        raise BigNewsError(error.message) from error
    total = float(made.get("total_news", 0.0)) + news
    if total > options.incremental_news:
        raise BigNewsError(
            f"since they were trained it moved {total:.3g} times as far as a median fine-tune, {news:.3g} of it now; the limit "
            f"is {options.incremental_news:g}"
        )
    trained_on = made.get("trained_on", before.release_sha256)
    return Transplants(kept, weights, before.release_sha256, trained_on, generation, news, total)
