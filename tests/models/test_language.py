"""TTT-E2E and its baselines: what defines them, in float64."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from language_models import V, reading, small, some
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from nested.errors import Diverged, UserError
from nested.inner import initial_state, read
from nested.levels import Level, eta_at
from nested.memory.lstm import LSTMMemory
from nested.memory.window_attention import WindowAttention
from nested.models.language import LanguageModel

exact = partial(assert_close, rtol=1e-12, atol=1e-12)
T = some(25)
X, Y = T[:, :-1], T[:, 1:]


def gradients(model: LanguageModel, losses: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(losses.mean(), list(model.parameters())))


def rotated(x: Tensor, theta: float) -> Tensor:
    """(T, K) turned by absolute positions, as complex numbers."""
    t, k = x.shape
    angle = torch.outer(torch.arange(t).double(), theta ** (-torch.arange(0, k, 2).double() / k))
    return torch.view_as_real(
        torch.view_as_complex(x.reshape(t, k // 2, 2)) * torch.polar(torch.ones_like(angle), angle)
    ).flatten(1)


def token_loop(model: LanguageModel, x: Tensor, y: Tensor, window: int, chunk: int, eta: float, clip: float) -> Tensor:
    """TTT-E2E of one sequence as the paper's pseudocode, one token after another, full caches, absolute positions."""
    p = dict(model.named_parameters())
    norm = lambda h, name: F.rms_norm(h, h.shape[-1:], p[name], 1e-6)  # noqa: E731
    names = [n for n in p if ".prime.mlp." in n]
    w = {n: p[n] for n in names}

    def mlp(h: Tensor, at: str, weights: dict[str, Tensor]) -> Tensor:
        z = norm(h, f"{at}.norm.weight")
        w1, w2, w3 = (weights[f"{at}.mlp.w{i}.weight"] for i in (1, 2, 3))
        return h + norm((F.silu(z @ w1.T) * (z @ w3.T)) @ w2.T, f"{at}.post_norm.weight")

    caches: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in model.blocks]
    losses, open_losses = [], []
    for t in range(len(x)):
        h = p["embedding.weight"][x[t]]
        for b, (keys, values) in enumerate(caches):
            at = f"blocks.{b}"
            z = norm(h, f"{at}.norm.weight")
            heads = lambda name: (p[f"{at}.mixer.{name}.weight"] @ z).view(2, -1)  # noqa: B023, E731
            keys.append(norm(heads("key"), f"{at}.mixer.key_norm.weight"))
            values.append(heads("value"))
            q = norm(heads("query"), f"{at}.mixer.query_norm.weight")
            seen = range(max(0, t - window + 1), t + 1)
            y_heads = []
            for head in range(2):
                k = rotated(torch.stack([keys[j][head] for j in range(t + 1)]), 500_000.0)
                turned = rotated(torch.cat([torch.zeros(t, q.shape[1]).double(), q[head : head + 1]]), 500_000.0)[-1]
                share = torch.softmax(torch.stack([turned @ k[j] for j in seen]) / q.shape[1] ** 0.5, 0)
                y_heads.append(sum(s * values[j][head] for s, j in zip(share, seen)))
            h = h + norm(p[f"{at}.mixer.out.weight"] @ torch.cat(y_heads), f"{at}.post_norm.weight")
            if f"{at}.prime.norm.weight" in p:
                h = mlp(h, f"{at}.prime", w)
            h = mlp(h, f"{at}.feedforward", p)
        losses.append(F.cross_entropy(norm(h, "norm.weight") @ p["embedding.weight"].T, y[t]))
        open_losses.append(losses[-1])
        if len(open_losses) == chunk:
            grads = torch.autograd.grad(torch.stack(open_losses).mean(), list(w.values()), create_graph=True)
            length = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
            scale = torch.where(length > clip, clip / length, 1.0)
            w = {n: w[n] - eta * scale * g for n, g in zip(names, grads)}
            open_losses = []
    return torch.stack(losses)


