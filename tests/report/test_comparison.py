"""Comparisons: seeds gathered, paired differences as scipy's, sweeps as lines, tables that other programs read."""

import csv
import io
import json
import re

import numpy as np
import pytest
from fake_runs import COST, fake_run
from scipy import stats
from test_report import Page, printed

from nested import report
from nested.errors import UserError
from nested.report.groups import grouped
from nested.report.pairs import baselines, paired
from nested.report.pooling import pooled
from nested.report.sweeps import chosen, front, sweeps

HALVES = ({"seeds": (0, 1, 2)}, {"seeds": (3, 4)})


def made(root, *wanted):
    return [report.load(fake_run(root, f"r{k}", **w)) for k, w in enumerate(wanted)]


def seeds_of(run, name):
    return [s.metrics[name] for s in run.seeds]


def compared(tmp_path, runs, **wanted):
    comparison = report.Comparison.of(runs, **wanted)
    return Page(comparison.page(tmp_path / "out" / "report.html"))


# -- seeds of one configuration ----------------------------------------------------------------------------------------


def test_runs_of_one_config_are_one_row_over_all_their_seeds(tmp_path):
    runs = made(tmp_path, {"label": "a", **HALVES[0]}, {"label": "b", "seeds": (0,)}, {"label": "a", **HALVES[1]})
    whole = report.load(fake_run(tmp_path, "whole", label="a", seeds=(0, 1, 2, 3, 4)))
    one, other = pooled(runs)
    assert [s.seed for s in one.seeds] == [0, 1, 2, 3, 4]
    assert (one.planned, one.status, other.label) == (5, "done", "b")
    for name in ("acc", "learning_acc", "forgetting"):
        assert one.mean[name] == pytest.approx(whole.mean[name])
        assert one.ci95[name] == pytest.approx(whole.ci95[name])
        interval = stats.t.interval(0.95, 4, np.mean(seeds_of(one, name)), stats.sem(seeds_of(one, name)))
        assert one.mean[name] + one.ci95[name] == pytest.approx(interval[1])
    page = compared(tmp_path, runs)
    assert [(r["run"], r["seeds"]) for r in page.rows("forgetting")] == [("a", "5"), ("b", "1")]
    assert "3 runs compared" in page.text
    assert [r["id"] for r in page.rows("directory")] == ["r0", "r2", "r1"]


def test_what_has_no_influence_makes_no_other_configuration(tmp_path):
    idle = {"config": {"runs": "elsewhere", "tracking.enabled": False, "seed": 3, "prefix": None}, "seeds": (3,)}
    assert len(pooled(made(tmp_path, {"label": "a"}, {"label": "a", **idle}))) == 1
    rates = [{"label": "a", "config": {"optim.lr": lr}} for lr in (0.1, 0.2)]
    assert len(pooled(made(tmp_path / "rates", *rates))) == 2
    assert len(pooled(made(tmp_path / "labels", {"label": "before"}, {"label": "after"}))) == 2


def test_a_seed_that_was_run_twice_counts_once_and_it_is_said(tmp_path):
    runs = made(tmp_path, {"label": "a", "seeds": (0, 1)}, {"label": "a", "seeds": (1, 2), "noise": 0.1})
    (one,) = pooled(runs)
    assert [s.seed for s in one.seeds] == [0, 1, 2]
    assert one.seeds[1] is runs[1].seeds[0]
    text = compared(tmp_path, runs).text
    assert "“a”: seed 1 was run more than once; the last one counts, and not all came to the same." in text


def test_a_seed_that_is_done_is_not_replaced_by_one_that_is_not(tmp_path):
    runs = made(
        tmp_path, {"label": "a", "seeds": (0,)}, {"label": "a", "seeds": (0, 1), "statuses": ("diverged", "done")}
    )
    (one,) = pooled(runs)
    assert [s.status for s in one.seeds] == ["done", "done"]
    assert one.planned == 2


def test_seeds_from_other_versions_of_the_code_are_said(tmp_path):
    paths = [fake_run(tmp_path, f"r{k}", label="a", **half) for k, half in enumerate(HALVES)]
    file = paths[1] / "seed-3" / "environment.json"
    file.write_text(file.read_text().replace("abc123", "def456"))
    text = compared(tmp_path, [report.load(p) for p in paths]).text
    assert "“a”: seeds from different versions of the code (abc123, def456)." in text


