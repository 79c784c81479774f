"""Self-modifying Titans against an independent token loop, and what every mode of reading must keep."""

from itertools import product

import pytest
import torch
from token_loop import token_loop
from torch.testing import assert_close

from nested.errors import UserError
from nested.memory.self_modifying import SelfModifyingTitans

DEFAULT = {
    "width": 6, "heads": 2, "memory": "matrix", "objective": "l2", "rule": "dgd",
    "adaptive": ("k", "v", "eta", "alpha"), "chunk": 1, "projection_chunk": 1, "read": "cumulative",
    "retain": "initial", "gates": "sigmoid", "alpha": "gate", "alpha_start": 0.9, "eta_max": None, "monotone": False,
    "momentum": False, "erase": None,
}  # fmt: skip
CHUNKS = [(1, 1), (4, 4), (4, 8), (8, 4)]
MODES = list(product(("matrix", "mlp"), ("dot", "l2", "l2_doubled"), CHUNKS, ("anchor", "cumulative")))


def build(seed: int = 0, **options) -> tuple[SelfModifyingTitans, dict]:
    torch.manual_seed(seed)
    hidden = {"hidden": 5} if options.get("memory") == "mlp" else {}
    chosen = {**DEFAULT, **hidden, **options}
    return SelfModifyingTitans(**chosen).double(), chosen


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def assert_equals_loop(T: int = 11, **options) -> None:
    """Outputs, last weights, and the gradients of every parameter and of the tokens."""
    module, chosen = build(**options)
    x = tokens(2, T, chosen["width"]).requires_grad_()
    y, state = module(x, module.initial_state(2))
    wanted, memories = token_loop(module, x, **chosen)
    assert_close(y, wanted, rtol=1e-9, atol=1e-11)
    for part, weight in zip(("weight",) if chosen["memory"] == "matrix" else ("up", "down"), state.weights):
        held = [memory[part] for memory in memories.values()]
        together = torch.cat(held, 2) if part == "weight" else torch.stack(held, 2)  # rows, or memories side by side
        assert_close(weight, together, rtol=1e-9, atol=1e-11)
    of, scale = [x, *module.parameters()], torch.randn_like(y)
    ours, theirs = (torch.autograd.grad((z * scale).sum(), of, allow_unused=T == 1) for z in (y, wanted))
    for a, b in zip(ours, theirs):
        assert (
            (a is None or not a.any())
            if b is None
            else torch.allclose(a, b, rtol=1e-7, atol=1e-9 * (1 + b.abs().max()))
        )


@pytest.mark.parametrize("i", range(len(MODES)), ids=lambda i: "-".join(map(str, MODES[i])).replace(" ", ""))
def test_every_mode_equals_the_token_loop(i):
    memory, objective, (chunk, projection_chunk), read = MODES[i]
    retain, momentum = ("initial", "zero")[(i // 2 + i // 8) % 2], bool((i + i // 8 + i // 24) % 2)
    assert_equals_loop(
        memory=memory, objective=objective, chunk=chunk, projection_chunk=projection_chunk, read=read, retain=retain,
        momentum=momentum,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("retain", ["zero", "initial"])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("rule", ["dgd", "gd"])
def test_every_mode_with_every_rule_and_retention_equals_the_token_loop(retain, momentum, rule):
    for memory, objective, (chunk, projection_chunk), read in MODES:
        if (rule, objective) != ("gd", "dot"):
            assert_equals_loop(
                memory=memory, objective=objective, chunk=chunk, projection_chunk=projection_chunk, read=read,
                retain=retain, momentum=momentum, rule=rule,
            )  # fmt: skip


@pytest.mark.parametrize("memory", ["matrix", "mlp"])
@pytest.mark.parametrize(
    "adaptive", [(), ("k",), ("v", "alpha"), ("k", "v", "eta"), ("q", "eta"), ("q", "k", "v", "eta", "alpha")]
)
def test_every_choice_of_adaptive_memories_equals_the_token_loop(memory, adaptive):
    assert_equals_loop(memory=memory, adaptive=adaptive, chunk=4, projection_chunk=2)
    assert_equals_loop(memory=memory, adaptive=adaptive)


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "gd"},
        {"rule": "gd", "objective": "l2_doubled", "chunk": 3, "projection_chunk": 3},
        {"gates": "hard", "alpha_start": 0.98, "retain": "zero"},
        {"eta_max": 0.1, "monotone": True},
        {"alpha": "one"},
        {"alpha": "one", "memory": "mlp", "adaptive": ("k", "alpha"), "chunk": 3, "projection_chunk": 3},
        {"memory": "mlp", "rule": "gd", "chunk": 3, "projection_chunk": 3},
        {"memory": "mlp", "erase": "input", "retain": "zero"},
        {"memory": "mlp", "erase": "input", "chunk": 12, "projection_chunk": 3, "momentum": True},
        {"width": 5, "heads": 1, "T": 13, "chunk": 12, "projection_chunk": 12},
        {"width": 9, "heads": 3, "T": 1, "chunk": 2, "projection_chunk": 2},
        {"width": 4, "heads": 4, "T": 7, "memory": "mlp", "hidden": 1},
        {"memory": "mlp", "hidden": 40, "width": 4, "heads": 1},  # inputs of `down` longer than 1
    ],
    ids=str,
)
def test_rules_gates_and_odd_sizes_equal_the_token_loop(options):
    assert_equals_loop(**options)


