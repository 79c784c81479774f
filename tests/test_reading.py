"""Prefill, decode, save, load, fork and roll back: the same numbers as reading at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from language_models import V, reading, small, some
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from nested.errors import Diverged, UserError
from nested.inner import FastState
from nested.levels import Level
from nested.memory.attention import AttentionMemory
from nested.memory.delta import DeltaMemory
from nested.memory.gated_delta_net import GatedDeltaNet
from nested.memory.lstm import LSTMMemory
from nested.memory.mamba2 import Mamba2
from nested.memory.pruned_attention import HeavyHitterAttention, StreamingAttention
from nested.memory.self_modifying import SelfModifyingTitans
from nested.memory.ttt import TTTMLP, TTTLinear
from nested.memory.window_attention import WindowAttention
from nested.models.hope import Hope
from nested.reading import FORMAT, Reading, decode, draw, generate, load, prefill, roll_back, save

close = partial(assert_close, rtol=1e-12, atol=1e-12)
T = some(20)
LEARNS, STILL = small(reading()), small()
MODELS = pytest.mark.parametrize("model", [LEARNS, STILL, small(reading(chunk=6), prime=1)])
MIXERS: list[Callable[..., nn.Module]] = [
    WindowAttention, AttentionMemory, DeltaMemory, GatedDeltaNet, SelfModifyingTitans,
    partial(WindowAttention, window=6), partial(StreamingAttention, budget=5, sinks=2),
    partial(HeavyHitterAttention, budget=5), partial(Mamba2, key_size=4), partial(TTTLinear, mini_batch=4),
    partial(TTTMLP, mini_batch=4), partial(DeltaMemory, anchor=2), lambda width, heads: LSTMMemory(width),
    partial(SelfModifyingTitans, chunk=4, projection_chunk=2, momentum=True),
    partial(SelfModifyingTitans, memory="mlp"),
]  # fmt: skip
CONTINUUM = (Level("fast", ("*.continuum.0.*",), 3, "token", eta=0.1),)


def hope(mixer: Callable[..., nn.Module], levels: tuple[Level, ...] = CONTINUUM) -> Hope:
    torch.manual_seed(2)
    given = {"vocabulary": V, "per_position": True, "width": 8, "heads": 2, "hidden": 12, "n_levels": 2}
    return Hope((12,), V, mixer, token_levels=levels, inner_loss="task" if levels else "next_token", **given).double()


MADE = [*(small(reading(), mixer=mixer) for mixer in MIXERS), *map(hope, MIXERS), hope(DeltaMemory, ())]
EVERY = pytest.mark.parametrize("model", [*MADE, STILL, small(reading(), other=Mamba2, other_every=2)])


def same(a: FastState, b: FastState) -> None:
    assert a.tick == b.tick
    assert torch.equal(a.pending, b.pending)  # type: ignore[arg-type]
    for name, w in a.fast.items():
        close(w, b.fast[name])


@MODELS
def test_prefill_then_decode_equals_reading_at_once(model) -> None:
    whole = prefill(model, T)
    for first in range(1, 20):
        r = prefill(model, T[:, :first])
        for t in range(first, 20):
            r = decode(model, r, T[:, t])
        close(r.logits, whole.logits)
        same(r.state, whole.state)
        assert r.tokens == 20


@pytest.mark.parametrize("levels", [reading(1.0, 20), ()])
@pytest.mark.parametrize("first", [1, 17, 40, 59])
def test_decode_goes_on_from_chunks_whose_attention_is_made_in_blocks(levels: tuple[Level, ...], first: int) -> None:
    model, long = small(levels, window=24, length=60), some(60, batch=3)
    whole, r = prefill(model, long), prefill(model, long[:, :first])
    for t in range(first, 60):
        r = decode(model, r, long[:, t])
    close(r.logits, whole.logits)
    same(r.state, whole.state)
    close(prefill(model, long[:, first:], prefill(model, long[:, :first]), piece=20).logits, whole.logits)


@MODELS
def test_prefill_goes_on_from_a_reading_and_in_pieces(model) -> None:
    whole = prefill(model, T, keep=2)
    for first in (1, 3, 4, 7, 19):
        r = prefill(model, T[:, first:], prefill(model, T[:, :first], keep=2), keep=2, piece=4)
        close(r.logits, whole.logits)
        assert [s.tick for s in r.past] == [s.tick for s in whole.past]
        for a, b in zip(r.past, whole.past):
            same(a, b)


@MODELS
def test_logits_are_those_of_the_model(model) -> None:
    close(prefill(model, T).logits, model.eval()(T)[:, -1])


def test_an_update_comes_with_the_first_token_after_a_full_chunk_and_never_before() -> None:
    r = prefill(LEARNS, T[:, :1])
    for t in range(1, 20):
        before, r = r, decode(LEARNS, r, T[:, t])
        moved = any(not torch.equal(w, before.state.fast[n]) for n, w in r.state.fast.items())
        assert moved == (t % 3 == 0)
    start = dict(LEARNS.named_parameters())
    assert all((w == start[n]).all() for n, w in prefill(LEARNS, T, mode="off").state.fast.items())


def test_each_sequence_of_a_batch_reads_for_itself_to_the_bit() -> None:
    r, other = prefill(LEARNS, T), T.clone()
    other[1] = (other[1] + 1) % V
    s = prefill(LEARNS, other)
    assert torch.equal(r.logits[0], s.logits[0])
    assert not torch.equal(r.logits[1], s.logits[1])
    for name, w in r.state.fast.items():
        assert torch.equal(w[0], s.state.fast[name][0])


def test_a_fork_knows_nothing_of_what_the_other_one_read() -> None:
    root = prefill(LEARNS, T[:, :8])
    kept = {n: w.clone() for n, w in root.state.fast.items()}, root.logits.clone()
    one = prefill(LEARNS, T[:, 8:], root)
    for _ in generate(LEARNS, root, 7, generator=torch.Generator().manual_seed(0)):
        pass
    assert all(torch.equal(w, root.state.fast[n]) for n, w in kept[0].items())
    assert torch.equal(root.logits, kept[1])
    again = prefill(LEARNS, T[:, 8:], root)
    assert torch.equal(one.logits, again.logits)


def decoded(first: int, keep: int) -> Reading:
    r = prefill(LEARNS, T[:, :first], keep=keep)
    for t in range(first, 20):
        r = decode(LEARNS, r, T[:, t], keep=keep)
    return r


@pytest.mark.parametrize("keep", [1, 4, 6, 9])
@pytest.mark.parametrize("first", [1, 8, 10, 20])
def test_each_of_the_last_updates_kept_can_be_undone_and_no_other(keep: int, first: int) -> None:
    whole = decoded(first, keep)  # updates come with the tokens after 3, 6, ... 18
    assert whole.updates == 6
    kept = min(keep, 6)
    for updates in range(1, kept + 1):
        r = roll_back(LEARNS, whole, updates)
        at = 21 - 3 * updates  # its chunk had filled
        assert (r.tokens, r.updates, len(r.past)) == (at, 6 - updates, kept - updates)
        earlier = prefill(LEARNS, T[:, :at])
        close(r.logits, earlier.logits)
        same(r.state, earlier.state)
        close(prefill(LEARNS, T[:, at:], r).logits, whole.logits)
    start = dict(LEARNS.named_parameters())
    if kept == 6:
        assert all((w == start[n]).all() for n, w in roll_back(LEARNS, whole, 6).state.fast.items())
    for updates in (0, kept + 1):
        with pytest.raises(UserError, match=f"{kept} of 6 updates were kept"):
            roll_back(LEARNS, whole, updates)


def test_a_prefill_in_pieces_keeps_the_last_updates_alone() -> None:
    for keep in (1, 2, 5):
        r = prefill(LEARNS, T[:, 7:], prefill(LEARNS, T[:, :7], keep=keep), keep=keep, piece=9)
        assert [s.tick for s in r.past] == [15 - 3 * i for i in range(keep)][::-1]


def test_updates_are_counted_where_they_are_made() -> None:
    frozen = prefill(LEARNS, T[:, :8], mode="off", keep=2)
    assert (frozen.updates, frozen.past) == (0, ())
    learned = prefill(LEARNS, T[:, 8:], frozen)
    assert learned.updates == 4  # after 9, 12, 15 and 18 tokens
    r = decode(LEARNS, decode(LEARNS, learned, T[:, 0], mode="off"), T[:, 1], mode="off")
    assert (r.state.tick, r.updates) == (21, 4)
    assert prefill(STILL, T).updates == 0


@EVERY
def test_saved_and_loaded_it_goes_on_to_the_bit(model, tmp_path: Path) -> None:
    r = prefill(model, T[:, :10], keep=2)
    save(tmp_path / "state.safetensors", model, r)
    found = load(tmp_path / "state.safetensors", model)
    assert torch.equal(found.logits, r.logits)
    assert ([s.tick for s in found.past], found.updates) == ([s.tick for s in r.past], r.updates)
    one, two = (prefill(model, T[:, 10:], each) for each in (r, found))
    assert torch.equal(one.logits, two.logits)
    for t in range(10, 20):
        r, found = (decode(model, each, T[:, t]) for each in (r, found))
        assert torch.equal(r.logits, found.logits)
    if r.past:
        one, two = (roll_back(model, each, 2) for each in (r, found))
        assert torch.equal(one.logits, two.logits)


@EVERY
def test_every_memory_decodes_as_it_is_read_at_once(model) -> None:
    whole, r = prefill(model, T), prefill(model, T[:, :5])
    for t in range(5, 20):
        r = decode(model, r, T[:, t])
    close(r.logits, whole.logits)
    same(r.state, whole.state)


class Odd(WindowAttention):
    """Holds what it did not begin with."""

    def held(self, state, kept):
        return (*super().held(state, kept), Thing(kept[0], kept[1]))[-1:]


class Thing(NamedTuple):
    keys: torch.Tensor
    values: torch.Tensor


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    model = small(mixer=Odd)
    with pytest.raises(UserError, match=r"in dicts, lists and the tuples it begins with, not .*Thing"):
        save(tmp_path / "state", model, prefill(model, T[:, :2]))
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (small(reading(), seed=2), "its weights are others"),
        (small(reading(chunk=4)), "levels.reading.chunk_tokens was 3 there and is 4 here"),
        (small(reading(eta=0.5)), "levels.reading.eta was 1.0 there and is 0.5 here"),
        (small(reading(shift_norm=0.1)), "levels.reading.shift_norm was None there and is 0.1 here"),
        (small(reading(), window=3), "blocks.0.mixer.window was 6 there and is 3 here"),
        (small(), "levels.reading.name was 'reading' there and is absent here"),
        (small(reading(), mixer=partial(StreamingAttention, budget=7)), "blocks.0.mixer was WindowAttention there and"),
    ],
)
def test_a_state_of_another_model_is_refused_and_the_difference_named(other, named: str, tmp_path: Path) -> None:
    save(tmp_path / "state", LEARNS, prefill(LEARNS, T))
    with pytest.raises(UserError, match=re.escape(named)):
        load(tmp_path / "state", other)


def test_how_a_model_was_trained_does_not_decide_how_it_reads_on(tmp_path: Path) -> None:
    save(tmp_path / "state", LEARNS, prefill(LEARNS, T))
    other = small(reading(), inner="first_order", checkpoint="group", segment=4)
    load(tmp_path / "state", other.eval())


@pytest.mark.parametrize(("eta", "dtype"), [(1e200, torch.float64), (1e30, torch.float32)])
def test_reading_that_diverges_names_level_and_token_and_never_draws(eta: float, dtype: torch.dtype) -> None:
    model = small(reading(eta, clip_norm=None)).to(dtype)
    first = prefill(model, T[:, :3])
    named = (
        r"after token 3, in the chunk from token 3 is not finite, after 1 updates of level 'reading'; take a smaller"
    )
    with pytest.raises(Diverged, match=named):
        decode(model, first, T[:, 3])
    with pytest.raises(Diverged, match=named):
        prefill(model, T[:, :4])
    with pytest.raises(Diverged, match=named):
        list(generate(model, first, 2))
    broken = small()
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="it is the model's own"):
        prefill(broken, T)


def test_a_file_in_which_one_bit_changed_is_damaged(tmp_path: Path) -> None:
    model, file = small(reading()), tmp_path / "state.safetensors"
    save(file, model, prefill(model, some(7), keep=1))
    whole = file.read_bytes()
    for place in (len(whole) - 9, len(whole) // 2):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="is damaged or was changed: its digest"):
            load(file, model)
    file.write_bytes(whole)
    assert load(str(file), model).tokens == 7


def test_a_file_of_another_kind_and_one_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    save_file({"x": torch.ones(1)}, file, {"format": FORMAT})
    with pytest.raises(UserError, match="no saved reading of format"):
        load(file, LEARNS)
    file.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read"):
        load(file, LEARNS)
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "none", LEARNS)
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path, LEARNS)
    for wrong in (tmp_path, tmp_path / "none" / "state"):
        with pytest.raises(UserError, match="cannot be written"):
            save(wrong, LEARNS, prefill(LEARNS, T))
    with pytest.raises(UserError, match=r"tokens of shape \(2, 0\) cannot be read"):
        prefill(LEARNS, T[:, :0])


def test_drawing_follows_temperature_and_top_p() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).expand(4000, 4).double()
    draws = partial(draw, generator=torch.Generator().manual_seed(0))
    assert (draws(logits, 0.0, 1.0) == 1).all()
    for temperature in (0.5, 1.0, 2.0):
        share = torch.bincount(draws(logits, temperature, 1.0), minlength=4) / 4000
        assert_close(share.double(), (logits[0] / temperature).softmax(-1), rtol=0, atol=0.03)
    assert set(draws(logits, 1.0, 0.7).tolist()) == {1, 3}  # .64 and .24 of the probability
    assert set(draws(logits, 1.0, 0.5).tolist()) == {1}
    for wrong in ({"temperature": -1.0, "top_p": 1.0}, {"temperature": 1.0, "top_p": 0.0}):
        with pytest.raises(UserError, match=r"top_p|temperature"):
            draw(logits, **wrong)  # type: ignore[arg-type]


def test_generating_reads_what_it_wrote() -> None:
    r: Reading = prefill(LEARNS, T[:, :5])
    made = list(generate(LEARNS, r, 9, top_p=0.9, generator=torch.Generator().manual_seed(1)))
    text = torch.cat([T[:, :5], torch.stack([token for token, _ in made], 1)], 1)
    close(made[-1][1].logits, prefill(LEARNS, text).logits)
