"""What a contributor does with a release: fine-tune it on its own data, honestly or, in a simulation, under an attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.devices import Compute
from common.effectiveness import effective
from common.errors import ConfigurationError, DataError, ModelError
from common.evaluation import evaluate
from common.examples import Examples
from common.model_spec import ModelSpec
from common.models import build
from common.training import train
from common.training_options import TrainingOptions
from common.weights import Weights, weights_of
from contributor.attacks import Attack
from contributor.attacks.naming import NamedHooks, naming, victim_of
from contributor.matching import fit_to_model


@dataclass(frozen=True)
class FineTuned:
    """weights: what is returned to the owner, on the CPU, of the base's names, shapes and dtypes.
    samples: how many examples were trained on.
    report: JSON values: `samples`, `epochs`, `loss_per_epoch`, `seconds`, `images_per_second`, `attack` (its
        description, or None), and measured on the held-out examples, None where there are none: `accuracy_before` of
        the base, `accuracy` and `recall` of the returned weights, and of an attack, on the weights it aims at (mostly
        those returned: `Attack.aims_at`), `attack_success`, `attack_success_before`, the base's own rate of the same
        confusion, `attack_success_unmarked`, the rate without the trigger (of a backdoor), and `attack_effective`,
        whether the attack reached its goal (`common.effectiveness`).
    """

    weights: Weights
    samples: int
    report: dict[str, Any]


def finetune(
    base: Mapping[str, Tensor],
    spec: ModelSpec,
    examples: Examples,
    options: TrainingOptions,
    *,
    attack: Attack | None = None,
    held_out: Examples | None = None,
    class_names: tuple[str, ...] | None = None,
    compute: Compute,
    checkpoint: Path | None = None,
    progress: bool | None = None,
) -> FineTuned:
    """Fine-tune the release `base` on `examples` (El Moadine et al. 2022, 2.3: a lower learning rate than in training,
    the first layers frozen or the head anew if `options` say so).

    spec: of the release; one that names a factory (`package.module:factory`) runs that code here, so the caller has
        made sure that this side's own configuration names it too.
    attack: changes the data before, the loss and steps of, the weights after training. Its randomness comes from `options.seed`.
    held_out: clean examples that were not trained on; accuracy and attack success are measured on them.
    class_names: of the release; the examples are brought to them, and to the model's images (`matching.fit_to_model`).
    checkpoint: file that training goes on from when it was interrupted.

    Raises DataError where the data do not fit the model or hold nothing to attack, ModelError where `base` is not the
    model of `spec`, ConfigurationError that names an attack of somebody's own for whatever it raises.
    """
    if not len(examples):
        raise DataError("there are no examples to train on")
    mine = fit_to_model(examples, spec, class_names)
    yardstick = fit_to_model(held_out, spec, class_names) if held_out is not None and len(held_out) else None
    trained_on = mine if attack is None else _prepared(attack, mine, options)
    model = _load(spec, base)
    before = _measure(model, yardstick, attack, options, compute, unmarked=False)
    hooks = None
    if attack is not None:
        randomness = _generator(options, "hooks")
        with naming(attack, "hooks"):
            hooks = attack.hooks(model, mine, head=spec.head, compute=compute, generator=randomness)
    done = train(
        model,
        trained_on,
        options,
        compute=compute,
        head=spec.head,
        checkpoint=checkpoint,
        progress=progress,
        label="fine-tuning",
        hooks=hooks if attack is None or hooks is None else NamedHooks(attack, hooks),
    )
    tuned = weights_of(model)
    if attack is not None:
        origin = {name: base[name].cpu() for name in tuned}
        with naming(attack, "corrupt"):
            tuned = attack.corrupt(origin, tuned, _generator(options, "corrupt"))
        try:
            model.load_state_dict(tuned)
        except (RuntimeError, TypeError) as error:  # TypeError: not even a dict
            raise ModelError(f"the attack {attack.name} returns other tensors than it was given: {error}") from None
    wanted: Mapping[str, Tensor] = tuned
    if attack is not None:
        with naming(attack, "aims_at"):
            wanted = attack.aims_at(origin, tuned)
    after = _measure(model, yardstick, attack if wanted is tuned else None, options, compute)
    reached = after if wanted is tuned else _measure(_load(spec, wanted), yardstick, attack, options, compute)
    report = {
        "samples": len(trained_on),
        "epochs": options.epochs,
        "loss_per_epoch": [float(loss) for loss in done.loss_per_epoch],
        "seconds": done.seconds,
        "images_per_second": done.images_per_second,
        "attack": None if attack is None else attack.describe(),
        "accuracy_before": before["accuracy"],
        "accuracy": after["accuracy"],
        "recall": after["recall"],
        **_judged(attack, mine.class_names, before, reached),
    }
    return FineTuned(tuned, len(trained_on), report)


def measure_attack(
    base: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    spec: ModelSpec,
    attack: Attack,
    held_out: Examples,
    options: TrainingOptions,
    *,
    class_names: tuple[str, ...] | None = None,
    compute: Compute,
) -> dict[str, Any]:
    """`attack_success`, the same `_before` and `_unmarked`, and `attack_effective` as `finetune` reports them, of these very `weights`:
    those of a release that the returned ones were merged into, say. options: those that the attacker trained with.

    Raises DataError, ModelError as `finetune` does.
    """
    yardstick = fit_to_model(held_out, spec, class_names)
    before = _measure(_load(spec, base), yardstick, attack, options, compute, unmarked=False)
    after = _measure(_load(spec, weights), yardstick, attack, options, compute)
    return _judged(attack, yardstick.class_names, before, after)


def _prepared(attack: Attack, mine: Examples, options: TrainingOptions) -> Examples:
    with naming(attack, "prepare"):
        found = attack.prepare(mine, _generator(options, "prepare"))
    if not isinstance(found, Examples):
        raise ConfigurationError(f"the attack {attack} returns a {type(found).__name__} from `prepare`, not Examples")
    return found


def _load(spec: ModelSpec, base: Mapping[str, Tensor]) -> nn.Module:
    model = build(spec)
    try:
        model.load_state_dict(dict(base))
    except RuntimeError as error:
        raise ModelError(f"the weights are not those of {spec.architecture}: {error}") from None
    return model


def _measure(
    model: nn.Module,
    held_out: Examples | None,
    attack: Attack | None,
    options: TrainingOptions,
    compute: Compute,
    *,
    unmarked: bool = True,
) -> dict[str, Any]:
    """unmarked: whether a backdoor's success without its mark is wanted; of a release nobody asks for it."""
    if held_out is None:
        return {"accuracy": None, "recall": None, "attack_success": None, "unmarked": None}
    measured = evaluate(model, held_out, compute=compute)
    success = without_mark = None
    if attack is not None:
        with naming(attack, "success"):
            success = attack.success(model, held_out, compute, _generator(options, "success"))
            if unmarked and attack.goal == "backdoor":
                without_mark = attack.success(model, held_out, compute, _generator(options, "success"), marked=False)
    # A class without held-out examples has no recall; NaN is no JSON.
    recall = [float(r) if n else None for r, n in zip(measured.recall, measured.support, strict=True)]
    return {"accuracy": float(measured.accuracy), "recall": recall, "attack_success": success, "unmarked": without_mark}


