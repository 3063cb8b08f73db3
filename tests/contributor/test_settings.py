"""contributor.toml: which source wins, what a bad file gets, and that it documents itself."""

from __future__ import annotations

import inspect
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from common import config
from common.errors import ConfigurationError, DataError, UnknownNameError
from common.training_options import TrainingOptions
from contributor.cli import app
from contributor.requests import Request
from contributor.settings import ContributorSettings, TuningSettings, load_settings, template, write_template
from contributor.workspace import ContributorWorkspace
from owner.settings import OwnerSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> ContributorWorkspace:
    return ContributorWorkspace(tmp_path)


def _load(
    workspace: ContributorWorkspace,
    text: str | None = None,
    flags: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
) -> ContributorSettings:
    if text is not None:
        workspace.settings_file.write_text(text)
    return load_settings(workspace, flags, environment=environment or {})


EVERY_SOURCE = [
    ("contribution.data", '"file"', "variable", "flag"),
    ("contribution.data_dir", '"/file"', "/variable", "/flag"),
    ("contribution.partition", '"file"', "variable", "flag"),
    ("contribution.classes", '"file=0"', "variable=0", "flag=0"),
    ("contribution.held_out", '"/file"', "/variable", "/flag"),
    ("contribution.seed", "1", "2", 3),
    ("contribution.report", '"/file"', "/variable", "/flag"),
    ("tuning.epochs", "1", "2", 3),
    ("tuning.learning_rate", "0.1", "0.2", 0.3),
    ("tuning.batch_size", "1", "2", 3),
    ("tuning.optimiser", '"sgd"', "adam", "adamw"),
    ("tuning.momentum", "0.1", "0.2", 0.3),
    ("tuning.weight_decay", "0.1", "0.2", 0.3),
    ("tuning.schedule", '"one-cycle"', "constant", "one-cycle"),
    ("tuning.label_smoothing", "0.1", "0.2", 0.3),
    ("tuning.augmentation", '"none"', "crop", "crop-flip"),
    ("tuning.frozen_layers", "1", "2", 3),
    ("tuning.reinitialise_head", "true", "false", True),
    ("machine.device", '"cpu"', "cuda", "cuda:1"),
    ("machine.precision", '"auto"', "float32", "bfloat16"),
    ("machine.threads", "1", "2", 3),
    ("machine.training_slots", '"/file:1"', "/variable:2", "/flag:3"),
    ("exchange.wait", "false", "true", False),
    ("exchange.patience", "1.0", "2", 3.0),
    ("exchange.factories", '["a.file:make"]', "a.variable:make", ("a.flag:make",)),
    ("simulation.attack", '"file"', "variable", "flag"),
]


def _value(settings: ContributorSettings, name: str) -> Any:
    section, _, leaf = name.partition(".")
    value = getattr(getattr(settings, section), leaf)
    return str(value) if isinstance(value, Path) else value


@pytest.mark.parametrize(("name", "in_file", "in_variable", "as_flag"), EVERY_SOURCE, ids=[n for n, *_ in EVERY_SOURCE])
def test_a_flag_beats_the_environment_which_beats_the_file(
    workspace: ContributorWorkspace, name: str, in_file: str, in_variable: str, as_flag: Any
) -> None:
    section, _, leaf = name.partition(".")
    text = f"[{section}]\n{leaf} = {in_file}\n"
    environment = {config.variable(name): in_variable}
    from_file = _value(_load(workspace, text), name)
    from_variable = _value(_load(workspace, text, environment=environment), name)
    from_flag = _value(_load(workspace, text, {name: as_flag}, environment), name)
    written = tomllib.loads(f"value = {in_file}")["value"]
    assert from_file == (tuple(written) if isinstance(written, list) else written)
    assert from_variable not in (from_file, from_flag)
    assert from_flag == as_flag


def test_the_table_above_leaves_no_setting_out() -> None:
    assert {name for name, *_ in EVERY_SOURCE} == {
        f"{section}.{leaf}" for section, values in ContributorSettings().model_dump().items() for leaf in values
    }


