"""A trained model's own MLPs as levels: nothing changes until they learn, and then only they do."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from nested.errors import UserError
from nested.inner import initial_state, read
from nested.levels import Level, check_chunks
from nested.models.stacking import stack_levels

B, V, D = 3, 7, 8


class Block(nn.Module):
    """The mean of all tokens so far, then torch's own layers as an MLP without output bias."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(D, D)
        self.norm = nn.LayerNorm(D, eps=1e-3)
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D, bias=False)

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        total, count = (0.0, 0) if carry is None else carry
        sums = total + x.cumsum(1)
        seen = torch.arange(count + 1, count + x.shape[1] + 1, dtype=x.dtype).view(-1, 1)
        x = x + self.mix(sums / seen)
        return x + self.down(F.gelu(self.up(self.norm(x)))), (sums[:, -1:], count + x.shape[1])


class LanguageModel(nn.Module):
    """Embedding, which the head shares, and blocks."""

    def __init__(self, depth: int = 3):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, carry: Any = None) -> tuple[Tensor, Any]:
        x, after = self.embed(tokens), []
        for block, held in zip(self.blocks, carry or [None] * len(self.blocks)):
            x, held = block(x, held)
            after.append(held)
        return self.head(x), after


def model() -> LanguageModel:
    return LanguageModel().double()


def levels(eta: float = 0.05) -> list[Level]:
    """Earlier blocks learn faster; the first block's norm does not learn."""
    return [
        Level("fast", ("blocks.0.up.*", "blocks.0.down.weight"), 2, "token", eta=eta),
        Level("mid", ("blocks.1.norm.*", "blocks.1.up.*", "blocks.1.down.*"), 4, "token", eta=eta),
        Level("slow", ("blocks.2.up.weight",), 8, "token", eta=eta),
    ]


def loss(pretrained: nn.Module, tokens: Tensor) -> Tensor:
    logits, _ = pretrained(tokens[:, :-1])
    return F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")


def test_eta_zero_reproduces_the_model_and_its_gradients() -> None:
    pretrained, tokens = model(), torch.randint(V, (B, 21))
    stacked = stack_levels(pretrained, levels(0.0))
    nll, _ = read(stacked, stacked.levels, initial_state(stacked, stacked.levels, B), tokens)
    expected = loss(pretrained, tokens)
    assert_close(nll, expected, rtol=1e-12, atol=1e-12)
    params = list(pretrained.parameters())
    for g, h in zip(torch.autograd.grad(nll.sum(), params), torch.autograd.grad(expected.sum(), params)):
        assert_close(g, h, rtol=1e-9, atol=1e-11)
    assert torch.equal(stacked(tokens)[0], pretrained(tokens)[0])


def test_the_pretrained_model_is_shared_and_left_as_it_is() -> None:
    pretrained, tokens = model(), torch.randint(V, (B, 12))
    before = [(name, type(m)) for name, m in pretrained.named_modules()]
    values = {n: p.detach().clone() for n, p in pretrained.named_parameters()}
    stacked = stack_levels(pretrained, levels())
    read(stacked, stacked.levels, initial_state(stacked, stacked.levels, B), tokens)
    assert [(name, type(m)) for name, m in pretrained.named_modules()] == before
    ours = dict(stacked.named_parameters())
    assert list(ours) == list(values)
    assert all(ours[n] is p and torch.equal(p, values[n]) for n, p in pretrained.named_parameters())


def test_only_the_assigned_weights_learn_and_each_sequence_has_its_own() -> None:
    pretrained, tokens = model(), torch.randint(V, (B, 18))
    stacked = stack_levels(pretrained, levels())
    nll, state = read(stacked, stacked.levels, initial_state(stacked, stacked.levels, B), tokens)
    assert set(state.fast) == {
        "blocks.0.up.weight", "blocks.0.up.bias", "blocks.0.down.weight", "blocks.1.norm.weight", "blocks.1.norm.bias",
        "blocks.1.up.weight", "blocks.1.up.bias", "blocks.1.down.weight", "blocks.2.up.weight",
    }  # fmt: skip
    assert all(not torch.equal(w[0], w[1]) for w in state.fast.values())
    for i in range(B):
        alone, _ = read(stacked, stacked.levels, initial_state(stacked, stacked.levels, 1), tokens[i : i + 1])
        assert_close(alone, nll[i : i + 1], rtol=1e-11, atol=1e-12)


