"""Pages and tables say what the run directories say, hold nothing that runs, and load nothing."""

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import fake_runs
import numpy as np
import pytest
from fake_runs import fake_run
from rich.console import Console

import nested.report
from nested import report
from nested.errors import UserError

NASTY = '<script>alert(1)</script> $x_ "><img src=x onerror=alert(2)> {{7*7}} \x1b[31m_'
SHOWN = '<script>alert(1)</script> $x_ "><img src=x onerror=alert(2)> {{7*7}} \N{REPLACEMENT CHARACTER}[31m_'
VOID = {"meta", "br", "img", "link", "input", "hr"}
# Right answers of 10 for 3 experiences. By hand: learning accuracy (9+8+10)/30, ACC (4+6+10)/30,
# forgetting (9-4 + 8-6)/20, BWT ((4-9)+(6-8))/20, FWT ((2-1)+(3-1))/20.
ROWS = [[1, 1, 1], [9, 2, 1], [7, 8, 3], [4, 6, 10]]


class Page(HTMLParser):
    """What a browser would make of a page: elements, attributes, text, tables."""

    def __init__(self, path):
        super().__init__()
        self.source = Path(path).read_text(encoding="utf-8")
        self.elements, self.scripts, self.tables, self.svg_text = [], [], [], ""
        self.open: list[str] = []
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(t for kind, t in self._texts if kind not in ("script", "style")))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self._texts = [*getattr(self, "_texts", []), (self.open[-1] if self.open else "", data)]
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        if "svg" in self.open:
            self.svg_text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def rows(self, heading):
        """The rows of the first table that has `heading`, as {heading: cell}."""
        table = next(t for t in self.tables if heading in t[0])
        return [dict(zip(table[0], row)) for row in table[1:]]

    def ids(self):
        return [a["id"] for _, a in self.elements if "id" in a]


def render(tmp_path, *paths):
    return Page(report.page([report.load(p) for p in paths], tmp_path / "out" / "report.html"))