def test_hidden_inputs_longer_than_one_take_smaller_steps():
    module, _ = build(memory="mlp", hidden=40, width=4, heads=1)
    up = module.memories.initial["k"]["up"][0]
    key = torch.nn.functional.normalize(tokens(4), dim=0)
    assert torch.nn.functional.gelu(up @ key).norm() > 1  # else the case above would not meet the bound


@pytest.mark.parametrize("memory", ["matrix", "mlp"])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("chunks", [*CHUNKS, (2, 6)])
@pytest.mark.parametrize("read", ["anchor", "cumulative"])
def test_reading_in_pieces_equals_reading_at_once_at_every_split(memory, momentum, chunks, read):
    module, _ = build(memory=memory, momentum=momentum, chunk=chunks[0], projection_chunk=chunks[1], read=read)
    x = tokens(2, 10, 6)
    with torch.no_grad():
        whole, after = module(x)
        for split in range(1, 10):
            first, state = module(x[:, :split], module.initial_state(2))
            second, last = module(x[:, split:], state)
            assert_close(torch.cat([first, second], 1), whole, rtol=1e-10, atol=1e-12)
            for a, b in zip(_tensors(last), _tensors(after)):
                assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("memory", ["matrix", "mlp"])
def test_pieces_of_any_lengths_and_a_first_one_shorter_than_a_chunk_are_the_whole(memory):
    module, _ = build(memory=memory, momentum=True, chunk=8, projection_chunk=4)
    x = tokens(2, 40, 6)
    with torch.no_grad():
        whole, after = module(x)
        state, reads = module.initial_state(2), []
        for piece in x.split([1, 2, 1, 3, 9, 17, 6, 1], 1):
            y, state = module(piece, state)
            reads.append(y)
    assert_close(torch.cat(reads, 1), whole, rtol=1e-10, atol=1e-12)
    for a, b in zip(_tensors(state), _tensors(after)):
        assert_close(a, b, rtol=1e-10, atol=1e-12)


def _tensors(state) -> list[torch.Tensor]:
    return [*state.weights, *state.anchors, *state.momentum, state.position]


@pytest.mark.parametrize("memory", ["matrix", "mlp"])
@pytest.mark.parametrize("chunks", [(1, 1), (4, 2)])
def test_a_batch_equals_its_sequences_one_by_one_and_every_state_has_the_batch_first(memory, chunks):
    module, _ = build(memory=memory, momentum=True, chunk=chunks[0], projection_chunk=chunks[1])
    x = tokens(3, 9, 6)
    y, state = module(x)
    for i in range(3):
        alone, last = module(x[i : i + 1])
        assert_close(y[i : i + 1], alone)
        for a, b in zip(_tensors(state), _tensors(last)):
            assert_close(a[i : i + 1], b)