def test_equal_seeds_on_other_data_are_not_gathered(tmp_path):
    runs = made(tmp_path, {"label": "a", "digest": "x"}, {"label": "a", "digest": "y"})
    assert len(pooled(runs)) == 2
    assert "2 different streams" in compared(tmp_path, runs).text


# -- reading little ----------------------------------------------------------------------------------------------------


def test_many_runs_are_read_from_their_results_alone(tmp_path):
    path = fake_run(tmp_path, anytime=True)
    known = report.load(path)
    for file in [*path.glob("seed-*/*"), path / "config.yaml"]:
        file.unlink()
    brief = report.load(path, whole=False)
    assert brief.mean == known.mean
    assert (brief.label, brief.stream, brief.scenario, brief.n) == ("run", "split_digits", "class", 5)
    assert np.array_equal(brief.matrices, known.matrices)
    assert [s.metrics for s in brief.seeds] == [s.metrics for s in known.seeds]
    assert [s.digest for s in brief.seeds] == [s.digest for s in known.seeds] == ["d1g3st0", "d1g3st1", "d1g3st2"]


def test_a_run_that_is_not_done_is_read_whole(tmp_path):
    path = fake_run(tmp_path, result=False, statuses=("done", "done", "unfinished"))
    assert len(report.load(path, whole=False).done) == 2


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("digests, groups", [("aa", 1), ("ab", 2), (("", ""), 2)], ids=["same", "other", "unknown"])
def test_streams_are_told_apart_by_their_data_and_without_it_by_their_settings(tmp_path, digests, groups, whole):
    paths = [
        fake_run(tmp_path, f"r{k}", seeds=(0,), digest=digest, config={"stream.per_class": 10 * (k + 1)})
        for k, digest in enumerate(digests)
    ]
    assert len(grouped([report.load(p, whole) for p in paths])) == groups


# -- paired differences ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["learning_acc", "acc", "forgetting"])
def test_pairs_are_those_of_scipy_over_common_seeds(tmp_path, name):
    a, b = made(tmp_path, {"seeds": (0, 1, 2, 3)}, {"seeds": (5, 3, 2, 1), "keeps": 0.6, "label": "b"})
    ours, theirs = ({s.seed: s.metrics[name] for s in r.seeds} for r in (a, b))
    x, y = ([values[s] for s in (1, 2, 3)] for values in (ours, theirs))
    found, wanted = paired(a, b, name), stats.ttest_rel(x, y)
    assert found.seeds == 3
    assert found.difference == pytest.approx(np.mean(x) - np.mean(y))
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
    low, high = wanted.confidence_interval(0.95)
    assert (found.difference - found.half, found.difference + found.half) == pytest.approx((low, high), rel=1e-9)


def test_validation_numbers_are_marked_and_stand_beside_no_p_of_the_test_part(tmp_path):
    one, other = made(tmp_path, {"label": "a"}, {"label": "b", "judged_on": "validation"})
    assert paired(other, one, "acc") is None
    assert [m.label for m in grouped([one, other])[0].members] == ["a", "b (validation)"]


def test_what_cannot_be_paired_has_no_p(tmp_path):
    a, again, alone, elsewhere, joint = made(
        tmp_path, {}, {"label": "b"}, {"seeds": (0,), "label": "c"}, {"seeds": (7, 8), "label": "d"},
        {"joint": True, "label": "e"},
    )  # fmt: skip
    assert paired(a, again, "acc") == (3, 0.0, 0.0, None)
    assert paired(alone, a, "acc").p is None
    assert paired(alone, a, "acc").half is None
    assert paired(elsewhere, a, "acc") is None
    assert paired(joint, a, "forgetting") is None


def test_the_page_has_every_configuration_against_the_baseline(tmp_path):
    a, b, c = runs = made(tmp_path, *({"label": x, "keeps": k} for x, k in (("a", 0.5), ("b", 0.6), ("c", 0.7))))
    for baseline, other in ((None, a), ("b", b), ("r2", c)):
        page = compared(tmp_path, runs, baseline=baseline)
        rows = page.rows("common seeds")
        assert f"Against the baseline “{other.label}”" in page.text
        assert [r["run"] for r in rows] == [r.label for r in runs if r is not other]
        for row, run in zip(rows, (r for r in runs if r is not other)):
            pair = paired(run, other, "forgetting")
            assert row["forgetting"] == f"{pair.difference:+.3f} ± {pair.half:.3f}"
            assert row["FLOPs"] == "× 1"
    assert "not corrected for there being 2 comparisons" in page.text
    assert "against “a”" in printed_tables(runs)


