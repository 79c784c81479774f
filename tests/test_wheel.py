"""The wheel, installed somewhere, with somebody else's package beside it, from a folder that knows nothing of ours."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest
from command import Said, nested

from nested import rundir

ROOT = Path(__file__).resolve().parents[1]
THEIRS = Path(__file__).parent / "third_party"
DEPENDENCIES = sysconfig.get_paths()["purelib"]


@dataclass(frozen=True)
class Installed:
    """A folder with the wheel and the third-party package, and a way to run `nested` with it."""

    wheel: Path
    where: Path
    conf: str
    call: Callable[..., Said]


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-build-isolation", "--quiet"]
    made = subprocess.run([*command, "--disable-pip-version-check"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    wheels, where, empty = (tmp_path_factory.mktemp(name) for name in ("wheels", "where", "empty"))
    pip("wheel", ROOT, "--wheel-dir", wheels)
    pip("wheel", THEIRS, "--wheel-dir", wheels)
    pip("install", "--no-index", "--target", where, *wheels.glob("*.whl"))
    (wheel,) = wheels.glob("nested_cl-*.whl")
    # without `site` no .pth file is read: an editable install of the checkout cannot be found
    path = os.pathsep.join([str(where), DEPENDENCIES])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def call(*arguments: str, cwd: Path = empty) -> Said:
        command = [sys.executable, "-S", "-P", *arguments]
        ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        return Said(ended.returncode, ended.stdout, ended.stderr)

    return Installed(wheel, where, str(where / "wonderland" / "conf"), call)


def below(folder: Path, pattern: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for p in folder.rglob(pattern) if p.is_file()}


def test_what_is_in_it(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    code = {n for p in ("*.py", "*.txt", "*.css", "*.js", "*.j2") for n in below(ROOT / "nested", p)}
    copied = below(ROOT / "conf", "*.yaml") | below(ROOT / "experiments", "*.py")
    assert "nested/templates/model.py.txt" in code
    assert "nested/report/page.html.j2" in code
    assert "conf/model/hope_attention.yaml" in copied
    assert code | {f"nested/{n}" for n in copied} <= names
    kernels = {n.removeprefix("kernels/") for n in below(ROOT / "kernels", "*.py")}
    assert "nested_kernels/delta_rule/op.py" in kernels
    assert kernels <= names
    assert "nested/py.typed" in names
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)


def test_what_is_not_in_it(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"nested", "nested_kernels"}
    assert not [n for n in names if "third_party" in n or "__pycache__" in n or n.endswith((".pyc", ".db"))]
    assert not [n for n in names if n.startswith(("nested/tests", "nested/runs", "nested/docs"))]
    size = sum(i.file_size for i in zipfile.ZipFile(installed.wheel).infolist())
    assert size < 2 << 20


def test_what_it_says_of_itself(installed: Installed) -> None:
    (about,) = installed.where.glob("nested_cl-*.dist-info")
    metadata = Parser().parsestr((about / "METADATA").read_text())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    required = [r for r in metadata.get_all("Requires-Dist") or [] if "extra ==" not in r]
    assert any(r.startswith("torch<") for r in required)
    assert "nested = nested.cli:main" in (about / "entry_points.txt").read_text()
    assert installed.call("-m", "nested", "version").out.strip() == metadata["Version"]


def test_the_checkout_is_out_of_reach(installed: Installed) -> None:
    said = installed.call("-c", "import json, sys, nested; print(json.dumps([nested.__file__, *sys.path]))")
    file, *path = json.loads(said.out)
    assert Path(file).is_relative_to(installed.where)
    assert str(ROOT) not in path
    assert str(THEIRS) not in path


def test_their_choices_are_listed_and_explained(installed: Installed) -> None:
    said = installed.call("-m", "nested", "list", "--config-dir", installed.conf, "--json")
    found = {(c["group"], c["name"]): c["what"] for c in said.object["choices"]}
    assert found["model", "rabbit"] == "A layer for each ear, listened to side by side."
    assert found["stream", "tea_party"] == "Gaussian clouds of cups around the place of each guest."
    assert found["method", "hatter"] == "Add a pull to zero to the loss, and count how often."
    assert found["optim", "cake"] == "Move every weight by `lr` against the sign of its gradient."
    assert found["recipe", "mad"].startswith("All of Wonderland at once")
    assert ("model", "hope_attention") in found
    about = installed.call("-m", "nested", "show", "model=rabbit", "--config-dir", installed.conf, "--json").object
    keys = {row["key"]: row for row in about["keys"]}
    assert keys["model.ears"]["type"] == "int >= 1 and <= 4"
    assert (keys["model.ears"]["value"], keys["model.ears"]["default"]) == (3, 2)
    assert keys["model.fur"]["type"] == "white | brown"


def test_their_model_stream_method_and_optimizer_make_a_run(installed: Installed, tmp_path: Path) -> None:
    chosen = ["model=rabbit", "stream=tea_party", "method=hatter", "optim=cake", "--config-dir", installed.conf]
    small = ["trainer.epochs=4", "trainer.batch_size=16", "trainer.progress=false", "tracking=off"]
    said = installed.call("-m", "nested", "run", *chosen, *small, "--json", cwd=tmp_path)
    assert said.code == 0, said.err
    found = said.object
    assert found["learning_acc"] > 0.9
    parameters = 3 * (4 * 8 + 8) + (3 * 8 * 4 + 4)  # three ears of 4 x 8, a head of 24 x 4, biases
    assert found["levels"][0]["parameters"] == parameters
    (run,) = rundir.all_runs(tmp_path / "runs")
    config = (run / "config.yaml").read_text()
    for target in ("rabbit.Rabbit", "tea_party.tea_party", "hatter.Hatter", "cake.Cake"):
        assert f"_target_: wonderland.{target}" in config
    state, _ = rundir.SeedDir(run / "seed-0").load_checkpoint()
    assert state is not None
    assert state["method"] == {"steps": found["cost"]["steps"]}
    assert "rabbit" in (run / "report.html").read_text()
    again = installed.call("-m", "nested", "resume", run.name, "--json", cwd=tmp_path)
    assert again.object["acc"] == found["acc"]
    written = installed.call("-m", "nested", "export", run.name, "--to", "mine", "--json", cwd=tmp_path)
    components = json.loads((tmp_path / "mine" / "export.json").read_text())["components"]
    assert components["model"].startswith("wonderland")  # where it came from, and which version
    judged = installed.call("-m", "nested", "eval", written.object["export"], "--json").object
    assert judged["repeats"] is True
    wider = ["stream=tea_party", "stream.cups=90", "--config-dir", installed.conf]
    assert installed.call("-m", "nested", "eval", "mine", *wider, "--json", cwd=tmp_path).object["repeats"] is None


def test_their_recipe_chooses_all_of_it(installed: Installed, tmp_path: Path) -> None:
    said = installed.call("-m", "nested", "run", "recipe=mad", "--config-dir", installed.conf, "--json", cwd=tmp_path)
    assert said.code == 0, said.err
    assert said.object["label"] == "rabbit hatter single"
    assert said.object["cost"]["steps"] > 0
    assert said.err == ""


def test_what_we_bring_along_works_from_there(installed: Installed, tmp_path: Path) -> None:
    listed = installed.call("-m", "nested", "claims", "--json").object["claims"]
    assert [c["name"] for c in listed] == [c["name"] for c in nested("claims", "--json").object["claims"]]
    assert all(Path(c["file"]).is_relative_to(installed.where) for c in listed)
    made = installed.call("-m", "nested", "init", "model", "dormouse", cwd=tmp_path)
    assert made.code == 0, made.err
    assert (tmp_path / "dormouse.py").is_file()
    shown = installed.call("-m", "nested", "list", "model", "--config-dir", "conf", cwd=tmp_path)
    assert "dormouse" in shown.out


def test_the_command_itself_is_installed(installed: Installed) -> None:
    env = {**os.environ, "PYTHONPATH": str(installed.where)}
    script = installed.where / "bin" / "nested"
    made = subprocess.run([script, "list", "model"], cwd=installed.where, env=env, capture_output=True, check=False)
    assert made.returncode == 0
    assert b"hope_attention" in made.stdout


WRONG = {
    "out of bounds": (["model=rabbit", "model.ears=5"], "model.ears", ["5 is not allowed", "int >= 1 and <= 4"]),
    "no such word": (["model=rabbit", "model.fur=whit"], "model.fur", ["did you mean 'white'", "white | brown"]),
    "wrong type": (["stream=tea_party", "stream.guests=many"], "stream.guests", ["'many'", "int >= 2"]),
    "unknown key": (["method=hatter", "method.madnes=1"], "method.madnes", ["did you mean 'method.madness'"]),
    "their own refusal": (["stream=tea_party", "stream.guests=5"], "stream.guests", ["5 guests", "two by two"]),
    "bound of an optimizer": (["optim=cake", "optim.lr=0"], "optim.lr", ["0 is not allowed", "float > 0"]),
    "unknown choice": (["model=rabit"], "model", ["did you mean 'rabbit'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_their_wrong_values_get_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(THEIRS)
    arguments, key, words = WRONG[case]
    said = nested("run", *arguments, "tracking=off", "--config-dir", str(THEIRS / "wonderland" / "conf"), "--json")
    one_line(said, key, words)


def test_so_from_the_wheel(installed: Installed) -> None:
    arguments, key, words = WRONG["out of bounds"]
    one_line(installed.call("-m", "nested", "run", *arguments, "--config-dir", installed.conf, "--json"), key, words)


def one_line(said: Said, key: str | None, words: list[str]) -> None:
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert said.object["key"] == key
    for word in words:
        assert word in said.err


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = nested("run", "model={_target_: wonderland_of_nobody.Thing}", "tracking=off")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "no module named 'wonderland_of_nobody'" in said.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("_target_: [1", ["wrong.yaml", "line 1"]),
        ("ears: 3", ["_target_"]),
        ("_target_: wonderland.rabbit.Rabbit\nears: 9", ["model.ears", "9 is not allowed"]),
    ],
)
def test_a_file_of_theirs_that_is_wrong(text: str, words: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(THEIRS)
    folder = tmp_path / "it's [mine], ä=b" / "model"  # Hydra's grammar means something by most of these
    folder.mkdir(parents=True)
    (folder / "wrong.yaml").write_text(text)
    said = nested("run", "model=wrong", "tracking=off", "--config-dir", str(folder.parent))
    assert (said.code, said.err.count("\n")) == (2, 1)
    for word in words:
        assert word in said.err
