"""Pages in a real browser: they open without a complaint, sort, filter, draw, and run nothing that a user typed."""

import re
import time

import pytest
from fake_runs import LEVELS, fake_run

from nested import report

NASTY = "<script>alert(1)</script>"


def sweep(root, labels=("naive", "replay"), rates=(0.01, 0.03, 0.1, 0.3, 1.0), **wanted):
    return [
        fake_run(
            root, f"{label}-{k}", label=label, config={"optim.lr": lr, "method": label}, learns=0.6 + k / 15,
            keeps=0.8 - k / 10, choices={"method": label}, **wanted,
        )
        for label in labels
        for k, lr in enumerate(rates)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def written(browser, tmp_path_factory):
    """Two methods with a sweep each, a joint fit, and a run whose name is a script."""
    root = tmp_path_factory.mktemp("comparison")
    paths = sweep(root, anytime=True, seeds=(0, 1))
    paths += [fake_run(root, "joint", joint=True), fake_run(root, "nasty", label=NASTY, names=["<b>"] * 5)]
    runs = [report.load(p) for p in paths]
    return report.Comparison.of(runs).page(root / "out" / "report.html")


@pytest.fixture
def comparison(written, opened):
    return opened(written)


def test_every_figure_is_drawn(comparison):
    assert comparison.page.locator("figure svg").count() > 20
    assert comparison.undrawn() == []


def test_a_run_whose_name_is_a_script_is_text(comparison):
    assert NASTY in [row[0] for row in comparison.rows("FWT")]
    assert comparison.page.locator("script").count() == 1
    assert comparison.page.locator("main b").count() == 0
    assert comparison.page.locator("svg text", has_text="alert(1)").count() > 0


def test_tables_sort_by_number_both_ways_with_unknown_ones_last(comparison):
    button = comparison.page.locator("table").first.get_by_role("button", name="forgetting")
    orders = []
    for _ in range(2):
        button.click()
        orders.append([row[4] for row in comparison.rows("FWT")])
    numbers = [[float(text.split(" ")[0]) for text in order[:-1]] for order in orders]
    assert numbers == [sorted(numbers[0], reverse=True), sorted(numbers[0])]
    assert [order[-1] for order in orders] == ["–", "–"]  # joint: undefined
    assert comparison.page.locator("table").first.locator("[aria-sort=ascending]").text_content() == "forgetting"


def test_tables_filter_by_words(comparison):
    search = comparison.page.get_by_role("searchbox").first
    said = comparison.page.locator(".filter output").first
    everything = len(comparison.rows("FWT"))
    assert everything == 12
    search.fill("REPLAY optim")
    assert [row[0].startswith("replay") for row in comparison.rows("FWT")] == [True] * 5
    assert said.text_content() == "5 of 12 rows"
    assert len(comparison.rows("common seeds")) == 11  # each table has its own
    comparison.page.locator("table").first.get_by_role("button", name="ACC", exact=True).click()
    assert len(comparison.rows("FWT")) == 5
    search.fill("nothing has this")
    assert comparison.rows("FWT") == []
    search.fill("")
    assert len(comparison.rows("FWT")) == everything


def test_any_two_configs_are_compared(comparison):
    one, other = comparison.page.locator(".chooser select").all()
    one.select_option(label="naive, optim.lr=0.01")
    other.select_option(label="replay, optim.lr=0.3")
    table = comparison.page.locator(".chooser table")
    heads = [text.strip() for text in table.locator("thead th").all_text_contents()]
    assert heads == ["key", "naive, optim.lr=0.01", "replay, optim.lr=0.3"]
    rows = [[c.strip() for c in row.locator("th, td").all_text_contents()] for row in table.locator("tbody tr").all()]
    assert rows == [["method", "naive", "replay"], ["optim.lr", "0.01", "0.3"]]
    other.select_option(label="naive, optim.lr=0.01")
    assert table.locator("tbody").text_content().strip() == "no difference"


def test_colours_follow_the_readers_scheme(comparison):
    paper = "getComputedStyle(document.body).backgroundColor"
    light = comparison.page.evaluate(paper)
    comparison.page.emulate_media(color_scheme="dark")
    dark = comparison.page.evaluate(paper)
    assert [int(re.findall(r"\d+", c)[0]) > 128 for c in (light, dark)] == [True, False]


@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_is_never_wider_than_the_screen(comparison, width):
    comparison.page.set_viewport_size({"width": width, "height": 800})
    assert comparison.page.evaluate("document.documentElement.scrollWidth") <= width


def test_one_run_with_large_matrices_has_its_figures(tmp_path, opened):
    path = fake_run(tmp_path, n=30, anytime=True, views=("model", "ema"), levels=LEVELS, seeds=(0, 1))
    page = opened(report.page([report.load(path)], tmp_path / "out" / "report.html"))
    assert page.page.locator("svg image").count() > 0
    assert page.undrawn() == []


def test_streams_are_apart_and_reachable(tmp_path, opened):
    paths = [fake_run(tmp_path, f"{s}-{k}", scenario=s, label=f"{k}") for s in ("class", "domain") for k in range(2)]
    found = opened(report.Comparison.of([report.load(p) for p in paths]).page(tmp_path / "out" / "report.html"))
    assert "2 different streams" in found.page.text_content("header")
    for link in found.page.locator("nav a").all():
        link.click()
        assert found.page.locator(link.get_attribute("href")).count() == 1
    assert found.undrawn() == []


def test_2000_runs_open_sort_and_filter(tmp_path, opened):
    rates = [round(0.001 * 1.009**k, 6) for k in range(1000)]
    runs = [report.load(p, whole=False) for p in sweep(tmp_path, rates=rates, seeds=(0,), n=2)]
    page = report.Comparison.of(runs).page(tmp_path / "out" / "report.html")
    assert page.stat().st_size < 6_000_000
    begun = time.monotonic()
    found = opened(page)
    assert len(found.rows("FWT")) == 2000
    found.page.locator("table").first.get_by_role("button", name="ACC", exact=True).click()
    values = [float(row[3]) for row in found.rows("FWT")]
    assert values == sorted(values, reverse=True)
    found.page.get_by_role("searchbox").first.fill("replay")
    assert len(found.rows("FWT")) == 1000
    print(f"opened, sorted and filtered in {time.monotonic() - begun:.1f} s")
    assert found.undrawn() == []
