"""From overrides to a checked config: what is accepted, what is refused in one line that helps."""

import subprocess
import sys
from pathlib import Path

import pytest

from nested.catalog import describe
from nested.config import amend, compose, flatten, from_dict, options
from nested.errors import UserError
from nested.levels import from_config
from nested.rundir import as_stored


def test_the_defaults_compose() -> None:
    config = compose()
    assert config.choices["stream"] == "split_digits"
    assert config.choices["optim"] == "adamw"
    assert config.seed_list() == [0]
    assert config.levels["all"].period_steps == 1


def test_every_choice_of_every_group_composes() -> None:
    needed = {
        "tensors": ["stream.path=x.npz"],
        "image_folder": ["stream.path=x"],
        "avalanche": ["stream.benchmark=a.b"],
    }
    for group in ("stream", "model", "optim", "levels", "method", "trainer", "tracking", "recipe"):
        for name in options(group):
            assert compose([f"{group}={name}", *(needed.get(name, []) if group == "stream" else [])])


def test_overrides_reach_their_place() -> None:
    config = compose(
        ["model=transformer", "model.width=32", "levels.all.period_steps=4", "trainer=online", "seeds=3", "label=x y"]
    )
    assert config.model["width"] == 32
    assert config.levels["all"].period_steps == 4
    assert (config.trainer.epochs, config.trainer.batch_size) == (1, 10)
    assert config.seed_list() == [0, 1, 2]
    assert config.name() == "x y"


def test_a_key_of_the_signature_that_is_not_in_the_yaml_is_allowed() -> None:
    assert compose(["optim=sgd", "optim.nesterov=true"]).optim["nesterov"] is True


