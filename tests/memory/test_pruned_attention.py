"""Attention with a pruned cache against a loop that keeps a list of tokens; with enough budget it is full attention."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from same import assert_same
from torch import Tensor
from torch.testing import assert_close

from nested.cost import tensor_bytes
from nested.errors import UserError
from nested.layers.rotary import rotate
from nested.memory.pruned_attention import HeavyHitterAttention, PrunedAttention, StreamingAttention
from nested.memory.window_attention import WindowAttention

both = pytest.mark.parametrize("kind", [StreamingAttention, HeavyHitterAttention])
THETA = 100.0


def tokens(t: int, b: int = 1, width: int = 8) -> Tensor:
    return torch.randn(b, t, width, dtype=torch.float64)


def memory(kind: type[PrunedAttention], budget: int, **options: Any) -> PrunedAttention:
    m = kind(8, 2, budget, theta=THETA, **options).double()  # pyright: ignore[reportCallIssue]
    for norm in (m.query_norm, m.key_norm):
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    return m


def projected(m: PrunedAttention, x: Tensor) -> tuple[Tensor, ...]:
    """q, k, v (T, H, K) of one sequence."""
    q, k, v = ((x @ p.weight.T).view(len(x), m.heads, m.size) for p in (m.query, m.key, m.value))
    return F.rms_norm(q, (m.size,), m.query_norm.weight, 1e-6), F.rms_norm(k, (m.size,), m.key_norm.weight, 1e-6), v


def turned(x: Tensor, positions: list[int]) -> Tensor:
    """x (n, H, K) at its positions."""
    return rotate(x[None], torch.tensor(positions), THETA)[0]


def streaming(m: PrunedAttention, x: Tensor, budget: int, sinks: int) -> tuple[Tensor, list[int]]:
    """y (T, D) and the tokens kept, positions those in the list of the kept and the token itself."""
    q, k, v = projected(m, x)
    kept: list[int] = []
    ys = []
    for t in range(len(x)):
        cache = [*kept, t]
        places = list(range(len(cache)))
        query, keys = turned(q[t : t + 1], places[-1:])[0], turned(k[cache], places)
        shares = [(keys[:, h] @ query[h] / math.sqrt(m.size)).softmax(0) for h in range(m.heads)]
        ys.append(torch.cat([share @ v[cache, h] for h, share in enumerate(shares)]))
        kept = cache if len(cache) <= budget else cache[:sinks] + cache[sinks + 1 :]
    return torch.stack(ys) @ m.out.weight.T, kept


def heavy_hitters(m: PrunedAttention, x: Tensor, budget: int, recent: int) -> tuple[Tensor, list[list[int]]]:
    """y (T, D) and the tokens that each head keeps, positions those in the text."""
    q, k, v = projected(m, x)
    caches: list[dict[int, float]] = [{} for _ in range(m.heads)]  # token -> attention gathered
    ys = []
    for t in range(len(x)):
        heads = []
        for h, cache in enumerate(caches):
            cache[t] = 0.0
            held = list(cache)
            query, keys = turned(q[t : t + 1], [t])[0, h], turned(k[held], held)[:, h]
            share = (keys @ query / math.sqrt(m.size)).softmax(0)
            heads.append(share @ v[held, h])
            for s, part in zip(held, share.tolist()):
                cache[s] += part
            if len(cache) > budget:
                old = sorted(cache)[:-recent]
                del cache[min(old, key=lambda s: cache[s])]
        ys.append(torch.cat(heads))
    return torch.stack(ys) @ m.out.weight.T, [sorted(cache) for cache in caches]


@pytest.mark.parametrize("t, budget, sinks", [(23, 7, 3), (23, 5, 0), (5, 4, 3), (6, 9, 4), (90, 6, 2), (150, 80, 1)])
def test_streaming_is_the_loop_over_a_list_in_values_and_all_gradients(t: int, budget: int, sinks: int) -> None:
    m, x = memory(StreamingAttention, budget, sinks=sinks), tokens(t)
    y, state = m(x)
    wanted, kept = streaming(m, x[0], budget, sinks)
    assert_same(m, y[0], wanted)
    _, keys, values = projected(m, x[0])
    assert_close(state.keys[0].transpose(0, 1), keys[kept])
    assert_close(state.values[0].transpose(0, 1), values[kept])


@pytest.mark.parametrize("t, budget, recent", [(23, 7, None), (23, 6, 1), (5, 9, None), (90, 6, 2), (90, 1, 1)])
def test_heavy_hitters_are_the_loop_over_a_list_in_values_and_all_gradients(t: int, budget: int, recent: Any) -> None:
    m, x = memory(HeavyHitterAttention, budget, recent=recent), tokens(t)
    y, state = m(x)
    wanted, kept = heavy_hitters(m, x[0], budget, recent or max(budget // 2, 1))
    assert_same(m, y[0], wanted)
    values = projected(m, x[0])[2]
    for h in range(2):
        assert_close(state.values[0, h], values[kept[h], h])
    assert budget == 1 or t < budget or any(k != list(range(t - budget, t)) for k in kept)  # not just the last ones


@both
@pytest.mark.parametrize("budget", [11, 12, 100])
def test_a_budget_of_all_tokens_is_full_attention(kind: type[PrunedAttention], budget: int) -> None:
    m, x = memory(kind, budget), tokens(11)
    q, k, v = (s[None] for s in projected(m, x[0]))
    q, k, v = (s.transpose(1, 2) for s in (rotate(q, torch.arange(11), THETA), rotate(k, torch.arange(11), THETA), v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert_close(m(x)[0], y.transpose(1, 2).flatten(2) @ m.out.weight.T, rtol=0, atol=1e-12)


@both
def test_what_was_trained_to_see_all_is_read_with_less(kind: type[PrunedAttention]) -> None:
    trained, x = WindowAttention(8, 2, theta=THETA).double(), tokens(12)
    wanted, _ = trained(x, trained.initial_state(1))
    for budget, equal in ((12, 12), (5, 6)):  # a token sees five and itself
        pruned = memory(kind, budget)
        pruned.load_state_dict(trained.state_dict())
        y = pruned(x)[0]
        assert_close(y[:, :equal], wanted[:, :equal], rtol=0, atol=1e-12)
        assert equal == 12 or not torch.isclose(y[:, equal:], wanted[:, equal:]).all(-1).any()


def test_with_recent_tokens_alone_heavy_hitters_are_a_window() -> None:
    heavy, window = memory(HeavyHitterAttention, 6, recent=6), memory(StreamingAttention, 6, sinks=0)
    window.load_state_dict(heavy.state_dict())
    x = tokens(80)
    assert_close(heavy(x)[0], window(x)[0], rtol=0, atol=1e-12)


@both
def test_the_cache_never_holds_more_than_its_budget(kind: type[PrunedAttention]) -> None:
    m, state, read = kind(8, 2, 6), None, 0  # pyright: ignore[reportCallIssue]
    for piece in (1, 3, 1, 1, 1, 70, 2, 130, 1):
        _, state = m(torch.randn(3, piece, 8), state)
        read += piece
        kept = min(read, 6)
        assert state.keys.shape == state.values.shape == (3, 2, kept, 4)
        more = 0 if kind is StreamingAttention else 3 * (2 * kept * 4 + 8)  # attention gathered, tokens read
        assert tensor_bytes(state) == 3 * 2 * kept * (4 + 4) * 4 + more


def test_what_was_pruned_leaves_no_trace_in_positions() -> None:
    """After six tokens and after a hundred more between them, the kept are equally far away."""
    m, sinks, window, x = memory(StreamingAttention, 6, sinks=2), tokens(2), tokens(4), tokens(3)
    short, _ = m(torch.cat([sinks, window, x], 1))
    long, _ = m(torch.cat([sinks, tokens(100), window, x], 1))
    assert_close(long[:, -3:], short[:, -3:], rtol=0, atol=1e-12)


def test_ten_million_tokens_before_leave_heavy_hitters_at_their_distances() -> None:
    m, x = memory(HeavyHitterAttention, 6), tokens(9)
    late = m.initial_state(1)._replace(read=torch.tensor([10**7]))
    assert_close(m(x, late)[0], m(x)[0], rtol=0, atol=1e-7)
    assert m(x, late)[1].read.tolist() == [10**7 + 9]


WRONG = {
    "all sinks": (StreamingAttention, {"budget": 4}, "model.sinks", "4 sinks leave no window of a budget of 4 tokens; "
                  "take at most 3"),
    "no budget": (HeavyHitterAttention, {"budget": 0}, "model.budget", "0 is not allowed; allowed: int >= 1"),
    "no budget for sinks": (StreamingAttention, {"budget": 0}, "model.budget", "0 is not allowed"),
    "recent": (HeavyHitterAttention, {"budget": 4, "recent": 5}, "model.recent", "5 recent tokens .*; take at most 4"),
    "sinks": (StreamingAttention, {"budget": 4, "sinks": -1}, "model.sinks", "-1 is not allowed; allowed: int >= 0"),
    "heads": (StreamingAttention, {"budget": 9, "heads": 8}, "model.heads", "8 heads .* even sizes; .*: 1, 2, 4"),
    "theta": (HeavyHitterAttention, {"budget": 9, "theta": 1.0}, "model.theta", "1.0 is not allowed"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused_with_what_is_allowed(case: str) -> None:
    kind, options, key, words = WRONG[case]
    with pytest.raises(UserError, match=words) as caught:
        kind(**{"width": 8, "heads": 2, **options})
    assert caught.value.key == key


@both
def test_a_state_of_a_larger_budget_is_refused(kind: type[PrunedAttention]) -> None:
    state = memory(kind, 9)(tokens(20))[1]
    with pytest.raises(UserError, match="the state keeps 9 tokens, more than a budget of 6; start from initial_state"):
        memory(kind, 6)(tokens(3), state)
