"""Texts as sequences of word numbers: how a tweet is cut into words, and which words have a number.

A sequence is padded in front, so that the last position holds the last word, whose state a recurrent network ends with.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError

FORMAT: Final = 1
"""Of the cutting into words: where that changes, numbers kept from before are no longer those of the texts."""

SIZE: Final = 10_000
"""Numbers there are, padding and unknown included: what an embedding must have room for."""

LENGTH: Final = 32
"""Words of a sequence; 99 % of tweets of 140 characters have fewer."""

PADDING: Final = 0
UNKNOWN: Final = 1
FILE_NAME: Final = "vocabulary.txt"

_LARGEST_FILE = 1 << 22
_LONGEST_WORD = 60
_TOKEN = re.compile(
    r"(?P<url>https?://\S+|www\.\S+)|(?P<user>@\w+)|(?P<number>\d+(?:[.,:]\d+)*)|[^\W\d_]+(?:['’][^\W\d_]+)*|\.{2,}|[!?]"
)
_DRAWN_OUT = re.compile(r"(.)\1{2,}")


def words(text: str) -> Iterator[str]:
    """The words of `text` in lower case; addresses, users and numbers become one word each, letters thrice in a row become two.

    >>> list(words("@ann Sooooo happy!!! see http://t.co/x &amp; call 555"))
    ['<user>', 'soo', 'happy', '!', '!', '!', 'see', '<url>', 'call', '<number>']
    """
    for found in _TOKEN.finditer(html.unescape(text).lower()):
        word = found.group()
        if found.lastgroup is not None:
            yield f"<{found.lastgroup}>"
        elif word[0] == ".":
            yield "..."
        else:
            yield _DRAWN_OUT.sub(r"\1\1", word).replace("’", "'")[:_LONGEST_WORD]


@dataclass(frozen=True)
class Vocabulary:
    """entries: the known words; the first has the number 2, for 0 is padding and 1 stands for every other word.

    Raises DataError for more than 9,998 words, or one given twice.
    """

    entries: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.entries) > SIZE - 2:
            raise DataError(f"a vocabulary has at most {SIZE - 2:,} words, not {len(self.entries):,}")
        if len(set(self.entries)) != len(self.entries):
            raise DataError("a vocabulary must not hold a word twice")

    @classmethod
    def of(cls, texts: Iterable[str], *, at_least: int = 2) -> Vocabulary:
        """The most frequent words of `texts`, those that occur `at_least` times; equally frequent ones by the alphabet.

        >>> Vocabulary.of(["b a", "a b c", "b"]).entries
        ('b', 'a')
        """
        counts = Counter(word for text in texts for word in words(text))
        kept = sorted((word for word, count in counts.items() if count >= at_least), key=lambda w: (-counts[w], w))
        return cls(tuple(kept[: SIZE - 2]))

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """A word a line, the first line number 2. Raises DataError for a file that is too large, not text or no vocabulary."""
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise DataError(f"the vocabulary {path} has more than {_LARGEST_FILE} bytes")
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the vocabulary {path} cannot be read: {error}") from None
        if not all(lines):
            raise DataError(f"line {lines.index('') + 1} of the vocabulary {path} is empty")
        try:
            return cls(tuple(lines))
        except DataError as error:
            raise DataError(f"{path}: {error.message}") from None

    def encode(self, texts: Sequence[str], *, length: int = LENGTH) -> Tensor:
        """(N, length) int64: the first `length` words of each text, padded in front.

        >>> Vocabulary(("good", "day")).encode(["good day", "a very good day"], length=3)
        tensor([[0, 2, 3],
                [1, 1, 2]])
        """
        numbers = {word: number for number, word in enumerate(self.entries, start=2)}
        rows = np.full((len(texts), length), PADDING, np.int64)
        for row, text in zip(rows, texts, strict=True):
            found = [numbers.get(word, UNKNOWN) for word in islice(words(text), length)]
            if found:
                row[-len(found) :] = found
        return torch.from_numpy(rows)