def test_the_stacked_model_equals_a_model_whose_weights_are_stepped_by_hand() -> None:
    """One sequence, one level: torch's own modules and plain gradient steps on a copy of the model."""
    pretrained, tokens = model(), torch.randint(V, (1, 13))
    one = [Level("all", ("blocks.*.up.*", "blocks.*.down.*"), 3, "token", eta=0.1)]
    stacked = stack_levels(pretrained, one)
    nll, _ = read(stacked, one, initial_state(stacked, one, 1), tokens)
    copy = model()
    copy.load_state_dict(pretrained.state_dict())
    learning = [p for n, p in copy.named_parameters() if ".up." in n or ".down." in n]
    carry = None
    for first in range(0, 12, 3):
        logits, carry = copy(tokens[:, first : first + 3], carry)
        losses = F.cross_entropy(logits.mT, tokens[:, first + 1 : first + 4], reduction="none")
        assert_close(losses, nll[:, first : first + 3], rtol=1e-11, atol=1e-12)
        carry = [(total.detach(), count) for total, count in carry]
        for p, g in zip(learning, torch.autograd.grad(losses.sum(), learning)):
            p.data -= 0.1 * g


def test_adaptation_helps_on_a_text_that_repeats_itself() -> None:
    torch.manual_seed(1)
    pretrained = model()
    tokens = torch.tensor([[1, 4, 2, 6, 0]]).repeat(1, 20)
    with torch.no_grad():
        stacked = stack_levels(pretrained, levels(0.02))
        nll, _ = read(stacked, stacked.levels, initial_state(stacked, stacked.levels, 1), tokens)
        static = loss(pretrained, tokens)
    assert nll[:, -20:].mean() < 0.5 * static[:, -20:].mean()


def test_a_model_in_bfloat16_keeps_its_fast_weights_in_float32() -> None:
    pretrained, tokens = LanguageModel().to(torch.bfloat16), torch.randint(V, (B, 12))
    stacked = stack_levels(pretrained, levels(1e-4))
    nll, state = read(stacked, stacked.levels, initial_state(stacked, stacked.levels, B), tokens)
    assert nll.dtype == torch.float32
    assert {w.dtype for w in state.fast.values()} == {torch.float32}
    start = pretrained.blocks[0].up.weight.float()
    assert not torch.equal(state.fast["blocks.0.up.weight"][0], start)  # 1e-4 of a gradient is below bfloat16's reach


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda logits, carry: logits, r"LanguageModel returned a Tensor; \(logits \(B, n, V\), carry\) is needed"),
        (lambda logits, carry: {"logits": logits}, "returned a dict"),
        (lambda logits, carry: (logits[:, -1], carry), r"returned logits \(3, 7\) for tokens \(3, 4\)"),
        (lambda logits, carry: (logits[:, -1:], carry), r"returned logits \(3, 1, 7\) for tokens \(3, 4\)"),
        (lambda logits, carry: ([logits], carry), "returned logits list"),
    ],
)
def test_a_model_that_returns_anything_but_logits_and_carry_is_named(answer: Any, words: str) -> None:
    pretrained = model()
    stacked = stack_levels(pretrained, [Level("all", ("blocks.1.up.*",), 4, "token", eta=0.1)])
    whole = stacked.model.forward
    stacked.model.forward = lambda tokens, carry: answer(*whole(tokens, carry))
    with pytest.raises(UserError, match=words):
        read(stacked, stacked.levels, initial_state(stacked, stacked.levels, B), torch.randint(V, (B, 9)))


def test_a_model_that_takes_no_carry_is_refused() -> None:
    plain = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, V))
    with pytest.raises(UserError, match=r"Sequential\.forward does not take \(tokens, carry\)"):
        stack_levels(plain, [Level("all", ("1.*",), 2, "token", eta=0.1)])


def test_what_cannot_be_a_level_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"'embed\.weight' belongs to a Embedding.*Linear or LayerNorm"):
        stack_levels(model(), [Level("all", ("embed.weight",), 2, "token", eta=0.1)])
    with pytest.raises(UserError, match="matches no parameter"):
        stack_levels(model(), [Level("all", ("blocks.7.*",), 2, "token", eta=0.1)])
    with pytest.raises(UserError, match="longer than the sequence"):
        check_chunks(levels(), 8)