def _judged(
    attack: Attack | None, class_names: tuple[str, ...], before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    return {
        "attack_success": after["attack_success"],
        "attack_success_before": before["attack_success"],
        "attack_success_unmarked": after["unmarked"],
        "attack_effective": None if attack is None else _effective(attack, class_names, before, after),
    }


def _effective(
    attack: Attack, class_names: tuple[str, ...], before: dict[str, Any], after: dict[str, Any]
) -> bool | None:
    if after["accuracy"] is None:
        return None
    recall_drop = None
    if (victim := victim_of(attack, class_names)) is not None:
        was, remained = before["recall"][victim], after["recall"][victim]
        recall_drop = None if was is None else was - remained
    return effective(
        attack.goal,
        attack_success=after["attack_success"],
        attack_success_before=before["attack_success"],
        attack_success_unmarked=after["unmarked"],
        recall_drop=recall_drop,
        accuracy_drop=before["accuracy"] - after["accuracy"],
    )


def _generator(options: TrainingOptions, purpose: str) -> torch.Generator:
    # One stream a purpose, so that a resumed run, which draws no victims twice, still draws the same noise.
    step = ("prepare", "corrupt", "success", "hooks").index(purpose) + 1
    return torch.Generator().manual_seed((options.seed * 1_000_003 + step) % (1 << 63))
