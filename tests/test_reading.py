"""Prefill, decode, save, load, fork and roll back: the same numbers as reading at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from language_models import V, reading, small, some
from torch.testing import assert_close

from nested.errors import UserError
from nested.inner import FastState
from nested.reading import Reading, decode, draw, generate, load, prefill, roll_back, save

close = partial(assert_close, rtol=1e-10, atol=1e-10)
T = some(20)
LEARNS, STILL = small(reading()), small()
MODELS = pytest.mark.parametrize("model", [LEARNS, STILL, small(reading(chunk=5), prime=1)])


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


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_rolled_back_it_is_as_it_was_right_after_an_earlier_update(updates: int) -> None:
    r = roll_back(LEARNS, prefill(LEARNS, T, keep=4), updates)
    at = 18 - 3 * updates + 1  # the token after a chunk is read with its update
    assert r.tokens == at
    close(r.logits, prefill(LEARNS, T[:, :at]).logits)
    close(prefill(LEARNS, T[:, at:], r).logits, prefill(LEARNS, T).logits)


def test_an_update_that_was_not_kept_is_named() -> None:
    with pytest.raises(UserError, match="2 states are kept"):
        roll_back(LEARNS, prefill(LEARNS, T, keep=2), 2)


@MODELS
def test_saved_and_loaded_it_goes_on_to_the_bit(model, tmp_path: Path) -> None:
    r = prefill(model, T[:, :10], keep=2)
    save(tmp_path / "state.safetensors", model, r)
    found = load(tmp_path / "state.safetensors", model)
    assert torch.equal(found.logits, r.logits)
    assert [s.tick for s in found.past] == [s.tick for s in r.past]
    one, two = (prefill(model, T[:, 10:], each) for each in (r, found))
    assert torch.equal(one.logits, two.logits)


def test_a_file_of_another_model_or_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    save(file, LEARNS, prefill(LEARNS, T))
    with pytest.raises(UserError, match="other weights"):
        load(file, small(reading(), seed=2))
    file.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read"):
        load(file, LEARNS)
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "none", LEARNS)
    with pytest.raises(UserError, match="nothing to read"):
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
            draw(logits, **wrong)


def test_generating_reads_what_it_wrote() -> None:
    r: Reading = prefill(LEARNS, T[:, :5])
    made = list(generate(LEARNS, r, 9, top_p=0.9, generator=torch.Generator().manual_seed(1)))
    text = torch.cat([T[:, :5], torch.stack([token for token, _ in made], 1)], 1)
    close(made[-1][1].logits, prefill(LEARNS, text).logits)
