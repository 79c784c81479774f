"""One default configuration of self-modifying Titans: stable, quick to change, and able to recall when trained."""

import itertools

import pytest
import torch
from nested_kernels.delta_rule import Objective, terms
from nested_kernels.mlp_memory.chunked import Steps, advance
from torch import Tensor

from nested.config import compose
from nested.memory.objectives import bound
from nested.memory.self_modifying import SelfModifyingTitans, State
from nested.sequences.text import parts, standard_library, windows
from nested.signature import build

WIDTH, TOKENS = 32, 4096


def norms(module: SelfModifyingTitans, state: State, less: State | None = None) -> Tensor:
    """Frobenius norm of every memory of every sequence and head, (B, H, N), of what it has beyond `less`."""
    weights = [a if less is None else a - b for a, b in zip(state.weights, (less or state).weights)]
    if len(weights) == 1:
        rows = [module.head_width] * (1 + len(module.memories.vectors)) + [1] * len(module.memories.scalars)
        return torch.stack([w.flatten(2).norm(dim=-1) for w in weights[0].split(rows, 2)], -1)
    return torch.stack([w.flatten(3).norm(dim=-1) for w in weights]).norm(dim=0)


@torch.no_grad()
def moved(module: SelfModifyingTitans, x: Tensor) -> Tensor:
    """How far each memory is from where it started, as a share of its norm, at the most while x is read: (B, H, N)."""
    start = state = module.initial_state(len(x))
    shares = []
    for token in x.split(1, 1):
        _, state = module(token, state)
        shares.append(norms(module, state, start) / norms(module, start))
    return torch.stack(shares).amax(0)


@torch.no_grad()
def assert_stable(module: SelfModifyingTitans, x: Tensor, memories: slice = slice(None)) -> None:
    """Norms of `memories` within a factor two all along, and each of them changed by 5 percent within 64 tokens."""
    assert moved(module, x[:, :64])[..., memories].min() > 0.05
    start = state = module.initial_state(len(x))
    for first in range(0, x.shape[1], 64):
        y, state = module(x[:, first : first + 64], state)
        assert y.isfinite().all()
        ratio = (norms(module, state) / norms(module, start))[..., memories]
        assert ratio.min() > 0.5, (first, ratio)
        assert ratio.max() < 2, (first, ratio)


def matrices(module: SelfModifyingTitans) -> slice:
    """Without the memories of eta and alpha, single rows, which in narrow heads or after training fall below a half."""
    return slice(1 + len(module.memories.vectors))


def default() -> SelfModifyingTitans:
    """What norms, changes and recall are shown of: every option at its default, one head."""
    return SelfModifyingTitans(WIDTH, 1)


def text(n: int) -> Tensor:
    """n sequences of 4,096 bytes of real text, (n, TOKENS)."""
    return windows(parts(standard_library()["modules"])[0], TOKENS, n, torch.Generator().manual_seed(0))


def test_matrix_memories_keep_their_norm_and_learn_over_random_tokens():
    assert_stable(default(), torch.randn(1, TOKENS, WIDTH))


@pytest.mark.parametrize("heads", [2, 4])
def test_so_do_those_of_several_heads(heads):
    assert_stable(SelfModifyingTitans(2 * WIDTH, heads), torch.randn(1, TOKENS, 2 * WIDTH))


def test_matrix_memories_keep_their_norm_and_learn_over_a_real_text():
    assert_stable(default(), torch.randn(256, WIDTH)[text(2)])


def test_so_do_the_matrices_of_the_model_as_it_comes():
    model = compose(["model=hope"]).model
    module = build(model["memory"], "model.memory", width=model["width"], heads=model["heads"])
    assert_stable(module, torch.randn(1, TOKENS, model["width"]), matrices(module))


def test_every_memory_learns_within_64_tokens_wherever_it_starts():
    words = text(2)[:, :64]
    for seed in range(10):
        torch.manual_seed(seed)
        module = default()
        for x in (torch.randn(2, 64, WIDTH), torch.randn(256, WIDTH)[words]):
            assert moved(module, x).min() > 0.05, seed


@pytest.mark.parametrize("chunk", [1, 16])
def test_matrix_memories_keep_their_norm_over_one_token_again_and_again(chunk):
    module = SelfModifyingTitans(WIDTH, 2, chunk=chunk, projection_chunk=chunk)
    x = torch.randn(4, 1, WIDTH).expand(4, 512, WIDTH)
    with torch.no_grad():
        ratio = norms(module, module(x)[1]) / norms(module, module.initial_state(4))
    assert ratio.min() > 0.5
    assert ratio.max() < 2