def test_equals_the_token_loop_with_its_outer_gradient() -> None:
    model = small(reading(0.7))
    found = model.nll(X[:1, :11], Y[:1, :11])
    wanted = token_loop(model, X[0, :11], Y[0, :11], 6, 3, 0.7, 1.0)
    assert_close(found[0], wanted, rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients(model, found), gradients(model, wanted)):
        assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_at_rate_zero_it_is_the_sliding_window_model() -> None:
    plain, still = small(), small(reading(0.0))
    exact(still.nll(X, Y), plain.nll(X, Y))
    for a, b in zip(gradients(still, still.nll(X, Y)), gradients(plain, plain.nll(X, Y))):
        exact(a, b)
    learns = small(reading())
    exact(learns.nll(X, Y, frozen=True), plain.nll(X, Y))
    assert (learns.nll(X, Y) - plain.nll(X, Y)).abs().max() > 0.01


def test_a_window_as_long_as_the_text_is_full_attention_and_a_shorter_one_is_not() -> None:
    full = small(window=None).nll(X, Y)
    exact(small(window=24).nll(X, Y), full)
    assert (small(window=23).nll(X, Y) - full).abs().max() > 1e-6


@pytest.mark.parametrize("prime", [1, 2, 3])
def test_what_no_fast_weight_reaches_is_run_once(prime: int) -> None:
    model = small(reading(), prime=prime)
    assert (model.whole, model.mixed) == (3 - prime, True)
    calls = []
    model.blocks[0].norm.register_forward_hook(lambda *_: calls.append(0))
    model.blocks[2].norm.register_forward_hook(lambda *_: calls.append(2))
    model.nll(X, Y)
    assert calls.count(0) == 1
    assert calls.count(2) == (1 if prime == 1 else 8)


@pytest.mark.parametrize("how", [{"checkpoint": "chunk"}, {"checkpoint": "group"}])
def test_checkpointed_equals_not_to_the_bit(how: dict[str, str]) -> None:
    plain, again = small(reading()), small(reading(), **how)
    losses, others = plain.nll(X, Y), again.nll(X, Y)
    assert torch.equal(losses, others)
    assert all(torch.equal(a, b) for a, b in zip(gradients(plain, losses), gradients(again, others)))


@pytest.mark.parametrize("segment", [1, 5, 24])
def test_segments_of_the_lower_blocks_change_nothing(segment: int) -> None:
    plain, pieces = small(reading()), small(reading(), segment=segment)
    losses, others = plain.nll(X, Y), pieces.nll(X, Y)
    exact(others, losses)
    for a, b in zip(gradients(plain, losses), gradients(pieces, others)):
        assert_close(b, a, rtol=1e-9, atol=1e-9)


def test_the_outer_gradient_matches_finite_differences_and_is_not_the_first_order_one() -> None:
    model = small(reading(0.3))
    params = list(model.parameters())
    found = gradients(model, model.nll(X[:, :9], Y[:, :9]))
    model.inner = "first_order"
    first = gradients(model, model.nll(X[:, :9], Y[:, :9]))
    draw = torch.Generator().manual_seed(3)
    for p, g, f in zip(params, found, first):
        direction = torch.randn(p.shape, generator=draw, dtype=p.dtype)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p += sign * 1e-6 * direction
                ends.append(model.nll(X[:, :9], Y[:, :9]).mean())
                p -= sign * 1e-6 * direction
        slope = (ends[0] - ends[1]) / 2e-6
        assert_close((g * direction).sum(), slope, rtol=1e-5, atol=1e-7)
        if p.ndim > 1:
            assert (g - f).norm() > 0.01 * g.norm()


def test_a_batch_equals_its_sequences() -> None:
    model = small(reading())
    exact(model.nll(X, Y), torch.cat([model.nll(X[i : i + 1], Y[i : i + 1]) for i in range(2)]))