def printed_tables(runs):
    from rich.console import Console

    console = Console(width=160, file=io.StringIO())
    for table in report.Comparison.of(runs).tables():
        console.print(table)
    return console.file.getvalue()


def test_a_baseline_that_is_not_there_is_refused(tmp_path):
    groups = grouped(made(tmp_path, {"label": "mlp naive"}, {"label": "mlp replay"}))
    with pytest.raises(UserError, match=r"'mlp nave' is not among .*did you mean 'mlp naive'"):
        baselines(groups, "mlp nave")
    with pytest.raises(
        UserError, match=r"means 2 of them: mlp naive; mlp replay; give one of these, or the id of a run$"
    ):
        baselines(groups, "mlp")


@pytest.mark.parametrize(
    "one, other, words",
    [
        ({"stream": "split_mnist"}, {"scenario": "domain"}, ("split_mnist", "split_digits")),
        ({"scenario": "domain"}, {}, ("domain scenario", "class scenario")),
        ({"n": 4}, {}, ("4 experiences", "5 experiences")),
        (
            {"config": {"stream.seed": 1}, "digest": "x"},
            {"config": {"stream.seed": 2}},
            ("stream.seed=1", "stream.seed=2"),
        ),
        ({"digest": "x"}, {"digest": "y"}, ("data x0", "data y0")),
    ],
)
def test_an_equal_label_on_another_stream_says_which_and_has_its_own_colour(tmp_path, one, other, words):
    groups = grouped(made(tmp_path, {"label": "a", **one}, {"label": "a", **other}, {"label": "b", **other}))
    members = [m for g in groups for m in g.members]
    assert [m.label for m in members] == [f"a, {words[0]}", f"a, {words[1]}", "b"]
    assert [m.slot for m in members] == [0, 1, 2]
    assert baselines(groups, "a") == members[:2]  # in each stream its own
    assert [m.label for m in baselines(groups, f"a, {words[1]}")] == [f"a, {words[0]}", f"a, {words[1]}"]
    assert [m.label for m in baselines(groups, "b")] == [f"a, {words[0]}", "b"]


def test_labels_on_three_streams_say_all_in_which_they_differ(tmp_path):
    streams = ({"scenario": "domain"}, {}, {"stream": "split_mnist"})
    assert [m.label for g in grouped(made(tmp_path, *({"label": "a", **s} for s in streams))) for m in g.members] == [
        "a, split_digits, domain scenario", "a, split_digits, class scenario", "a, split_mnist, class scenario",
    ]  # fmt: skip


def test_a_beginning_that_means_two_of_a_stream_is_no_baseline(tmp_path):
    groups = grouped(made(tmp_path, {"label": "one"}, {"label": "other"}, {"label": "one", "stream": "split_mnist"}))
    with pytest.raises(UserError, match=r"'o' means 3 of them: one, .*; other; one, .*; without --baseline"):
        baselines(groups, "o")


def test_each_stream_has_a_baseline_of_its_own(tmp_path):
    runs = made(tmp_path, *({"label": x, "scenario": s} for x in "ab" for s in ("class", "domain")))
    page = compared(tmp_path, runs, baseline="r2")  # b, class
    assert "Against the baseline “b, class scenario”" in page.text
    assert "Against the baseline “a, domain scenario”" in page.text
    assert "These runs are on 2 different streams" in page.text


# -- sweeps ------------------------------------------------------------------------------------------------------------


def swept(root, configs, **wanted):
    runs = made(root, *({"label": f"x{k}", "seeds": (0,), "config": c, **wanted} for k, c in enumerate(configs)))
    (group,) = grouped(runs)
    return group, sweeps(group)


def test_configurations_that_differ_in_a_rate_are_one_line_in_its_order(tmp_path):
    rates = [{"optim.lr": lr} for lr in (0.3, 0.01, 0.1)]
    other = {"optim.lr": 0.1, "model.width": 64}
    _, (line, single) = swept(tmp_path, [*rates, other])
    assert (line.keys, line.values, line.name) == (("optim.lr",), [0.01, 0.1, 0.3], "optim.lr")
    assert [m.label for m in line.members] == ["x1", "x2", "x0"]
    assert (single.label, single.keys) == ("x3", ())