def radius(objective: Objective, alpha: float, eta: float, beta: float, agree: float) -> float:
    """Spectral radius of one write with momentum along a repeated key k, whose value has <v, k> = `agree`."""
    erase, fit, value = terms(objective, "dgd")
    held, gathered = torch.eye(2, dtype=torch.float64).view(2, 2, 1, 1)  # the memory and the momentum, one by one
    key, *rates = (torch.full((2, 1, 1), r, dtype=torch.float64) for r in (1.0, eta, alpha, beta))
    steps = Steps._make((key, (fit - value * agree) * held, *rates, None))
    _, after, momentum = advance(steps, erase, held, None, gathered, "cumulative")
    assert momentum is not None
    return torch.linalg.eigvals(torch.cat([after.view(1, 2), momentum.view(1, 2)])).abs().max().item()


@pytest.mark.parametrize("objective", ["l2", "l2_doubled", "dot"])
def test_with_momentum_the_bounds_hold_but_for_the_dot_product_along_its_own_key(objective):
    most = bound(objective, "dgd", "self")
    for alpha, beta, agree in itertools.product(
        (0.0, 0.5, 0.9, 1.0), (0.0, 0.5, 0.9, 0.99), (-1.0, -0.5, 0.0, 0.5, 1.0)
    ):
        for share in (0.1, 0.5, 1.0):
            if objective != "dot" or agree <= 1 - beta:
                assert radius(objective, alpha, share * most * alpha, beta, agree) <= 1 + 1e-6
    if objective == "dot":
        assert radius(objective, 1.0, most, 0.9, 0.5) > 1.1


@torch.no_grad()
def test_residual_memories_read_something_else_than_their_input_all_along():
    module = SelfModifyingTitans(32, 2, memory="mlp")
    q = torch.nn.functional.normalize(torch.randn(2, 100, 16), dim=-1)
    start = state = module.initial_state(1)
    for piece in range(16):
        state = module(torch.randn(1, 64, 32), state)[1]
        read = module.memories.read(tuple(w.flatten(0, 1) for w in state.weights), q)
        assert ((read - q).norm(dim=-1) > 0.1).all()
        ratio = norms(module, state) / norms(module, start)
        assert ratio.min() > 0.5
        assert ratio.max() < 2
        if piece == 0:
            assert (norms(module, state, start) / norms(module, start)).min() > 0.05


@torch.no_grad()
def test_residual_memories_diverge_with_the_dot_product():
    module = SelfModifyingTitans(32, 2, memory="mlp", objective="dot")
    assert not module(torch.randn(4, 1024, 32))[0].isfinite().all()


def pairs(n: int, size: int, batch: int) -> tuple[Tensor, Tensor]:
    """n orthonormal keys with random unit values, then the keys in another order: tokens (B, 2n, 2 size), answers."""
    keys = torch.linalg.qr(torch.randn(batch, size, size))[0][:, :n]
    values = torch.nn.functional.normalize(torch.randn(batch, n, size), dim=-1)
    order = torch.rand(batch, n).argsort(1).unsqueeze(-1).expand(-1, -1, size)
    told = torch.cat([keys, values], -1)
    asked = torch.cat([keys.gather(1, order), torch.zeros_like(values)], -1)
    return torch.cat([told, asked], 1) * size**0.5, values.gather(1, order)


def recall(module: SelfModifyingTitans, n: int, size: int, batch: int) -> Tensor:
    """Mean cosine of the reads with the values of pairs never seen before."""
    x, values = pairs(n, size, batch)
    return torch.cosine_similarity(module(x)[0][:, n:, :size], values, -1).mean()


def test_sixteen_stored_pairs_are_recalled_after_training_and_the_matrices_keep_their_norm():
    module, steps = default(), 300
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        (1 - recall(module, 16, 16, 16)).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        assert recall(module, 16, 16, 128) > 0.9
    assert_stable(module, torch.randn(1, TOKENS, WIDTH), matrices(module))
    assert_stable(module, torch.randn(256, WIDTH)[text(1)], matrices(module))


@pytest.mark.parametrize("options", [{}, {"memory": "mlp", "chunk": 4, "projection_chunk": 4}], ids=str)
def test_ten_seeds_of_a_small_training_stay_finite(options):
    losses = []
    for seed in range(10):
        torch.manual_seed(seed)
        module = SelfModifyingTitans(8, 1, **options)
        optimizer = torch.optim.Adam(module.parameters(), lr=3e-2)
        for _ in range(20):
            optimizer.zero_grad()
            loss = 1 - recall(module, 4, 4, 16)
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
            optimizer.step()
            losses.append(loss.item())
    assert torch.tensor(losses).isfinite().all()
    assert sum(losses[19::20]) < sum(losses[::20])  # they learn, too
