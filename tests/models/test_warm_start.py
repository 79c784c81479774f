"""The start from an export's weights: the same function where it is accepted, else refused by name; in float64."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import V, exported, reading, small, some
from safetensors.torch import save
from torch.testing import assert_close

from nested.config import build, compose
from nested.errors import UserError
from nested.memory.lstm import LSTMMemory
from nested.memory.pruned_attention import HeavyHitterAttention, StreamingAttention
from nested.memory.window_attention import WindowAttention
from nested.models.language import LanguageModel
from nested.models.warm_start import _changes

exact = partial(assert_close, rtol=1e-12, atol=1e-12)
full = partial(WindowAttention, window=None)
T = some(25)
X, Y = T[:, :-1], T[:, 1:]


class Subclass(LanguageModel):
    """Parameters of the same names."""


@pytest.mark.parametrize("window", [None, 6])
def test_a_warm_start_is_the_same_function_and_learns_to_learn(tmp_path: Path, window: int | None) -> None:
    plain = small(prime=0, window=window)
    model = small(reading(), window=window, warm_start=exported(plain, tmp_path)).double()
    exact(model.nll(X, Y), plain.double().nll(X, Y))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model.nll(X, Y).mean().backward()
        optimizer.step()
    assert (model.nll(X, Y) - model.nll(X, Y, frozen=True)).abs().max() > 1e-4


def test_a_warm_start_is_trained_on_a_longer_text(tmp_path: Path) -> None:
    plain = small(prime=0, window=None)
    model = small(reading(), window=12, warm_start=exported(plain, tmp_path)).double()
    long = some(49, batch=4)
    x, y = long[:, :-1], long[:, 1:]
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(8):
        losses.append(model.nll(x, y).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_a_warm_start_extends_to_a_longer_text_and_a_window(tmp_path: Path) -> None:
    plain = small(prime=0, window=None)
    model = small(reading(), window=12, warm_start=exported(plain, tmp_path)).double()
    exact(model.nll(X[:, :12], Y[:, :12]), plain.double().nll(X[:, :12], Y[:, :12]))
    again = small(reading(), warm_start=exported(model, tmp_path), segment=5)
    assert all(torch.equal(a, b.float()) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_a_warm_start_from_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.warm_start: .* has no export.json"):
        small(warm_start=str(tmp_path))
    here = exported(small(), tmp_path)
    for more, said in (
        ({"width": 16, "hidden": 9}, "model.width is 8 there and 16 here, model.hidden is 12 there and 9 here"),
        ({"depth": 4}, "model.depth is 3 there and 4 here"),
        ({"heads": 4}, r"blocks.0.mixer.key_norm.weight is \(4,\) there and \(2,\) here"),
        (
            {"mixer": lambda width, heads: LSTMMemory(width)},
            r"blocks.0.mixer.key.weight is \(8, 8\) there and absent here",
        ),
        ({"prime": 0}, r"prime.* is .* there and absent here"),
    ):
        with pytest.raises(UserError, match=f"{said}.*; all but prime MLPs must be the same"):
            small(warm_start=here, **more)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model.warm_start: .* is damaged or was changed"):
        small(warm_start=here)
    (tmp_path / "model.safetensors").write_bytes(save({"head.weight": torch.zeros(3, 4)}))
    about = json.loads((tmp_path / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps({**about, "files": {}}))
    with pytest.raises(UserError, match=r"it holds head.weight \(3, 4\) and so on, and embedding.weight \(11, 8\) and"):
        small(warm_start=here)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"mixer": partial(WindowAttention, window=6, theta=1e4)}, "theta is 500000.0 there and 10000.0 here"),
        ({"mixer": partial(WindowAttention, window=6, theta=2e6)}, "theta is 500000.0 there and 2000000.0 here"),
        ({"mixer": partial(WindowAttention, window=6, theta=2e6), "length": 48}, "0.mixer.theta is"),  # sees no further
        ({"mixer": partial(full, theta=1e4), "length": 48}, "0.mixer.theta is 500000.0 there and 10000.0 here"),
        ({"mixer": partial(StreamingAttention, budget=6)}, "0.mixer is WindowAttention there and StreamingAttention"),
        ({"other": partial(HeavyHitterAttention, budget=6), "other_every": 3}, "2.mixer is WindowAttention there"),
        ({"tokenizer_mark": "5eed"}, "stream.tokenizer is None there and 5eed here"),
    ],
)
def test_a_warm_start_whose_weights_would_mean_something_else_is_refused(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=f"model.warm_start: .*another function: .*{said}.*; take the same"):
        small(warm_start=exported(small(), tmp_path), **more)


def test_a_warm_start_of_another_class_or_tokenizer_is_refused(tmp_path: Path) -> None:
    here = exported(small(), tmp_path, tokenizer="5eed")
    with pytest.raises(UserError, match=r"stream.tokenizer is 5eed there and None here"):
        small(warm_start=here)
    assert small(warm_start=here, tokenizer_mark="5eed", inner="first_order", checkpoint="group", segment=4)
    given = {"mixer": full, "vocabulary": V, "per_position": True, "tokenizer_mark": "5eed"}
    sizes = {"width": 8, "depth": 3, "heads": 2, "hidden": 12, "prime": 2}
    with pytest.raises(UserError, match=r"model._target_ is LanguageModel there and Subclass here"):
        Subclass((12,), V, warm_start=here, **given, **sizes)


def test_theta_may_rise_where_a_token_sees_further_and_that_is_remarked(tmp_path: Path) -> None:
    here = exported(small(window=None), tmp_path)
    longer = small(mixer=partial(full, theta=2e6), length=48, warm_start=here)
    (remark,) = longer.remarks
    assert remark.startswith(
        "the warm start begins with another function: blocks.0.mixer.theta is 500000.0 there and 2"
    )
    assert small(mixer=full, length=48, warm_start=here).remarks == small().remarks == []
    wider = partial(WindowAttention, window=12, theta=2e6)
    assert small(mixer=wider, warm_start=exported(small(), tmp_path)).remarks


def test_a_warm_start_leaves_the_generator_as_it_is_without(tmp_path: Path) -> None:
    here, next_numbers = exported(small(), tmp_path), []
    for start in (None, here):
        small(warm_start=start) if start else small()
        next_numbers.append(torch.rand(3))
    assert torch.equal(*next_numbers)


KINDS = ["hybrid_attention", "language_streaming", "language_heavy_hitter", "language_mamba2"]
KINDS += ["language_gated_delta_net", "language_ttt_linear", "language_ttt_mlp"]


@pytest.mark.parametrize("name", KINDS)
def test_a_model_without_numbers_is_told_as_the_same_as_one_with_them(name: str) -> None:
    chosen = compose([f"model={name}", "model.width=32", "model.hidden=40", "stream=text"]).model
    given = {"sample_shape": (48,), "n_outputs": V, "vocabulary": V, "per_position": True}
    made = build(chosen, "model", **given)
    with torch.device("meta"):
        empty = build(chosen, "model", **given)
    assert not list(_changes(empty, made))
