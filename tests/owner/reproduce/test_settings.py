"""What the paper leaves open has a default, a name and limits."""

from __future__ import annotations

import pytest

from common.errors import ConfigurationError, UnknownNameError
from owner.reproduce.settings import RECIPES, Settings


def test_fine_tuning_is_constant_at_a_tenth_of_the_training_rate() -> None:
    training, finetuning = (getattr(Settings(), name)("cnn", 0) for name in ("training", "finetuning"))
    assert finetuning.learning_rate == pytest.approx(training.learning_rate / 10)
    assert (training.schedule, finetuning.schedule, finetuning.epochs) == ("one-cycle", "constant", 50)


def test_wide_resnet_is_fine_tuned_twice_as_long_as_the_others() -> None:
    durations = {name: Settings().durations(name) for name in RECIPES}
    assert durations.pop("wrn-28-10") == (50, 100)
    assert set(durations.values()) == {(25, 50)}


def test_settings_survive_json() -> None:
    settings = Settings(attack_data="alone", improve=("cnn", "resnet18"), square=3)
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    "wrong", [{"fraction": 1.5}, {"source": "6"}, {"short": 50}, {"references": 3}, {"part": 1.0}, {"jpeg_quality": 0}]
)
def test_an_option_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Settings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"attack_data": "outside"}, {"honest_epochs": "50"}, {"improve": ("vgg16",)}])
def test_a_choice_that_does_not_exist_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UnknownNameError):
        Settings(**wrong)  # type: ignore[arg-type]
