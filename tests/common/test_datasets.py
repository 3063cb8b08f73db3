"""Data sets load by name and by path, as uint8 tensors, or say what is wrong with which image."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.datasets import DataSet, image_sizes, load, load_examples, save_examples
from common.datasets.decoding import decode_images
from common.errors import ConfigurationError, DataError, UnknownNameError
from common.examples import Examples

NAMES = ("cat", "dog")


def picture(seed: int, side: tuple[int, int] = (6, 5), mode: str = "RGB") -> Image.Image:
    width, height = side
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be enormous."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_parquet(
    path: Path, images: list[bytes | None], labels: list[int | None], names: tuple[str, ...] | None = NAMES, **more: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {"image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)], "label": labels, **more}
    )
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def write_folder(root: Path, classes: tuple[str, ...] = NAMES, each: int = 8, **options: Any) -> None:
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            picture(i, **options).save(root / name / f"{i}.png")


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    folder = tmp_path / "animals"
    write_parquet(folder / "train.parquet", [encoded(picture(i)) for i in range(8)], [0, 1] * 4)
    write_parquet(folder / "test.parquet", [encoded(picture(i)) for i in range(8, 12)], [1, 0, 0, 1])
    return folder


@pytest.fixture(scope="module")
def examples_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("examples") / "share.safetensors"
    save_examples(path, two_views())
    return path.read_bytes()


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load("digits")


def test_digits_need_nothing_and_span_0_to_255(digits: DataSet) -> None:
    images = digits.train.images
    assert (images.dtype, tuple(images.shape[1:])) == (torch.uint8, (1, 8, 8))
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert digits.train.class_names == tuple("0123456789")


def test_digits_are_split_alike_in_every_class_by_seed(digits: DataSet) -> None:
    shares = digits.test.labels.bincount() / (digits.test.labels.bincount() + digits.train.labels.bincount())
    assert torch.allclose(shares, torch.full((10,), 0.25), atol=0.005)
    assert torch.equal(load("digits", seed=0).test.images, digits.test.images)
    assert not torch.equal(load("digits", seed=1).test.labels, digits.test.labels)


def test_a_parquet_folder_keeps_pixels_labels_order_and_class_names(parquet: Path) -> None:
    data = load(str(parquet))
    assert (data.name, data.train.class_names, len(data.train), len(data.test)) == ("animals", NAMES, 8, 4)
    assert data.test.labels.tolist() == [1, 0, 0, 1]
    expected = torch.from_numpy(np.array(picture(9))).permute(2, 0, 1)
    assert torch.equal(data.test.images[1], expected)


@pytest.mark.parametrize("spelling", ["fashion-mnist", "fashion_mnist", "Fashion-MNIST"])
@pytest.mark.parametrize("folder", ["fashion-mnist", "fashion_mnist"])
def test_dash_and_underscore_are_the_same(parquet: Path, spelling: str, folder: str) -> None:
    parquet.rename(parquet.parent / folder)
    assert load(spelling, data_dir=parquet.parent).name == "fashion-mnist"


def test_the_data_folder_may_come_from_the_environment(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet.rename(parquet.parent / "cifar10")
    monkeypatch.setenv("PORTIER_DATA", str(parquet.parent))
    assert len(load("cifar10").train) == 8


def test_any_folder_below_the_data_folder_is_known_by_its_name(parquet: Path) -> None:
    assert load("animals", data_dir=parquet.parent).train.class_names == NAMES


def test_sharded_parquet_files_are_read_in_order(parquet: Path) -> None:
    rest = parquet / "data"
    rest.mkdir()
    for name in ("train", "test"):
        (parquet / f"{name}.parquet").unlink()
    write_parquet(rest / "train-00001-of-00002.parquet", [encoded(picture(1))], [1])
    write_parquet(rest / "train-00000-of-00002.parquet", [encoded(picture(0))], [0])
    write_parquet(rest / "test-00000-of-00001.parquet", [encoded(picture(2))], [0])
    assert load(str(parquet)).train.labels.tolist() == [0, 1]


def test_without_metadata_classes_are_numbers(tmp_path: Path) -> None:
    images = [encoded(picture(i)) for i in range(8)]
    write_parquet(tmp_path / "train.parquet", images, [0, 2] * 4, names=None)
    assert load(str(tmp_path)).train.class_names == ("0", "1", "2")


def test_a_column_of_tracks_keeps_frames_together(tmp_path: Path) -> None:
    images = [encoded(picture(i)) for i in range(8)]
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 4, track=[5, 5, 5, 5, -1, -1, 6, 6])
    write_parquet(tmp_path / "test.parquet", images, [0, 1] * 4, track=[-1] * 8)
    data = load(str(tmp_path))
    assert data.train_groups is not None
    assert data.train_groups.tolist() == [0, 1, 0, 1, -1, -1, 2, 3]
    assert data.test_groups is None


def test_a_table_of_features_loads_as_floats(tmp_path: Path) -> None:
    vectors = pa.array([[float(i), 0.5] for i in range(8)], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"features": vectors, "label": [0, 1] * 4}), tmp_path / "train.parquet")
    data = load(str(tmp_path))
    assert data.train.inputs[0].dtype == torch.float32
    assert data.train.input_shape == (2,)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_every_kind_of_image_decodes_as_pillow_reads_it(tmp_path: Path, mode: str, kind: str) -> None:
    image = picture(0, mode="RGB")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256)
    else:
        image = image.convert(mode)
    try:
        data = encoded(image, kind)
    except (OSError, ValueError):
        pytest.skip(f"{kind} has no {mode}")
    write_parquet(tmp_path / "train.parquet", [data] * 4, [0] * 4, names=("a",))
    read = load(str(tmp_path)).train.images[0]
    grey = mode in ("L", "1", "I;16")
    expected = (
        np.asarray(image) >> 8
        if mode == "I;16"
        else np.asarray(Image.open(io.BytesIO(data)).convert("L" if grey else "RGB"))
    )
    assert np.array_equal(read.permute(1, 2, 0).squeeze(2) if grey else read.permute(1, 2, 0), expected)


WHOLE = [encoded(picture(0, (20, 20)), kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")]


@settings(max_examples=300)
@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), st.data())
def test_damaged_bytes_decode_or_are_refused(whole: bytes, changes: list[tuple[int, int]], data: st.DataObject) -> None:
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for at, value in changes:
        if at < len(damaged):
            damaged[at] = value
    try:
        images = decode_images([("it", lambda: bytes(damaged))], 1)
    except DataError:
        return
    assert (images.dtype, images.ndim) == (torch.uint8, 4)


def test_grey_and_colour_images_together_become_colour(tmp_path: Path) -> None:
    images = [encoded(picture(0, mode="L")), encoded(picture(1)), encoded(picture(2, mode="L")), encoded(picture(3))]
    write_parquet(tmp_path / "train.parquet", images, [0] * 4, names=("a",))
    write_parquet(tmp_path / "test.parquet", images, [0] * 4, names=("a",))
    read = load(str(tmp_path)).train.images
    assert torch.equal(read[0, 0], read[0, 2])
    assert torch.equal(read[1], torch.from_numpy(np.array(picture(1))).permute(2, 0, 1))


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [encoded(picture(i, (6 + i, 5))) for i in range(4)], [0] * 4, ("a",))
    with pytest.raises(DataError, match=r"row 1 of .*train.parquet \(1.png\) is 7x5 pixels.*is 6x5") as caught:
        load(str(tmp_path))
    assert "size=" in caught.value.hint
    assert load(str(tmp_path), size=4).train.input_shape == (3, 4, 4)
    assert load(str(tmp_path), size=(3, 9)).train.input_shape == (3, 3, 9)


@pytest.mark.parametrize("size", [0, -1, (4, 0), 1 << 20])
def test_an_impossible_size_is_refused(parquet: Path, size: Any) -> None:
    with pytest.raises(ConfigurationError, match="size must be"):
        load(str(parquet), size=size)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"not an image",
        encoded(picture(0))[:60],
        encoded(picture(0, (40, 40)), "JPEG")[:-40],
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0\x00",
        b"\xff\xd8\xff\xc0\x00\x11\x08",
    ],
    ids=["empty", "text", "cut-png", "cut-jpeg", "png-signature", "jpeg-start", "jpeg-half-header"],
)
def test_a_corrupt_image_is_named_by_row_and_path(parquet: Path, broken: bytes) -> None:
    write_parquet(parquet / "train.parquet", [encoded(picture(0)), encoded(picture(1)), broken], [0, 1, 0])
    with pytest.raises(DataError, match=r"row 2 of .*train.parquet \(2.png\) is not a readable image"):
        load(str(parquet))


@pytest.mark.parametrize(("side", "message"), [(10_000, "claims 10000x10000 pixels"), (100_000, "10000000000 pixels")])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(parquet: Path, side: int, message: str) -> None:
    write_parquet(parquet / "train.parquet", [bomb(side, side)], [0])
    with pytest.raises(DataError, match=f"row 0 .*{message}"):
        load(str(parquet))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("common.datasets.cache.WORTH_SECONDS", 0.0)
    return tmp_path / "cache" / "portier" / "decoded"


def test_images_that_were_slow_to_decode_are_read_back_from_the_cache(
    parquet: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = load(str(parquet))
    monkeypatch.setattr("common.datasets.parquet.decode_images", None)
    assert torch.equal(load(str(parquet)).train.images, decoded.train.images)
    assert torch.equal(load(str(parquet)).test.images, decoded.test.images)


def test_the_cache_is_not_used_for_a_changed_file_or_another_size(parquet: Path, cache: Path) -> None:
    load(str(parquet))
    assert load(str(parquet), size=4).train.input_shape == (3, 4, 4)
    write_parquet(parquet / "train.parquet", [encoded(picture(99))] * 8, [0] * 8)
    assert torch.equal(load(str(parquet)).train.images[0], torch.from_numpy(np.array(picture(99))).permute(2, 0, 1))


def test_a_damaged_cache_entry_is_decoded_anew(parquet: Path, cache: Path) -> None:
    expected = load(str(parquet)).train.images
    entries = list(cache.iterdir())
    assert len(entries) == 2
    for entry in entries:
        entry.write_bytes(b"rubbish")
    assert torch.equal(load(str(parquet)).train.images, expected)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(parquet: Path, cache: Path) -> None:
    cache.parent.parent.write_text("a file where the cache folder should be")
    assert len(load(str(parquet)).train) == 8


def test_images_that_exceed_the_memory_are_refused(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 8)
    with pytest.raises(DataError, match=r"8 images of \(3, 5, 6\) take"):
        load(str(parquet))


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        ([None], [0], NAMES, "row 0 of .* does not hold its bytes"),
        ([b"x", b"x"], [0, None], NAMES, "row 1 of .* has no label"),
        ([b"x", b"x"], [0, -1], NAMES, "row 1 of .* has the label -1"),
        ([encoded(picture(0))], [2], NAMES, "train.parquet: labels run from 2 to 2, but there are 2 classes"),
    ],
    ids=["no bytes", "null label", "negative label", "label without a class"],
)
def test_rows_that_cannot_be_used_are_named(
    parquet: Path, images: list[bytes | None], labels: list[int | None], names: tuple[str, ...], message: str
) -> None:
    write_parquet(parquet / "train.parquet", images, labels, names)
    with pytest.raises(DataError, match=message):
        load(str(parquet))


def test_a_damaged_parquet_file_is_named(parquet: Path) -> None:
    (parquet / "test.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"test.parquet is not a readable parquet file"):
        load(str(parquet))


def test_missing_columns_are_listed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sound": ["a"], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="neither images nor a `features` or `text` column, but sound, label"):
        load(str(tmp_path))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no column `label`, but text"):
        load(str(tmp_path))


def test_an_image_folder_takes_its_classes_from_its_sub_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ("dog", "cat"))
    write_folder(tmp_path / "test", ("cat",), each=3)
    (tmp_path / "train" / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".thumbnails").mkdir()
    data = load(str(tmp_path))
    assert data.train.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 8 + [1] * 8
    assert data.test.labels.tolist() == [0] * 3


def test_an_image_folder_reads_like_torchvisions(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test")
    theirs = ImageFolder(str(tmp_path / "train"))
    ours = load(str(tmp_path)).train
    assert theirs.classes == list(ours.class_names)
    assert theirs.targets == ours.labels.tolist()
    assert all(
        np.array_equal(np.asarray(image), our.permute(1, 2, 0))
        for (image, _), our in zip(theirs, ours.images, strict=True)
    )


def test_a_folder_without_a_test_set_has_a_quarter_held_out(tmp_path: Path) -> None:
    write_folder(tmp_path, each=12)
    data = load(str(tmp_path))
    assert data.train.labels.bincount().tolist() == [9, 9]
    assert data.test.labels.bincount().tolist() == [3, 3]
    assert data.came_whole


def test_large_images_are_decoded_in_order(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("L", (120, 120), 40 * i).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "a").rename(tmp_path / "train" / "a")
    write_folder(tmp_path / "test", ("a",), each=1, side=(120, 120), mode="L")
    assert load(str(tmp_path)).train.images[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200]


def test_a_corrupt_file_is_named_by_its_path(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "dog" / "3.png").write_bytes(b"oops")
    with pytest.raises(DataError, match=r"dog/3.png is not a readable image"):
        load(str(tmp_path))


def test_a_class_folder_without_images_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        load(str(tmp_path))


def test_a_class_that_only_the_test_set_has_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", ("cat", "wolf"))
    with pytest.raises(DataError, match="'wolf'"):
        load(str(tmp_path))


def test_sets_of_different_image_sizes_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", side=(7, 7))
    with pytest.raises(DataError, match=r"\(3, 5, 6\).*\(3, 7, 7\)"):
        load(str(tmp_path))


def test_an_empty_folder_holds_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data set"):
        load(str(tmp_path))


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data set at"):
        load(str(tmp_path / "nowhere"))


def test_a_misspelt_name_gets_the_nearest_one(parquet: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load("cifar-10")
    assert "did you mean cifar10?" in caught.value.hint
    with pytest.raises(UnknownNameError) as caught:
        load("animal", data_dir=parquet.parent)
    assert "did you mean animals?" in caught.value.hint


def test_a_data_set_that_is_not_there_names_the_ways_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORTIER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match="mnist was not found") as caught:
        load("mnist")
    assert "PORTIER_DATA" in caught.value.hint
    assert "download" in caught.value.hint


def test_a_failed_download_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", no_network)
    with pytest.raises(DataError, match="no route to host") as caught:
        load("cifar10", data_dir=tmp_path, download=True)
    assert "check the network" in caught.value.hint


def test_an_earlier_download_is_found(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    for part in ("train", "t10k"):
        images = struct.pack(">4i", 0x803, 3, 28, 28) + pixels.tobytes()
        labels = struct.pack(">2i", 0x801, 3) + bytes([7, 0, 9])
        for kind, data in (("images-idx3", images), ("labels-idx1", labels)):
            (raw / f"{part}-{kind}-ubyte").write_bytes(data)
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
    data = load("mnist", data_dir=tmp_path)
    assert torch.equal(data.train.images[:, 0], torch.from_numpy(pixels))
    assert data.test.labels.tolist() == [7, 0, 9]
    assert data.train.class_names[:2] == ("zero", "one") or data.train.class_names[:2] == ("0", "1")


def two_views() -> Examples:
    return Examples(
        (torch.rand(8, 3, 4), torch.randint(0, 9, (8, 2), dtype=torch.int32)), torch.tensor([0, 1] * 4), ("a, b", "ü")
    )


def test_examples_read_back_as_they_were_saved(tmp_path: Path) -> None:
    examples = two_views()
    save_examples(tmp_path / "share.safetensors", examples)
    read = load_examples(tmp_path / "share.safetensors")
    assert read.class_names == examples.class_names
    assert torch.equal(read.labels, examples.labels)
    for ours, theirs in zip(read.inputs, examples.inputs, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_read_examples_do_not_change_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "share.safetensors"
    save_examples(path, two_views())
    read = load_examples(path)
    before = read.inputs[0].clone()
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(read.inputs[0], before)


def test_an_examples_file_is_a_data_set_with_a_quarter_held_out(tmp_path: Path) -> None:
    save_examples(tmp_path / "share.safetensors", two_views())
    data = load(str(tmp_path / "share.safetensors"))
    assert (len(data.train), len(data.test)) == (6, 2)


def test_a_folder_of_examples_files_is_a_data_set(tmp_path: Path) -> None:
    save_examples(tmp_path / "train.safetensors", two_views())
    save_examples(tmp_path / "test.safetensors", two_views().take(torch.tensor([3])))
    data = load(str(tmp_path))
    assert (len(data.train), len(data.test)) == (8, 1)


METADATA = {"format": "portier-examples-1", "class_names": '["a"]'}
LABELS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"weight": torch.zeros(2)}, {}, "holds no examples: its format is 'not stated'"),
        ({"inputs.0": torch.zeros(2)}, METADATA, "must hold labels"),
        ({"labels": LABELS}, METADATA, "must hold labels and inputs"),
        ({"inputs.1": torch.zeros(2), "labels": LABELS}, METADATA, "must hold labels and inputs"),
        ({"inputs.0": torch.zeros(3), "labels": LABELS}, METADATA, "input 0 holds 3 examples, the labels 2"),
        ({"inputs.0": torch.zeros(2), "labels": LABELS + 1}, METADATA, "labels run from 1 to 1"),
        ({"inputs.0": torch.zeros(2), "labels": LABELS}, METADATA | {"class_names": "a"}, "share.safetensors: "),
        ({"inputs.0": torch.zeros(2), "labels": LABELS}, METADATA | {"class_names": "[1]"}, "JSON list of strings"),
    ],
)
def test_other_safetensors_files_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], message: str
) -> None:
    safetensors.torch.save_file(tensors, tmp_path / "share.safetensors", metadata)
    with pytest.raises(DataError, match=message):
        load_examples(tmp_path / "share.safetensors")


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"\xff" * 8 + b[8:], lambda b: b""])
def test_a_damaged_examples_file_is_named(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "share.safetensors"
    save_examples(path, two_views())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"share\.safetensors cannot be read"):
        load_examples(path)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=5), st.integers(0, 500))
def test_a_tampered_examples_file_is_read_or_refused(
    examples_file: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    damaged = bytearray(examples_file[: len(examples_file) - cut // 20])
    for at, value in changes:
        if at < len(damaged):
            damaged[at] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "share.safetensors")
        path.write_bytes(damaged)
        try:
            read = load_examples(path)
        except DataError:
            return
        assert len(read) == len(read.inputs[0]) == len(read.inputs[1])


def test_a_missing_examples_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no examples file"):
        load_examples(tmp_path / "share.safetensors")


@pytest.mark.slow
@pytest.mark.skipif("PORTIER_DATA" not in os.environ, reason="PORTIER_DATA names no folder of real data")
@pytest.mark.parametrize(
    ("name", "train", "test", "shape", "classes"),
    [
        ("cifar10", 50_000, 10_000, (3, 32, 32), 10),
        ("mnist", 60_000, 10_000, (1, 28, 28), 10),
        ("fashion-mnist", 60_000, 10_000, (1, 28, 28), 10),
        ("gtsrb", 39_209, 12_630, (3, 32, 32), 43),
    ],
)
def test_the_real_data_sets_load(
    name: str, train: int, test: int, shape: tuple[int, ...], classes: int, cache: Path
) -> None:
    data = load(name)
    assert (len(data.train), len(data.test)) == (train, test)
    assert (data.train.input_shape, data.train.classes) == (shape, classes)
    assert data.train.images.float().std() > 20
    assert set(data.train.labels.tolist()) == set(range(classes))
    assert (data.train_groups is not None) == (name == "gtsrb")


def test_the_sizes_of_encoded_images_are_read_from_their_headers(tmp_path: Path, parquet: Path) -> None:
    write_folder(tmp_path / "folder")
    picture(1, (40, 30)).save(tmp_path / "folder" / "cat" / "large.png")
    assert image_sizes(str(tmp_path / "folder")) == {(6, 5): 16, (40, 30): 1}
    assert image_sizes(str(parquet)) == {(6, 5): 12}
    assert image_sizes("digits") is None
    (tmp_path / "folder" / "dog" / "bomb.png").write_bytes(bomb(9_000, 9_000))
    with pytest.raises(DataError, match=r"bomb\.png claims 9000x9000 pixels"):
        image_sizes(str(tmp_path / "folder"))


def test_images_are_read_as_they_are_seen(tmp_path: Path) -> None:
    """Turned as their EXIF tag says, and on white where they are transparent: an alpha channel may hold all there is to see."""
    for name in NAMES:
        (tmp_path / name).mkdir()
    lying = Image.new("L", (6, 4), 0)
    lying.paste(200, (0, 0, 3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / NAMES[0] / "0.png", exif=exif)
    ink = Image.new("LA", (4, 6), (0, 0))
    ink.paste((0, 255), (0, 0, 4, 3))
    ink.save(tmp_path / NAMES[1] / "0.png")
    assert image_sizes(str(tmp_path)) == {(4, 6): 2}
    root = tmp_path.with_name("divided")
    root.mkdir()
    tmp_path.rename(root / "train")
    write_folder(root / "test", each=1, side=(4, 6), mode="L")
    turned, drawn = load(str(root)).train.images[:, 0].int()
    assert (turned[:3] == 200).all()
    assert (turned[3:] == 0).all()
    assert (drawn[:3] == 0).all()
    assert (drawn[3:] == 255).all()


def test_values_beyond_eight_bits_are_refused_not_cut_off(tmp_path: Path) -> None:
    write_folder(tmp_path, mode="L")
    Image.fromarray(np.full((8, 8), 6300, np.int32)).save(tmp_path / NAMES[0] / "deep.tiff")
    with pytest.raises(DataError, match=r"deep\.tiff has values from 6300 to 6300"):
        load(str(tmp_path))
