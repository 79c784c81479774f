"""A small causal model of tokens, made as a user would: with nothing of ours but the names of the arguments."""

from pathlib import Path

from torch import Tensor, nn


class TokenGRU(nn.Module):
    """Embedding, a GRU and a linear head: outputs for each position, or for the last one."""

    def __init__(self, vocabulary: int | None, n_outputs: int, per_position: bool, width: int = 16):
        super().__init__()
        assert vocabulary is not None, "this model reads tokens"
        self.per_position = per_position
        self.embedding = nn.Embedding(vocabulary, width)
        self.mixer = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T) int64 -> (B, T, n_outputs) or (B, n_outputs)."""
        h, _ = self.mixer(self.embedding(x))
        return self.head(h if self.per_position else h[:, -1])


def config_dir(tmp_path: Path) -> Path:
    """A directory from which `model=token_gru` can be chosen."""
    file = tmp_path / "conf" / "model" / "token_gru.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("# A recurrent network over tokens.\n_target_: token_model.TokenGRU\nwidth: 16\n")
    return tmp_path / "conf"
