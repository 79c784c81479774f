"""The inner loop against a loop over sequences and tokens, finite differences, and itself in pieces."""

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from nested.errors import Diverged, UserError
from nested.inner import Chunk, FastState, initial_state, read
from nested.levels import Level

B, D, V = 3, 3, 5
MODES = [("full", None), ("truncated", 1), ("first_order", None), ("off", None)]


class TinyReader(nn.Module):
    """Embedding, level a, causal attention with a cache, levels b and c, head: a language model of 3 fast matrices."""

    def __init__(self):
        super().__init__()
        for name, shape in (
            ("embed", (V, D)),
            ("a", (D, D)),
            ("q", (D, D)),
            ("k", (D, D)),
            ("b", (D, D)),
            ("c", (D, D)),
        ):
            self.register_parameter(name, nn.Parameter(torch.randn(shape, dtype=torch.float64) / math.sqrt(D)))
        self.bias = nn.Parameter(torch.randn(D, dtype=torch.float64) / 2)  # of level b
        self.head = nn.Parameter(torch.randn(D, V, dtype=torch.float64))

    def prepare(self, tokens: Tensor) -> Tensor:
        return self.embed[tokens]

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
        h = chunk.inputs
        h = h + torch.tanh(h @ fast["a"])
        keys = h @ self.k if carry is None else torch.cat([carry["keys"], h @ self.k], 1)
        past = h if carry is None else torch.cat([carry["values"], h], 1)
        late = torch.ones(h.shape[1], keys.shape[1], dtype=torch.bool).triu(1 + keys.shape[1] - h.shape[1])
        scores = ((h @ self.q) @ keys.mT).masked_fill(late, -math.inf)
        h = h + scores.softmax(-1) @ past
        h = h + torch.tanh(h @ fast["b"] + fast["bias"].unsqueeze(1))
        h = h + torch.tanh(h @ fast["c"])
        nll = nn.functional.cross_entropy((h @ self.head).mT, chunk.labels, reduction="none")
        return nll, {"keys": keys, "values": past}