def printed(runs, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(report.table(runs))
    return console.file.getvalue()


# -- what is said ------------------------------------------------------------------------------------------------------


def test_numbers_on_the_page_are_those_of_the_matrix(tmp_path):
    path = fake_run(tmp_path, label="mine", seeds=(4,), n=3, total=10, rows={4: ROWS})
    row = render(tmp_path, path).rows("forgetting")[0]
    assert row["run"] == "mine"
    names = ("learning accuracy", "ACC", "forgetting", "BWT", "FWT", "steps", "parameters")
    assert [row[n] for n in names] == ["0.900", "0.667", "0.350", "-0.350", "0.150", "800", "17,000"]


def test_means_and_intervals_are_over_seeds(tmp_path):
    other = [[1, 1, 1], [7, 2, 1], [7, 8, 3], [5, 6, 9]]  # learning accuracy 0.8, ACC 2/3, forgetting 0.2
    path = fake_run(tmp_path, seeds=(0, 1), n=3, total=10, rows={0: ROWS, 1: other})
    page = render(tmp_path, path)
    row = page.rows("forgetting")[0]
    half = 12.706204736 * np.std([0.9, 0.8], ddof=1) / 2**0.5
    assert row["learning accuracy"] == f"0.850 ± {half:.3f}"
    assert row["forgetting"] == f"0.275 ± {12.706204736 * np.std([0.35, 0.2], ddof=1) / 2**0.5:.3f}"
    assert [(r["seed"], r["forgetting"], r["status"]) for r in page.rows("seed")] == [
        ("0", "0.350", "done"),
        ("1", "0.200", "done"),
    ]
    for cell in (".80", ".70", ".45", ".95"):  # means of 9 and 7, 7 and 7, 4 and 5, 10 and 9
        assert cell in page.svg_text


def test_a_run_without_result_is_averaged_over_its_finished_seeds(tmp_path):
    path = fake_run(tmp_path, n=3, result=False, statuses=("done", "done", "unfinished"))
    values = [fake_runs.metrics(fake_runs.counts(s, n=3), 90)["acc"] for s in (0, 1)]
    mean, half = fake_runs.mean_and_half_width(values)
    run = report.load(path)
    assert run.mean["acc"] == pytest.approx(mean)
    assert run.ci95["acc"] == pytest.approx(half)


def test_a_result_older_than_its_seeds_is_not_believed(tmp_path):
    path = fake_run(tmp_path, seeds=(0, 1), statuses=("done", "interrupted"))
    fake_run(tmp_path / "later", "run", seeds=(0, 1))
    for name in ("summary.json", "matrix.json", "events.jsonl"):
        (path / "seed-1" / name).write_bytes((tmp_path / "later" / "run" / "seed-1" / name).read_bytes())
    run = report.load(path)
    assert len(run.done) == 2
    assert run.mean["acc"] == pytest.approx(report.load(tmp_path / "later" / "run").mean["acc"])


def test_the_terminal_shows_every_number_at_80_columns(tmp_path):
    runs = [
        report.load(fake_run(tmp_path, f"r{k}", label=f"[bold]a rather long label {k}", learns=0.9 - k / 10))
        for k in (0, 1)
    ]
    shown = printed(runs)
    for run in runs:
        for name in ("learning_acc", "acc", "forgetting", "bwt"):
            assert f"{run.mean[name]:.3f}" in shown
            assert f"±{run.ci95[name]:.3f}" in shown
    assert shown.count("17,000") == 2
    assert "[bold]a" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_forgetting_is_never_without_learning_accuracy(tmp_path):
    path = fake_run(tmp_path, anytime=True, views=("model", "ema"))
    page = render(tmp_path, path)
    assert "forgetting" in printed([report.load(path)])
    assert "accuracy" in printed([report.load(path)])
    for table in page.tables:
        assert ("forgetting" in table[0]) == ("learning accuracy" in table[0])


def test_sets_of_weights_are_judged_apart(tmp_path):
    path = fake_run(tmp_path, seeds=(0,), n=3, total=10, rows={0: ROWS}, views=("model", "ema-64"))
    about = json.loads((path / "seed-0" / "matrix.json").read_text())
    about["views"]["ema-64"]["test"]["sum"] = [[1, 1, 1], [6, 1, 1], [6, 6, 1], [6, 6, 6]]
    (path / "seed-0" / "matrix.json").write_text(json.dumps(about))
    rows = render(tmp_path, path).rows("weights")
    assert [(r["weights"], r["ACC"], r["forgetting"]) for r in rows] == [
        ("model", "0.667", "0.350"),
        ("ema-64", "0.600", "0.000"),
    ]


def test_a_level_on_the_token_clock_is_named_and_counts_no_parameter_twice(tmp_path):
    reading = {"name": "reading", "clock": "token", "period": 4, "parameters": 4000, "updates": None, "eta": 0.05}
    page = render(tmp_path, fake_run(tmp_path, levels=(*fake_runs.LEVELS, reading)))
    names = ("level", "learns every", "share", "updates", "outer rate lr", "inner rate eta")
    rows = [tuple(r[c] for c in names) for r in page.rows("level")]
    assert rows[0] == ("fast", "step", "52.9%", "800", "0.1", "–")
    assert rows[2:] == [
        ("slow", "8 steps", "23.5%", "100", "0.1", "–"),
        ("reading", "4 tokens", "–", "in each sequence", "–", "0.05"),
    ]
    assert "reading, every 4 tokens" in page.svg_text
    assert "gradient descent within a sequence" in page.text
    assert "within a sequence" not in render(tmp_path, fake_run(tmp_path, "plain")).text


RIGHT = [[1, 1, 1], [9, 2, 1], [7, 9, 3], [5, 7, 10]]  # positions of 10


@pytest.mark.parametrize("finished", [True, False])
def test_right_positions_stand_beside_exact_match(tmp_path, finished):
    told = {"statuses": () if finished else ("unfinished",), "result": finished}
    rows = {s: [[0, 0, 0]] * 4 for s in (0, 1)}
    path = fake_run(tmp_path, seeds=(0, 1)[: 1 + finished], n=3, total=10, rows=rows, positions=RIGHT, **told)
    run = report.load(path)
    assert run.positions.shape == run.matrices.shape == (1 + finished, 4, 3)
    reached = 4 if finished else 2
    assert np.array_equal(run.positions[0, :reached], np.array(RIGHT[:reached]) / 10)
    page = render(tmp_path, path)
    assert "Accuracy is exact match" in page.text
    assert {".90", ".20", "positions right"} <= set(re.findall(r"\.\d+|positions right", page.svg_text))
    assert len(list((tmp_path / "out" / "figures").glob("positions-*.png"))) == 1


def test_right_positions_are_a_metric_of_sequences_alone(tmp_path):
    plain, fine = fake_run(tmp_path, "plain"), fake_run(tmp_path, "fine", seeds=(0,), n=5, positions=[[9] * 5] * 6)
    for name in ("summary", "matrix"):
        file = fine / "seed-0" / f"{name}.json"
        about = json.loads(file.read_text())
        (about if name == "summary" else about["metrics"])["positions"] = 0.4321
        file.write_text(json.dumps(about))
    (fine / "result.json").unlink()
    assert render(tmp_path, fine).rows("forgetting")[0]["positions right"] == "0.432"
    assert "0.432" in printed([report.load(fine)])
    assert "every judged position" in " ".join(printed([report.load(fine)]).split())
    assert "positions" not in printed([report.load(plain)])
    assert "exact match" not in render(tmp_path, plain).source


def test_the_training_loss_is_drawn_as_a_mean_over_seeds(tmp_path):
    run = report.load(path := fake_run(tmp_path, seeds=(0, 1), n=3))
    assert [s.training for s in run.seeds] == [{50: 1.9, 100: 1.8, 150: 1.7}, {50: 2.9, 100: 2.8, 150: 2.7}]
    page = render(tmp_path, path)
    assert "training loss" in page.svg_text
    assert (tmp_path / "out" / "figures" / "loss.png").is_file()


def test_equal_labels_are_told_apart_by_what_differs(tmp_path):
    def labels(name, *wanted):
        paths = [fake_run(tmp_path / name, f"r{k}", label="mine", seeds=(0,), **w) for k, w in enumerate(wanted)]
        return [row["run"] for row in render(tmp_path / name, *paths).rows("forgetting")]

    chosen = [
        {"choices": {"optim": "sgd", "tracking": "off"}, "config": {"optim.momentum": 0.9}},
        {"choices": {"optim": "adamw"}, "config": {"optim.betas": [0.9, 0.99], "seeds": 3}},
    ]
    assert labels("choices", *chosen) == ["mine, optim=sgd", "mine, optim=adamw"]
    rates = [{"config": {"optim.lr": r, "label": str(r)}} for r in (0.1, 0.2)]
    assert labels("values", *rates) == ["mine, optim.lr=0.1", "mine, optim.lr=0.2"]
    assert labels("nothing", {}, {}) == ["mine [r0]", "mine [r1]"]
    many = {f"model.{k}": 1 for k in "abcd"}
    assert labels("too much", {}, {"config": many}) == ["mine [r0]", "mine [r1]"]
    assert labels("two of three", *rates, rates[0]) == [
        "mine, optim.lr=0.1 [r0]",
        "mine, optim.lr=0.2",
        "mine, optim.lr=0.1 [r2]",
    ]


def test_anytime_costs_levels_and_data_are_there(tmp_path):
    page = render(
        tmp_path, fake_run(tmp_path, seeds=(0,), anytime=True, command=("nested", "run", "seed=0", "label=a b"))
    )
    assert page.rows("min-ACC")[0]["WC-ACC"] == "0.420"
    assert page.rows("peak memory")[0]["peak memory"] == "512 MiB"
    assert [(r["level"], r["share"], r["updates"]) for r in page.rows("level")] == [
        ("fast", "52.9%", "800"),
        ("mid", "23.5%", "400"),
        ("slow", "23.5%", "100"),
    ]
    data = page.rows("training")[1]
    assert (data["experience"], data["training"], data["data"]) == ("2", "251", "split_digits 2 3 (classes 2, 3)")
    assert "nested run seed=0 'label=a b'" in page.text
    assert "Anytime accuracy" in page.text


# -- what must not happen ----------------------------------------------------------------------------------------------


def nasty_run(tmp_path):
    return fake_run(
        tmp_path, "<b>dir", label=NASTY, seeds=(0,), n=2, anytime=True, names=["<i>a</i>", "$_{"], stream="s<u>",
        scenario="</style>", config={"optim.</td><b>": "</script><script>x()</script>"}, choices={"method": "<s>"},
        digest="<em>", command=("<script>", "&"), levels=({**fake_runs.LEVELS[0], "name": "</svg><script>y()"},),
    )  # fmt: skip


def test_what_a_user_typed_is_text(tmp_path):
    page = render(tmp_path, nasty_run(tmp_path), fake_run(tmp_path, "plain"))
    ours = (Path(nested.report.__file__).parent / "page.js").read_text()
    assert page.scripts == [ours]
    assert not {"b", "i", "u", "s", "em", "img", "iframe", "object", "link", "foreignobject"} & {
        t for t, _ in page.elements
    }
    assert not [name for _, a in page.elements for name in a if name.startswith("on")]
    assert SHOWN in page.text
    assert any(row["run"] == SHOWN for row in page.rows("forgetting"))
    for typed in ("</script><script>x()</script>", "optim.</td><b>", "s<u>", "<i>a</i>", "'<script>' '&'"):
        assert typed in page.text
    assert "<script>alert(1)" in page.svg_text
    assert "\x1b" not in page.source
    assert not list((tmp_path / "out").glob("**/*<*"))


def test_a_page_of_one_nasty_run_has_its_title(tmp_path):
    page = render(tmp_path, nasty_run(tmp_path))
    assert page.source.count("<title>") == 1
    assert page.scripts == [(Path(nested.report.__file__).parent / "page.js").read_text()]
    assert SHOWN in page.text


def test_a_page_loads_nothing(tmp_path):
    page = render(tmp_path, fake_run(tmp_path, anytime=True), fake_run(tmp_path, "large", n=30))
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png"))
    assert not re.search(r"@import|url\((?!#)|https?:", page.source)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_ids_are_unique_and_references_resolve(tmp_path):
    paths = [
        fake_run(tmp_path, f"r{k}", label="same", anytime=True, scenario=s)
        for k, s in enumerate(("class", "domain", "class"))
    ]
    page = render(tmp_path, *paths)
    assert len(page.ids()) == len(set(page.ids()))
    used = set(re.findall(r"url\(#([^)]+)\)", page.source)) | {
        a["href"][1:] for _, a in page.elements if a.get("href", "").startswith("#")
    }
    assert used <= set(page.ids())


def test_colours_of_dark_and_light_are_all_defined(tmp_path):
    page = render(tmp_path, fake_run(tmp_path))
    light, dark = page.source.split("prefers-color-scheme: dark", 1)
    for name in set(re.findall(r"var\((--[\w-]+)\)", page.source)):
        assert f"{name}: #" in light
        assert f"{name}: #" in dark


# -- runs of every kind ------------------------------------------------------------------------------------------------


def test_unfinished_runs_are_shown_with_what_they_have(tmp_path):
    killed = fake_run(tmp_path, "killed", result=False, statuses=("done", "interrupted", "unfinished"))
    begun = fake_run(
        tmp_path, "begun", result=False, seeds=(0,), statuses=("unfinished",), config={"stream.scenario": "class"}
    )
    page = render(tmp_path, killed, begun)
    rows = {r["run"]: r for r in page.rows("forgetting")}
    acc = fake_runs.metrics(fake_runs.counts(0), 90)["acc"]
    assert rows["killed (unfinished)"]["ACC"] == f"{acc:.3f}"
    assert rows["killed (unfinished)"]["seeds"] == "1 of 3"
    assert [rows["begun (unfinished)"][k] for k in ("ACC", "forgetting", "seconds")] == ["–", "–", "–"]
    assert "“killed” is unfinished (1 done, 1 interrupted, 1 unfinished)" in page.text
    assert "figures show the seed that came furthest" in page.text
    assert report.load(begun).seeds[0].rows == 3  # before, and after two experiences


def test_an_unfinished_run_on_losses_is_known_as_one(tmp_path):
    rows = {0: [[9.5, 9.5], [1.5, 8.5], [2.5, 1.5]]}
    path = fake_run(tmp_path, n=2, total=10, seeds=(0,), rows=rows, lower=True, result=False, statuses=("unfinished",))
    assert report.load(path).lower_is_better


def test_a_diverged_seed_is_said_and_left_out_of_means(tmp_path):
    path = fake_run(tmp_path, statuses=("done", "diverged", "done"))
    run = report.load(path)
    assert (run.status, len(run.shown), run.matrices.shape) == ("diverged", 2, (2, 6, 5))
    page = render(tmp_path, path)
    assert page.rows("forgetting")[0]["seeds"] == "2 of 3"
    assert "is diverged (2 done, 1 diverged)" in page.text


def test_one_seed_has_no_interval(tmp_path):
    page = render(tmp_path, fake_run(tmp_path, seeds=(7,)))
    assert "±" not in " ".join(page.rows("forgetting")[0].values())
    assert "one seed, hence no interval" in page.text


def test_one_experience_has_no_forgetting(tmp_path):
    path = fake_run(tmp_path, n=1)
    page = render(tmp_path, path)
    assert [page.rows("forgetting")[0][k] for k in ("forgetting", "BWT")] == ["–", "–"]
    assert "forgetting, BWT and FWT are undefined" in page.text
    assert not report.load(path).single_fit


def test_a_joint_fit_is_a_line_without_forgetting(tmp_path):
    joint = fake_run(tmp_path, "all", joint=True)
    page = render(tmp_path, joint, fake_run(tmp_path, "order"))
    assert report.load(joint).single_fit
    assert "“all” learned everything at once" in page.text
    assert "all (at once)" in page.svg_text
    assert "at once" in page.svg_text


def test_losses_are_said_to_be_better_when_lower(tmp_path):
    rows = [[90, 95], [10, 80], [25, 12]]  # of 10: learning loss 1.1, final 1.85, forgetting 1.5, BWT -1.5
    path = fake_run(tmp_path, n=2, total=10, seeds=(0,), rows={0: rows}, lower=True, scenario="domain")
    page = render(tmp_path, path)
    row = page.rows("forgetting")[0]
    assert [row[k] for k in ("learning loss", "final loss", "forgetting", "BWT")] == ["1.1", "1.85", "1.5", "-1.5"]
    assert "lower is better" in page.text
    assert "ACC" not in page.tables[0][0]
    assert "2.5" in page.svg_text


def test_800_experiences_stay_small_and_quick(tmp_path):
    n, rng = 800, np.random.default_rng(0)
    after = np.tril(rng.integers(40, 90, (n, n))) + np.triu(rng.integers(5, 14, (n, n)), 1)
    rows = {0: [[9] * n, *after.tolist()]}
    path = fake_run(tmp_path, n=n, seeds=(0,), rows=rows, scenario="domain", names=[f"p{j}" for j in range(n)])
    begun = time.process_time()
    page = render(tmp_path, path)
    assert time.process_time() - begun < 20
    assert len(page.source) < 400_000
    assert "The first 24 of 800 experiences" in page.text
    assert len(page.rows("training")) == 24


def test_eight_runs_stay_below_a_megabyte_and_a_half(tmp_path):
    paths = [fake_run(tmp_path, f"run {k}", n=12, seeds=(0, 1)) for k in range(8)]
    page = render(tmp_path, *paths)
    assert len(page.source.encode()) < 1_500_000
    assert len(list((tmp_path / "out" / "figures").glob("*.png"))) == 8 * 2 + 7


def test_streams_are_kept_apart_and_equal_labels_tell_theirs_each_in_a_colour_of_its_own(tmp_path):
    a = [fake_run(tmp_path, f"c-{x}", label=x, scenario="class") for x in ("naive", "replay")]
    b = [fake_run(tmp_path, f"d-{x}", label=x, scenario="domain", digest="other") for x in ("replay", "naive")]
    page = render(tmp_path, *a, *b)
    assert "These runs are on 2 different streams" in page.text
    tables = [t for t in page.tables if "parameters" in t[0] and "FWT" in t[0] and "seed" not in t[0]]
    assert [[row[0] for row in t[1:]] for t in tables] == [
        [f"{x}, {stream} scenario" for x in order]
        for stream, order in (("class", ("naive", "replay")), ("domain", ("replay", "naive")))
    ]
    figures = sorted(p.name for p in (tmp_path / "out" / "figures").glob("*forgetting.png"))
    assert figures == ["stream-1-forgetting.png", "stream-2-forgetting.png"]
    chips = set(re.findall(r'background: var\(--run-(\d)\)"></span>([\w, ]+)</th>', page.source))
    assert chips == {(str(k), label) for k, label in enumerate(row[0] for t in tables for row in t[1:])}
    assert "FWT is uninformative" in page.text


def test_equal_names_with_other_data_are_other_streams(tmp_path):
    paths = [fake_run(tmp_path, d, digest=d) for d in ("one", "two")]
    page = render(tmp_path, *paths)
    assert "2 different streams" in page.text
    assert "data and split one0" in page.text
    same = render(tmp_path, paths[0], fake_run(tmp_path, "again", digest="one", seeds=(2, 3)))
    assert "different streams" not in same.text
    assert "different seeds" in same.text


def test_equal_labels_are_told_apart(tmp_path):
    page = render(tmp_path, *(fake_run(tmp_path, name, label="same") for name in ("run-a", "run-b")))
    assert [r["run"] for r in page.rows("forgetting")] == ["same [run-a]", "same [run-b]"]


def test_what_differs_between_runs_comes_first(tmp_path):
    paths = [fake_run(tmp_path, f"lr-{lr}", config={"optim.lr": lr}) for lr in (0.1, 0.2)]
    page = render(tmp_path, *paths)
    different = page.rows("lr-0.1")
    assert different == [{"key": "optim.lr", "lr-0.1": "0.1", "lr-0.2": "0.2"}]
    assert {"key": "trainer.batch_size", "value": "32"} in page.rows("value")


def test_unequal_budgets_are_said(tmp_path):
    small = ({**fake_runs.LEVELS[0], "parameters": 10},)
    page = render(tmp_path, fake_run(tmp_path, "a"), fake_run(tmp_path, "b", levels=small))
    assert "Unequal parameters: from 10 to 17,000." in page.text
    assert "Unequal steps" not in page.text


@pytest.mark.parametrize(
    "missing", ["environment.json", "events.jsonl", "matrix.json", "summary.json", "config.yaml", "all"]
)
def test_parts_that_are_missing_are_passed_over(tmp_path, missing):
    path = fake_run(tmp_path, anytime=True)
    gone = [f for f in path.rglob("*") if f.is_file() and f.name != "result.json" and f.parent != path]
    for file in gone if missing == "all" else path.rglob(missing):
        file.unlink()
    page = render(tmp_path, path)
    acc = [fake_runs.metrics(fake_runs.counts(s), 90)["acc"] for s in (0, 1, 2)]
    assert page.rows("forgetting")[0]["ACC"].startswith(f"{sum(acc) / 3:.3f} ±")
    assert "Accuracy matrix" in page.text


def test_an_empty_run_directory_has_a_page(tmp_path):
    path = tmp_path / "empty"
    path.mkdir()
    (path / "FORMAT").write_text("1\n")
    assert "0 of 1" in render(tmp_path, path).rows("forgetting")[0]["seeds"]
    assert "empty (unfinished)" in printed([report.load(path)])


@pytest.mark.parametrize("seen", ["2", "0.1", ""])
def test_other_formats_are_refused_by_name(tmp_path, seen):
    path = fake_run(tmp_path)
    (path / "FORMAT").write_text(seen)
    with pytest.raises(UserError, match=re.escape(repr(seen))):
        report.load(path)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="FORMAT"):
        report.load(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        report.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no runs"):
        report.page([], tmp_path / "x.html")


@pytest.mark.parametrize("name", ["result.json", "seed-1/matrix.json", "seed-1/environment.json"])
@pytest.mark.parametrize("content", ['{"a": ', "[]", "\xff\xfe"])
def test_damaged_files_are_named(tmp_path, name, content):
    path = fake_run(tmp_path)
    (path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(name.split("/")[-1])):
        report.load(path)


def test_a_matrix_of_the_wrong_size_is_named(tmp_path):
    path = fake_run(tmp_path, seeds=(0,))
    about = json.loads((path / "seed-0" / "matrix.json").read_text())
    about["views"]["model"]["test"]["sum"][1] = [1, 2]
    (path / "seed-0" / "matrix.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"matrix\.json holds no matrix of 5 experiences"):
        report.load(path)


# -- files of a seed ---------------------------------------------------------------------------------------------------


def test_matrix_files_of_a_seed(tmp_path):
    path = fake_run(tmp_path, seeds=(0,), n=3, total=10, rows={0: ROWS}, names=["=1+1", 'a,"b"', "c\nd"])
    csv, png = report.write_matrix_files(path / "seed-0")
    assert csv.read_text() == (
        'after,1: =1+1,"2: a,""b""",3: c d\nbefore,0.1,0.1,0.1\n1,0.9,0.2,0.1\n2,0.7,0.8,0.3\n3,0.4,0.6,1.0\n'
    )
    assert png.read_bytes().startswith(b"\x89PNG")


def test_matrix_files_leave_unmeasured_cells_empty(tmp_path):
    path = fake_run(tmp_path, seeds=(0,), n=3, total=10, rows={0: ROWS}, statuses=("diverged",), names=["a", "b", "c"])
    csv, _ = report.write_matrix_files(path / "seed-0")
    assert csv.read_text().splitlines()[2:] == ["1,0.9,0.2,0.1", "2,,,", "3,,,"]


def test_matrix_files_need_a_matrix(tmp_path):
    with pytest.raises(UserError, match=r"matrix\.json"):
        report.write_matrix_files(tmp_path)


def test_nothing_heavy_is_loaded_before_it_is_needed(tmp_path):
    path = fake_run(tmp_path)
    check = (
        "import sys; from nested import report; run = report.load(sys.argv[1]);"
        "heavy = {'matplotlib', 'jinja2', 'torch', 'scipy', 'lightning'} & set(sys.modules); assert not heavy, heavy;"
        "report.page([run], sys.argv[2]); bad = {'torch', 'matplotlib.pyplot'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", check, str(path), str(tmp_path / "p.html")], check=True)
