"""What a simulation refuses before it starts or writes anything, and what may follow a failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import ConfigurationError, DataError, ModelError, PortierError, UnknownNameError
from owner.cli.application import run
from owner.simulate import checking, scenario
from owner.simulate.runner import Simulation

ADA = '[[contributors]]\nname = "ada"\n'
EVE = '[[contributors]]\nname = "eve"\nattack = '


@pytest.mark.parametrize(
    ("text", "kind", "named"),
    [
        (f'{EVE}"bogus"', UnknownNameError, "contributor eve: unknown attack 'bogus'"),
        (f'{EVE}"flip:sauce=7"', UnknownNameError, "did you mean source?"),
        (f'{EVE}"flip:fraction=2"', ConfigurationError, "contributor eve: flip: fraction"),
        (f'{EVE}"flip:source=12,target=1"', ConfigurationError, "contributor eve: source class must be from 0 to 9"),
        (f'{EVE}"pattern:source=3,target=cat"', UnknownNameError, "unknown target class 'cat'"),
        (f'[settings.data]\nname = "digit"\n{ADA}', UnknownNameError, "did you mean digits?"),
        (f"[settings.data]\ntrigger_fit = 0.05\n{ADA}", DataError, "a guard needs at least 32"),
        (f'[settings.model]\narchitecture = "cnnn"\n{ADA}', UnknownNameError, "did you mean cnn?"),
        (f'[settings.model]\narchitecture = "no_such_module:net"\n{ADA}', ModelError, "cannot be imported"),
        (f'[settings.model]\ndevice = "abacus"\n{ADA}', PortierError, "abacus"),
        (f"{ADA}epochs = -1", ConfigurationError, "contributor ada: epochs must be"),
        (f'{ADA}optimiser = "sdg"', UnknownNameError, "contributor ada: unknown optimiser 'sdg'"),
        (
            "".join(f'[[contributors]]\nname = "{name}"\npartition = "dirichlet:alpha=-1"\n' for name in ("ada", "bo")),
            ConfigurationError,
            "contributor ada: ",
        ),
    ],
)
def test_a_mistake_that_a_process_would_meet_later_is_told_first(
    text: str, kind: type[PortierError], named: str
) -> None:
    with pytest.raises(kind) as caught:
        checking.check(scenario.parse(text, name="s"))
    assert named in caught.value.diagnostics()


@pytest.mark.parametrize("attack", ["sign-flip", "flip:source=7,target=1", "norm-bounded:backdoor=badnets"])
def test_what_can_run_passes(attack: str) -> None:
    checking.check(scenario.compose(attacks=[attack]))


RAISING = """
import dataclasses
from contributor.attacks import Attack

@dataclasses.dataclass(frozen=True)
class Raising(Attack):
    name, paper = "raising", "ours"

    def prepare(self, examples, generator):
        raise ValueError("no such day")
"""


def test_an_attack_of_ones_own_that_raises_is_told_as_the_contributors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising_attack_of_a_test.py").write_text(RAISING)
    monkeypatch.syspath_prepend(tmp_path)
    named = "raising_attack_of_a_test:Raising"
    with pytest.raises(ConfigurationError, match=f"the attack {named} failed: ValueError: no such day"):
        checking.check(scenario.compose(attacks=[named]))


def test_a_mistaken_attack_ends_the_command_at_once_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert run(["simulate", "--attack", "bogus", "--directory", str(tmp_path / "run")]) == UnknownNameError.exit_code
    assert "known: adaptive-blend" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_directory_without_a_workspace_may_hold_another_scenario_and_one_with_it_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Simulation, "_init", stopped)

    def start(found: scenario.Scenario) -> Simulation:
        return Simulation(found, tmp_path, parallel=1, board=None, interruption=None)  # type: ignore[arg-type]

    first, second = (scenario.compose(attacks=[attack]) for attack in ("sign-flip", "add-noise"))
    for one in (first, second):
        with pytest.raises(KeyboardInterrupt):
            start(one).run()
    assert json.loads((tmp_path / "scenario.json").read_text())["scenario"] == json.loads(json.dumps(second.to_json()))
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "portier.toml").touch()
    with pytest.raises(PortierError, match="another scenario or seed"):
        start(first).run()
