"""Claims are read without running them, measured in a process of their own, and their outcomes are kept."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nested import claims as module
from nested.claims import Claim, check, claims
from nested.errors import NestedError, UserError

TOY = """
\"\"\"The mean of the seeds is two.\"\"\"
import torch_of_another_planet  # never imported when the list is read

"""

CLAIM = """
from nested.claims import Claim

CLAIM = Claim(
    name={name!r}, statement="the mean of the seeds is two", command=["python", "toy.py"], budget_seconds=20,
    metric={metric!r}, expected={expected}, tolerance=0.25, hardware="any", {more}
)


def measure(seeds):
    print("on the way")
    return sum(seeds) / len(seeds)
"""


def write(folder: Path, file: str = "toy.py", before: str = "", **values: object) -> Path:
    known = {"name": "toy", "metric": "measure", "expected": 2.0, "more": "seeds=(1, 2, 3)", **values}
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(before + CLAIM.format(**known))
    return folder


def test_the_list_runs_nothing(tmp_path: Path):
    folder = write(tmp_path / "experiments", before=TOY)
    (folder / "_shared.py").write_text("raise RuntimeError('run')")
    [claim] = claims(folder)
    assert (claim.name, claim.expected, claim.tolerance, claim.slow) == ("toy", 2.0, 0.25, False)
    assert claim.seeds == (1, 2, 3)
    assert claim.file == str((folder / "toy.py").resolve())
    assert json.dumps(vars(claim))


def test_the_list_imports_no_torch():
    program = "import sys; from nested.claims import claims; claims(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_a_claim_that_holds_is_recorded_with_its_date(tmp_path: Path):
    [claim] = claims(write(tmp_path / "experiments"))
    out = tmp_path / "claims.jsonl"
    outcome = check(claim, out)
    check(claim, out)
    assert outcome.holds
    assert outcome.measured == 2.0
    assert outcome.problem is None
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0]["claim"] == "toy"
    assert lines[0]["date"].startswith("20")
    assert lines[0]["machine"]["packages"]["torch"]
    assert "toy holds: measured 2, expected 2 within 0.25" in str(outcome)


@pytest.mark.parametrize("expected, holds", [(2.25, True), (1.75, True), (2.26, False)])
def test_the_tolerance_is_a_distance(tmp_path: Path, expected: float, holds: bool):
    [claim] = claims(write(tmp_path / "experiments", expected=expected))
    assert check(claim).holds is holds


def test_a_dotted_metric_is_read_from_what_the_command_prints(tmp_path: Path):
    program = 'import json; print("first"); print(json.dumps({"runs": [{"acc": 1}, {"acc": 2.1}]}))'
    claim = Claim("c", "s", [sys.executable, "-c", program], 20, "runs.1.acc", 2.0, 0.2, file=__file__)
    assert check(claim).measured == 2.1


@pytest.mark.parametrize(
    "program, problem",
    [
        ("print('no json')", "no number in the last line"),
        ("pass", "no number in the last line"),
        ("print('{}')", "nothing at 'acc'"),
        ("""print('{"acc": null}')""", "no finite number"),
        ("""print('{"acc": NaN}')""", "no finite number"),
        ("""print('{"acc": 2}'); raise SystemExit(3)""", "exit code 3"),
    ],
)
def test_what_gives_no_number_does_not_hold(program: str, problem: str):
    outcome = check(Claim("c", "s", [sys.executable, "-c", program], 20, "acc", 2.0, 0.2, file=__file__))
    assert not outcome.holds
    assert outcome.measured is None
    assert problem in (outcome.problem or "")


def test_a_command_that_is_not_there(tmp_path: Path):
    outcome = check(Claim("c", "s", [str(tmp_path / "nothing")], 20, "acc", 2.0, 0.2, file=__file__))
    assert "cannot start" in (outcome.problem or "")


def test_a_measurement_far_over_its_budget_is_stopped():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    outcome = check(Claim("c", "s", command, 0.1, "acc", 2.0, 0.2, file=__file__))
    assert outcome.seconds < 10
    assert "3 times its budget" in (outcome.problem or "")


def test_an_outcome_that_cannot_be_kept_is_still_told(tmp_path: Path):
    [claim] = claims(write(tmp_path / "experiments"))
    with pytest.raises(NestedError, match="the outcome was: toy holds"):
        check(claim, tmp_path / "no" / "such" / "folder.jsonl")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"more": "slow=1 > 0"}, "literals"),
        ({"more": "badget=1"}, "badget"),
        ({"more": "**{}"}, "write CLAIM = Claim"),
        ({"expected": "float('nan')"}, "literals"),
        ({"expected": "1e999"}, "finite"),
    ],
)
def test_a_claim_that_cannot_be_read_names_its_file(tmp_path: Path, values: dict[str, object], message: str):
    with pytest.raises(UserError, match=message) as told:
        claims(write(tmp_path / "experiments", **values))
    assert "toy.py" in str(told.value)


def test_a_metric_that_nothing_gives(tmp_path: Path):
    folder = write(tmp_path / "experiments", metric="mesure")
    file = folder / "toy.py"
    file.write_text(file.read_text().replace('command=["python", "toy.py"]', "command=[]"))
    with pytest.raises(UserError, match="'mesure' is no function"):
        claims(folder)


def test_two_claims_of_one_name(tmp_path: Path):
    write(tmp_path / "experiments", file="other.py")
    with pytest.raises(UserError, match=r"other\.py and .*toy\.py"):
        claims(write(tmp_path / "experiments"))


def test_the_readme_says_of_each_claim_what_it_expects():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for claim in claims():
        (row,) = [line for line in readme.splitlines() if f"`nested claims {claim.name}`" in line]
        wanted = f"expected {claim.expected:g} +- {claim.tolerance:g}"
        assert re.sub(r"(?<![\d.])0\.", ".", wanted) in row


def test_our_own_claims_can_be_read():
    assert module.home() is None or all(c.statement and c.hardware for c in claims())