def test_every_setting_is_a_flag_of_contribute() -> None:
    command = typer.main.get_command(app).commands["contribute"]  # type: ignore[attr-defined]
    flags = {flag.removeprefix("--").replace("-", "_") for one in command.params for flag in one.opts}
    spelt = {"learning_rate": "lr", "factories": "factory"}
    leaves = [leaf for values in ContributorSettings().model_dump().values() for leaf in values]
    assert [leaf for leaf in leaves if spelt.get(leaf, leaf) not in flags] == []


def test_every_training_option_but_the_seed_can_be_tuned() -> None:
    assert {*TuningSettings.model_fields} | {"seed"} == {*inspect.signature(TrainingOptions).parameters}


def test_no_file_leaves_the_defaults(workspace: ContributorWorkspace) -> None:
    assert _load(workspace) == ContributorSettings()


def test_the_data_folder_of_the_environment_beats_the_files_and_yields_to_its_own_variable(
    workspace: ContributorWorkspace,
) -> None:
    text = '[contribution]\ndata_dir = "/file"\n'
    environment = {"PORTIER_DATA": "/data"}
    assert _load(workspace, text, environment=environment).contribution.data_dir == Path("/data")
    environment["PORTIER_CONTRIBUTION__DATA_DIR"] = "/own"
    assert _load(workspace, text, environment=environment).contribution.data_dir == Path("/own")


def test_an_empty_flag_or_variable_takes_back_what_the_file_says(workspace: ContributorWorkspace) -> None:
    text = '[contribution]\npartition = "iid:index=0,count=4"\n[tuning]\nepochs = 3\n'
    settings = _load(workspace, text, {"contribution.partition": ""}, {"PORTIER_TUNING__EPOCHS": ""})
    assert (settings.contribution.partition, settings.tuning.epochs) == (None, None)


def test_what_the_file_says_reaches_the_request(workspace: ContributorWorkspace, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    text = (
        f'[contribution]\ndata = "{tmp_path}/images"\nseed = 4\n[tuning]\nepochs = 2\n[simulation]\nattack = "flip"\n'
    )
    request = Request.of(_load(workspace, text))
    assert (request.data, request.seed, request.attack) == (str(tmp_path / "images"), 4, "flip")
    assert request.options == {"epochs": 2}


def test_paths_are_made_absolute_and_a_known_name_stays_a_name(
    workspace: ContributorWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("images", "digits", "at-home"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def data(given: str) -> str:
        return Request.of(_load(workspace, flags={"contribution.data": given})).data

    assert data("images") == str(tmp_path / "images")
    assert data("~/at-home") == str(tmp_path / "at-home")
    assert data("digits") == "digits"
    assert (
        Request.of(_load(workspace, '[contribution]\ndata = "digits"\ndata_dir = "~/x"\n')).data_dir == f"{tmp_path}/x"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tuning\nepochs = 3\n", "line 1"),
        ("[tuning]\nepochs = \n", "line 2"),
        ("tuning = 3\n", "[tuning] section"),
        ("[tuning]\nepochs = 'many'\n", "tuning.epochs"),
        ("[tuning]\nepochs = true\n", "tuning.epochs"),
        ("[tuning]\nepochs = -1\n", "epochs must be a whole number from 0 to 100000"),
        ("[tuning]\nlearning_rate = nan\n", "learning_rate must be a number from 0 to 1000"),
        ("[tuning]\nlabel_smoothing = 1.0\n", "label_smoothing must be a number from 0 to 0.999"),
        ("[contribution]\nseed = -1\n", "contribution.seed"),
        ("[contribution]\ndata = 3\n", "contribution.data"),
        ("[contribution]\nclasses = 'eight'\n", "OWN=RELEASE"),
        ("[contribution]\nclasses = 'eight=8,eight=5'\n", "says twice what eight is"),
        ("[contribution]\ndata_dir = '~nobody-of-that-name/x'\n", "contribution.data_dir"),
        ("[machine]\nprecision = 'float23'\n", "'float32'"),
        ("[machine]\nthreads = 0\n", "machine.threads"),
        ("[machine]\ntraining_slots = 'two'\n", "DIR:N"),
        ("[exchange]\npatience = 'long'\n", "exchange.patience"),
        ("[exchange]\nwait = 'perhaps'\n", "exchange.wait"),
        ("[exchange]\nfactories = ['os.system']\n", "package.module:factory"),
        ("[exchange]\nfactories = 'os.path:join'\n", "exchange.factories"),
    ],
)
def test_a_bad_file_is_refused_naming_it_and_what_is_wrong(
    workspace: ContributorWorkspace, text: str, said: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        _load(workspace, text)
    assert said in refused.value.message
    assert str(workspace.settings_file) in refused.value.message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[tuning]\nepoch = 3\n", "did you mean tuning.epochs?"),
        ("[tuning]\nlearning-rate = 0.1\n", "did you mean tuning.learning_rate?"),
        ("[tunings]\nepochs = 3\n", "did you mean tuning?"),
        ("[tuning]\noptimiser = 'sdg'\n", "did you mean sgd?"),
        ("[tuning]\nschedule = 'one_cycle'\n", "did you mean one-cycle?"),
    ],
)
def test_an_unknown_name_in_the_file_gets_the_nearest_one(
    workspace: ContributorWorkspace, text: str, hint: str
) -> None:
    with pytest.raises(UnknownNameError) as refused:
        _load(workspace, text)
    assert hint in refused.value.hint
    assert str(workspace.settings_file) in refused.value.message


@pytest.mark.parametrize(
    ("flags", "environment", "source"),
    [
        ({"tuning.optimiser": "sdg"}, {}, "a flag"),
        ({}, {"PORTIER_TUNING__OPTIMISER": "sdg"}, "PORTIER_TUNING__OPTIMISER"),
    ],
)
def test_an_unknown_option_names_the_source_it_came_from(
    workspace: ContributorWorkspace, flags: dict[str, str], environment: dict[str, str], source: str
) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown optimiser in .*{source}"):
        _load(workspace, "[tuning]\nepochs = 3\n", flags, environment)


def test_a_file_that_is_no_text_is_refused(workspace: ContributorWorkspace) -> None:
    workspace.settings_file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"contributor\.toml cannot be read"):
        _load(workspace)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(workspace: ContributorWorkspace) -> None:
    workspace.settings_file.touch(0o000)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        _load(workspace)


