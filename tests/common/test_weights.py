"""Weights on the wire: a strict reader, a deterministic writer, the admission checks."""

from __future__ import annotations

import hashlib
import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common import weights, weights_header
from common.errors import StorageError, WeightsError
from common.weights import Limits, TensorSpec

F32 = 4


def entry(*offsets: int, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, Any]:
    shape = [(offsets[1] - offsets[0]) // F32] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def made(header: Any, data_bytes: int = 8, *, length: int | None = None) -> bytes:
    """A safetensors file with this header (JSON value or raw bytes) and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data_bytes)


@pytest.fixture
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    return {
        name: torch.randn(value.shape, generator=generator).abs() if value.is_floating_point() else value.clone()
        for name, value in model.state_dict().items()
    }


class TestSaving:
    def test_loading_gives_back_what_was_saved(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        digest = weights.save(tmp_path / "w", state)
        loaded = weights.load(tmp_path / "w", digest=digest)
        assert weights.layout_of(loaded) == weights.layout_of(state)
        assert all(torch.equal(loaded[name], state[name]) for name in state)

    @pytest.mark.parametrize("dtype", weights.DTYPES.values(), ids=str)
    def test_every_dtype_and_edge_shape_survives(self, tmp_path: Path, dtype: torch.dtype) -> None:
        values = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
        given = {
            "matrix": values,
            "scalar": values[0, 1],
            "empty": values[:0],
            "transposed": values.t(),
            "strided": values[:, ::2],
            "expanded": values[0].expand(4, 3),
        }
        weights.save(tmp_path / "w", given)
        loaded = weights.load(tmp_path / "w")
        for name, tensor in given.items():
            assert loaded[name].dtype == dtype
            assert torch.equal(loaded[name], tensor)
            assert loaded[name].is_contiguous()

    def test_bits_survive_that_comparing_numbers_would_not_show(self, tmp_path: Path) -> None:
        odd = torch.tensor([0x7FC00001, 0x80000000 - (1 << 32), 0x00000001], dtype=torch.int64).to(torch.int32)
        weights.save(tmp_path / "w", {"odd": odd.view(torch.float32)})
        assert torch.equal(weights.load(tmp_path / "w")["odd"].view(torch.int32), odd)

    def test_tied_tensors_and_parameters_are_written_once_per_name(self, tmp_path: Path) -> None:
        parameter = nn.Parameter(torch.randn(3))
        weights.save(tmp_path / "w", {"embedding": parameter, "head": parameter})
        loaded = weights.load(tmp_path / "w")
        assert torch.equal(loaded["embedding"], parameter)
        loaded["embedding"].zero_()
        assert torch.equal(loaded["head"], parameter)

    def test_the_bytes_do_not_depend_on_order_or_strides(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        first = weights.save(tmp_path / "a", state)
        shuffled = dict(reversed(state.items()))
        shuffled["0.weight"] = shuffled["0.weight"].to(memory_format=torch.channels_last)
        second = weights.save(tmp_path / "b", shuffled)
        assert first == second
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_the_digest_returned_is_the_files(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        digest = weights.save(tmp_path / "w", state)
        assert digest == hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest()
        assert digest == weights.digest_file(tmp_path / "w") == weights.digest_of(state)

    def test_the_safetensors_library_reads_our_files(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        weights.save(tmp_path / "w", state, metadata={"made": "by us"})
        theirs = load_file(tmp_path / "w")
        assert theirs.keys() == state.keys()
        assert all(torch.equal(theirs[name], state[name]) for name in state)

    def test_we_read_files_of_the_safetensors_library(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        save_file(state, tmp_path / "w", metadata={"format": "pt"})
        loaded = weights.load(tmp_path / "w")
        assert all(torch.equal(loaded[name], state[name]) for name in state)
        assert weights.read_header(tmp_path / "w").metadata == {"format": "pt"}

    def test_every_tensor_is_aligned_to_its_element_size(self, tmp_path: Path) -> None:
        given = {code: torch.ones(3).to(dtype) for code, dtype in weights.DTYPES.items()}
        weights.save(tmp_path / "w", given)
        header = weights.read_header(tmp_path / "w")
        for name, (begin, _) in header.offsets.items():
            assert (header.data_start + begin) % given[name].element_size() == 0

    @pytest.mark.parametrize(
        "given",
        [
            {"w": torch.zeros(2, dtype=torch.complex64)},
            {"w": torch.zeros(2).to_sparse()},
            {"w": torch.zeros(2, device="meta")},
            {"__metadata__": torch.zeros(2)},
            {"": torch.zeros(2)},
            {"n" * 256: torch.zeros(2)},
            {"a\nb": torch.zeros(2)},
            {"w": torch.zeros([1] * 9)},
        ],
        ids=[
            "complex",
            "sparse",
            "meta",
            "metadata's name",
            "no name",
            "long name",
            "control character",
            "nine dimensions",
        ],
    )
    def test_what_could_not_be_loaded_again_is_not_saved(self, tmp_path: Path, given: dict[str, Tensor]) -> None:
        with pytest.raises(WeightsError) as caught:
            weights.save(tmp_path / "w", given)
        assert caught.value.code == "UNSUPPORTED_TENSOR"
        assert not list(tmp_path.iterdir())


class TestLoading:
    def test_later_changes_of_the_file_do_not_reach_the_tensors(self, tmp_path: Path) -> None:
        weights.save(tmp_path / "w", {"w": torch.ones(3)})
        loaded = weights.load(tmp_path / "w")
        with (tmp_path / "w").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\xff\xff\xff\xff")
        assert torch.equal(loaded["w"], torch.ones(3))

    def test_another_digest_than_declared_is_refused(self, tmp_path: Path) -> None:
        digest = weights.save(tmp_path / "w", {"w": torch.ones(3)})
        # All of it is compared, not only what people are shown of it.
        other = digest[:-1] + ("0" if digest[-1] != "0" else "1")
        for check in (
            lambda: weights.load(tmp_path / "w", digest=other),
            lambda: weights.check_digest(tmp_path / "w", other),
        ):
            with pytest.raises(WeightsError) as caught:
                check()
            assert caught.value.code == "DIGEST_MISMATCH"

    def test_a_file_that_becomes_shorter_while_it_is_read_gives_no_tensors(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is missing would otherwise be whatever the memory held before."""
        weights.save(tmp_path / "w", {"w": torch.ones(100_000)})

        def cut_behind_the_header(*arguments: Any) -> Any:
            started = weights_header.read_start(*arguments)
            os.truncate(tmp_path / "w", 50_000)
            return started

        monkeypatch.setattr("common.weights.read_start", cut_behind_the_header)
        with pytest.raises(WeightsError) as caught:
            weights.load(tmp_path / "w")
        assert caught.value.code == "FILE_TOO_SHORT"

    def test_a_bool_that_is_neither_true_nor_false_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "w").write_bytes(made({"mask": entry(0, 3, dtype="BOOL", shape=[3])}, 0) + b"\x00\x01\x02")
        with pytest.raises(WeightsError) as caught:
            weights.load(tmp_path / "w")
        assert caught.value.code == "NON_BOOLEAN"

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        for read in (weights.load, weights.read_header, weights.digest_file):
            with pytest.raises(StorageError, match="missing"):
                read(tmp_path / "missing")

    def test_the_header_can_be_read_from_the_first_bytes_of_a_longer_file(self) -> None:
        data = made({"w": entry(0, 400)}, 400)
        header = weights.read_header(data[:-400], file_bytes=len(data))
        assert header.layout == {"w": TensorSpec(torch.float32, (100,))}
        assert header.data_start == len(data) - 400


