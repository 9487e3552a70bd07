"""What stands before a table that has lost rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Lookup(nn.Module):
    """Which row of a table a word has; of the words that lost theirs that of another one.

    Args:
        words: so many.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self.row: Tensor
        self.register_buffer("row", torch.zeros(words, dtype=torch.int32))

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) -> (batch, length)."""
        return self.row[ids]