def test_a_folder_or_a_dangling_link_in_its_place_is_refused(workspace: ContributorWorkspace) -> None:
    workspace.settings_file.mkdir()
    with pytest.raises(ConfigurationError, match=r"contributor\.toml cannot be read"):
        _load(workspace)
    workspace.settings_file.rmdir()
    workspace.settings_file.symlink_to("nowhere.toml")
    with pytest.raises(ConfigurationError, match="there is no settings file"):
        _load(workspace)


def test_another_file_may_be_named_and_must_be_there(workspace: ContributorWorkspace, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("[tuning]\nepochs = 7\n")
    assert load_settings(workspace, file=tmp_path / "other.toml", environment={}).tuning.epochs == 7
    with pytest.raises(ConfigurationError, match="there is no settings file"):
        load_settings(workspace, file=tmp_path / "none.toml", environment={})


def test_settings_that_name_no_data_make_no_request(workspace: ContributorWorkspace) -> None:
    with pytest.raises(ConfigurationError, match="no data") as refused:
        Request.of(_load(workspace))
    assert "--data" in refused.value.hint


def test_the_written_file_has_the_defaults_and_documents_every_setting(workspace: ContributorWorkspace) -> None:
    write_template(workspace)
    text = workspace.settings_file.read_text()
    assert _load(workspace) == ContributorSettings()
    lines = text.splitlines()
    for name, *_ in EVERY_SOURCE:
        leaf = name.partition(".")[2]
        (place,) = (i for i, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{leaf} ="))
        assert lines[place - 1].startswith("# "), name


def test_a_file_that_is_there_is_left_alone(workspace: ContributorWorkspace) -> None:
    workspace.settings_file.write_text("[tuning]\nepochs = 3\n")
    write_template(workspace)
    assert _load(workspace).tuning.epochs == 3


def test_the_settings_page_shows_the_file_that_join_writes() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert f"```toml\n{template()}```" in page, "paste contributor.settings.template() into the page"


def test_both_sides_may_share_one_environment() -> None:
    assert not {*ContributorSettings.model_fields} & {*OwnerSettings.model_fields}


def test_missing_held_out_examples_are_named(workspace: ContributorWorkspace, tmp_path: Path) -> None:
    settings = _load(workspace, f'[contribution]\ndata = "digits"\nheld_out = "{tmp_path}/none"\n')
    with pytest.raises(DataError, match="none"):
        Request.of(settings).check_data()
