"""Pages of a study, of a contest, and of levels under the microscope."""

from pathlib import Path

import pytest
from tuning.landscape import PERIOD, RATE, run_planted, small_study, worked

from nested.config import compose
from nested.contest.run import contest
from nested.microscope.examine import examine
from nested.report.document import page as page_of_runs
from nested.report.reading import load
from nested.run import run
from nested.tuning import page as pages

NASTY = "<script>alert(1)</script>"
FAST = ["tracking=off", "trainer.progress=false", "trainer.threads=1", "trainer.allow_idle=true"]
LEVELS = "levels={fast: {params: rest, period_steps: 1}, slow: {params: ['head.*'], period_steps: 4}}"


def check_text(found) -> None:
    """What a user typed is text, and nothing of it has run (the fixture asks that no dialog was opened)."""
    assert found.page.locator("script").count() == 1
    assert NASTY in found.page.text_content("body")


@pytest.mark.parametrize("objective", ["acc", "[acc,forgetting,flops]"])
def test_a_study(objective: str, tmp_path: Path, opened):
    words = [PERIOD, RATE, "seeds=2", "tune.n_trials=24", "tune.startup=3", f"tune.objective={objective}"]
    study = worked(small_study(tmp_path, *words, f"label='{NASTY}'"), run_planted)
    found = opened(pages.write(study))
    assert found.undrawn() == []
    assert found.page.locator("figure svg").count() >= 7
    check_text(found)
    rows = found.rows("experiences")
    assert [int(row[0].split(" ")[0]) for row in rows] == list(range(24))
    pruned = sum(t.state.name == "PRUNED" for t in study.trials())
    assert pruned
    found.page.locator("#trials").get_by_role("searchbox").fill("pruned")
    assert [row[1] for row in found.rows("experiences")] == ["pruned"] * pruned
    found.page.locator("#trials").get_by_role("searchbox").fill("")
    found.page.locator("#trials").get_by_role("button", name="acc", exact=True).click()
    values = [float(row[2]) for row in found.rows("experiences") if row[1] == "done"]
    assert values == sorted(values, reverse=True)


def test_a_contest(tmp_path: Path, opened):
    words = ["model.hidden=[8]", "prefix=2", "trainer.epochs=2", "seeds=2", "contest.factors=[0.5,1]", "workers=1"]
    learns = ["optim=sgd", "optim.lr=0.2", "trainer.batch_size=32"]
    made = contest([*FAST, *words, *learns, LEVELS, f"label='{NASTY}'", f"runs={tmp_path}"], None, lambda _: None)
    found = opened(made.path / "report.html")
    assert found.undrawn() == []
    assert found.page.locator("figure svg").count() == 2
    check_text(found)
    assert made.sentences[0] in found.page.text_content("#verdict")
    arms = len(made.record["arms"])
    assert len(found.rows("who forgets less")) == arms
    search = found.page.locator("#frontier").get_by_role("searchbox")
    search.fill("replay")
    assert len(found.rows("who forgets less")) == 1
    search.fill("")
    found.page.locator("#frontier").get_by_role("button", name="ACC", exact=True).click()
    values = [float(row[3].split(" ")[0]) for row in found.rows("who forgets less")]
    assert values == sorted(values, reverse=True)


def test_levels_under_the_microscope(tmp_path: Path, opened):
    more = ["model.hidden=[8]", "trainer.epochs=1", "evaluate.snapshots=true", "evaluate.anytime_ticks=true", "seeds=2"]
    path = run(compose([*FAST, *more, LEVELS, f"label='{NASTY}'", f"runs={tmp_path}"])).path
    plain = opened(page_of_runs([load(path)], path / "report.html")).page.locator("figure svg").count()
    examine(path)
    found = opened(page_of_runs([load(path)], path / "report.html"))
    assert found.undrawn() == []
    assert found.page.locator("figure svg").count() > plain
    check_text(found)
