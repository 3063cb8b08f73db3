"""A workspace founded and its first release trained or adopted."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.errors import (
    ConfigurationError,
    DataError,
    UnknownNameError,
    WeightsError,
    WorkspaceError,
)
from common.weights import load, save
from owner.operations import looking
from owner.operations.founding import init, train_first
from owner.operations.opening import Office, open_office
from owner.shares import load_share
from tests.owner.people import QUICK


def write_images(root: Path, count: int, height: Callable[[int], int] = lambda _: 8) -> str:
    """An image folder of three classes; height: of the n-th image, 8 pixels wide."""
    for number in range(count):
        folder = root / f"class-{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        colour = (80 * (number % 3), number % 200, 60)
        Image.new("RGB", (8, height(number)), colour).save(folder / f"{number}.png")
    return str(root)


def test_the_workspace_and_its_keys_are_for_their_owner_alone(root: Path) -> None:
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "keys").stat().st_mode) == 0o700
    for name in ("signing.key", "authority.key"):
        assert stat.S_IMODE((root / "keys" / name).stat().st_mode) == 0o600


def test_a_new_workspace_has_disjoint_shares_and_a_whole_ledger(office: Office) -> None:
    report = looking.verify_ledger(office)
    assert report.ok
    names = {path.stem for path in office.workspace.shares.iterdir()}
    assert names == {"train", "references", "trigger_fit", "trigger_calibration", "evaluation"}


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(WorkspaceError, match="is not empty"):
        init(tmp_path, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("overrides", "error", "hint"),
    [
        ({"data.name": "digit"}, UnknownNameError, "digits"),
        ({"model.architecture": "resnet81"}, UnknownNameError, "resnet18"),
        ({"guard.referenses": 3}, UnknownNameError, "guard.references"),
        ({"guard.references": 3, "guard.reject_level": 0.01}, ConfigurationError, ""),
        ({"data.train": 0.9, "data.references": 0.9}, ConfigurationError, ""),
    ],
    ids=["data set", "model", "setting", "level", "shares"],
)
def test_what_cannot_be_founded_leaves_nothing_behind(
    tmp_path: Path, overrides: dict[str, object], error: type[Exception], hint: str
) -> None:
    with pytest.raises(error) as caught:
        init(tmp_path / "new", {**QUICK, **overrides})
    assert hint in getattr(caught.value, "hint", "")
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_stays_where_founding_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise DataError("no data")

    monkeypatch.setattr("owner.operations.founding.save_shares", broken)
    with pytest.raises(DataError):
        init(tmp_path, QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_second_first_release_is_refused(office: Office) -> None:
    with pytest.raises(WorkspaceError, match="has its first release already"):
        train_first(office, progress=False)


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    init(tmp_path / "untrained", QUICK)
    return tmp_path / "untrained"


def test_a_model_one_has_already_becomes_the_first_release(untrained: Path, office: Office, tmp_path: Path) -> None:
    weights = load(office.workspace.release(office.store.current().id).weights)
    save(tmp_path / "mine.safetensors", weights)
    with open_office(untrained) as mine:
        trained = train_first(mine, weights=tmp_path / "mine.safetensors", progress=False)
        adopted = load(mine.workspace.release(trained.release.id).weights)
    assert all(torch.equal(adopted[name], weights[name]) for name in weights)
    assert trained.evaluation.accuracy > 0.5


def test_adopted_weights_must_fit_the_architecture(untrained: Path, tmp_path: Path) -> None:
    save(tmp_path / "other.safetensors", {"weight": torch.zeros(3)})
    with open_office(untrained) as office, pytest.raises(WeightsError, match="do not fit"):
        train_first(office, weights=tmp_path / "other.safetensors", progress=False)


def test_weights_that_do_not_fit_name_the_model_and_the_way_to_a_network_of_ones_own(
    untrained: Path, tmp_path: Path
) -> None:
    save(tmp_path / "other.safetensors", {"weight": torch.zeros(3)})
    with open_office(untrained) as office, pytest.raises(WeightsError) as caught:
        train_first(office, weights=tmp_path / "other.safetensors", progress=False)
    assert "mlp, inputs (1, 8, 8), 10 classes" in caught.value.message
    assert "--architecture NAME, or package.module:factory" in caught.value.hint


def test_data_that_are_too_few_for_a_guard_are_refused_at_once_with_how_many_are_enough(tmp_path: Path) -> None:
    images = write_images(tmp_path / "few", 400)
    with pytest.raises(DataError) as caught:
        init(tmp_path / "new", {**QUICK, "data.name": images})
    assert "data.trigger_fit is 0.3 of 99 test images of few: 30 images" in caught.value.message
    assert "117 test images are enough" in caught.value.hint
    assert not (tmp_path / "new").exists()


def test_the_way_out_that_is_named_for_few_data_is_one(tmp_path: Path) -> None:
    images = write_images(tmp_path / "few", 400)
    thirds = {"data.trigger_fit": "0.33", "data.trigger_calibration": "0.33"}
    with pytest.raises(DataError) as caught:
        init(tmp_path / "new", {**QUICK, "data.name": images})
    for name, value in thirds.items():
        assert f"--set {name}={value}" in caught.value.hint
    shares = init(tmp_path / "new", {**QUICK, "data.name": images, **thirds}).shares
    assert min(shares["trigger_fit"], shares["trigger_calibration"], shares["evaluation"]) >= 32
    assert init(tmp_path / "more", {**QUICK, "data.name": write_images(tmp_path / "enough", 4 * 117)}).shares


def test_a_reference_pool_that_is_too_small_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.references, the reference pool, holds \d+ images"):
        init(tmp_path / "new", {**QUICK, "data.references": 0.01})


def test_images_of_many_sizes_are_brought_to_one_where_the_settings_say_so(tmp_path: Path) -> None:
    images = write_images(tmp_path / "uneven", 480, height=lambda number: 8 + number % 3)
    with pytest.raises(DataError) as caught:
        init(tmp_path / "new", {**QUICK, "data.name": images})
    assert "data.size" in caught.value.hint
    root = init(tmp_path / "new", {**QUICK, "data.name": images, "data.size": "12"}).workspace.root
    with open_office(root) as office:
        assert load_share(office.workspace, "train").input_shape == (3, 12, 12)


def test_a_size_that_data_have_no_use_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="size is 12, but digits is not read from image files"):
        init(tmp_path / "new", {**QUICK, "data.size": 12})
    assert init(tmp_path / "new", {**QUICK, "data.size": ""}).settings.data.size == 0


def test_the_division_cannot_be_changed_after_init(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"data\.trigger_fit \(--set\) cannot be changed any more"),
        open_office(root, {"data.trigger_fit": 0.4}),
    ):
        pass
    monkeypatch.setenv("PORTIER_DATA__SEED", "0")  # as init had it
    with open_office(root) as office:
        assert office.settings.data.seed == 0
    monkeypatch.setenv("PORTIER_DATA__SEED", "4")
    with pytest.raises(ConfigurationError, match=r"data\.seed \(PORTIER_DATA__SEED\)"), open_office(root):
        pass
    with open_office(root, environment={}) as office:
        assert office.settings.data.seed == 0
    monkeypatch.setenv("PORTIER_DATA__SEED", "0")
    monkeypatch.setenv("PORTIER_DATA__DIR", "/where/other/data/lie")
    with open_office(root, {"data.seed": "0"}):
        pass


def test_the_same_seed_trains_the_same_release_weights(untrained: Path, office: Office) -> None:
    with open_office(untrained) as again:
        trained = train_first(again, progress=False)
    assert trained.release.weights_sha256 == office.store.current().weights_sha256
