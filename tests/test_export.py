"""Exports: what a run judged last, bit for bit, from a folder alone; and what is said where that cannot be had."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import done, nested
from safetensors.torch import load_file, save_file
from test_wheel import THEIRS
from torch import nn

import nested as package
from nested import exported, rundir
from nested.config import Config, build, compose, from_dict
from nested.errors import UserError
from nested.evaluation import evaluate
from nested.export import export
from nested.methods.method import Method
from nested.run import run_trial
from nested.streams.stream import Stream

SMALL = ("trainer.epochs=1", "trainer.progress=false", "tracking=off")
HOPE = ("model=hope", "model.width=8", "model.depth=1", "model.heads=2", "model.hidden=16", "trainer.allow_idle=true")
RUNS = {
    "plain": ("model.hidden=[8]",),
    "seen": ("optim=sgd", "model.hidden=[8]", "head.mask=seen", "method=replay"),
    "own heads": ("stream.scenario=task", "model.hidden=[8]"),
    "domain": ("stream.scenario=domain", "model.hidden=[8]"),
    "permuted": ("stream=permuted_digits", "stream.n_experiences=3", "model.hidden=[8]"),
    "float64": ("model.hidden=[8]", "trainer.precision=64-true"),
    "bfloat16": ("model.hidden=[8]", "trainer.precision=bf16-mixed", "method=associative_head"),
    "ema": ("model.hidden=[8]", "method=ema", "method.periods=[20,5]"),
    "lookahead": ("model.hidden=[8]", "method=lookahead"),
    "joint": ("model.hidden=[8]", "method=joint"),
    "whitened memory": ("model.hidden=[8]", "method=associative_head", "method.whiten=true"),
    "class means": ("model.hidden=[8]", "method=associative_head", "method.rule=class_means"),
    "buffers": ("model=random_features", "model.features=16"),
    "token levels": (*HOPE, "levels=tokens", "stream.n_experiences=1", "stream.test=0.6"),
    "tokens": (
        *HOPE,
        "stream=recall",
        "stream.n_experiences=2",
        "stream.n_train=64",
        *(f"stream.n_{p}=9" for p in ("validation", "test")),
    ),
}


def trial(config: Config, path: Path) -> Path:
    """A run without its page, which takes longer than these runs do."""
    return run_trial(config, path, lambda *_: None).path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a finished run of RUNS, by name, trained once."""
    root, made = tmp_path_factory.mktemp("trained"), {}

    def directory(name: str) -> Path:
        if name not in made:
            made[name] = trial(compose([*SMALL, *RUNS[name]]), root / name)
        return made[name]

    return directory


