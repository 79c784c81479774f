"""The published recipes of TTT-E2E and its baselines: how they train, and shapes, counted without making them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nested.config import Config, build, compose
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
# How they are trained, by the code of arXiv 2512.23675 (github.com/test-time-training/e2e at a4fc478): pretrain-8K.yaml
# and ext.yaml in configs/training/SIZE; windows, chunks, theta and the extensions' batches in configs/experiment/SIZE.
# It has no sliding windows and no hybrid: they are trained as full attention is, with the window of TTT-E2E.
TRAINING = {  # tokens of a sequence, steps, sequences of a step, peak rate, steps of warm-up
    "125m": (8_192, 4_800, 64, 3e-3, 480),
    "350m": (8_192, 13_500, 64, 1.5e-3, 1_350),
    "760m": (8_192, 29_000, 64, 1.25e-3, 2_900),
    "1b": (8_192, 50_000, 64, 1e-3, 5_000),
    "3b": (8_192, 52_000, 128, 8e-4, 5_200),
    "125m_32k": (32_768, 120, 32, 4e-4, 12),
    "350m_32k": (32_768, 337, 32, 4e-4, 33),
    "760m_32k": (32_768, 725, 32, 4e-4, 72),
    "1b_32k": (32_768, 1_250, 32, 4e-4, 125),
    "3b_32k": (32_768, 1_300, 64, 4e-4, 130),
    "3b_128k": (131_072, 1_300, 16, 4e-4, 130),
}
THETA = {8_192: 5e5, 32_768: 2e6, 131_072: 1e7}  # of full attention's positions; a window's stays at the first
LAST_RATE = 1e-5
EXTENDED = ("ttt_e2e", "full_attention")
WINDOWED = ("sliding_window", "hybrid_attention")
sizes = pytest.mark.parametrize("size", SIZES)
published = pytest.mark.parametrize(
    ("kind", "what"), [(k, w) for w in TRAINING for k in (EXTENDED + WINDOWED if w in SIZES else EXTENDED)]
)


@cache
def config_of(recipe: str) -> Config:
    return compose([f"recipe={recipe}"])


def model_of(recipe: str) -> tuple[nn.Module, int]:
    """The model of a recipe on the meta device, and how many fast weights each of its sequences has."""
    config = config_of(recipe)
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


@published
def test_a_recipe_is_trained_as_published(kind: str, what: str) -> None:
    length, steps, batch, peak, warmup = TRAINING[what]
    config = config_of(f"{kind}_{what}")
    stream, schedule, trainer = config.stream, config.schedule, config.trainer
    assert (stream["length"], stream["n_train"]) == (length, steps * batch)
    assert stream["n_experiences"] == stream["repeats"] == trainer.epochs == 1
    assert (trainer.batch_size, trainer.clip_norm) == (batch, 1.0)
    assert config.optim == {"_target_": "torch.optim.AdamW", "lr": peak, "betas": (0.9, 0.95), "weight_decay": 0.1}
    assert (trainer.micro_batch, trainer.eval_batch_size, config.model["segment"]) == (1, 1, 1024)  # so that it fits
    assert schedule.shape == "cosine"
    assert schedule.final == round(LAST_RATE / peak, 4)
    assert abs(schedule.warmup * steps - warmup) < 1  # a tenth, rounded down there


@published
def test_a_recipe_reads_in_the_published_windows_and_chunks(kind: str, what: str) -> None:
    length, *_, warmup = TRAINING[what]
    config = config_of(f"{kind}_{what}")
    window, theta = (None, THETA[length]) if kind == "full_attention" else (8_192, THETA[8_192])
    assert (config.model["mixer"]["window"], config.model["mixer"]["theta"]) == (window, theta)
    learning = token_levels(from_config(config.level_configs()))
    if kind != "ttt_e2e":
        assert not learning
        return
    [level] = learning
    assert (level.period, level.eta, level.clip_norm, level.gather) == (1_024, 1.0, 1.0, "mean")
    assert level.eta_warmup_steps == (warmup if what in SIZES else 0)


@pytest.mark.parametrize("kind", EXTENDED)
@pytest.mark.parametrize("what", [w for w in TRAINING if w not in SIZES])
def test_an_extension_is_the_same_model_on_a_twentieth_of_the_tokens(what: str, kind: str) -> None:
    before, after = (config_of(f"{kind}_{w}") for w in (what.partition("_")[0], what))
    theta = after.model["mixer"]["theta"]  # alone differs
    assert after.model == {**before.model, "mixer": {**before.model["mixer"], "theta": theta}}
    some, all_ = (c.stream["length"] * c.stream["n_train"] for c in (after, before))
    assert some / all_ == pytest.approx(0.05, rel=0.01)


@sizes
def test_a_hybrid_has_five_sliding_windows_to_one_full_attention(size: str) -> None:
    model: Any = model_of(f"hybrid_attention_{size}")[0]
    windows = [block.mixer.window for block in model.blocks]
    assert windows == [None if i % 6 == 5 else 8_192 for i in range(SIZES[size][0])]


@sizes
@pytest.mark.parametrize("kind", ["full_attention", *WINDOWED])
def test_baselines_have_the_published_shape_and_nearly_as_many_parameters(size: str, kind: str) -> None:
    layers, width, heads, hidden, narrow, prime, _ = SIZES[size]
    model, fast = model_of(f"{kind}_{size}")
    assert fast == 0
    assert parameters(model) == expected(layers, width, heads, hidden, 0)
    assert parameters(model) == pytest.approx(expected(layers, width, heads, narrow, prime), rel=0.02)


def test_a_recipe_asks_for_the_text_and_its_tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of("ttt_e2e_125m")
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