@pytest.mark.parametrize("memory", ["matrix", "mlp"])
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("read", ["anchor", "cumulative"])
def test_no_token_is_heard_before_it_is_read_and_every_write_is_heard_after(memory, chunks, read):
    module, _ = build(memory=memory, chunk=chunks[0], projection_chunk=chunks[1], read=read)
    x, t = tokens(1, 12, 6), 5
    other = x.clone()
    other[:, t] = tokens(6)
    with torch.no_grad():
        y, z = module(x)[0], module(other)[0]
    assert torch.equal(y[:, :t], z[:, :t])
    first = t + 1 if read == "cumulative" else (t // chunks[0] + 1) * chunks[0]
    assert not torch.isclose(y[:, first:], z[:, first:]).all(-1).any()


def test_the_anchored_read_hears_nothing_of_its_own_chunk():
    module, _ = build(chunk=4, projection_chunk=4, read="anchor", adaptive=("k", "v", "eta", "alpha"))
    x = tokens(1, 8, 6)
    other = x.clone()
    other[:, 4] = tokens(6)
    assert torch.equal(module(x)[0][:, 5:], module(other)[0][:, 5:])


@pytest.mark.parametrize("memory", ["matrix", "mlp"])
@pytest.mark.parametrize("retain", ["zero", "initial"])
@pytest.mark.parametrize("chunks", [(1, 1), (4, 2)])
def test_with_eta_0_and_alpha_1_it_is_the_static_network(memory, retain, chunks):
    module, _ = build(memory=memory, retain=retain, gates="hard", chunk=chunks[0], projection_chunk=chunks[1])
    with torch.no_grad():
        module.eta_bias.fill_(-30.0)
        module.alpha_bias.fill_(30.0)
        x = tokens(2, 9, 6)
        q = torch.nn.functional.normalize((x @ module.static["q"].weight.T).view(2, 9, 2, 3), dim=-1)
        main = module.memories.initial["main"]
        if memory == "matrix":
            y = torch.einsum("hrk,bthk->bthr", main["weight"], q)
        else:
            y = torch.nn.functional.gelu(torch.einsum("hek,bthk->bthe", main["up"], q))
            y = q + torch.einsum("hke,bthe->bthk", main["down"], y)
        y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        assert_close(module(x)[0], y.reshape(2, 9, 6) @ module.output.weight.T)
        assert all(torch.equal(a, b) for a, b in zip(module(x)[1].weights, module.initial_state(2).weights))


def test_the_rate_is_the_bound_for_self_generated_values_and_monotone_halves_it():
    rates = {"l2": 2 / 3, "dot": 1.0, "l2_doubled": 2 / 5}
    for objective, rate in rates.items():
        assert build(objective=objective)[0].eta_max == pytest.approx(rate)
        assert build(objective=objective, monotone=True)[0].eta_max == pytest.approx(rate / 2)
    assert build(chunk=16, projection_chunk=16)[0].eta_max < 0.1  # a gradient that is 16 tokens old


def test_states_are_single_precision_whatever_the_module_is_in():
    x = torch.randn(2, 5, 6)
    module, _ = build()
    exact, _ = module(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        y, state = module.float()(x)
    assert state.weights[0].dtype == torch.float32
    assert (y - exact).abs().max() < 0.05
    y, state = module.bfloat16()(x.bfloat16())
    assert (y.dtype, state.weights[0].dtype) == (torch.bfloat16, torch.float32)
    assert build()[0](x.double())[1].weights[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": 4}, "4 heads do not divide a width of 6"),
        ({"chunk": 4, "projection_chunk": 6}, "4 and 6 tokens do not nest"),
        ({"chunk": 0}, "model.chunk: 0 is not allowed; allowed: int >= 1"),
        ({"adaptive": ("k", "values")}, r"adaptive\[1\]: 'values' is not allowed.*q \| k \| v \| eta"),
        ({"objective": "l3"}, r"objective: 'l3' is not allowed.*dot \| l2 \| l2_doubled"),
        ({"memory": "matrices"}, "did you mean 'matrix'"),
        ({"erase": "none"}, r"erase: 'none' is not allowed; allowed: every \| input"),
        ({"erase": "every"}, "model.erase: every has no effect on memory matrix"),
        ({"hidden": 5}, "model.hidden: 5 has no effect on memory matrix"),
        ({"hidden": 0, "memory": "mlp"}, "model.hidden: 0 is not allowed; allowed: int >= 1 or null"),
        ({"erase": "input", "memory": "mlp", "rule": "gd"}, "model.erase: input has no effect with rule gd"),
        ({"alpha": "on"}, "did you mean 'one'"),
        ({"eta_max": 0.7}, "0.7 is not allowed; above 0 and at most 0.666.*does not grow along a key"),
        ({"eta_max": -0.1}, "-0.1 is not allowed; above 0 and at most 0.666"),
        ({"eta_max": 0.5, "chunk": 4, "projection_chunk": 2}, "at most 0.240.*repeated over chunks of 4 tokens"),
        ({"eta_max": 0.5, "monotone": True}, "at most 0.333"),
        ({"rule": "gd", "objective": "dot"}, "no stable rate for self-generated values"),
        ({"alpha_start": 1.0}, "1 is not allowed for a sigmoid gate"),
        ({"alpha_start": 1.5}, "model.alpha_start: 1.5 is not allowed.*below 1 is: .*make a memory grow"),
    ],
)
def test_wrong_options_are_refused_by_name(options, said):
    with pytest.raises(UserError, match=said):
        build(**options)


def test_a_state_that_is_not_of_the_tokens_is_refused_by_name():
    module, _ = build(chunk=2, projection_chunk=2)
    x, state = tokens(3, 4, 6), module.initial_state(2)
    with pytest.raises(UserError, match=r"weights has shape \(2, 2, 11, 3\), .* need \(3, 2, 11, 3\)"):
        module(x, state)
    with pytest.raises(UserError, match=r"dtype torch.float32, .* need torch.float64"):
        module(x[:2], state._replace(weights=tuple(w.float() for w in state.weights)))
    with pytest.raises(UserError, match=r"device meta, .* need cpu"):
        module(x[:2], state._replace(anchors=tuple(w.to("meta") for w in state.anchors)))
    with pytest.raises(UserError, match=r"0 anchors, this memory 1"):
        module(x[:2], build()[0].initial_state(2))
    with pytest.raises(UserError, match=r"stand at different tokens: \[1, 2\]"):
        module(x[:2], state._replace(position=torch.tensor([1, 2])))


def test_tokens_of_another_width_and_chunks_longer_than_the_sequence_are_refused():
    module, _ = build(chunk=4, projection_chunk=8)
    for wrong in (tokens(2, 5), tokens(2, 9, 5), tokens(2, 0, 6), tokens(0, 9, 6)):
        with pytest.raises(UserError, match=r"\(B, T, 6\) with B and T of at least 1"):
            module(wrong)
    with pytest.raises(UserError, match="a chunk of 8 tokens is longer than the sequence of 5"):
        module(tokens(2, 5, 6))
    module(tokens(2, 5, 6), module.initial_state(2))  # the rest follows