def test_a_level_may_be_added_and_given_its_own_optimizer() -> None:
    config = compose(
        ["levels.head={params: [head.*], period_steps: 2, optim: {_target_: torch.optim.Adagrad, lr: 0.1}}"]
    )
    assert config.levels["head"].optim == {"_target_": "torch.optim.Adagrad", "lr": 0.1}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stream=split_digit", ["unknown stream 'split_digit'", "did you mean 'split_digits'", "permuted_digits"]),
        ("modle=mlp", ["unknown key 'modle'", "did you mean 'model'"]),
        ("model.hiden=[3]", ["model.hiden", "did you mean 'model.hidden'"]),
        ("trainer.epoch=3", ["trainer.epoch", "did you mean 'trainer.epochs'"]),
        ("trainer.epochs=many", ["trainer.epochs", "'many' is not allowed", "int >= 1"]),
        ("trainer.epochs=0", ["trainer.epochs", "int >= 1"]),
        ("optim.lr=fast", ["optim.lr", "'fast' is not allowed", "float"]),
        ("levels.all.period_steps=0", ["levels.all.period_steps", "int >= 1"]),
        ("levels.all.perod_steps=2", ["levels.all.perod_steps", "did you mean 'levels.all.period_steps'"]),
        ("levels.all.lr=1", ["levels.all.lr", "optim.lr, times levels.all.lr_scale"]),
        ("levels.quick.eta=1", ["levels.quick.eta", "unknown level 'quick'", "allowed: all"]),
        ("levels.all.chunk_tokens=2", ["levels.all", "not both"]),
        ("levels.t={params: ['*.mlp.*'], chunk_tokens: 4}", ["levels.t.eta", "token clock", "number >= 0"]),
        ("levels.t={params: ['*'], chunk_tokens: 4, eta: -1}", ["levels.t.eta", "float >= 0"]),
        ("levels.t={params: ['*'], chunk_tokens: 4, eta: 1, clip_norm: 0}", ["levels.t.clip_norm", "float > 0"]),
        ("levels.t={params: ['*'], chunk_tokens: 4, eta: 1, lr_scale: 2}", ["levels.t.lr_scale", "stream clock"]),
        ("levels.all.eta=0.1", ["levels.all.eta", "token clock"]),
        ("levels.all.reset=true", ["levels.all.reset", "token clock"]),
        ("levels.all.params=everything", ["levels.all.params", "rest"]),
        ("trainer.precision=16", ["trainer.precision", "32-true"]),
        ("seed=-1", ["seed", "int >= 0"]),
        ("seed=1,2", ["one plain key=value"]),
        ("seed", ["cannot read 'seed'"]),
        ("model._target_=nested.models.mlp.Mpl", ["did you mean 'MLP'"]),
        ("model._target_=nowhere.Thing", ["no module named 'nowhere'"]),
        (
            "model._target_=nested.memory.lstm.LSTMMemory",
            ["has no", "'model={_target_: nested.memory.lstm.LSTMMemory}'"],
        ),
    ],
)
def test_wrong_overrides_are_one_line_that_helps(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        compose([override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_level_on_the_token_clock_has_no_lr_but_eta_and_no_key_of_the_other_clock() -> None:
    with pytest.raises(UserError, match=r"levels\.reading\.lr: .* is levels\.reading\.eta$"):
        compose(["levels=tokens", "levels.reading.lr=0.1"])
    with pytest.raises(UserError) as caught:
        compose(["levels=tokens", "levels.reading.etta=0.1"])
    assert "did you mean 'levels.reading.eta'" in str(caught.value)
    assert "lr_scale" not in str(caught.value)


TITANS, LSTM = "nested.memory.self_modifying.SelfModifyingTitans", "nested.memory.lstm.LSTMMemory"


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        (f"model.memory._target_={LSTM}", "model.memory._target_",
         [f"{LSTM} has no chunk, projection_chunk, which {TITANS} was given", f"'model.memory={{_target_: {LSTM}}}'"]),
        ("model.memory=lstm", "model.memory",
         [f"'lstm' is not allowed; a section with a _target_ is, such as 'model.memory={{_target_: {LSTM}}}'",
          "nested.memory.attention.AttentionMemory, nested.memory.delta.DeltaMemory, ", TITANS]),
        ("model.memory=titans", "model.memory", [f"'model.memory={{_target_: {TITANS}}}'"]),
        ("model.memory={chunk: 2}", "model.memory", ["a section with a _target_"]),
        ("model.memory._target_=nested.memory.lstm", "model.memory._target_", ["is a module", f"{LSTM}"]),
    ],
)  # fmt: skip
def test_a_memory_named_in_a_form_that_does_not_work_is_told_the_one_that_does(
    override: str, key: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        compose(["model=hope", override])
    assert caught.value.key == key
    for word in words:
        assert word in str(caught.value)


def test_a_section_exchanged_whole_keeps_nothing_of_the_old_one_and_takes_options_of_the_new() -> None:
    assert compose(["model=hope", f"model.memory={{_target_: {LSTM}}}"]).model["memory"] == {"_target_": LSTM}
    whole = compose(["model=hope", "model.memory={_target_: nested.memory.delta.DeltaMemory}", "model.memory.rule=gd"])
    assert whole.model["memory"] == {"_target_": "nested.memory.delta.DeltaMemory", "rule": "gd"}
    bare = compose(["model=lstm", f"model.memory._target_={TITANS}", "model.memory.chunk=4"])  # it had no options
    assert bare.model["memory"] == {"_target_": TITANS, "chunk": 4}


def test_a_level_on_the_token_clock_gathers_a_sum_and_keeps_its_own_settings() -> None:
    written = "levels.t={params: ['*'], chunk_tokens: 4, eta: 0.1, clip_norm: 1, reset: true}"
    stream, token = from_config(compose(["model=mlp", written]).levels)
    assert (stream.clock, stream.period, stream.gather, stream.eta) == ("stream", 1, "mean", None)
    assert (token.clock, token.period, token.gather, token.eta) == ("token", 4, "sum", 0.1)
    assert (token.clip_norm, token.reset) == (1.0, True)


def test_a_config_survives_its_file() -> None:
    config = compose(["model=hope_attention", "levels=continuum", "seeds=[3,5]"])
    assert from_dict(as_stored(config.to_dict())) == config


def test_flatten_gives_dotted_paths() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": 1, "a.c.d": None, "e": [1]}


def test_a_users_directory_adds_choices(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("_target_: nested.methods.naive.Naive\n")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "both.yaml").write_text(
        "# @package _global_\ndefaults: [{override /method: mine}]\nseed: 7\n"
    )
    config = compose(["recipe=both"], tmp_path)
    assert (config.choices["method"], config.seed) == ("mine", 7)
    with pytest.raises(UserError, match="no such directory"):
        compose([], tmp_path / "nowhere")
    (tmp_path / "method" / "replay.yaml").write_text("_target_: nested.methods.naive.Naive\n")
    with pytest.raises(UserError, match="has the name of one of ours"):
        compose([], tmp_path)


@pytest.mark.parametrize("name", ["inf", "12", "true", "null", "1e-3"])
def test_a_choice_may_have_a_name_that_reads_as_a_value(tmp_path: Path, name: str) -> None:
    (tmp_path / "levels").mkdir()
    (tmp_path / "levels" / f"{name}.yaml").write_text("slow: {params: rest, period_steps: 7}\n")
    config = compose([f"levels={name}"], tmp_path)
    assert (config.choices["levels"], config.levels["slow"].period_steps) == (name, 7)
    _, plain = describe("levels", name, tmp_path)
    assert plain["keys"][0]["key"] == "levels.slow.params"
    with pytest.raises(UserError, match=f"unknown model '{name}'"):
        compose([f"model={name}"], tmp_path)


LAZY = {
    "import nested": ["torch", "lightning", "avalanche", "mlflow", "hydra"],
    "from nested.cli import guarded, app; guarded(lambda: app(['--help'], standalone_mode=False), False)": [
        "torch",
        "lightning",
        "avalanche",
        "mlflow",
        "hydra",
    ],
    "from nested.cli import guarded, app; guarded(lambda: app(['list'], standalone_mode=False), False)": [
        "torch",
        "lightning",
        "avalanche",
        "mlflow",
    ],
}


@pytest.mark.parametrize("code", LAZY)
def test_imports_are_lazy(code: str) -> None:
    check = (
        f"import sys\n{code}\nbad = {{*{LAZY[code]}}} & {{*sys.modules}}\nsys.exit(f'imported {{bad}}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_section_exchanged_as_a_whole_is_called_by_its_component_not_by_the_choice_before() -> None:
    exchanged = [
        "model={_target_: nested.models.transformer.Transformer}",
        "levels={a: {params: rest, period_steps: 1}}",
    ]
    assert compose(exchanged).name() == "Transformer naive custom"
    assert not {"model", "levels"} & set(compose(exchanged).choices)
    same = compose(["model={_target_: nested.models.mlp.MLP}", "model.hidden=[8]"])
    assert same.name() == "MLP naive single"
    assert amend(compose(["model=transformer"]), ["model=mlp"]).name() == "mlp naive single"