def test_a_later_token_changes_nothing_earlier() -> None:
    model = small(reading())
    before = model.nll(X, Y)
    for t in (3, 10, 24):
        other = T.clone()
        other[:, t] = (other[:, t] + 1) % V
        exact(model.nll(other[:, :-1], other[:, 1:])[:, : t - 1], before[:, : t - 1])


@pytest.mark.parametrize("levels", [reading(), ()])
def test_reading_in_pieces_equals_reading_at_once(levels: tuple[Level, ...]) -> None:
    model = small(levels)
    whole, _ = read(model, levels, initial_state(model, levels, 2), T)
    for split in range(26):
        first, state = read(model, levels, initial_state(model, levels, 2), T[:, :split])
        second, _ = read(model, levels, state, T[:, split:])
        assert_close(torch.cat([first, second], 1), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("levels", [reading(), ()])
def test_outputs_are_those_whose_likelihood_is_judged(levels: tuple[Level, ...]) -> None:
    model = small(levels)
    exact(F.cross_entropy(model(X).mT, Y, reduction="none"), model.nll(X, Y))


def test_other_mixers_run_in_the_same_frame_and_learn_while_they_read() -> None:
    def lstm(width: int, heads: int) -> LSTMMemory:
        return LSTMMemory(width)

    model = small(reading(), mixer=lstm)
    assert (model.whole, model.mixed) == (0, False)
    mixed = small(reading(), other=lstm, other_every=2)
    assert (mixed.whole, mixed.mixed) == (1, False)
    for each in (model, mixed):
        losses = each.nll(X, Y)
        assert (losses - each.nll(X, Y, frozen=True)).abs().max() > 0.001
        assert all(g.isfinite().all() for g in gradients(each, losses))


def test_trained_off_and_read_with_updates_is_dynamic_evaluation() -> None:
    naive, plain = small(reading(), inner="off"), small()
    exact(naive.train().nll(X, Y), plain.nll(X, Y))
    exact(naive.eval().nll(X, Y), small(reading()).nll(X, Y))


def test_the_inner_rate_warms_up_over_outer_steps() -> None:
    level = reading(2.0, eta_warmup_steps=10)[0]
    assert [eta_at(level, s) for s in (0, 4, 9, 100)] == pytest.approx([0.38, 1.1, 2.0, 2.0])
    assert eta_at(level, None) == 2.0
    model, slower = small(reading(2.0, eta_warmup_steps=10)), small(reading(0.38))
    model.step = 0
    exact(model.nll(X, Y), slower.nll(X, Y))


def test_reading_moves_weights_no_further_than_allowed() -> None:
    levels = reading(5.0, shift_norm=0.5)
    model = small(levels)
    state = initial_state(model, levels, 2)
    _, state = read(model, levels, state, T)
    start = dict(model.named_parameters())
    shift = sum((w - start[n]).square().flatten(1).sum(1) for n, w in state.fast.items())
    assert_close(shift.sqrt(), torch.full((2,), 0.5).double())


def test_many_logits_are_computed_again_with_equal_losses_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(reading())
    whole = model.nll(X, Y)
    wanted = gradients(model, whole)
    calls = []
    monkeypatch.setattr("nested.models.language.LOGITS", 2 * len(X) * V)  # two tokens at a time
    monkeypatch.setattr(model, "_loss", lambda *given, own=model._loss: calls.append(1) or own(*given))
    pieces = model.nll(X, Y)
    read_once = len(calls)
    exact(pieces, whole)
    for found, gradient in zip(gradients(model, pieces), wanted):
        exact(found, gradient)
    assert len(calls) > read_once >= 16  # two pieces for each of 8 chunks; again in the backward pass


def cipher(n: int, seed: int, tokens: int = 48) -> Tensor:
    """(n, tokens + 1): what follows a token is the same throughout a sequence, not in the next; a tenth is random."""
    draw = torch.Generator().manual_seed(seed)
    follows = torch.stack([torch.randperm(V, generator=draw) for _ in range(n)])
    x = torch.randint(V, (n, tokens + 1), generator=draw)
    at_random = torch.rand(n, tokens, generator=draw) < 0.1
    for t in range(tokens):
        x[:, t + 1] = torch.where(at_random[:, t], x[:, t + 1], follows[torch.arange(n), x[:, t]])
    return x


def test_what_was_trained_end_to_end_gains_by_reading_and_more_than_dynamic_evaluation() -> None:
    losses = {}
    for inner in ("full", "off"):
        model = small(reading(chunk=4), window=4, inner=inner).float()
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for step in range(40):
            x = cipher(16, seed=1000 + step)
            optimizer.zero_grad()
            model.nll(x[:, :-1], x[:, 1:]).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        x = cipher(64, seed=1)
        with torch.no_grad():
            model.eval()
            losses[inner] = [float(model.nll(x[:, :-1], x[:, 1:], frozen).mean()) for frozen in (False, True)]
    (ours, frozen), (naive, sliding) = losses["full"], losses["off"]
    assert ours < frozen - 0.1
    assert ours < min(naive, sliding) - 0.02


def exported(model: LanguageModel, folder: Path) -> str:
    save_file(model.state_dict(), folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("window", [None, 6])
def test_a_warm_start_is_the_same_function_and_learns_to_learn(tmp_path: Path, window: int | None) -> None:
    plain = small(prime=0, window=window)
    model = small(reading(), window=window, warm_start=exported(plain.float(), tmp_path)).double()
    exact(model.nll(X, Y), plain.double().nll(X, Y))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model.nll(X, Y).mean().backward()
        optimizer.step()
    assert (model.nll(X, Y) - model.nll(X, Y, frozen=True)).abs().max() > 1e-4


def test_a_warm_start_is_trained_on_a_longer_text(tmp_path: Path) -> None:
    plain = small(prime=0, window=None)
    model = small(reading(), window=12, warm_start=exported(plain.float(), tmp_path)).double()
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
    model = small(reading(), window=12, warm_start=exported(plain.float(), tmp_path)).double()
    exact(model.nll(X[:, :12], Y[:, :12]), plain.double().nll(X[:, :12], Y[:, :12]))
    again = small(reading(), warm_start=exported(model.float(), tmp_path), segment=5)
    assert all(torch.equal(a, b.float()) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_a_warm_start_from_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.warm_start: .* has no export.json"):
        small(warm_start=str(tmp_path))
    here = exported(small().float(), tmp_path)
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
    save_file({"head.weight": torch.zeros(3, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"it holds head.weight \(3, 4\) and so on, and embedding.weight \(11, 8\) and"):
        small(warm_start=here)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model.warm_start: .* cannot be read"):
        small(warm_start=here)


def test_wrong_input_is_named() -> None:
    with pytest.raises(UserError, match=r"the weights of MLPs can"):
        small((Level("l", ("embedding.weight",), 3, "token", eta=1.0),))
    with pytest.raises(UserError, match="predicts the next token"):
        LanguageModel((12,), 10, partial(WindowAttention), vocabulary=V, per_position=True)
    with pytest.raises(UserError, match="the targets of this stream are others"):
        small().nll(X, Y.flip(1))
    with pytest.raises(UserError, match="longer than the sequence"):
        small(reading(chunk=25), window=None).nll(X, Y)
    with pytest.raises(UserError, match=r"stream.length: sequences of 12 tokens .* of 5 \(levels.reading\).* take 10"):
        small(reading(chunk=5))
    with pytest.raises(UserError, match=r"model.mixer.window: a window of 3 tokens is shorter than a chunk of 4"):
        small(reading(chunk=4), window=3)
    with pytest.raises(UserError, match=r"model.other_every: of 3 blocks none is number 6"):
        small(other=WindowAttention)
    with pytest.raises(UserError, match="into an even size"):
        WindowAttention(8, 8)
    with pytest.raises(UserError, match="there are 3 blocks"):
        small(prime=4)
    broken = small(reading(clip_norm=None, eta=1e200))
    with pytest.raises(Diverged, match="smaller eta"):
        broken.nll(X, Y)
