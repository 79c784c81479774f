"""TTT-E2E and its baselines: what defines them, in float64."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from language_models import V, reading, small, some
from nested_kernels.attention_hvp import chunked, op
from torch import Tensor
from torch.testing import assert_close

from nested.errors import Diverged, UserError
from nested.inner import initial_state, read
from nested.levels import Level, eta_at
from nested.memory.lstm import LSTMMemory
from nested.memory.pruned_attention import HeavyHitterAttention, StreamingAttention
from nested.memory.window_attention import WindowAttention
from nested.models.language import LanguageModel

exact = partial(assert_close, rtol=1e-12, atol=1e-12)
T = some(25)
X, Y = T[:, :-1], T[:, 1:]
LONG = some(61, batch=3)  # for chunks of 20: attention over more than 16 queries is made a block of them at a time


def gradients(model: LanguageModel, losses: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(losses.mean(), list(model.parameters())))


def same(found: list[Tensor], wanted: list[Tensor], chunk: int) -> None:
    """Gradients that differ by a small part of their length, and of which none is zero.

    Through many updates rounding grows: one in the last bit of the weights moves gradients by 3e-12 of their length
    with chunks of 2 tokens, and by 8e-10 with 20 chunks of 3. So 1e-11 is asked of those.
    """
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= (1e-12 if chunk == 20 else 1e-11) * b.norm()
        assert b.norm() > 0


@pytest.fixture
def twice(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The queries of each second derivative of attention that is made in blocks; those are of 8 queries."""
    queries, own = [], chunked._second_gradients
    monkeypatch.setattr(chunked, "_second_gradients", lambda q, *more: queries.append(q.shape[1]) or own(q, *more))
    monkeypatch.setattr(op, "BLOCK", 8)
    return queries