@pytest.fixture
def plain(trained: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the plain run's directory, to be spoiled."""
    return Path(shutil.copytree(trained("plain"), tmp_path / "plain", ignore=shutil.ignore_patterns("export")))


@pytest.fixture
def made(plain: Path) -> Path:
    return export(plain)


def judged(path: Path, part: str = "test") -> tuple[list[float], list[int]]:
    """The last row of the main view's matrix on disk."""
    views = rundir.read_json(path / "seed-0" / "matrix.json")["views"]
    stored = next(iter(views.values()))[part]
    return stored["sum"][-1], stored["count"][-1]


def final(path: Path) -> dict[str, Any]:
    state, _ = rundir.SeedDir(path / "seed-0").load_checkpoint()
    assert state is not None
    return state


@torch.no_grad()
def right_answers(model: nn.Module, config: Config, part: str) -> list[int]:
    """Of each experience, by the plain module."""
    stream: Stream = build(config.stream, "stream", seed=0, root=None)
    batches = [e.batch(torch.arange(len(e))) for e in (getattr(e, part) for e in stream.experiences)]
    return [int((model(x).argmax(1) == y).sum()) for x, y, _ in batches]


# -- equal to the last bit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_on_its_own_stream_it_gives_the_last_row_of_the_matrix(name: str, trained: Callable[[str], Path]) -> None:
    path = trained(name)
    found = evaluate(export(path))
    assert found.repeats is True
    for part in ("test", "validation"):
        assert (found.parts[part].sum, found.parts[part].count) == judged(path, part)
    assert found.notes == []


@pytest.mark.parametrize("name", ["plain", "seen", "own heads", "float64", "buffers", "token levels", "tokens"])
def test_the_module_has_the_runs_weights(name: str, trained: Callable[[str], Path]) -> None:
    path = trained(name)
    model = package.load(export(path))
    assert not model.training
    state = final(path)["model"]
    assert state.keys() == model.state_dict().keys()
    assert all(v.dtype is state[k].dtype and torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_averaged_weights_are_what_is_judged(trained: Callable[[str], Path]) -> None:
    path = trained("ema")
    model, state = package.load(export(path)), final(path)
    assert all(torch.equal(p, a) for p, a in zip(model.parameters(), state["method"]["averages"][0], strict=True))
    assert not all(torch.equal(p, state["model"][n]) for n, p in model.named_parameters())


def test_a_memory_answers_in_the_heads_place(trained: Callable[[str], Path]) -> None:
    path = trained("whitened memory")
    model = package.load(export(path))
    assert right_answers(model, from_dict(rundir.read_config(path / "seed-0")), "test") == judged(path)[0]
    trained_head = nn.functional.linear(torch.ones(1, 8), model.head.layer.weight, model.head.layer.bias)
    assert not torch.equal(model.head(torch.ones(1, 8)), trained_head)


def test_it_needs_nothing_but_its_folder(trained: Callable[[str], Path], tmp_path: Path) -> None:
    """Not the run, nor its methods' state, nor pickle, nor a random generator."""
    folder = tmp_path / "elsewhere"
    export(trained("ema"), to=folder)
    assert {p.name for p in folder.iterdir()} == {"config.yaml", "model.safetensors", "export.json"}
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    model = package.load(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    told = json.loads((folder / "export.json").read_text())
    assert (told["seed"], told["view"], told["packages"]["torch"]) == (0, "ema-20", torch.__version__.partition("+")[0])
    assert "tracking" not in rundir.read_config(folder)  # an address, maybe with a password


def test_classes_never_met_do_not_compete_elsewhere_either(trained: Callable[[str], Path]) -> None:
    """The mask is the run's, not the one that another stream would give."""
    folder = export(trained("seen"))
    about = json.loads((folder / "export.json").read_text())
    about["competing"] = [[0, 1]] * 5
    (folder / "export.json").write_text(json.dumps(about))
    found = evaluate(folder, ["stream.shuffle_classes=false"])
    assert found.repeats is None
    assert found.parts["test"].scores[0] > 0.5
    assert found.parts["test"].sum[1:] == [0, 0, 0, 0]
    shutil.rmtree(folder)


def test_importing_nested_imports_no_torch() -> None:
    code = "import sys, nested; assert callable(nested.load); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- other streams -----------------------------------------------------------------------------------------------------


def test_another_stream_that_fits_is_judged_and_said_to_be_another(trained: Callable[[str], Path]) -> None:
    folder = export(trained("permuted"))
    found = evaluate(folder, ["stream=rotated_digits", "stream.n_experiences=4", "evaluate.parts=[validation]"])
    assert (found.repeats, found.stream, list(found.parts)) == (None, "rotated_digits", ["validation"])
    config = compose(["stream=rotated_digits", "stream.n_experiences=4"])
    assert found.parts["validation"].sum == right_answers(package.load(folder), config, "validation")
    assert found.notes == []


def test_another_split_of_the_same_data_comes_with_a_warning(made: Path) -> None:
    found = evaluate(made, ["stream.seed=5"])
    assert found.repeats is None
    assert "may have been trained on" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("plain", ["stream=permuted_digits"], "scenario domain, and the model was made for class"),
        ("plain", ["stream=recall"], "has vocabulary"),
        ("permuted", ["stream=split_digits", "stream.scenario=domain"], "n_outputs 2, and the model was made for 10"),
        ("own heads", ["stream.seed=3"], "its tasks have other outputs; stream.seed=0"),
        ("domain", ["stream.seed=3"], r"class \d was output . and is . here; stream.seed=0"),
        ("plain", ["model.hidden=[9]"], "judged as it is"),
        ("plain", ["stream.n_experience=2"], "did you mean 'stream.n_experiences'"),
    ],
)
def test_a_stream_that_does_not_fit(
    name: str, overrides: list[str], message: str, trained: Callable[[str], Path]
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(export(trained(name)), overrides)


def test_a_gpu_that_is_asked_for_is_here_and_a_runs_own_need_not_be(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device is visible here"):
        evaluate(made, ["trainer.accelerator=gpu"])
    ran = (made / "config.yaml").read_text()
    assert ran.count("accelerator: cpu") == 1
    rewrite(made, "config.yaml", ran.replace("accelerator: cpu", "accelerator: gpu").encode())
    assert evaluate(made).repeats


def test_samples_of_another_shape(made: Path, tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "wide.npz", x=np.random.rand(200, 1, 9, 9).astype("f4"), y=np.arange(200) % 10)
    with pytest.raises(UserError, match=r"sample_shape \[1, 9, 9\], and the model was made for \[1, 8, 8\]"):
        evaluate(made, ["stream=tensors", f"stream.path={tmp_path / 'wide.npz'}"])


# -- what cannot be exported -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message"),
    [(None, "has not ended; nested resume plain"), ("interrupted", "has not ended"), ("diverged", "diverged"),
     ("pruned", "was pruned")],
)  # fmt: skip
def test_a_seed_that_did_not_end_well(status: str | None, message: str, plain: Path) -> None:
    summary = plain / "seed-0" / "summary.json"
    told = rundir.read_json(summary)
    summary.unlink() if status is None else rundir.write_json(summary, {**told, "status": status})
    with pytest.raises(UserError, match=message):
        export(plain)
    assert not (plain / "seed-0" / "export").exists()


def test_several_seeds_are_named(plain: Path) -> None:
    shutil.copytree(plain / "seed-0", plain / "seed-7")
    with pytest.raises(UserError, match="2 seeds; name one: 0, 7"):
        export(plain)
    with pytest.raises(UserError, match="no seed 3: 0, 7"):
        export(plain, 3)
    assert export(plain, 7).parent.name == "seed-7"


def test_a_damaged_last_checkpoint_is_not_replaced_by_an_older_one(plain: Path) -> None:
    last = rundir.SeedDir(plain / "seed-0").checkpoints()[-1]
    shutil.copy(last, last.with_name("00000000.pt"))
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    with pytest.raises(UserError, match=r"does not hold the final weights.*is damaged"):
        export(plain)


def test_a_folder_in_use_is_left_alone(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        export(plain, to=tmp_path / "full")
    assert export(plain) == export(plain)  # its own earlier export is replaced


class Louder(Method):
    """A method whose main view is more than weights, and that does not say so."""

    def attach(self, learner: Any) -> None:
        self.model = learner.model

    def views(self) -> dict[str, Any]:
        from contextlib import contextmanager

        @contextmanager
        def louder():
            handle = self.model.register_forward_hook(lambda _m, _x, out: out * 2)
            yield
            handle.remove()

        return {"louder": louder()}


class Remembering(nn.Linear):
    """A model with state that is no tensor."""

    def __init__(self, sample_shape: tuple[int, ...], n_outputs: int):
        super().__init__(64, n_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1))

    def get_extra_state(self) -> str:
        return "a secret"

    def set_extra_state(self, state: str) -> None: ...


@pytest.mark.parametrize(
    ("choice", "message"),
    [("method._target_=test_export.Louder", "does not answer as Louder judges it"),
     ("model._target_=test_export.Remembering", "'_extra_state' is a str; an export holds tensors")],
)  # fmt: skip
def test_what_tensors_cannot_tell(choice: str, message: str, tmp_path: Path) -> None:
    group, _, target = choice.partition("._target_=")
    path = trial(from_dict({**compose(SMALL).to_dict(), group: {"_target_": target}}), tmp_path / "odd")
    with pytest.raises(UserError, match=message):
        export(path)
    assert not (path / "seed-0" / "export").exists()


# -- what cannot be read -----------------------------------------------------------------------------------------------


def edit(folder: Path, **values: Any) -> None:
    about = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**about, **values}))


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Another file, with its digest."""
    import hashlib

    (folder / name).write_bytes(data)
    files = json.loads((folder / "export.json").read_text())["files"]
    edit(folder, files={**files, name: hashlib.sha256(data).hexdigest()})


def test_a_newer_format_names_its_cure(made: Path) -> None:
    edit(made, format=2)
    with pytest.raises(UserError, match=r"is an export of format 2; .* reads format 1: install a newer one"):
        package.load(made)


def test_a_run_with_several_exports_names_them(plain: Path) -> None:
    shutil.rmtree(plain / "seed-0" / "export", ignore_errors=True)
    with pytest.raises(UserError, match="make one with: nested export"):
        exported.find(plain.name, plain.parent)
    for seed in (0, 1):
        (plain / f"seed-{seed}" / "export").mkdir(parents=True)
        (plain / f"seed-{seed}" / "export" / "export.json").write_text("{}")
    with pytest.raises(UserError, match=r"has 2 exports; give one's path: .*seed-0/export, .*seed-1/export"):
        exported.find(plain.name, plain.parent)
    assert exported.find(str(plain / "seed-1" / "export")) == plain / "seed-1" / "export"
    assert exported.find(str(plain / "seed-0")) == plain / "seed-0" / "export"


def test_a_run_is_no_export(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a run, not an export; make one with: nested export"):
        package.load(plain)
    with pytest.raises(UserError, match=r"has no export\.json") as refused:
        package.load(tmp_path)
    assert (refused.value.key, str(refused.value).count(str(tmp_path))) == ("export", 1)
    with pytest.raises(UserError, match="is not there"):
        package.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_a_changed_file_is_named(name: str, made: Path) -> None:
    with (made / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match=f"{name} is damaged or was changed"):
        package.load(made)


def test_weights_that_are_none_or_do_not_fit(made: Path, tmp_path: Path) -> None:
    rewrite(made, "model.safetensors", b"\x80\x04.")  # a pickle
    with pytest.raises(UserError, match="cannot be read"):
        package.load(made)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other")
    rewrite(made, "model.safetensors", (tmp_path / "other").read_bytes())
    with pytest.raises(UserError, match=r"do not fit what model._target_ builds here.*exported with nested"):
        package.load(made)


def test_somebody_elses_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen with --config-dir; without its package the export says what is missing, and where it came from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(THEIRS))
    conf = str(THEIRS / "wonderland" / "conf")
    ran = done("run", "recipe=mad", "--config-dir", conf, *SMALL, "trainer.allow_idle=true", "--json").object
    folder = done("export", ran["run_id"], "--to", "mine", "--json").object["export"]
    again = done("eval", folder, "--config-dir", conf, "--json").object
    assert again["repeats"] is True
    assert again["parts"]["test"]["scores"] == ran["matrix"][-1]
    assert done("eval", "mine", "stream=tea_party", "stream.cups=80", "--config-dir", conf).out.count("\n") > 3
    edit(Path(folder), components={"model": "wonderland 1.2", "method": None})
    monkeypatch.undo()
    for name in [m for m in sys.modules if m.partition(".")[0] == "wonderland"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"cannot import 'wonderland.rabbit'.*made with wonderland 1.2: install it"):
        package.load(folder)


def test_the_verbs(trained: Callable[[str], Path], tmp_path: Path) -> None:
    path, to = trained("plain"), str(tmp_path / "out")
    said = done("export", path.name[:20], "0", "--runs", str(path.parent), "--to", to)
    assert f"try: nested eval {to}" in said.out
    assert "equal to the last row of the run's matrix" in done("eval", to).out
    told = done("eval", to, "evaluate.parts=[test]", "--json").object
    assert (told["repeats"], told["parts"]["test"]["sum"]) == (True, judged(path)[0])
    wrong = nested("eval", str(tmp_path), "--json")
    assert (wrong.code, "nested export" in wrong.object["error"]) == (2, True)
    assert nested("export", "nosuch", "--runs", str(path.parent)).code == 2
