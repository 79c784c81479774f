"""Two small language models, made as a user would: one that learns while it reads, one that knows nothing of that."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nested.inner import initial_state, read
from nested.levels import Level

READING = "levels={all: {params: rest, period_steps: 1}, reading: {params: [table], chunk_tokens: 4, eta: 1.0}}"


class Bigram(nn.Module):
    """Which token follows which: a table of logits, of which each sequence may have a copy that learns."""

    def __init__(self, vocabulary: int, n_outputs: int, token_levels: tuple[Level, ...] = ()):
        super().__init__()
        self.levels = token_levels
        self.table = nn.Parameter(torch.randn(vocabulary, n_outputs) / 4)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T) -> (B, T, n_outputs), as it was before it read anything."""
        return F.embedding(x, self.table)

    def nll(self, x: Tensor, y: Tensor, frozen: bool = False) -> Tensor:
        """(B, T), (B, T) -> (B, T) nats."""
        if not self.levels:
            return F.cross_entropy(self(x).mT, y, reduction="none")
        start = initial_state(self, self.levels, len(x))
        tokens = torch.cat([x, y[:, -1:]], 1)
        return read(self, self.levels, start, tokens, "off" if frozen else "full")[0]

    def prepare(self, tokens: Tensor) -> Tensor:
        return tokens

    def chunk_loss(self, fast, carry, chunk):
        logits = torch.stack([table[x] for table, x in zip(fast["table"], chunk.inputs)])
        return F.cross_entropy(logits.mT, chunk.labels, reduction="none"), carry


class Plain(nn.Module):
    """The same table without a word of text: outputs alone."""

    def __init__(self, vocabulary: int, n_outputs: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocabulary, n_outputs) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.table)


def config_dir(tmp_path: Path) -> Path:
    """A directory from which `model=bigram` and `model=plain` can be chosen."""
    folder = tmp_path / "conf" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("Bigram", "Plain"):
        (folder / f"{name.lower()}.yaml").write_text(
            f"# A table of which token follows which.\n_target_: reading_model.{name}\n"
        )
    return tmp_path / "conf"
