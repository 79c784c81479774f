"""`nested generate`: reads, learns, writes on, and keeps its state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from language_models import TEXT, byte_level

from nested import generation, reading
from nested.cli import main
from nested.config import compose
from nested.errors import UserError
from nested.evaluation import evaluate
from nested.export import export
from nested.run import run
from nested.sequences.tokenizer import TokenizerFile

TINY = [
    "stream=text", "stream.length=16", "stream.n_train=8", "stream.n_validation=2", "stream.n_test=2", "tracking=off",
    "trainer.progress=false", "trainer.epochs=1", "trainer.batch_size=4", "optim=adamw", "trainer.allow_idle=true",
]  # fmt: skip
TTT_E2E = [
    "model=ttt_e2e", "model.width=16", "model.hidden=16", "model.depth=2", "model.mixer.window=8", "levels=reading",
    "levels.reading.chunk_tokens=4", "levels.reading.eta_warmup_steps=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a tiny model."""
    root = tmp_path_factory.mktemp("language")
    (root / "texts" / "one").mkdir(parents=True)
    for i in range(6):
        (root / "texts" / "one" / f"{i}.txt").write_text("a text of some words, again and again; " * 8)
    return exported(root, root / "export", *TTT_E2E)


def exported(root: Path, to: Path, *overrides: str) -> Path:
    config = compose([*TINY, *overrides, f"stream.path={root / 'texts'}", f"runs={root / 'runs'}"])
    return export(run(config).path, None, to)


