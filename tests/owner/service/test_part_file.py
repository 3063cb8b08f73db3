"""The file an upload grows in: whatever the cuts, the same bytes; a full disk loses nothing."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import StorageError, WeightsError
from common.weights import save
from owner.ledger.records import Submission, SubmissionState
from owner.service.part_file import PartFile, committed_bytes
from owner.service.statuses import OffsetError
from owner.workspace import SubmissionFiles
from tests.disk import asked_of_the_disk
from tests.network import weights_of


def content() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder, "w"), weights_of(4000))
        return Path(folder, "w").read_bytes()


CONTENT = content()


def announced(data: bytes = CONTENT, **changes: Any) -> Submission:
    fields: dict[str, Any] = {
        "id": "ab" * 32,
        "contributor": "ann",
        "base_release": "cd" * 32,
        "manifest": b"manifest",
        "signature": b"signature",
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "weights_bytes": len(data),
        "state": SubmissionState.UPLOADING,
        "created": "",
        "updated": "",
    }
    return Submission(**{**fields, **changes})


@settings(max_examples=50, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, len(CONTENT)), max_size=8), reopened=st.sets(st.integers(0, 8)))
def test_however_it_is_cut_and_resumed_the_file_is_the_same(cuts: list[int], reopened: set[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = SubmissionFiles(Path(folder))
        part = PartFile(files, announced())
        bounds = [0, *sorted(cuts), len(CONTENT)]
        for number, (start, end) in enumerate(itertools.pairwise(bounds)):
            part.append(start, CONTENT[start:end])
            if number in reopened:
                part.close()
                part = PartFile(files, announced())
                assert part.offset == end
        part.finish()
        part.close()
        assert files.weights.read_bytes() == CONTENT


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.binary(min_size=1, max_size=200), size=st.integers(1, 40))
def test_no_bytes_do_more_than_refuse_themselves(data: bytes, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        part = PartFile(SubmissionFiles(Path(folder)), announced(data))

        def upload() -> None:
            for offset in range(0, len(data), size):
                part.append(offset, data[offset : offset + size])
            part.finish()

        with pytest.raises(WeightsError):
            upload()
        part.close()


def test_a_write_that_fails_half_way_leaves_what_was_whole_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = SubmissionFiles(tmp_path)
    part = PartFile(files, announced())
    part.append(0, CONTENT[:1000])
    write = os.pwrite

    def full(handle: int, data: Any, offset: int) -> int:
        if offset >= 1500:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[: 1500 - offset], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="No space left"):
        part.append(1000, CONTENT[1000:3000])
    part.close()
    monkeypatch.undo()
    assert committed_bytes(files) == 1500
    again = PartFile(files, announced())
    again.append(1500, CONTENT[1500:])
    again.finish()
    again.close()
    assert files.weights.read_bytes() == CONTENT


def test_a_whole_file_is_on_disk_before_it_has_its_name_and_a_part_before_its_length_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = SubmissionFiles(tmp_path)

    def seen() -> list[object]:
        found = asked[:]
        asked.clear()
        return found

    part = PartFile(files, announced())
    asked = asked_of_the_disk(monkeypatch)
    part.append(0, CONTENT[:1000])
    assert (committed_bytes(files), seen()) == (1000, [1000])
    part.close()
    assert seen() == [1000]
    part = PartFile(files, announced())
    part.append(1000, CONTENT[1000:])
    part.finish()
    assert seen() == [len(CONTENT), "named", "folder"]
    part.close()


def test_a_part_with_more_bytes_than_were_announced_is_not_resumed(tmp_path: Path) -> None:
    files = SubmissionFiles(tmp_path)
    files.part.write_bytes(CONTENT + b"x")
    with pytest.raises(WeightsError) as caught:
        PartFile(files, announced())
    assert caught.value.code == "FILE_TOO_LONG"


def test_a_chunk_before_or_after_the_end_is_refused(tmp_path: Path) -> None:
    part = PartFile(SubmissionFiles(tmp_path), announced())
    part.append(0, CONTENT[:100])
    for offset in (0, 99, 101, 1 << 62):
        with pytest.raises(OffsetError) as caught:
            part.append(offset, b"x")
        assert caught.value.committed_bytes == 100
    part.close()


def test_a_chunk_for_a_closed_file_is_written_nowhere(tmp_path: Path) -> None:
    part = PartFile(SubmissionFiles(tmp_path), announced())
    part.close()
    with pytest.raises(StorageError):
        part.append(0, CONTENT)
    assert committed_bytes(SubmissionFiles(tmp_path)) == 0
