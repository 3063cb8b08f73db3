"""Texts become numbers: the same words the same numbers, the last word last."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from common.vocabulary import SIZE, Vocabulary, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm SO happy", ["i'm", "so", "happy"]),
        ("I’m", ["i'm"]),
        ("loooool wait...", ["lool", "wait", "..."]),
        ("@bob_1 look: https://a.b/c?d=e or www.x.org", ["<user>", "look", "<url>", "or", "<url>"]),
        ("at 5:30, 1,000 people?", ["at", "<number>", "<number>", "people", "?"]),
        ("#sunny &lt;3 &amp; warm", ["sunny", "<number>", "warm"]),
        ("schön día 東京", ["schön", "día", "東京"]),
        ("", []),
    ],
)
def test_a_text_is_cut_into_words(text: str, expected: list[str]) -> None:
    assert list(words(text)) == expected


def test_the_most_frequent_words_are_kept_and_rare_ones_are_unknown() -> None:
    vocabulary = Vocabulary.of(["dog cat dog", "cat dog bird"])
    assert vocabulary.entries == ("dog", "cat")
    assert vocabulary.encode(["bird cat dog"], length=4).tolist() == [[0, 1, 3, 2]]


def test_there_is_never_a_number_too_many() -> None:
    def word(number: int) -> str:
        return "z".join(chr(ord("a") + int(digit)) for digit in f"{number:05d}")

    vocabulary = Vocabulary.of([f"{word(i)} {word(i)}" for i in range(SIZE + 50)])
    assert len(vocabulary.entries) == SIZE - 2
    assert int(vocabulary.encode([vocabulary.entries[-1]]).max()) == SIZE - 1


@given(st.lists(st.text(max_size=60), max_size=4), st.integers(1, 9))
def test_any_texts_encode_to_their_words_padded_in_front(texts: list[str], length: int) -> None:
    vocabulary = Vocabulary.of(texts, at_least=1)
    rows = vocabulary.encode(texts, length=length).tolist()
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows, strict=True):
        read = [vocabulary.entries[number - 2] for number in row if number]
        assert read == list(words(text))[:length]
        assert row == [0] * (length - len(read)) + row[length - len(read) :]


def test_a_vocabulary_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("dog\ncat\n")
    assert Vocabulary.read(tmp_path / "v.txt").entries == ("dog", "cat")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"dog\n\ncat\n", "line 2 of the vocabulary .* is empty"),
        (b"dog\ndog\n", "must not hold a word twice"),
        (b"\xff\xfe", "cannot be read"),
        (b"a\n" * (1 << 22), "more than 4194304 bytes"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(DataError, match=says):
        Vocabulary.read(tmp_path / "v.txt")


def test_a_vocabulary_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt cannot be read"):
        Vocabulary.read(tmp_path / "absent.txt")
