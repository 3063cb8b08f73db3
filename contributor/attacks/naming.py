"""What an attack of somebody's own raises, told as that attack's: Portier is not at fault, and its user knows where to look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from common.errors import ConfigurationError, PortierError
from common.training_hooks import TrainingHooks
from contributor.attacks.base import Attack


@contextmanager
def naming(attack: Attack, step: str) -> Iterator[None]:
    """Raises ConfigurationError for what an attack of somebody's own raises in `step`. Errors of Portier's own stay what they are:
    those it raises on purpose, and any of its own attacks, which would be a defect."""
    try:
        yield
    except PortierError:
        raise
    except Exception as error:
        if attack.is_ours():
            raise
        raise ConfigurationError(
            f"the attack {attack} failed in `{step}`: {type(error).__name__}: {error}",
            hint=f"mend {type(attack).__module__}:{type(attack).__qualname__}; `--debug` shows the line",
        ) from error


def victim_of(attack: Attack, class_names: Sequence[str]) -> int | None:
    """`attack.victim_class`, where it is a class there is. Raises ConfigurationError for what an attack of somebody's own gives else."""
    with naming(attack, "victim_class"):
        victim = attack.victim_class(class_names)
        if victim is not None and not 0 <= victim < len(class_names):
            raise IndexError(f"{victim} is none of the {len(class_names)} classes")
        return victim


class NamedHooks(TrainingHooks):
    """The hooks of an attack, whose errors name it."""

    def __init__(self, attack: Attack, hooks: TrainingHooks) -> None:
        self._attack, self._hooks = attack, hooks

    def epoch(self, number: int) -> None:
        with naming(self._attack, "hooks: epoch"):
            self._hooks.epoch(number)

    def loss(
        self, model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor, logits: Tensor, loss: Tensor
    ) -> Tensor:
        with naming(self._attack, "hooks: loss"):
            return self._hooks.loss(model, inputs, labels, logits, loss)

    def gradients(self, model: nn.Module) -> None:
        with naming(self._attack, "hooks: gradients"):
            self._hooks.gradients(model)

    def stepped(self, model: nn.Module) -> None:
        with naming(self._attack, "hooks: stepped"):
            self._hooks.stepped(model)
