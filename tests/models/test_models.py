"""The three models: shapes, equal parameter counts, and that each can learn."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nested.errors import UserError
from nested.models.hope_attention import HopeAttention, _check_match
from nested.models.mlp import MLP
from nested.models.transformer import Transformer

Shapes = [(8, 8), (28, 28), (1, 8, 8), (3, 32, 32), (64,), (13,)]


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("model", [MLP, Transformer, HopeAttention])
@pytest.mark.parametrize("shape", Shapes)
def test_outputs_have_one_row_per_sample_and_samples_do_not_mix(model, shape: tuple[int, ...]):
    net, x = model(shape, 7), torch.rand(4, *shape)
    assert net(x).shape == (4, 7)
    torch.testing.assert_close(net(x)[:2], net(x[:2]))


@pytest.mark.parametrize("model", [MLP, Transformer, HopeAttention])
def test_every_parameter_takes_part(model):
    net = model((8, 8), 10)
    F.cross_entropy(net(torch.rand(8, 8, 8)), torch.arange(8)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("model", [MLP, Transformer, HopeAttention])
def test_learns_sixteen_random_labels_by_heart(model):
    torch.manual_seed(0)
    net, x, y = model((8, 8), 10), torch.rand(16, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net(x).argmax(1) == y).all()


def test_mlp_by_hand():
    net = MLP((2,), 1, (2,))
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        net.layers[0].bias.zero_()
        net.head.weight.copy_(torch.tensor([[2.0, 3.0]]))
        net.head.bias.fill_(0.5)
    assert net(torch.tensor([[1.0, 2.0]])).tolist() == [[2 * 3 + 3 * 0 + 0.5]]


def test_mlp_widths():
    net = MLP((28, 28), 10, (100,))
    assert count(net) == 784 * 100 + 100 + 100 * 10 + 10
    assert [n for n, _ in MLP((4,), 2, ()).named_parameters()] == ["head.weight", "head.bias"]


def test_hope_with_one_level_is_the_transformer():
    baseline, hope = Transformer((8, 8), 10), HopeAttention((8, 8), 10, n_levels=1)
    hope.load_state_dict({n.replace(".mlp.", ".continuum.0."): p for n, p in baseline.state_dict().items()})
    x = torch.rand(4, 8, 8)
    assert torch.equal(hope(x), baseline(x))


def test_names_of_levels():
    names = [n for n, _ in HopeAttention((8, 8), 10, depth=2, n_levels=3).named_parameters()]
    of_levels = {n.rsplit(".", 2)[0] for n in names if ".continuum." in n}
    assert of_levels == {f"blocks.{b}.continuum.{level}" for b in range(2) for level in range(3)}


@settings(max_examples=60, deadline=None)
@given(
    heads=st.sampled_from([1, 2, 4, 8]),
    head_width=st.integers(2, 32),
    ratio=st.integers(1, 4),
    depth=st.integers(1, 4),
    n_levels=st.integers(1, 6),
    shape=st.sampled_from(Shapes),
)
def test_parameters_match_the_transformers_of_the_same_arguments(heads, head_width, ratio, depth, n_levels, shape):
    width = heads * head_width
    hidden = max(16, ratio * width)
    with torch.device("meta"):
        baseline = count(Transformer(shape, 10, width, depth, heads, hidden))
        hope = count(HopeAttention(shape, 10, width, depth, heads, hidden, n_levels))
    assert abs(hope - baseline) <= 0.02 * baseline


def test_counting_the_baseline_draws_no_random_numbers():
    torch.manual_seed(0)
    HopeAttention((8, 8), 10, n_levels=1)
    after_hope = torch.rand(1)
    torch.manual_seed(0)
    Transformer((8, 8), 10)
    assert torch.equal(after_hope, torch.rand(1))


def test_too_many_levels_for_the_width_are_refused_with_the_least_that_would_do():
    with pytest.raises(UserError, match="hidden width of at least 14 is needed") as error:
        HopeAttention((8, 8), 10, hidden=8, n_levels=6)
    assert error.value.key == "model.n_levels"
    HopeAttention((8, 8), 10, hidden=14, n_levels=6)


def test_a_mismatch_is_refused_with_both_counts():
    _check_match(1020, 1000)
    with pytest.raises(UserError, match="1021 parameters and the transformer of the same arguments 1000"):
        _check_match(1021, 1000)