def generated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    with pytest.raises(SystemExit) as end:
        main(["generate", *arguments, "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert end.value.code == 0, found
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["generate", *arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_it_reads_a_file_and_a_prompt_and_learns_from_its_own_text(folder, capsys, tmp_path) -> None:
    (tmp_path / "text.bin").write_bytes(bytes(range(128, 150)))  # not UTF-8: bytes are bytes
    found = generated(capsys, str(folder), "--file", str(tmp_path / "text.bin"), "--prompt", "abc", "--tokens", "9")
    assert found["tokens_read"] == 22 + 3 + 9
    assert found["updates"] == (22 + 3 + 9 - 1) // 4
    assert found["shift_norm"][0] > 0
    frozen = generated(capsys, str(folder), "--prompt", "abcdefgh", "--frozen")
    assert frozen["updates"] == 0
    assert frozen["shift_norm"] == [0.0]


def test_equal_seeds_write_equal_texts_and_samples_differ(folder, capsys) -> None:
    ask = (str(folder), "--prompt", "a text", "--tokens", "20", "--samples", "2")
    one, two = generated(capsys, *ask), generated(capsys, *ask)
    assert one["texts"] == two["texts"]
    assert one["texts"][0] != one["texts"][1]
    assert generated(capsys, *ask, "--seed", "1")["texts"] != one["texts"]


def test_a_saved_state_goes_on_where_it_stood(folder, capsys, tmp_path) -> None:
    state = str(tmp_path / "state.safetensors")
    likeliest = ("--temperature", "0", "--tokens")
    whole = generated(capsys, str(folder), "--prompt", "a text of", *likeliest, "20")
    first = generated(capsys, str(folder), "--prompt", "a text of", *likeliest, "8", "--state-out", state)
    second = generated(capsys, str(folder), "--state-in", state, *likeliest, "12")
    assert first["texts"][0] + second["texts"][0] == whole["texts"][0]
    assert second["tokens_read"] == whole["tokens_read"]
    several = generated(capsys, str(folder), "--state-in", state, *likeliest, "12", "--samples", "3")
    assert several["texts"] == second["texts"] * 3


def test_the_run_of_an_export_can_be_named_in_its_place(folder, capsys) -> None:
    runs, ask = folder.parent / "runs", ("--prompt", "a text", "--tokens", "5")
    made = next(runs.iterdir())
    assert "make one with: nested export" in refused(capsys, made.name, "--runs", str(runs), *ask)
    export(made)
    by_path = generated(capsys, str(folder), *ask)
    for name in (made.name[:12], str(made)):
        assert generated(capsys, name, "--runs", str(runs), *ask)["texts"] == by_path["texts"]
    assert "no export or run 'nosuch'" in refused(capsys, "nosuch", "--runs", str(runs), *ask)


def test_updates_are_not_kept_for_a_state_that_is_thrown_away(folder, capsys) -> None:
    told = refused(capsys, str(folder), "--prompt", "a", "--keep", "2")
    assert "with --state-out, or leave --keep out" in told


def test_updates_that_were_kept_can_be_undone(folder, capsys, tmp_path) -> None:
    state = str(tmp_path / "state.safetensors")
    generated(capsys, str(folder), "--prompt", "a text of words", "--tokens", "0", "--state-out", state, "--keep", "3")
    undone = generated(capsys, str(folder), "--state-in", state, "--undo", "2", "--tokens", "0")
    assert (undone["tokens_read"], undone["updates"]) == (8, 1)  # 15 were read: updates after 4, 8 and 12
    first = generated(capsys, str(folder), "--state-in", state, "--undo", "3", "--tokens", "0")
    assert (first["tokens_read"], first["updates"], first["shift_norm"]) == (4, 0, [0.0])
    told = refused(capsys, str(folder), "--state-in", state, "--undo", "4")
    assert "undo: 3 of 3 updates were kept; read again with a keep (--keep) of 4 or more" in told
    assert "give the state with --state-in" in refused(capsys, str(folder), "--prompt", "a", "--undo", "1")


def test_a_state_is_read_on_with_the_levels_it_was_read_with(folder, capsys, tmp_path) -> None:
    state = str(tmp_path / "state.safetensors")
    generated(capsys, str(folder), "--prompt", "a text", "--tokens", "0", "--state-out", state)
    told = refused(capsys, str(folder), "--state-in", state, "--shift-norm", "0.1")
    assert "levels.reading.shift_norm was None there and is 0.1 here" in told


def test_what_only_updates_could_do_is_refused_where_none_are_made(folder, capsys, tmp_path) -> None:
    plain = [*(o for o in TTT_E2E if o.startswith("model.")), "model=sliding_window", "evaluate.parts=[test]"]
    still = exported(folder.parent, tmp_path / "plain", *plain)
    state = ("--state-out", str(tmp_path / "state.safetensors"))
    for option in (("--shift-norm", "0.1"), ("--shift-norm", "0"), ("--keep", "3")):
        told = refused(capsys, str(still), "--prompt", "a", *state, *option)
        assert f"learns while it reads; leave {option[0]} out" in told
    assert generated(capsys, str(still), "--prompt", "a text", "--tokens", "3", *state)["updates"] == 0


def test_a_tiny_temperature_takes_the_likeliest(folder, capsys) -> None:
    cold, *tiny = (
        generated(capsys, str(folder), "--prompt", "a text", "--tokens", "9", "--temperature", t)["texts"]
        for t in ("0", "1e-40", "1e-320")
    )
    assert tiny == [cold, cold]


@pytest.mark.parametrize(
    ("seed", "bound"), [("99999999999999999999", "less than or equal to 9223372036854775807"), ("-1", "equal to 0")]
)
def test_a_seed_that_torch_does_not_take_is_refused(folder, capsys, seed, bound) -> None:
    told = refused(capsys, str(folder), "--prompt", "a", "--seed", seed)
    assert "--seed" in told
    assert bound in told
    assert told.count("\n") == 1


def test_it_reads_where_its_run_did_or_where_it_is_told(folder, capsys, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(generation, "device_of", lambda where: asked.append(where) or torch.device("cpu"))
    for more in ((), ("--accelerator", "auto")):
        generated(capsys, str(folder), "--prompt", "a", "--tokens", "1", *more)
    assert asked == ["cpu", "auto"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = refused(capsys, str(folder), "--prompt", "a", "--accelerator", "gpu")
    assert "accelerator: no CUDA device is visible here; use --accelerator cpu" in told


def test_an_export_is_judged_on_sequences_of_whole_chunks(folder) -> None:
    with pytest.raises(UserError, match=r"30 tokens are no whole number of chunks of 4 .*take 32") as wrong:
        evaluate(folder, ["stream.length=30"])
    assert wrong.value.key == "stream.length"
    assert evaluate(folder, ["stream.length=32", "evaluate.parts=[test]"]).repeats is None


def test_an_export_is_judged_on_less_text_than_asked_for_and_says_so(folder) -> None:
    [note] = evaluate(folder, ["stream.n_test=999", "evaluate.parts=[test]"]).notes[:1]
    assert note.startswith("the text has fewer sequences than asked for: n_test=999, and one has ")
    assert not any("fewer" in note for note in evaluate(folder, ["evaluate.parts=[test]"]).notes)


def test_a_state_that_could_not_be_written_is_refused_before_anything_is_read(folder, capsys, tmp_path) -> None:
    for wrong, said in ((tmp_path / "none" / "state", "is no directory; make it"), (tmp_path, "give a file")):
        told = refused(capsys, str(folder), "--prompt", "a", "--state-out", str(wrong), "--file", str(tmp_path / "no"))
        assert "state_out: " in told
        assert said in told
        assert "runs=" not in told


def test_a_frozen_read_makes_no_updates_and_later_ones_are_counted(folder, capsys, tmp_path) -> None:
    state = str(tmp_path / "state.safetensors")
    ask = ("--tokens", "0", "--state-out", state)
    assert generated(capsys, str(folder), "--prompt", "a text of", "--frozen", *ask)["updates"] == 0  # 9 tokens
    assert generated(capsys, str(folder), "--state-in", state, "--prompt", "words", *ask)["updates"] == 1  # after 12
    assert generated(capsys, str(folder), "--state-in", state, "--prompt", "words", "--frozen", *ask)["updates"] == 1


def test_tokens_are_those_of_the_file_that_the_run_read_with(capsys, tmp_path) -> None:
    """The export holds it: what lies where it was, is another one now."""
    words = "a text of some words, again and again; "
    (tmp_path / "data" / "texts" / "one").mkdir(parents=True)
    for i in range(6):
        (tmp_path / "data" / "texts" / "one" / f"{i}.txt").write_text(words * 20)
    tokenizer = byte_level(tmp_path / "data")
    own = TokenizerFile(tokenizer)
    of_text = [f"data.root={tmp_path / 'data'}", "stream.path=texts", f"stream.tokenizer={tokenizer.name}"]
    made = export(run(compose([*TINY, *TTT_E2E, *of_text, f"runs={tmp_path / 'runs'}"])).path, None, tmp_path / "made")
    tokenizer.unlink()
    found = generated(capsys, str(made), "--prompt", TEXT, "--tokens", "3", "--temperature", "0")
    assert found["tokens_read"] == len(own.tokens(TEXT.encode(), "it")) + 3 < len(TEXT.encode())
    assert set(found["texts"][0]) <= set(b"".join(map(own.spell, range(own.vocabulary))).decode(errors="replace"))

    about = json.loads((made / "export.json").read_text())
    del about["files"]["tokenizer.json"]
    (made / "export.json").write_text(json.dumps(about))
    assert "the tokenizer of its text; export the run again" in refused(capsys, str(made), "--prompt", "a")


def test_a_bound_of_nothing_is_named_as_it_was_given(folder, capsys) -> None:
    told = refused(capsys, str(folder), "--prompt", "a", "--shift-norm", "0")
    assert told.startswith("nested: shift_norm: 0.0 is not allowed")


def test_a_last_character_that_is_cut_off_is_shown(folder, capsys, monkeypatch) -> None:
    euro = iter("a€".encode()[:3])  # a, and two bytes of three
    monkeypatch.setattr(reading, "draw", lambda logits, *_: torch.full((len(logits),), next(euro)))
    assert generated(capsys, str(folder), "--prompt", "a", "--tokens", "3")["texts"] == ["a\ufffd"]


def test_reading_moves_the_weights_no_further_than_asked(folder, capsys) -> None:
    found = generated(capsys, str(folder), "--prompt", "a text " * 20, "--tokens", "0", "--shift-norm", "0.01")
    assert found["shift_norm"][0] == pytest.approx(0.01, rel=1e-4)


def test_the_text_is_shown_as_it_is_written(folder, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["generate", str(folder), "--prompt", "a", "--tokens", "5", "--temperature", "0"])
    told = capsys.readouterr()
    assert told.out.strip("\n")
    assert "6 tokens read, 1 updates" in told.err
    assert " to " not in told.err


def test_how_far_the_weights_of_several_samples_moved_is_told_of_all(folder, capsys) -> None:
    ask = (str(folder), "--prompt", "a text", "--tokens", "20", "--samples", "3")
    moved = generated(capsys, *ask)["shift_norm"]
    with pytest.raises(SystemExit):
        main(["generate", *ask])
    assert f"weights moved by {min(moved):.3g} to {max(moved):.3g}" in capsys.readouterr().err


def test_wrong_input_is_one_line(folder, capsys, tmp_path) -> None:
    assert "with something in it, or --state-in" in refused(capsys, str(folder))
    assert "cannot be read" in refused(capsys, str(folder), "--file", str(tmp_path / "none"))
    assert "inf is no temperature" in refused(capsys, str(folder), "--prompt", "a", "--temperature", "inf")
    assert "-1.0 is no temperature" in refused(capsys, str(folder), "--prompt", "a", "--temperature", "-1")
    config = compose(["model=mlp", "trainer.epochs=1", "tracking=off", "trainer.progress=false", f"runs={tmp_path}"])
    images = export(run(config).path, None, tmp_path / "images")
    assert "reads images or numbers" in refused(capsys, str(images), "--prompt", "a")
