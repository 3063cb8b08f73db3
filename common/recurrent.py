"""A recurrent classifier of texts: word vectors, a gated recurrent unit (Cho et al. 2014, arXiv 1406.1078), a linear head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.vocabulary import PADDING, SIZE


class Gru(nn.Module):
    """Logits (N, classes) of word numbers (N, length) int64, as `common.vocabulary` gives them.

    The head sees the state after the last position, (N, width): texts are padded in front, so that is the last word's. Word
    vectors are learnt with the rest. Numbers that are not integers are refused by `nn.Embedding`.

    >>> Gru(2, vectors=8, width=4)(torch.zeros(3, 5, dtype=torch.int64)).shape
    torch.Size([3, 2])
    """

    def __init__(self, classes: int, *, words: int = SIZE, vectors: int = 64, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, vectors, padding_idx=PADDING)
        # Standard normal vectors saturate the gates at first.
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[PADDING].zero_()
        self.gru = nn.GRU(vectors, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, numbers: Tensor) -> Tensor:
        states, _ = self.gru(self.embedding(numbers))
        logits: Tensor = self.head(states[:, -1])
        return logits
