"""The published shapes of TTT-E2E and its baselines: parameters and fast weights, counted without making them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from nested.config import build, compose
from nested.errors import UserError
from nested.levels import assign_tokens, from_config, token_levels

VOCABULARY = 128_256
SIZES = {  # layers, width, heads, hidden of full attention, hidden and prime blocks of TTT-E2E, fast weights
    "125m": (12, 768, 12, 2048, 1664, 3, 11_501_568),
    "350m": (24, 1024, 16, 2816, 2304, 6, 42_467_328),
    "760m": (24, 1536, 16, 4096, 3328, 6, 92_012_544),
    "1b": (24, 2048, 32, 5376, 4352, 6, 160_432_128),
    "3b": (32, 2560, 32, 6912, 5632, 8, 346_030_080),
}
sizes = pytest.mark.parametrize("size", SIZES)


def model_of(recipe: str) -> tuple[nn.Module, int]:
    """The model of a recipe on the meta device, and how many fast weights each of its sequences has."""
    config = compose([f"recipe={recipe}"])
    levels = tuple(token_levels(from_config(config.level_configs())))
    of_text = {"sample_shape": (8192,), "n_outputs": VOCABULARY, "vocabulary": VOCABULARY, "per_position": True}
    with torch.device("meta"):
        model = build(config.model, "model", token_levels=levels, **of_text)
    shapes = dict(model.named_parameters())
    fast = [n for names in assign_tokens(levels, model).values() for n in names] if levels else []
    return model, sum(shapes[n].numel() for n in fast)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def expected(layers: int, width: int, heads: int, hidden: int, prime: int) -> int:
    """Embedding, final norm; four projections, head norms, four norms and an MLP a block; an MLP and two norms more."""
    block = 4 * width**2 + 2 * (width // heads) + 4 * width + 3 * width * hidden
    return VOCABULARY * width + width + layers * block + prime * (3 * width * hidden + 2 * width)


@sizes
def test_ttt_e2e_has_the_published_shape_and_fast_weights(size: str) -> None:
    layers, width, heads, _, hidden, prime, wanted = SIZES[size]
    model, fast = model_of(f"ttt_e2e_{size}")
    assert fast == wanted == 3 * prime * width * hidden
    assert parameters(model) == expected(layers, width, heads, hidden, prime)


@pytest.mark.parametrize(
    ("size", "length", "steps", "batch", "tokens"),
    [("125m", "32k", 120, 32, "126M"), ("350m", "32k", 337, 32, "353M"), ("760m", "32k", 725, 32, "760M"),
     ("1b", "32k", 1250, 32, "1311M"), ("3b", "32k", 1300, 64, "2726M"), ("3b", "128k", 1300, 16, "2726M")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["ttt_e2e", "full_attention"])
def test_the_extension_has_the_published_length_rate_and_number_of_tokens(
    size: str, length: str, steps: int, batch: int, tokens: str, kind: str
) -> None:
    config, before = (compose([f"recipe={kind}_{size}{more}"]) for more in (f"_{length}", ""))
    context = 1024 * int(length.removesuffix("k"))
    assert (config.stream["length"], config.optim["lr"], config.trainer.batch_size) == (context, 4e-4, batch)
    assert config.stream["n_train"] == steps * batch
    assert f"{context * steps * batch / 1e6:.0f}M" == tokens
    if kind == "ttt_e2e":
        assert config.model == before.model
        assert config.level_configs()["reading"].eta_warmup_steps == 0
    else:  # whose positions reach further
        theta = {"32k": 2e6, "128k": 1e7}[length]
        assert config.model == {**before.model, "mixer": {**before.model["mixer"], "theta": theta}}


@sizes
@pytest.mark.parametrize("kind", ["full_attention", "sliding_window", "hybrid_attention"])
def test_baselines_have_the_published_shape_and_nearly_as_many_parameters(size: str, kind: str) -> None:
    layers, width, heads, hidden, narrow, prime, _ = SIZES[size]
    model, fast = model_of(f"{kind}_{size}")
    assert fast == 0
    assert parameters(model) == expected(layers, width, heads, hidden, 0)
    assert parameters(model) == pytest.approx(expected(layers, width, heads, narrow, prime), rel=0.02)


def test_a_recipe_asks_for_the_text_and_its_tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(["recipe=ttt_e2e_125m"])
    with pytest.raises(UserError, match=r"stream.path: .*texts"):
        build(config.stream, "stream")
    (tmp_path / "texts" / "one").mkdir(parents=True)
    for name in "abc":
        (tmp_path / "texts" / "one" / name).write_text(name)
    with pytest.raises(UserError, match=r"stream.tokenizer: .*tokenizer.json"):
        build(config.stream, "stream")


def test_the_mlps_of_the_760m_shape_are_as_published() -> None:
    counts = [
        sum(p.numel() for n, p in model_of(f"{kind}_760m")[0].named_parameters() if ".mlp." in n)
        for kind in ("full_attention", "ttt_e2e")
    ]
    assert [round(c / 1e6, 1) for c in counts] == [453.0, 460.1]
