"""What a model may ask for by parameter name: what its samples and outputs are like, and who learns while it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nested.levels import Level, token_levels


def model_context(stream: Any, levels: Sequence[Level]) -> dict[str, Any]:
    """Parameter name -> value; `stream` is a `Stream`, or all that an export remembers of one, by the same names."""
    return {
        "sample_shape": tuple(stream.sample_shape),
        "n_outputs": stream.n_outputs,
        "vocabulary": stream.vocabulary,
        "per_position": stream.per_position,
        "token_levels": tuple(token_levels(levels)),
        "tokenizer_mark": stream.about.get("tokenizer"),  # None: bytes, or no text
    }