def test_periods_that_go_up_together_are_one_sweep(tmp_path):
    configs = [{"levels.a.period_steps": k, "levels.b.period_steps": 8 * k} for k in (1, 4, 2)]
    _, (line,) = swept(tmp_path, configs)
    assert (line.name, line.values) == ("levels.*.period_steps", [1, 2, 4])


def test_two_values_that_go_their_own_ways_are_lines_along_the_longer_one(tmp_path):
    grid = [{"levels.base": b, "optim.lr": lr} for b in (2, 8) for lr in (0.1, 0.2, 0.3)]
    _, found = swept(tmp_path, grid)
    assert [(s.name, s.values) for s in found] == [("optim.lr", [0.1, 0.2, 0.3])] * 2
    assert {m.run.config["levels.base"] for m in found[0].members} == {2}
    assert [s.label.rpartition(", ")[2] for s in found] == ["levels.base=2", "levels.base=8"]
    scattered = [{"levels.base": b, "levels.ratio": r} for b, r in ((2, 0.3), (3, 0.1), (5, 0.2))]
    _, found = swept(tmp_path / "scattered", scattered)
    assert all(s.keys == () for s in found)


def test_one_config_under_two_labels_is_two_lines(tmp_path):
    runs = made(tmp_path, *({"label": x, "config": {"optim.lr": lr}} for x in ("old", "new") for lr in (0.1, 0.2)))
    (group,) = grouped(runs)
    assert [(s.label, len(s.members)) for s in sweeps(group)] == [("old", 2), ("new", 2)]


def test_the_frontier_says_flops_and_whether_it_has_points_enough(tmp_path, monkeypatch):
    monkeypatch.setitem(COST, "flops", 3_200_000_000)
    runs = made(tmp_path, *({"label": "a", "config": {"optim.lr": lr}, "learns": 0.5 + lr} for lr in (0.1, 0.2, 0.3)))
    page = compared(tmp_path, runs)
    assert "“a” has 3 points of optim.lr: a frontier needs at least 5." in page.text
    assert "at 3.2 G FLOPs" in page.svg_text
    (row,) = page.rows("swept")
    means = [r.mean["learning_acc"] for r in runs]
    assert (row["line"], row["values"], row["points"], row["FLOPs"]) == ("a", "0.1, 0.2, 0.3", "3", "3.2 G")
    assert row["learning accuracy"] == f"{min(means):.3f} to {max(means):.3f}"
    monkeypatch.setitem(COST, "flops", 6_400_000_000)
    more = [
        report.load(fake_run(tmp_path / "more", f"m{k}", label="b", config={"optim.lr": k / 10, "model.width": 9}))
        for k in range(5)
    ]
    page = compared(tmp_path, [*runs, *more])
    assert "“b” has" not in page.text
    assert "6.4 G FLOPs" in page.svg_text
    assert "at 3.2 G FLOPs" not in page.svg_text


def test_without_a_sweep_it_is_said_that_there_is_no_frontier(tmp_path):
    page = compared(tmp_path, made(tmp_path, {"label": "a"}, {"label": "b", "config": {"model.width": 3}}))
    assert "No two configurations differ only in a rate or in a period" in page.text


def test_no_point_of_the_front_is_beaten():
    points = [(1, 0.5), (2, 0.4), (2, 0.7), (3, 0.7), (4, 0.9), (1, 0.3)]
    assert front(points, lower=False) == [(1, 0.5), (2, 0.7), (4, 0.9)]
    assert front(points, lower=True) == [(1, 0.3)]


def test_of_many_configurations_the_best_and_the_baseline_have_curves(tmp_path):
    configs = [{"optim.lr": k / 100, "model.width": k % 3} for k in range(18)]
    group, lines = swept(tmp_path, configs)
    baseline = group.members[7]
    shown = chosen(group, lines, baseline)
    assert len(shown.members) == 4
    assert baseline in shown.members
    best = min(group.members, key=lambda m: -m.run.mean["acc"])
    assert best in shown.members
    page = compared(tmp_path, group.runs)
    assert "are of all 18; curves, matrices, levels, costs and seeds of 4" in page.text
    assert len(page.rows("FWT")) == 18
    assert len(list((tmp_path / "out" / "figures").glob("matrix-*.png"))) == 4


