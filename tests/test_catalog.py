"""What can be chosen, told without importing it; what a choice means, with its source."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from nested import catalog
from nested.config import options
from nested.errors import UserError
from nested.settings import Plain, Sections, Trainer


def text(shown) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory: code that must not be imported, and choices that name it."""
    package = tmp_path / "untouchable"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import Thing as Renamed\nraise RuntimeError('imported')\n")
    (package / "inner.py").write_text(
        'raise RuntimeError("imported")\n'
        'class Other:\n    def Thing(self):\n        """Not this one."""\n'
        'class Thing:\n    """Learns from version 1.0 of\n    the data. Then forgets it."""\n'
        "def silent(): pass\n"
    )
    for group, name, body in [
        ("model", "direct", "# Not shown.\n_target_: untouchable.inner.Thing\n"),
        ("model", "exported", "_target_: untouchable.Renamed\n"),
        ("model", "wordless", "# Told by its comment. And more.\n_target_: untouchable.inner.silent\n"),
        ("model", "unknown", "_target_: nowhere.at.All\n"),
        ("method", "one", "# The first of two.\n_target_: nested.methods.naive.Naive\n"),
        ("trainer", "quick", "# Quick runs.\ndefaults: [default, _self_]\nepochs: 3   # three passes\n"),
        ("recipe", "mine", "# @package _global_\n# My own recipe.\nseed: 3\n"),
    ]:
        (tmp_path / "conf" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "conf"


def test_the_list_imports_nothing_heavy():
    program = (
        "import sys; from nested import catalog; rows = catalog.listing(); assert len(rows) > 10;"
        "print([m for m in ('torch', 'lightning', 'avalanche', 'mlflow', 'sklearn', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_choice_has_one_sentence_in_the_order_of_the_groups():
    rows = catalog.listing()
    assert [(g, n) for g, n, _ in rows] == [(g, n) for g in catalog.Known for n in options(g)]
    assert [row for row in rows if not row[2] or "\n" in row[2]] == []
    assert ("model", "mlp", "Fully connected ReLU network over samples of any shape, flattened.") in rows


def test_a_lazy_reexport_is_followed():
    [sentence] = [s for _, n, s in catalog.listing("optim") if n == "delta_momentum"]
    assert sentence.startswith("SGD whose momentum erases")


def test_choices_of_one_target_are_told_apart_by_their_comments():
    told = {n: s for _, n, s in catalog.listing("stream")}
    assert "MNIST" in told["split_mnist"]
    assert len(set(told.values())) == len(told)


def test_a_users_code_is_read_and_not_imported(own: Path):
    told = {n: s for _, n, s in catalog.listing("model", own)}
    assert told["direct"] == "Learns from version 1.0 of the data."
    assert told["exported"] == "Learns from version 1.0 of the data."
    assert told["wordless"] == "Told by its comment."
    assert told["unknown"] == "nowhere.at.All"
    assert not [m for m in sys.modules if m.startswith("untouchable")]


def test_groups_without_a_target_are_told_by_their_comment(own: Path):
    told = {(g, n): s for g, n, s in catalog.listing(None, own)}
    assert told["levels", "single"] == "Every parameter learns at every step: an ordinary network."
    assert told["recipe", "mine"] == "My own recipe."
    assert told["trainer", "quick"] == "Quick runs."
    assert told["method", "one"] == "The first of two."  # shares its target with naive


def test_an_unknown_group_and_choice_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'model'"):
        catalog.listing("models")
    with pytest.raises(UserError, match="did you mean 'mlp'"):
        catalog.describe("model", "mpl")
    with pytest.raises(UserError, match="unknown group"):
        catalog.describe("modle", "mlp")


def rows_of(group: str, choice: str, config_dir: Path | None = None) -> dict[str, dict]:
    return {row["key"]: row for row in catalog.describe(group, choice, config_dir)[1]["keys"]}


def test_a_component_is_described_with_values_bounds_and_source():
    shown, plain = catalog.describe("model", "hope_attention")
    width = next(row for row in plain["keys"] if row["key"] == "model.width")
    assert (width["value"], width["default"], width["type"], width["needed"]) == (48, 48, "int >= 1", False)
    assert plain["target"] == "nested.models.hope_attention.HopeAttention"
    assert "hope_attention.py:" in plain["source"]
    assert "arXiv 2512.24695" in plain["module_doc"]
    assert json.loads(json.dumps(plain)) == plain
    said = text(shown)
    assert "must divide width" in said  # the comment in the YAML
    assert "arXiv 2512.24695" in said


def test_words_that_are_allowed_are_shown():
    assert rows_of("optim", "delta_momentum")["optim.form"]["type"] == "normalised | printed"


def test_the_parts_of_a_component_are_described_below_it():
    rows = rows_of("stream", "split_mnist")
    assert rows["stream.source.download"]["value"] is False
    assert rows["stream.scenario"]["type"] == "class | domain | task"


def test_a_value_that_must_be_given_is_marked():
    shown, plain = catalog.describe("stream", "tensors")
    assert [row["key"] for row in plain["keys"] if row["needed"]] == ["stream.path"]
    assert "(needed)" in text(shown)


def test_a_trainer_shows_what_it_builds_on():
    rows = rows_of("trainer", "online")
    assert set(rows) == {f"trainer.{name}" for name in Trainer.__dataclass_fields__}
    assert (rows["trainer.batch_size"]["value"], rows["trainer.batch_size"]["default"]) == (10, 32)
    assert rows["trainer.clip_norm"]["help"] == "norm of a level's gathered gradient when it is due"


def test_a_users_own_choice_is_described(own: Path):
    rows = rows_of("trainer", "quick", own)
    assert (rows["trainer.epochs"]["value"], rows["trainer.batch_size"]["value"]) == (3, 32)


def test_a_comment_tells_of_the_key_it_stands_at_and_of_no_namesake_below() -> None:
    rows = rows_of("model", "hope")
    assert "MLP" in rows["model.hidden"]["help"]
    assert "MLP" not in rows["model.memory.hidden"]["help"]
    assert "anchors of the main memory" in rows["model.memory.chunk"]["help"]


def test_levels_are_described_one_by_one():
    rows = rows_of("levels", "continuum")
    assert rows["levels.slow.period_steps"]["value"] == 8
    assert rows["levels.fast.params"]["value"] == "rest"
    assert "steps" in rows["levels.slow.period_steps"]["help"]


@pytest.mark.parametrize("name", [name for name, _ in catalog.sections()])
def test_every_section_explains_each_of_its_keys(name: str):
    shown, plain = catalog.describe_section(name)
    assert plain["section"] == name
    assert [row["key"] for row in plain["keys"] if len(row["help"]) < 8 or not row["type"]] == []
    assert all(row["key"] in text(shown) for row in plain["keys"])


def test_a_section_has_the_keys_types_bounds_and_values_that_a_run_takes():
    assert {n for n, _ in catalog.sections()} >= {*Sections, *Plain, "levels", "best", "contest", "tune", "launcher"}
    for name, schema in Sections.items():
        keys = [row["key"] for row in catalog.describe_section(name)[1]["keys"]]
        assert keys == [f"{name}.{field}" for field in schema.__dataclass_fields__]
    rows = {row["key"]: row for name in ("checkpoint", "evaluate", "seed") for row in section(name)}
    assert (rows["checkpoint.keep"]["type"], rows["checkpoint.keep"]["default"]) == ("int >= 2", 2)
    assert rows["evaluate.parts"]["value"] == rows["evaluate.parts"]["default"] == ["test", "validation"]
    assert rows["seed"]["value"] == 0


def section(name: str) -> list[dict]:
    return catalog.describe_section(name)[1]["keys"]


def test_a_users_own_level_is_told_what_a_level_takes():
    assert {"levels.NAME.period_steps", "levels.NAME.eta"} <= {row["key"] for row in section("levels")}


def test_a_group_has_no_keys_before_it_is_chosen():
    with pytest.raises(UserError, match="write group=choice, such as model="):
        catalog.describe_section("model")
    with pytest.raises(UserError, match="did you mean 'schedule'"):
        catalog.describe_section("shedule")


def test_all_groups_and_sections_are_listed_with_a_sentence():
    shown, plain = catalog.all_sections()
    assert plain["groups"] == list(catalog.Known)
    for row in plain["sections"]:
        assert len(row["what"]) > 15
        assert f"  {row['name']} " in shown
        assert row["what"] in shown


def test_a_recipe_is_shown_as_it_stands(own: Path):
    shown, plain = catalog.describe("recipe", "mine", own)
    assert plain["text"].endswith("seed: 3\n")
    assert "seed: 3" in text(shown)


def test_a_section_without_a_target_is_refused(own: Path):
    (own / "method" / "empty.yaml").write_text("capacity: 3\n")
    with pytest.raises(UserError, match="_target_"):
        catalog.describe("method", "empty", own)


@pytest.mark.parametrize(
    "doc, first",
    [
        ("One. Two.", "One."),
        ("Sizes of 0.5 are\nmeant. Then more.", "Sizes of 0.5 are meant."),
        ("No stop at all\n\nSecond paragraph.", "No stop at all"),
        ("See e.g. this one. `x` is next.", "See e.g. this one."),
    ],
)
def test_the_first_sentence(doc: str, first: str):
    assert catalog.first_sentence(doc) == first