def by_hand(model: TinyReader, levels: list[Level], tokens: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Sequence by sequence and token by token: losses (B, n - 1) and each sequence's last weights."""
    losses, ends = [], []
    for row in tokens.tolist():
        w = {n: dict(model.named_parameters())[n] * 1.0 for level in levels for n in level.params}
        sums, keys, values, line = dict.fromkeys(w, 0.0), [], [], []
        shortest = min(level.period for level in levels)
        for t, (token, label) in enumerate(pairwise(row)):
            if t % shortest == 0:
                here = {n: v * 1.0 for n, v in w.items()}  # what the past remembers is no business of this chunk
            x = model.embed[token]
            x = x + torch.tanh(here["a"].mT @ x)
            keys.append(model.k.mT @ x)
            values.append(x)
            score = torch.stack([key @ (model.q.mT @ x) for key in keys])
            share = torch.exp(score) / torch.exp(score).sum()
            x = x + sum(s * v for s, v in zip(share, values))
            x = x + torch.tanh(here["b"].mT @ x + here["bias"])
            x = x + torch.tanh(here["c"].mT @ x)
            logits = model.head.mT @ x
            line.append(torch.log(torch.exp(logits).sum()) - logits[label])
            if (t + 1) % shortest:
                continue
            chunk = sum(line[-shortest:])
            for n, g in zip(w, torch.autograd.grad(chunk, [here[n] for n in w], create_graph=True)):
                sums[n] = sums[n] + g
            for level in levels:
                if (t + 1) % level.period:
                    continue
                scale = 1 / level.period if level.gather == "mean" else 1.0
                g = {n: scale * sums[n] for n in level.params}
                norm = torch.sqrt(sum((v * v).sum() for v in g.values()))
                clip = level.clip_norm / norm if level.clip_norm and norm > level.clip_norm else 1.0
                for n in level.params:
                    w[n], sums[n] = w[n] - level.eta * clip * g[n], 0.0
        losses.append(torch.stack(line))
        ends.append(w)
    return torch.stack(losses), ends


def level(name: str, params: tuple[str, ...], period: int, eta: float = 0.3, **more: Any) -> Level:
    return Level(name, params, period, "token", eta=eta, **more)


def three(**more: Any) -> list[Level]:
    return [level("slow", ("c",), 6, 0.1), level("fast", ("a",), 2, **more), level("mid", ("b", "bias"), 4, 0.2)]


def two() -> list[Level]:
    return [level("fast", ("a",), 2), level("slow", ("b", "bias", "c"), 4, 0.2)]


def some(n: int, batch: int = B) -> Tensor:
    return torch.randint(V, (batch, n))


def fresh(model: TinyReader, levels: list[Level], tokens: Tensor, **options: Any) -> tuple[Tensor, FastState]:
    return read(model, levels, initial_state(model, levels, len(tokens)), tokens, **options)


def weighted(nll: Tensor) -> Tensor:
    """An outer loss that counts every token differently."""
    return (nll * torch.linspace(0.5, 1.5, nll.shape[1], dtype=nll.dtype)).sum()


def gradients(model: TinyReader, nll: Tensor) -> dict[str, Tensor]:
    names, params = zip(*model.named_parameters())
    return dict(zip(names, torch.autograd.grad(weighted(nll), params), strict=True))


def same_gradient(found: Tensor, wanted: Tensor, name: str) -> None:
    """To a part of the largest entry: in a small one large terms from a chain of updates cancel."""
    most = 1e-12 * float(wanted.abs().max())
    assert_close(found, wanted, rtol=0, atol=most, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize(
    "levels",
    [two(), three(), three(gather="mean"), three(clip_norm=0.2), [level("all", ("a", "b", "bias", "c"), 3)]],
    ids=["two", "three", "mean", "clipped", "one"],
)
@pytest.mark.parametrize("n", [12, 17])
def test_values_and_all_gradients_equal_a_loop_over_sequences_and_tokens(levels: list[Level], n: int) -> None:
    model, tokens = TinyReader(), some(n)
    expected, ends = by_hand(model, levels, tokens)
    nll, state = fresh(model, levels, tokens)
    assert_close(nll, expected, rtol=1e-12, atol=1e-12)
    for name, w in state.fast.items():
        assert_close(w, torch.stack([end[name] for end in ends]), rtol=1e-12, atol=1e-12)
    for (name, g), h in zip(gradients(model, nll).items(), gradients(model, expected).values()):
        same_gradient(g, h, name)


def test_the_sum_of_updates_is_equation_71() -> None:
    """Weights at the end = initial state - eta * the gradients of all closed periods, each at that period's weights."""
    model, tokens = TinyReader(), some(14, 1)
    levels = [level("fast", ("a",), 2), level("slow", ("b", "bias", "c"), 6, 0.2)]
    sums, state = dict.fromkeys(("a", "b", "bias", "c"), 0.0), initial_state(model, levels, 1)
    for first in range(0, 12, 2):  # 13 labels: six chunks of two, and one label of an open chunk
        held = {n: w.detach().requires_grad_() for n, w in state.fast.items()}
        piece = Chunk(model.prepare(tokens[:, first : first + 2]), tokens[:, first + 1 : first + 3])
        nll, _ = model.chunk_loss(held, state.carry, piece)
        for n, g in zip(held, torch.autograd.grad(nll.sum(), list(held.values()))):
            sums[n] = sums[n] + g
        start = first if first == 0 else first + 1
        _, state = read(model, levels, state, tokens[:, start : first + 3])
    for lv in levels:
        for n in lv.params:
            assert_close(state.fast[n], dict(model.named_parameters())[n] - lv.eta * sums[n], rtol=1e-12, atol=1e-13)


def test_clipping_bounds_the_norm_of_each_sequences_gradient_over_all_tensors_of_the_level() -> None:
    model, tokens = TinyReader(), some(4, 16)
    names = ("a", "b", "bias", "c")

    def norms(clip_norm: float | None) -> Tensor:
        """Norm of each sequence's first update at eta = 1, (16,)."""
        _, state = fresh(model, [level("all", names, 3, 1.0, clip_norm=clip_norm)], tokens)
        moved = [(state.fast[n] - model.get_parameter(n)).flatten(1) for n in names]
        return torch.cat(moved, 1).norm(dim=1)

    free = norms(None)
    for limit in (0.9 * free.min(), free.median(), 1.1 * free.max()):
        assert_close(norms(limit.item()), free.clamp(max=limit), rtol=1e-12, atol=1e-12)


class ScaledReader(TinyReader):
    """With one number, `scale`, as fast weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
        still = {n: p.unsqueeze(0) for n, p in self.named_parameters()}
        scaled = chunk._replace(inputs=chunk.inputs * fast["scale"].view(-1, 1, 1))
        return super().chunk_loss(still, carry, scaled)


@pytest.mark.parametrize("bound", ["clip_norm", "shift_norm"])
def test_a_single_number_is_bounded_for_each_sequence_alone(bound: str) -> None:
    model, tokens = ScaledReader(), some(7, 3)
    levels = [level("one", ("scale",), 2, 5.0, **{bound: 0.01})]
    _, together = fresh(model, levels, tokens)
    alone = torch.cat([fresh(model, levels, row[None])[1].fast["scale"] for row in tokens])
    assert_close(together.fast["scale"], alone, rtol=1e-12, atol=1e-14)


def test_an_update_that_falls_into_a_piece_read_without_is_left_out_with_what_was_gathered_for_it() -> None:
    model, tokens = TinyReader(), some(25)
    levels = [level("fast", ("a",), 4), level("slow", ("b", "bias", "c"), 8)]
    _, state = fresh(model, levels, tokens[:, :5])
    _, state = read(model, levels, state, tokens[:, 5:13], "off")  # to token 12: past the slow level's update at 8
    assert state.tick == 12
    assert not state.gathered["b"].any()
    learned, after = read(model, levels, state, tokens[:, 13:17])
    empty = replace(state, gathered={n: torch.zeros_like(g) for n, g in state.gathered.items()})
    expected, wanted = read(model, levels, empty, tokens[:, 13:17])
    assert_close(learned, expected)
    same_state(after, wanted)


def test_weights_change_at_their_ticks_and_not_by_one_bit_otherwise() -> None:
    model, tokens, levels = TinyReader(), some(26), three()
    state = initial_state(model, levels, B)
    for n in range(26):
        _, after = read(model, levels, state, tokens[:, n : n + 1])
        for lv in levels:
            ticked = n > 0 and n % lv.period == 0  # with token n the n-th label is known
            for name in lv.params:
                assert torch.equal(after.fast[name], state.fast[name]) != ticked, (lv.name, n)
        state = after
    assert state.tick == 24
    assert state.pending is not None
    assert state.pending.shape == (B, 2)


SHIFT = 0.05  # less than an update moves the weights


def test_a_shift_that_is_bound_is_as_long_as_it_may_be_after_every_chunk() -> None:
    model, tokens, levels = TinyReader(), some(13, 2), three(shift_norm=SHIFT)
    for chunks in range(1, 7):
        shift = fresh(model, levels, tokens[:, : 2 * chunks + 1])[1].fast["a"] - model.a
        norms = shift.flatten(1).norm(dim=1)
        assert_close(norms, torch.full_like(norms, SHIFT), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "levels",
    [two(), three(clip_norm=0.3), three(shift_norm=SHIFT)],
    ids=["two", "three, clipped", "three, shift bound"],
)
def test_outer_gradients_match_finite_differences_and_no_other_mode_has_them(levels: list[Level]) -> None:
    model, tokens, step = TinyReader(), some(13, 2), 1e-5
    nll, _ = fresh(model, levels, tokens)
    exact = gradients(model, nll)
    others = [gradients(model, fresh(model, levels, tokens, mode=m)[0]) for m in ("first_order", "off")]  # type: ignore[arg-type]

    def outer() -> float:
        with torch.no_grad():
            return float(weighted(fresh(model, levels, tokens)[0]))

    for name, p in model.named_parameters():
        numbers = torch.zeros_like(p)
        for i in range(p.numel()):
            values = []
            for sign in (step, -step):
                with torch.no_grad():
                    p.view(-1)[i] += sign
                    values.append(outer())
                    p.view(-1)[i] -= sign
            numbers.view(-1)[i] = (values[0] - values[1]) / (2 * step)
        size = numbers.norm()
        assert (exact[name] - numbers).norm() / size < 1e-5, name
        for other in others:
            assert (exact[name] - other[name]).norm() / size > 0.01, name


def test_truncation_after_more_updates_than_there_are_is_full_and_after_none_first_order() -> None:
    model, tokens, levels = TinyReader(), some(17), three()
    full = gradients(model, fresh(model, levels, tokens)[0])
    for many in (8, {"fast": 8, "mid": 4, "slow": 2}, {"fast": 100}):
        cut = gradients(model, fresh(model, levels, tokens, mode="truncated", truncate=many)[0])
        assert all(torch.equal(cut[n], full[n]) for n in full)
    none = gradients(model, fresh(model, levels, tokens, mode="truncated", truncate=0)[0])
    first = gradients(model, fresh(model, levels, tokens, mode="first_order")[0])
    assert all(torch.equal(none[n], first[n]) for n in first)


def test_truncation_counts_the_updates_of_a_reset_level_from_its_last_reset() -> None:
    model, tokens = TinyReader(), some(20)
    levels = [level("fast", ("a",), 2, reset=True), level("slow", ("b", "bias", "c"), 8, 0.2)]
    full = gradients(model, fresh(model, levels, tokens)[0])
    for many, same in ((4, True), (2, False)):  # three updates in each context
        cut = gradients(model, fresh(model, levels, tokens, mode="truncated", truncate={"fast": many})[0])
        assert all(torch.equal(cut[n], full[n]) for n in full) == same


def test_truncation_equals_a_loop_that_detaches_updates_and_never_the_initial_state() -> None:
    model, tokens, b, eta = TinyReader(), some(15, 1), 2, 0.3
    levels = [level("all", ("a", "b", "bias", "c"), 2, eta)]
    start = {n: dict(model.named_parameters())[n].unsqueeze(0) for n in levels[0].params}
    updates, carry, losses = {n: [] for n in start}, None, []  # type: ignore[var-annotated]
    for first in range(0, 14, 2):
        fast = {n: w + sum(updates[n]) if updates[n] else w * 1.0 for n, w in start.items()}
        chunk = Chunk(model.prepare(tokens[:, first : first + 2]), tokens[:, first + 1 : first + 3])
        nll, carry = model.chunk_loss(fast, carry, chunk)
        losses.append(nll)
        for n, g in zip(fast, torch.autograd.grad(nll.sum(), list(fast.values()), create_graph=True)):
            updates[n].append(-eta * g)
            if len(updates[n]) % (b + 1) == 0:
                updates[n] = [u.detach() for u in updates[n]]
    expected = gradients(model, torch.cat(losses, 1))
    cut = gradients(model, fresh(model, levels, tokens, mode="truncated", truncate=b)[0])
    full = gradients(model, fresh(model, levels, tokens)[0])
    for n, g in cut.items():
        same_gradient(g, expected[n], n)
        assert not torch.allclose(g, full[n], rtol=1e-3)


@pytest.mark.parametrize(("mode", "truncate"), MODES)
def test_modes_change_gradients_only_and_off_is_the_static_network(mode: str, truncate: int | None) -> None:
    model, tokens, levels = TinyReader(), some(16), three()
    nll, state = fresh(model, levels, tokens, mode=mode, truncate=truncate)
    full, after = fresh(model, levels, tokens)
    if mode != "off":
        assert torch.equal(nll, full)
        assert all(torch.equal(state.fast[n], after.fast[n]) for n in state.fast)
    else:
        still, _ = fresh(model, [replace(lv, eta=0.0) for lv in levels], tokens)
        assert torch.equal(nll, still)
        assert not torch.allclose(nll, full)
    params = list(model.parameters())
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(weighted(nll), params))  # initial states too


def test_eta_zero_is_the_static_network_with_its_gradient() -> None:
    model, tokens = TinyReader(), some(16)
    levels = [replace(lv, eta=0.0) for lv in three()]
    nll, _ = fresh(model, levels, tokens)
    static = initial_state(model, levels, B).fast
    expected, _ = model.chunk_loss(static, None, Chunk(model.prepare(tokens[:, :-1]), tokens[:, 1:]))
    assert_close(nll, expected, rtol=1e-12, atol=1e-13)
    for (name, g), h in zip(gradients(model, nll).items(), gradients(model, expected).values()):
        same_gradient(g, h, name)


def test_a_batch_equals_its_sequences_one_by_one() -> None:
    model, tokens, levels = TinyReader(), some(15), three(clip_norm=0.2)
    nll, state = fresh(model, levels, tokens)
    alone = [fresh(model, levels, tokens[i : i + 1]) for i in range(B)]
    assert_close(nll, torch.cat([x for x, _ in alone]), rtol=1e-12, atol=1e-13)
    for n, w in state.fast.items():
        assert_close(w, torch.cat([s.fast[n] for _, s in alone]), rtol=1e-12, atol=1e-13)


RESET = [level("fast", ("a",), 2, reset=True, shift_norm=0.1), level("slow", ("b", "bias", "c"), 6, 0.2)]
AGAIN = pytest.mark.parametrize("how", ["chunk", "group"])


def same_to_the_bit(model: nn.Module, levels: list[Level], tokens: Tensor, how: str, **options: Any) -> None:
    """Losses, states and all gradients, of a reading that ends in an open chunk."""
    torch.manual_seed(5)
    nll, state = fresh(model, levels, tokens, **options)  # type: ignore[arg-type]
    torch.manual_seed(5)
    again, other = fresh(model, levels, tokens, **options, checkpoint=how)  # type: ignore[arg-type]
    assert torch.equal(nll, again)
    assert all(torch.equal(state.fast[n], other.fast[n]) for n in state.fast)
    assert all(torch.equal(state.gathered[n], other.gathered[n]) for n in state.fast)
    params = [p for p in model.parameters() if p.requires_grad]
    one, two = (torch.autograd.grad(weighted(x), params) for x in (nll, again))
    assert all(g.any() for g in one)
    assert all(torch.equal(g, h) for g, h in zip(one, two))


@pytest.mark.parametrize(("mode", "truncate"), [*MODES, ("truncated", {"fast": 2})])
@pytest.mark.parametrize("levels", [three(clip_norm=0.2), three(shift_norm=0.1), RESET], ids=["clip", "shift", "reset"])
@AGAIN
def test_checkpointed_equals_not_to_the_bit(mode: str, truncate: Any, levels: list[Level], how: str) -> None:
    same_to_the_bit(TinyReader(), levels, some(20), how, mode=mode, truncate=truncate)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 12])
@AGAIN
def test_checkpointed_equals_not_from_no_chunk_on(tokens: int, how: str) -> None:
    model, x = TinyReader(), some(tokens)
    nll, state = fresh(model, two(), x)
    again, other = fresh(model, two(), x, checkpoint=how)
    assert torch.equal(nll, again)
    same_state(state, other)


class SomeFast(TinyReader):
    """What is not fast is used as it is."""

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
        return super().chunk_loss({n: p.unsqueeze(0) for n, p in self.named_parameters()} | dict(fast), carry, chunk)


@AGAIN
def test_checkpointed_equals_not_without_levels_and_with_parameters_that_need_no_gradient(how: str) -> None:
    model, tokens = SomeFast(), some(16)
    same_to_the_bit(model, [], tokens, how)
    model.k.requires_grad_(False)
    model.a.requires_grad_(False)  # a fast one
    same_to_the_bit(model, two(), tokens, how)
    model.requires_grad_(False)
    nll, _ = fresh(model, two(), tokens)
    assert torch.equal(fresh(model, two(), tokens, checkpoint=how)[0], nll)


class ManyKindsReader(TinyReader):
    """With dropout, and a carry of tensors, the same one twice, numbers and None."""

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
        first = chunk.inputs.sum(1)
        inner, (number, share, _, seen, twice) = carry or (None, (0, 0.5, None, first, {"again": first}))
        past = (seen + twice["again"].tanh()).unsqueeze(1)
        dropped = nn.functional.dropout(chunk.inputs, 0.3) * (1 + share * number) + past
        nll, inner = super().chunk_loss(fast, inner, chunk._replace(inputs=dropped))
        return nll, (inner, (number + 1, share / 2, None, seen, twice))


@AGAIN
def test_checkpointed_it_draws_the_same_random_numbers_and_carries_tensors_numbers_and_none(how: str) -> None:
    same_to_the_bit(ManyKindsReader(), three(clip_norm=0.2), some(20), how)
    torch.manual_seed(5)
    nll, _ = fresh(ManyKindsReader(), two(), some(20), checkpoint=how)
    state = torch.get_rng_state()
    weighted(nll).backward()
    assert torch.equal(torch.get_rng_state(), state)  # what is drawn after is as if nothing were computed again


class CastReader(TinyReader):
    """Fast weights are used in the type of the other parameters."""

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
        nll, carry = super().chunk_loss({n: w.to(self.head.dtype) for n, w in fast.items()}, carry, chunk)
        return nll.float(), carry


@pytest.mark.parametrize("mode", ["full", "first_order"])
@AGAIN
def test_checkpointed_equals_not_where_initial_states_are_wider_than_parameters(how: str, mode: str) -> None:
    same_to_the_bit(CastReader().to(torch.bfloat16), RESET, some(20), how, mode=mode)


@pytest.mark.parametrize(("mode", "truncate"), MODES)
@AGAIN
def test_checkpointed_reading_in_pieces_equals_not(how: str, mode: Any, truncate: Any) -> None:
    """With the graph from piece to piece, and where it is cut: then weights are tied to their initial states again."""
    model, levels, tokens = TinyReader(), three(clip_norm=0.2), some(20)
    for cut in (False, True):
        found = []
        for checkpoint in ("none", how):
            first, state = fresh(model, levels, tokens[:, :9], mode=mode, truncate=truncate, checkpoint=checkpoint)
            state = state.detach() if cut else state
            second, _ = read(model, levels, state, tokens[:, 9:], mode, truncate, checkpoint)  # type: ignore[arg-type]
            found.append(torch.cat([first, second], 1))
        assert torch.equal(*found)
        one, two_ = (gradients(model, nll) for nll in found)
        for n, g in one.items():
            same_gradient(two_[n], g, n)


@AGAIN
def test_checkpointed_under_autocast_is_computed_under_it_again(how: str) -> None:
    model, tokens, under = CastReader().float(), some(16), list[bool]()
    inner = model.chunk_loss
    model.chunk_loss = lambda *a: (under.append(torch.is_autocast_enabled("cpu")), inner(*a))[1]  # type: ignore[method-assign]
    found = []
    for checkpoint in ("none", how):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(fresh(model, two(), tokens, checkpoint=checkpoint)[0])
    assert torch.equal(*found)
    one, again = (gradients(model, nll) for nll in found)
    assert all(under)
    for n, g in one.items():  # summed in float32 here, in bfloat16 there
        assert (again[n] - g).norm() < 0.02 * g.norm()


@AGAIN
def test_checkpointed_there_is_no_gradient_of_the_outer_gradient_and_it_is_said(how: str) -> None:
    model, tokens = TinyReader(), some(9)
    nll, _ = fresh(model, two(), tokens, checkpoint=how)
    with pytest.raises(UserError, match="no gradient of its outer gradient; take checkpoint=none"):
        torch.autograd.grad(weighted(nll), model.head, create_graph=True)

    def outer(head: Tensor) -> Tensor:
        return torch.func.functional_call(_Weighed(model, how), {"model.head": head}, (tokens,))

    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(outer)(model.head)
    weighed = outer(model.head.detach().clone().requires_grad_())
    with pytest.raises(UserError, match="parameters are others in the backward pass"):
        weighed.backward()


class _Weighed(nn.Module):
    def __init__(self, model: TinyReader, how: str):
        super().__init__()
        self.model, self.how = model, how

    def forward(self, tokens: Tensor) -> Tensor:
        return weighted(fresh(self.model, two(), tokens, checkpoint=self.how)[0])


@AGAIN
def test_checkpointed_what_would_be_wrong_in_silence_is_refused(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = TinyReader(), some(9)
    nll, _ = fresh(model, two(), tokens, checkpoint=how)
    with torch.no_grad():
        model.head += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        weighted(nll).backward()
    hook = model.head.register_hook(lambda g: 2 * g)
    with pytest.raises(UserError, match="a hook on its gradient"):
        fresh(model, two(), tokens, checkpoint=how)
    hook.remove()
    inner = model.chunk_loss
    monkeypatch.setattr(model, "chunk_loss", lambda f, c, k: (inner(f, None, k)[0], object()))
    with pytest.raises(UserError, match="a carry may hold tensors"):
        fresh(model, two(), tokens, checkpoint=how)


class Wide(nn.Module):
    """A matrix that learns to say the next token, larger than all else; it tells of each chunk."""

    def __init__(self, tell: Callable[[], Any] = lambda: None):
        super().__init__()
        self.w, self.tell = nn.Parameter(torch.randn(32, 32, dtype=torch.float64) / 32), tell

    def prepare(self, tokens: Tensor) -> Tensor:
        return tokens

    def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
        self.tell()
        x, y = (nn.functional.one_hot(t, 32).double() for t in (chunk.inputs, chunk.labels))
        return ((x @ fast["w"]).tanh() @ fast["w"] - y).square().mean(-1), None


class Box:
    """A tensor that a graph holds."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def matrices_held(chunks: int, checkpoint: str) -> tuple[int, int, list[int]]:
    """Matrices that graphs hold after the forward pass, the most in the backward pass, and chunks read by then."""
    boxes, most, calls = weakref.WeakSet[Box](), [0], [0]

    def pack(tensor: Tensor) -> Box:
        boxes.add(box := Box(tensor))
        return box

    def held() -> int:
        storages = [b.tensor.untyped_storage() for b in boxes]
        return len({s.data_ptr() for s in storages if s.nbytes() == 32 * 32 * 8})

    def tell() -> None:
        most[0], calls[0] = max(most[0], held()), calls[0] + 1

    model, levels = Wide(tell), [level("all", ("w",), 2)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        nll, _ = fresh(model, levels, torch.randint(32, (1, 2 * chunks + 1)), checkpoint=checkpoint)  # type: ignore[arg-type]
        after, forward = held(), calls[0]
        most[0] = 0
        weighted(nll).backward()
    return after, most[0], [forward, calls[0]]


@pytest.mark.parametrize("chunks", [16, 64, 99])
def test_groups_keep_two_square_roots_of_the_states_and_are_read_again_twice(chunks: int) -> None:
    root = round(chunks**0.5)
    everything, _, once = matrices_held(chunks, "none")
    each, at_most, twice = matrices_held(chunks, "chunk")
    groups, most, thrice = matrices_held(chunks, "group")
    assert once == [chunks, chunks]
    assert twice == [chunks, 2 * chunks]
    assert thrice == [chunks, 3 * chunks]
    assert everything >= chunks
    assert each == chunks
    assert at_most <= chunks + 1
    assert groups <= root
    assert most <= 2 * root


def same_state(a: FastState, b: FastState) -> None:
    assert a.tick == b.tick
    assert a.pending is not None
    assert torch.equal(a.pending, b.pending)  # type: ignore[arg-type]
    for x, y in ((a.fast, b.fast), (a.gathered, b.gathered), (a.carry or {}, b.carry or {})):
        for n in x:
            assert_close(x[n], y[n], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mode", ["full", "off"])
def test_reading_in_pieces_equals_reading_at_once_at_every_split(mode: str) -> None:
    model, levels = TinyReader(), [*two()[:1], level("slow", ("b", "bias", "c"), 6, 0.2)]
    tokens = some(14)
    whole, end = fresh(model, levels, tokens, mode=mode)
    for split in range(15):
        first, state = fresh(model, levels, tokens[:, :split], mode=mode)
        second, state = read(model, levels, state, tokens[:, split:], mode=mode)  # type: ignore[arg-type]
        assert first.shape == (B, max(split - 1, 0))
        assert_close(torch.cat([first, second], 1), whole, rtol=1e-12, atol=1e-13)
        same_state(state, end)


def test_gradients_pass_from_piece_to_piece_until_detached() -> None:
    model, levels, tokens = TinyReader(), two(), some(14)
    exact = gradients(model, fresh(model, levels, tokens)[0])
    first, state = fresh(model, levels, tokens[:, :6])
    second, _ = read(model, levels, state, tokens[:, 6:])
    for n, g in gradients(model, torch.cat([first, second], 1)).items():
        same_gradient(g, exact[n], n)
    second, _ = read(model, levels, state.detach(), tokens[:, 6:])
    assert torch.autograd.grad(weighted(second), model.a, allow_unused=True)[0] is None


def test_a_later_token_changes_nothing_earlier() -> None:
    model, levels, tokens = TinyReader(), three(), some(16)
    nll, _ = fresh(model, levels, tokens)
    for t in range(1, 16):
        other = tokens.clone()
        other[:, t] = (other[:, t] + 1) % V
        changed, _ = fresh(model, levels, other)
        assert torch.equal(changed[:, : t - 1], nll[:, : t - 1])  # entry t - 1 is the loss of token t as a label
        assert not torch.equal(changed[:, t - 1], nll[:, t - 1])


def test_a_chunk_of_one_learns_from_each_token_before_it_is_read() -> None:
    model, tokens = TinyReader(), some(9, 1)
    levels = [level("all", ("a", "b", "bias", "c"), 1, 0.5)]
    repeated = torch.full_like(tokens, 2)
    nll, _ = fresh(model, levels, repeated)
    assert (nll[0, 1:] < nll[0, :-1]).all()  # one thing said again and again is expected more each time
    assert_close(fresh(model, levels, tokens)[0], by_hand(model, levels, tokens)[0], rtol=1e-12, atol=1e-12)


def test_a_reset_level_begins_each_context_of_the_slower_one_at_its_initial_state() -> None:
    model, tokens = TinyReader(), some(17)
    levels = [level("fast", ("a",), 2, reset=True), level("slow", ("b", "bias", "c"), 6, 0.2)]
    state = initial_state(model, levels, B)
    for n in range(17):
        _, state = read(model, levels, state, tokens[:, n : n + 1])
        at_start = torch.equal(state.fast["a"], model.a.expand(B, D, D))
        assert at_start == (n % 6 < 2)  # up to the first update of each context
    slow_alone = [level("slow", ("b", "bias", "c"), 6, 0.2)]
    frozen = replace(levels[0], eta=0.0)
    assert not torch.allclose(state.fast["c"], fresh(model, [frozen, *slow_alone], tokens)[1].fast["c"])
    g = gradients(model, fresh(model, levels, tokens)[0])["a"]
    assert not torch.allclose(
        g, gradients(model, fresh(model, [replace(levels[0], reset=False), levels[1]], tokens)[0])["a"]
    )


def test_a_reset_level_in_its_last_context_equals_one_started_there() -> None:
    """After the reset nothing of the level's own past is left: the slower level's weights and the carry are."""
    model, tokens = TinyReader(), some(13)
    levels = [level("fast", ("a",), 2, reset=True), level("slow", ("b", "bias", "c"), 6, 0.2)]
    _, border = fresh(model, levels, tokens[:, :7])  # six labels: the slow level has just learned
    assert border.tick == 6
    anew = replace(border, fast={**border.fast, "a": model.a.expand(B, D, D)})
    one, _ = read(model, levels, border, tokens[:, 7:])
    two_, _ = read(model, levels, anew, tokens[:, 7:])
    assert torch.equal(one, two_)


def test_float32_states_for_low_precision_parameters_and_no_graph_without_grad() -> None:
    model, levels, tokens = TinyReader(), two(), some(9)
    with torch.no_grad():
        nll, state = fresh(model, levels, tokens)
    assert_close(nll, fresh(model, levels, tokens)[0])
    held = [nll, *state.fast.values(), *state.gathered.values(), *state.carry.values()]
    assert not any(t.requires_grad for t in held)
    assert initial_state(model.to(torch.bfloat16), levels, B).fast["a"].dtype == torch.float32


def test_a_frozen_model_still_learns_on_the_token_clock() -> None:
    model, levels, tokens = TinyReader(), two(), some(12)
    expected, end = fresh(model, levels, tokens)
    model.requires_grad_(False)
    for mode in ("full", "first_order"):
        nll, state = fresh(model, levels, tokens, mode=mode)
        assert torch.equal(nll, expected)
        assert all(torch.equal(state.fast[n], end.fast[n]) for n in end.fast)


def test_a_linear_layer_trained_by_gradient_descent_is_linear_attention_with_a_learned_initial_state() -> None:
    """W_T x = W_0 x - sum_i eta delta_i <x_i, x>: keys are the inputs, values the error signals (online, C = 1)."""

    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(2, D, dtype=torch.float64))

        def prepare(self, tokens: Tensor) -> Tensor:
            return tokens

        def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
            error = chunk.inputs @ fast["w"].mT - chunk.labels[..., :2]
            seen = [*(carry or []), (chunk.inputs, error)]
            return error.square().sum(-1) / 2, seen

    model, eta, x = Regression(), 0.1, torch.randn(B, 8, D, dtype=torch.float64)
    _, state = read(model, [level("w", ("w",), 1, eta)], initial_state(model, [level("w", ("w",), 1, eta)], B), x)
    query = torch.randn(B, D, dtype=torch.float64)
    learned = torch.einsum("bij,bj->bi", state.fast["w"], query)
    attended = query @ model.w.mT
    for key, delta in state.carry:
        attended = attended - eta * delta[:, 0] * (key[:, 0] * query).sum(1, keepdim=True)
    assert len(state.carry) == 7
    assert_close(learned, attended, rtol=1e-12, atol=1e-13)


def test_linear_attention_is_gradient_descent_on_the_dot_product_loss() -> None:
    """Eq. 15-18: one step of eta = 1 per token on -<M k, v> is M + v k^T, from a learned initial state (Eq. 26-28)."""

    class DotProduct(nn.Module):
        def __init__(self):
            super().__init__()
            self.m, self.wk, self.wv = (nn.Parameter(torch.randn(D, D, dtype=torch.float64)) for _ in range(3))

        def prepare(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
            return tokens @ self.wk, tokens @ self.wv

        def chunk_loss(self, fast: Mapping[str, Tensor], carry: Any, chunk: Chunk) -> tuple[Tensor, Any]:
            k, v = chunk.inputs
            return -((k @ fast["m"].mT) * v).sum(-1), carry

    model, x = DotProduct(), torch.randn(B, 9, D, dtype=torch.float64)
    levels = [level("m", ("m",), 1, 1.0)]
    _, state = read(model, levels, initial_state(model, levels, B), x)
    k, v = x[:, :-1] @ model.wk, x[:, :-1] @ model.wv
    expected = model.m + torch.einsum("bti,btj->bij", v, k)
    assert_close(state.fast["m"], expected, rtol=1e-12, atol=1e-13)


def test_a_state_that_does_not_fit_is_refused_with_both_numbers() -> None:
    model, levels, tokens = TinyReader(), two(), some(8)
    state = initial_state(model, levels, B)
    narrow = replace(state, fast={n: w.float() for n, w in state.fast.items()})
    elsewhere = replace(state, fast={n: w.to("meta") for n, w in state.fast.items()})
    one = initial_state(model, [level("a", ("a",), 2)], B)
    for wrong, seen, words in (
        (state, tokens[:2], ["batch size is 3", "is 2"]),
        (narrow, tokens, ["dtype is torch.float32", "torch.float64"]),
        (elsewhere, tokens, ["device is meta", "cpu"]),
        (one, tokens, ["holds ['a']", "bias"]),
    ):
        with pytest.raises(UserError) as caught:
            read(model, levels, wrong, seen)
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_wrong_modes_and_inference_mode_are_named() -> None:
    model, levels, tokens = TinyReader(), two(), some(8)
    for options, words in (
        ({"mode": "frist"}, "unknown mode 'frist'"),
        ({"mode": "truncated"}, "number of updates"),
        ({"truncate": 2}, "belongs to mode truncated"),
        ({"mode": "truncated"}, "number of updates"),
        ({"mode": "truncated", "truncate": -1}, "number >= 0"),
        ({"mode": "truncated", "truncate": {"fats": 1}}, "fats"),
    ):
        with pytest.raises(UserError, match=words):
            fresh(model, levels, tokens, **options)
    with torch.inference_mode(), pytest.raises(UserError, match=r"torch\.no_grad"):
        fresh(model, levels, tokens)
    with torch.inference_mode():
        assert fresh(model, levels, tokens, mode="off")[0].shape == (B, 7)


def test_a_fast_weight_without_gradient_and_a_loss_of_the_wrong_shape_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokens = TinyReader(), some(8)
    with pytest.raises(UserError, match=r"levels\.extra\.params: 'head' gets no gradient"):
        fresh(model, [*two(), level("extra", ("head",), 2)], tokens)
    inner = model.chunk_loss
    monkeypatch.setattr(model, "chunk_loss", lambda f, c, k: (inner(f, c, k)[0].mean(1), None))
    with pytest.raises(UserError, match=r"\(batch, tokens\) = \(3, 2\)"):
        fresh(model, two(), tokens)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (torch.zeros(3, 2), r"TinyReader\.chunk_loss returned a Tensor; \(loss, carry\) is needed"),
        (None, "returned a NoneType"),
        ((torch.zeros(3, 2), None, None), "returned a tuple of 3"),
        ((None, None), "returned a loss of shape None"),
    ],
)
def test_what_is_no_loss_and_carry_is_named(monkeypatch: pytest.MonkeyPatch, result: object, words: str) -> None:
    model, tokens = TinyReader(), some(8)
    monkeypatch.setattr(model, "chunk_loss", lambda f, c, k: result)
    with pytest.raises(UserError, match=words):
        fresh(model, two(), tokens)


def test_a_carry_that_could_hide_a_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, inner = TinyReader(), some(8), TinyReader().chunk_loss
    monkeypatch.setattr(model, "chunk_loss", lambda f, c, k: (inner(f, None, k)[0], object()))
    with torch.no_grad(), pytest.raises(UserError, match="a carry may hold tensors"):
        fresh(model, two(), tokens)


def test_divergence_names_the_level_and_the_tokens() -> None:
    model, tokens = TinyReader(), some(30)
    wild = [level("fast", ("a",), 2, 0.1), level("slow", ("b", "bias", "c"), 4, 1e308)]
    with pytest.raises(Diverged, match=r"tokens [48] to (5|9), after an update of level 'fast' and 'slow'"):
        fresh(model, wild, tokens)
    with torch.no_grad():
        model.head[0, 0] = math.nan
    with pytest.raises(Diverged, match="tokens 0 to 1, before any update of level 'fast': it is the model's own"):
        fresh(model, two(), tokens)