# -- the page and other programs ---------------------------------------------------------------------------------------


def test_any_two_configs_can_be_set_beside_each_other(tmp_path):
    wanted = [
        {"label": "a", "config": {"optim.lr": 0.1, "model.x": '"><script>'}},
        {"label": "b", "config": {"optim.lr": 0.2}},
    ]
    page = compared(tmp_path, made(tmp_path, *wanted, {"label": "c"}))
    told = [json.loads(a["data-config"]) for tag, a in page.elements if tag == "option"]
    assert told == [{"model.x": '"><script>', "optim.lr": "0.1"}, {"optim.lr": "0.2"}, {"optim.lr": "0.1"}]
    assert len(page.scripts) == 1


def test_runs_that_are_tracked_lead_to_their_pages(tmp_path):
    stores = ("sqlite:////home/me/mlflow.db nested", "https://me:secret@host:8080/mlflow/ my tries", "http://h nested")
    found = []
    for k, store in enumerate(stores):
        path = fake_run(tmp_path, f"r{k}")
        (path / "tracking.json").write_text(json.dumps({"format": 1, "stores": {store: {"run": f"{k}abc"}}}))
        found.append(report.load(path).tracked)
    assert found == [
        "http://127.0.0.1:5000/#/runs/0abc", "https://host:8080/mlflow/#/runs/1abc", "http://h/#/runs/2abc",
    ]  # fmt: skip
    page = Page(report.page([report.load(tmp_path / "r1")], tmp_path / "p.html"))
    assert [a["href"] for tag, a in page.elements if tag == "a"] == [found[1]]
    assert "secret" not in page.source


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"stores": []}', '{"stores": {"http://h x": {"run": "javascript:1"}}}']
)
def test_a_tracker_that_remembers_nothing_gives_no_link(tmp_path, content):
    path = fake_run(tmp_path)
    (path / "tracking.json").write_text(content)
    assert report.load(path).tracked is None


def test_the_csv_holds_what_the_runs_do(tmp_path):
    a, b = made(tmp_path, {"label": "a,b"}, {"label": "=c", "seeds": (1, 2), "keeps": 0.7})
    first, second = csv.DictReader(io.StringIO(report.Comparison.of([a, b]).sheet("csv")))
    assert (first["configuration"], second["seeds"], second["baseline"]) == ("a,b", "1 2", "a,b")
    assert float(second["forgetting"]) == b.mean["forgetting"]
    assert float(second["forgetting_ci95"]) == b.ci95["forgetting"]
    assert float(second["flops"]) == COST["flops"]
    pair = paired(b, a, "acc")
    assert (float(second["acc_difference"]), float(second["acc_p"])) == (pair.difference, pair.p)
    assert (first["acc_p"], first["gain"], second["common_seeds"]) == ("", "", "2")


def test_the_latex_table_has_its_numbers_and_no_command_of_a_label(tmp_path):
    (run,) = made(tmp_path, {"label": "a_b & 50% \\input{x} <$>"})
    text = report.Comparison.of([run]).sheet("latex")
    assert r"a\_b \& 50\% \textbackslash{}input\{x\} \textless{}\$\textgreater{} & 3" in text
    assert rf"${run.mean['acc']:.3f} \pm {run.ci95['acc']:.3f}$" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\bottomrule") == 1
    columns = re.search(r"\{(lr+)\}", text)[1]
    assert all(line.count(" & ") == len(columns) - 1 for line in text.splitlines() if line.endswith(r"\\"))


def test_the_terminal_shows_the_best_of_many(tmp_path):
    runs = [report.load(fake_run(tmp_path, f"r{k}", seeds=(0,), n=2, learns=0.5 + k / 100)) for k in range(5)]
    from rich.console import Console

    console = Console(width=100, file=io.StringIO())
    console.print(report.table(runs, 3))
    acc = sorted(runs, key=lambda r: -r.mean["acc"])
    text = console.file.getvalue()
    assert all(r.label in text for r in acc[:3])
    assert not any(r.label in text for r in acc[3:])
    assert "and 2 of lower ACC" in text
    assert "lower ACC" not in printed(runs)
