"""What a real run tells a tracker: labels to group by, its data, and the curves of learning and forgetting."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nested import rundir
from nested.config import compose
from nested.metrics import forgetting
from nested.result import Result
from nested.run import run_trial

QUICK = ("model.hidden=[]", "trainer.epochs=1", "trainer.progress=false", "tracking=off")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[dict[str, Any]]]:
    path = tmp_path_factory.mktemp("told") / "run"
    result = run_trial(compose([*QUICK, "method=replay"]), path, lambda *_: None)
    return result, rundir.SeedDir(Path(path / "seed-0")).events()


def test_it_can_be_grouped_by_whatever_was_chosen(told: tuple[Result, list[dict[str, Any]]]) -> None:
    (tags,) = (e["values"] for e in told[1] if e["event"] == "tags")
    expected = {
        "stream": "split_digits", "scenario": "class", "model": "mlp", "method": "replay", "levels": "single",
        "optim": "adamw",
    }  # fmt: skip
    assert expected.items() <= tags.items()


def test_every_experience_is_an_input(told: tuple[Result, list[dict[str, Any]]]) -> None:
    data = [e for e in told[1] if e["event"] == "dataset"]
    assert [e["experience"] for e in data] == list(range(5))
    assert len({e["name"] for e in data}) == 5


def test_forgetting_so_far_is_a_curve_beside_what_was_learned(told: tuple[Result, list[dict[str, Any]]]) -> None:
    result, events = told
    rows = {e["step"]: e["values"] for e in events if e["event"] == "metrics" and "experience/test/mean" in e["values"]}
    matrix = np.array(result.runs[0]["matrix"])
    curve = {k: v.get("experience/test/forgetting") for k, v in rows.items()}
    assert curve == {0: None, 1: None, **{k: pytest.approx(forgetting(matrix[:k, :k])) for k in range(2, 6)}}
    assert curve[5] == result.runs[0]["forgetting"]
    assert all("experience/test/learned" in values for k, values in rows.items() if k)