def turned(x: Tensor, t: int, theta: float = 500_000.0) -> Tensor:
    """(H, K) turned by the absolute position t, as complex numbers."""
    angle = t * theta ** (-torch.arange(0, x.shape[1], 2).double() / x.shape[1])
    pairs = torch.view_as_complex(x.reshape(len(x), -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(1)


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
            keys.append(turned(norm(heads("key"), f"{at}.mixer.key_norm.weight"), t))
            values.append(heads("value"))
            q = turned(norm(heads("query"), f"{at}.mixer.query_norm.weight"), t)
            k, v = (torch.stack(cache[max(0, t - window + 1) :]) for cache in (keys, values))  # (n, H, K)
            share = torch.softmax((k * q).sum(-1) / q.shape[1] ** 0.5, 0)  # (n, H)
            h = h + norm(
                p[f"{at}.mixer.out.weight"] @ (share[..., None] * v).sum(0).flatten(), f"{at}.post_norm.weight"
            )
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


@pytest.mark.parametrize(
    ("batch", "tokens", "chunk", "window", "prime"),
    [(1, 11, 3, 6, 2), (3, 9, 4, 4, 1), (2, 7, 2, None, 3), (2, 47, 20, 24, 2), (1, 60, 20, None, 2)],
)
def test_equals_the_token_loop_with_its_outer_gradient(
    batch: int, tokens: int, chunk: int, window: int | None, prime: int, twice: list[int]
) -> None:
    model = small(reading(0.7, chunk), window=window, prime=prime, length=60)
    x, y = LONG[:batch, :tokens], LONG[:batch, 1 : tokens + 1]
    found = model.nll(x, y)
    of_found = gradients(model, found)
    assert twice == ([20] * 2 if chunk == 20 else [])  # of the chunks whose updates are read with, the last block's
    wanted = torch.stack([token_loop(model, *of, window or tokens, chunk, 0.7, 1.0) for of in zip(x, y)])
    exact(found, wanted)
    same(of_found, gradients(model, wanted), chunk)


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


@pytest.mark.parametrize(("chunk", "window", "tokens"), [(3, 6, T), (20, 24, LONG)])
@pytest.mark.parametrize("how", ["chunk", "group"])
def test_checkpointed_equals_not_to_the_bit(
    how: str, chunk: int, window: int, tokens: Tensor, twice: list[int]
) -> None:
    plain, again = (small(reading(1.0, chunk), window=window, length=60, checkpoint=c) for c in ("none", how))
    losses, others = (model.nll(tokens[:, :-1], tokens[:, 1:]) for model in (plain, again))
    assert torch.equal(losses, others)
    wanted, once = gradients(plain, losses), len(twice)
    assert all(torch.equal(a, b) for a, b in zip(gradients(again, others), wanted))
    assert twice == [20] * 2 * once
    assert bool(once) == (chunk == 20)


class Box:
    """What a graph keeps of a tensor."""

    def __init__(self, tensor: Tensor):
        self.storage = tensor.detach().untyped_storage()


def kept(model: LanguageModel, tokens: Tensor) -> int:
    """Bytes that the graph of a text keeps, whatever shares memory counted once."""
    boxes = weakref.WeakSet[Box]()

    def pack(t: Tensor) -> tuple[Box, Tensor]:
        boxes.add(box := Box(t))
        return box, t.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held[1]):
        losses = model.nll(tokens[:, :-1], tokens[:, 1:])
    assert losses.requires_grad
    return sum({box.storage.data_ptr(): box.storage.nbytes() for box in boxes}.values())


def test_keys_that_several_chunks_see_are_kept_once_where_chunks_are_computed_again() -> None:
    more = {}
    for how in ("none", "chunk", "group"):
        short, long = (small(reading(1.0, 4), window=w, length=60, checkpoint=how) for w in (20, 32))
        more[how] = kept(long, LONG[:1, :41]) - kept(short, LONG[:1, :41])
    assert more["none"] > 0
    assert more["chunk"] == more["group"] == 0


@pytest.mark.parametrize(("chunk", "segment"), [(3, 1), (3, 5), (3, 24), (20, 7), (20, 24)])
def test_segments_of_the_lower_blocks_change_nothing(chunk: int, segment: int) -> None:
    window, tokens = (24, LONG[:2]) if chunk == 20 else (6, T)
    plain, pieces = (small(reading(1.0, chunk), window=window, length=60, segment=s) for s in (None, segment))
    losses, others = (model.nll(tokens[:, :-1], tokens[:, 1:]) for model in (plain, pieces))
    exact(others, losses)
    same(gradients(pieces, others), gradients(plain, losses), chunk)


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


@pytest.mark.parametrize(("chunk", "window", "tokens"), [(3, 6, 11), (20, 24, 60), (20, 24, 47)])
def test_a_batch_equals_its_sequences_with_its_outer_gradient(chunk: int, window: int, tokens: int) -> None:
    model = small(reading(1.0, chunk), window=window, length=60)
    x, y = LONG[:, :tokens], LONG[:, 1 : tokens + 1]
    whole, alone = model.nll(x, y), torch.cat([model.nll(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    exact(whole, alone)
    same(gradients(model, whole), gradients(model, alone), chunk)


def test_a_later_token_changes_nothing_earlier() -> None:
    model = small(reading())
    before = model.nll(X, Y)
    for t in (3, 10, 24):
        other = T.clone()
        other[:, t] = (other[:, t] + 1) % V
        exact(model.nll(other[:, :-1], other[:, 1:])[:, : t - 1], before[:, : t - 1])


@pytest.mark.parametrize(
    ("levels", "window", "tokens", "splits"),
    [
        (reading(), 6, T, range(26)),
        ((), 6, T, range(26)),
        (reading(1.0, 20), 24, LONG, (1, 19, 20, 21, 37, 40, 41, 60)),
        ((), 24, LONG, (1, 20, 37, 60)),
    ],
)
def test_reading_in_pieces_equals_reading_at_once(
    levels: tuple[Level, ...], window: int, tokens: Tensor, splits: Iterable[int]
) -> None:
    model = small(levels, window=window, length=60)
    start = initial_state(model, levels, len(tokens))
    whole, _ = read(model, levels, start, tokens)
    for split in splits:
        first, state = read(model, levels, start, tokens[:, :split])
        second, _ = read(model, levels, state, tokens[:, split:])
        exact(torch.cat([first, second], 1), whole)


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
    with pytest.raises(UserError, match=r"model.mixer.budget: a window of 3 tokens is shorter than a chunk of 4"):
        small(reading(chunk=4), mixer=partial(StreamingAttention, budget=5, sinks=2))
    with pytest.raises(UserError, match=r"model.mixer.budget: a window of 3 tokens is shorter than a chunk of 4"):
        small(reading(chunk=4), mixer=partial(HeavyHitterAttention, budget=3))
    with pytest.raises(UserError, match=r"model.other_every: of 3 blocks none is number 6"):
        small(other=WindowAttention)
    with pytest.raises(UserError, match="into even sizes"):
        WindowAttention(8, 8)
    with pytest.raises(UserError, match="there are 3 blocks"):
        small(prime=4)
    broken = small(reading(clip_norm=None, eta=1e200))
    with pytest.raises(Diverged, match="smaller eta"):
        broken.nll(X, Y)
