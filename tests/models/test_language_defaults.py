"""The language models of conf/model as they are offered: as many parameters as TTT-E2E, and comparable states."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from nested.config import build, compose
from nested.cost import tensor_bytes
from nested.inner import FastState, initial_state, read
from nested.levels import from_config, token_levels

BASELINES = [
    "full_attention", "sliding_window", "hybrid_attention", "language_mamba2", "language_gated_delta_net",
    "language_ttt_linear", "language_ttt_mlp", "language_streaming", "language_heavy_hitter",
]  # fmt: skip
BYTES = {"sample_shape": (512,), "n_outputs": 256, "vocabulary": 256, "per_position": True}


def model_of(*overrides: str) -> nn.Module:
    config = compose(list(overrides))
    levels = tuple(token_levels(from_config(config.level_configs())))
    return build(config.model, "model", token_levels=levels, **BYTES).eval()


@cache
def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in model_of(f"model={name}").parameters())


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_has_the_parameters_of_ttt_e2e(name: str) -> None:
    assert parameters(name) == pytest.approx(parameters("ttt_e2e"), rel=0.01)


@pytest.mark.parametrize(("depth", "rest"), [(6, []), (14, [64, 64])])
def test_a_hybrid_has_five_sliding_windows_to_one_full_attention(depth: int, rest: list[int]) -> None:
    with torch.device("meta"):
        blocks: Any = model_of("model=hybrid_attention", *([] if depth == 6 else [f"model.depth={depth}"])).blocks
    assert [block.mixer.window for block in blocks] == ([64] * 5 + [None]) * (depth // 6) + rest


# -- states, in float32, of one sequence when its caches are full ------------------------------------------------------


@torch.no_grad()
def read_by(*overrides: str) -> FastState:
    """After more tokens than any budget here."""
    model: Any = model_of(*overrides)
    return read(model, model.levels, initial_state(model, model.levels, 1), torch.randint(256, (1, 177)))[1]


def held(*overrides: str) -> int:
    """Bytes of caches and fast weights; a sum of gradients takes none between two chunks."""
    state = read_by(*overrides)
    assert all(not g.any() and g.untyped_storage().nbytes() < 64 for g in state.gathered.values())
    return tensor_bytes((state.carry, state.fast))


@pytest.mark.parametrize("name", ["language_streaming", "language_heavy_hitter"])
def test_a_pruned_cache_has_the_bytes_of_the_sliding_windows(name: str) -> None:
    assert held(f"model={name}") == pytest.approx(held("model=sliding_window"), rel=0.05)


@pytest.mark.parametrize(
    ("width", "heads", "depth", "prime", "hidden", "window"), [(128, 4, 4, 1, 256, 64), (32, 2, 3, 2, 40, 24)]
)
def test_the_budgets_of_its_whole_state_are_those_that_are_stated(
    width: int, heads: int, depth: int, prime: int, hidden: int, window: int
) -> None:
    """A token is 2 width numbers in a block, and for H2O also a count of each head. conf/model names the first two."""
    streaming = window - 1 + 3 * prime * hidden // (2 * depth)
    heavy = streaming * 2 * width // (2 * width + heads)
    if width == 128:
        assert (streaming, heavy) == (159, 156)
    shape = [f"model.width={width}", f"model.heads={heads}", f"model.depth={depth}"]
    whole = held("model=ttt_e2e", "levels=reading", *shape, f"model.prime={prime}", f"model.hidden={hidden}",
                 f"model.mixer.window={window}")  # fmt: skip
    assert whole > 2 * held("model=sliding_window", *shape, f"model.mixer.window={window}")
    for name, budget in (("language_streaming", streaming), ("language_heavy_hitter", heavy)):
        token = 4 * depth * (2 * width + heads * (name == "language_heavy_hitter"))
        assert abs(held(f"model={name}", *shape, f"model.mixer.budget={budget}") - whole) < token