MALFORMED = {
    "empty file": (b"", "FILE_TOO_SHORT"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "FILE_TOO_SHORT"),
    "header longer than the file": (made(b"{}", 0, length=3), "FILE_TOO_SHORT"),
    "header length a byte over the limit": (made(b"{}", length=(1 << 20) + 1), "HEADER_TOO_LONG"),
    "header length 2^63": (made(b"{}", length=1 << 63), "HEADER_TOO_LONG"),
    "header length 2^64 - 1": (made(b"{}", length=(1 << 64) - 1), "HEADER_TOO_LONG"),
    "header of no bytes": (made(b""), "HEADER_MALFORMED"),
    "a pickle": (made(b"\x80\x04\x95"), "HEADER_MALFORMED"),
    "header not JSON": (made(b"{nonsense}"), "HEADER_MALFORMED"),
    "header not UTF-8": (made(b'{"\xff":1}'), "HEADER_MALFORMED"),
    "header a list": (made([1]), "HEADER_MALFORMED"),
    "header a number": (made(1), "HEADER_MALFORMED"),
    "space before the header": (made(b' {"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "HEADER_MALFORMED"),
    "two JSON values": (made(b"{}{}", 0), "HEADER_MALFORMED"),
    "nested too deep": (made(b'{"w":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}}'), "HEADER_MALFORMED"),
    "50,000 brackets": (made(b'{"w":' + b"[" * 50_000), "HEADER_MALFORMED"),
    "a tensor twice": (
        made(
            b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        ),
        "HEADER_MALFORMED",
    ),
    "a field twice": (
        made(b'{"w":{"dtype":"F64","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        "HEADER_MALFORMED",
    ),
    "entry not an object": (made({"w": [0, 8]}), "HEADER_MALFORMED"),
    "entry without shape": (made({"w": {"dtype": "F32", "data_offsets": [0, 8]}}), "HEADER_MALFORMED"),
    "entry with another field": (made({"w": entry(0, 8) | {"extra": 1}}), "HEADER_MALFORMED"),
    "unknown dtype": (made({"w": entry(0, 8, dtype="F128")}), "HEADER_MALFORMED"),
    "dtype in lower case": (made({"w": entry(0, 8, dtype="f32")}), "HEADER_MALFORMED"),
    "dtype below a byte": (made({"w": entry(0, 8, dtype="F4", shape=[16])}), "HEADER_MALFORMED"),
    "dtype a list": (made({"w": entry(0, 8) | {"dtype": ["F32"]}}), "HEADER_MALFORMED"),
    "dtype null": (made({"w": entry(0, 8) | {"dtype": None}}), "HEADER_MALFORMED"),
    "shape a number": (made({"w": entry(0, 8) | {"shape": 2}}), "HEADER_MALFORMED"),
    "shape with a string": (made({"w": entry(0, 8) | {"shape": ["2"]}}), "HEADER_MALFORMED"),
    "shape with true": (made({"w": entry(0, 4) | {"shape": [True]}}, 4), "HEADER_MALFORMED"),
    "shape with a float": (made({"w": entry(0, 8) | {"shape": [2.0]}}), "HEADER_MALFORMED"),
    "shape below nought": (made({"w": entry(0, 8, shape=[-2])}), "HEADER_MALFORMED"),
    "shape minus two twice": (made({"w": entry(0, 16, shape=[-2, -2])}, 16), "HEADER_MALFORMED"),
    "nine dimensions": (made({"w": entry(0, 4, shape=[1] * 9)}, 4), "HEADER_MALFORMED"),
    "sizes that overflow 64 bits to 2": (made({"w": entry(0, 8, shape=[1 << 63, 1 << 2, 1])}), "HEADER_MALFORMED"),
    "sizes that overflow but for a nought": (
        made({"w": entry(0, 0, shape=[0, 1 << 62, 1 << 62])}, 0),
        "HEADER_MALFORMED",
    ),
    "a size of 2^64": (made({"w": entry(0, 8, shape=[1 << 64])}), "HEADER_MALFORMED"),
    "three offsets": (made({"w": entry(0, 8) | {"data_offsets": [0, 4, 8]}}), "HEADER_MALFORMED"),
    "one offset": (made({"w": entry(0, 8) | {"data_offsets": [8]}}), "HEADER_MALFORMED"),
    "offsets below nought": (made({"w": entry(-8, 0, shape=[2])}), "HEADER_MALFORMED"),
    "offsets as floats": (made({"w": entry(0, 8) | {"data_offsets": [0.0, 8.0]}}), "HEADER_MALFORMED"),
    "offsets as an object": (made({"w": entry(0, 8) | {"data_offsets": {"0": 0}}}), "HEADER_MALFORMED"),
    "a name of nothing": (made({"": entry(0, 8)}), "HEADER_MALFORMED"),
    "a name of 256 characters": (made({"n" * 256: entry(0, 8)}), "HEADER_MALFORMED"),
    "a terminal escape in a name": (made({"\x1b[2J": entry(0, 8)}), "HEADER_MALFORMED"),
    "a lone surrogate in a name": (
        made(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        "HEADER_MALFORMED",
    ),
    "metadata a list": (made({"__metadata__": ["a"], "w": entry(0, 8)}), "HEADER_MALFORMED"),
    "metadata with a number": (made({"__metadata__": {"a": 1}, "w": entry(0, 8)}), "HEADER_MALFORMED"),
    "metadata of 65 entries": (
        made({"__metadata__": {str(i): "" for i in range(65)}, "w": entry(0, 8)}),
        "HEADER_MALFORMED",
    ),
    "16,385 tensors": (made({str(i): entry(0, 0, shape=[0]) for i in range(16_385)}, 0), "HEADER_TOO_LONG"),
    "tensors that overlap": (made({"a": entry(0, 8), "b": entry(4, 12)}, 12), "OFFSETS_INVALID"),
    "tensors that share bytes": (made({"a": entry(0, 8), "b": entry(0, 8)}), "OFFSETS_INVALID"),
    "a gap in front": (made({"w": entry(4, 12)}, 12), "OFFSETS_INVALID"),
    "a gap between": (made({"a": entry(0, 4), "b": entry(8, 12)}, 12), "OFFSETS_INVALID"),
    "an end before its begin": (made({"w": entry(8, 0, shape=[2])}), "OFFSETS_INVALID"),
    "offsets longer than the shape": (made({"w": entry(0, 8, shape=[1])}), "OFFSETS_INVALID"),
    "offsets shorter than the shape": (made({"w": entry(0, 8, shape=[3])}), "OFFSETS_INVALID"),
    "a scalar of two elements": (made({"w": entry(0, 8, shape=[])}), "OFFSETS_INVALID"),
    "an end past the file": (made({"w": entry(0, 12)}, 8), "FILE_TOO_SHORT"),
    "an end far past the file": (made({"w": entry(0, 1 << 50)}, 8), "FILE_TOO_SHORT"),
    "a byte missing": (made({"w": entry(0, 8)}, 7), "FILE_TOO_SHORT"),
    "a byte behind": (made({"w": entry(0, 8)}, 9), "FILE_TOO_LONG"),
    "data without tensors": (made(b"{}", 1), "FILE_TOO_LONG"),
}


@pytest.mark.parametrize(("data", "code"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_is_refused_with_its_code(tmp_path: Path, data: bytes, code: str) -> None:
    (tmp_path / "w").write_bytes(data)
    for read in (
        lambda: weights.read_header(data),
        lambda: weights.read_header(tmp_path / "w"),
        lambda: weights.load(tmp_path / "w"),
    ):
        with pytest.raises(WeightsError) as caught:
            read()
        assert caught.value.code == code
        assert len(caught.value.message) < 600
        assert caught.value.message.isprintable()


def test_a_name_that_another_parser_would_read_differently_has_one_meaning(tmp_path: Path) -> None:
    """Escapes are resolved before names are compared: \\u0077 is w."""
    (tmp_path / "w").write_bytes(made(b'{"\\u0077":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'))
    assert list(weights.load(tmp_path / "w")) == ["w"]


def test_limits_are_the_callers_to_tighten() -> None:
    data = made({"a": entry(0, 4), "b": entry(4, 8)})
    for limits, code in (
        (Limits(file_bytes=len(data) - 1), "FILE_TOO_LONG"),
        (Limits(header_bytes=20), "HEADER_TOO_LONG"),
        (Limits(tensors=1), "TOO_MANY_TENSORS"),
        (Limits(dimensions=0), "HEADER_MALFORMED"),
        (Limits(name_length=0), "HEADER_MALFORMED"),
    ):
        with pytest.raises(WeightsError) as caught:
            weights.read_header(data, limits)
        assert caught.value.code == code


def test_exactly_the_limits_pass() -> None:
    header = {"__metadata__": {"made": "by us"}, "ab": entry(0, 4), "cd": entry(4, 8, shape=[1, 1])}
    data = made(header)
    limits = Limits(
        file_bytes=len(data),
        header_bytes=len(data) - 16,
        tensors=2,
        name_length=2,
        dimensions=2,
        metadata_entries=1,
    )
    assert list(weights.read_header(data, limits).layout) == ["ab", "cd"]
    weights.check_values({"w": torch.tensor([2.0, -2.0])}, limits=Limits(magnitude=2.0))


def test_the_sizes_of_a_shape_multiply_to_less_than_2_to_the_60() -> None:
    assert weights.read_header(made({"w": entry(0, 0, shape=[0, (1 << 60) - 1])}, 0))
    with pytest.raises(WeightsError) as caught:
        weights.read_header(made({"w": entry(0, 0, shape=[0, 1 << 60])}, 0))
    assert caught.value.code == "HEADER_MALFORMED"


def test_a_header_that_has_not_come_as_a_whole_is_not_read() -> None:
    """Without its padding it would be JSON all the same."""
    whole = made(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  ')
    with pytest.raises(WeightsError) as caught:
        weights.read_header(whole[:-9], file_bytes=len(whole))
    assert caught.value.code == "FILE_TOO_SHORT"


@pytest.mark.parametrize(
    "unit",
    [
        b'"%d":[],',
        b'"%d":{},',
        b'"%d":"",',
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},',
        b'"\\\\%d',
        b"[%d,",
    ],
    ids=repr,
)
def test_the_most_hostile_header_costs_little_time_and_memory(unit: bytes) -> None:
    text = b"{" + b"".join(unit % i for i in range(20_000))
    limits = Limits(header_bytes=1 << 17)
    data = made(text[: limits.header_bytes], 0)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(WeightsError):
            weights.read_header(data, limits)
        assert time.perf_counter() - started < 10
        assert tracemalloc.get_traced_memory()[1] < 64 * limits.header_bytes
    finally:
        tracemalloc.stop()


def test_an_announced_header_is_not_allocated_before_the_file_has_it() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError):
            weights.read_header(made(b"{}", 0, length=1 << 20))
        assert tracemalloc.get_traced_memory()[1] < 64 << 10
    finally:
        tracemalloc.stop()


class TestLayout:
    EXPECTED = weights.layout_of({"a": torch.zeros(2, 3), "b": torch.zeros(4), "n": torch.tensor(0)})

    @pytest.mark.parametrize(
        ("change", "code", "named"),
        [
            ({"a": None}, "TENSOR_MISSING", "a is missing"),
            ({"c": torch.zeros(1)}, "TENSOR_EXTRA", "c does not belong"),
            ({"a": torch.zeros(3, 2)}, "SHAPE_MISMATCH", "a has shape [3, 2], not [2, 3]"),
            ({"a": torch.zeros(6)}, "SHAPE_MISMATCH", "a has shape [6], not [2, 3]"),
            ({"n": torch.zeros(1, dtype=torch.int64)}, "SHAPE_MISMATCH", "n has shape [1], not []"),
            ({"a": torch.zeros(2, 3).bfloat16()}, "DTYPE_MISMATCH", "a is BF16, not F32"),
            ({"n": torch.tensor(0.0)}, "DTYPE_MISMATCH", "n is F32, not I64"),
            ({"a": torch.zeros(2, 3, dtype=torch.int32)}, "DTYPE_MISMATCH", "a is I32, not F32"),
            (
                {"a": None, "c": torch.zeros(1), "b": torch.zeros(5)},
                "TENSOR_MISSING",
                "a is missing; c does not belong; b has",
            ),
        ],
    )
    def test_every_difference_is_named(self, change: dict[str, Tensor | None], code: str, named: str) -> None:
        given = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "n": torch.tensor(0)} | change
        found = weights.layout_of({name: tensor for name, tensor in given.items() if tensor is not None})
        with pytest.raises(WeightsError) as caught:
            weights.check_layout(found, self.EXPECTED)
        assert caught.value.code == code
        assert named in caught.value.message

    def test_the_right_layout_passes_from_a_header_too(self, tmp_path: Path) -> None:
        weights.save(tmp_path / "w", {"n": torch.tensor(3), "b": torch.ones(4), "a": torch.ones(2, 3)})
        weights.check_layout(weights.read_header(tmp_path / "w"), self.EXPECTED)

    def test_a_thousand_differences_make_a_message_one_can_read(self) -> None:
        found = weights.layout_of({f"t{i}": torch.zeros(1) for i in range(1000)})
        with pytest.raises(WeightsError) as caught:
            weights.check_layout(found, self.EXPECTED)
        assert "and 983 more" in caught.value.message
        assert len(caught.value.message) < 2000


class TestValues:
    def test_honest_weights_pass(self, state: dict[str, Tensor]) -> None:
        weights.check_values(
            state | {"empty": torch.zeros(0), "mask": torch.tensor([True, False]), "counts": torch.tensor([-3])}
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("place", [0, 49, -1])
    def test_one_value_that_is_not_finite_is_found(self, dtype: torch.dtype, value: float, place: int) -> None:
        tensor = torch.ones(100, dtype=dtype)
        tensor[place] = value
        with pytest.raises(WeightsError, match=r"layer\.weight") as caught:
            weights.check_values({"layer.weight": tensor.reshape(10, 10).t()})
        assert caught.value.code == "NON_FINITE"

    def test_huge_finite_weights_are_refused_with_the_limit(self) -> None:
        for value in (3e38, -3e38, 1.1e15):
            with pytest.raises(WeightsError, match=r"w holds -?[0-9.]+e\+[0-9]+, the limit is 1e\+15") as caught:
                weights.check_values({"w": torch.tensor([0.0, value])})
            assert caught.value.code == "MAGNITUDE"
        weights.check_values({"w": torch.tensor([0.9e15, -0.9e15])})

    @pytest.mark.parametrize("name", ["bn.running_var", "running_var"])
    def test_a_negative_variance_is_refused(self, name: str) -> None:
        with pytest.raises(WeightsError) as caught:
            weights.check_values({name: torch.tensor([1.0, -1e-30])})
        assert caught.value.code == "NEGATIVE_VARIANCE"
        weights.check_values({name: torch.tensor([0.0, -0.0])})

    def test_a_negative_counter_is_refused(self) -> None:
        with pytest.raises(WeightsError) as caught:
            weights.check_values({"bn.num_batches_tracked": torch.tensor(-1)})
        assert caught.value.code == "NEGATIVE_COUNTER"

    def test_a_negative_mean_and_a_name_that_only_looks_alike_pass(self) -> None:
        weights.check_values({"bn.running_mean": torch.tensor([-1.0]), "head.not_running_var": torch.tensor([-1.0])})


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_file_of_torch_save_is_named_for_what_it_is_and_never_unpickled(
    as_zip: bool, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=as_zip)
    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.delattr(name)
    with pytest.raises(WeightsError) as caught:
        weights.load(tmp_path / "model.pt")
    assert caught.value.code == "HEADER_TOO_LONG"
    assert ("zip archive" if as_zip else "pickle") in caught.value.message
    assert 'safetensors.torch.save_file(model.state_dict(), "model.safetensors")' in caught.value.hint
