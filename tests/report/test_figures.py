"""Figures say what their arrays say, and what a user typed stays text in them."""

import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex

from nested import metrics
from nested.report import figures
from nested.report.drawing import PALETTE, THEME, ramp, shorten, wrapped
from nested.report.figures import Bar, Series
from nested.report.heatmap import heat_map, score
from nested.report.inline import inline_svg, save_png
from nested.report.panels import average_so_far, forgetting_so_far, half_width
from nested.report.planes import Cloud, Point, forgetting_against_learning, score_against_cost

NAN = float("nan")
NASTY = "<script>alert(1)</script> $x_ \\frac{ \x00\ud800 _"
MATRIX = np.array([[0.1, 0.2], [0.9, 0.25], [0.5, 1.0]])


def texts(axes):
    return [t.get_text() for t in axes.texts]


def heat(matrix, columns=None, **wanted):
    n = matrix.shape[1]
    wanted = {"limits": (0.0, 1.0), "title": "t", "measure": "accuracy", "lower": False, **wanted}
    return heat_map(matrix, columns or [str(j) for j in range(n)], **wanted)


def test_cells_hold_the_numbers_row_by_row():
    axes = heat(MATRIX).axes[0]
    assert texts(axes) == [".10", ".20", ".90", ".25", ".50", "1.0"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["before", "after 1", "after 2"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the row before training is on top


def test_what_was_not_measured_is_left_empty():
    assert texts(heat(np.array([[0.1, 0.2], [0.9, NAN], [NAN, NAN]])).axes[0]) == [".10", ".20", ".90"]


def test_one_fit_for_all_rows_is_one_row():
    axes = heat(np.array([[0.1, 0.2], [0.9, 0.8], [0.9, 0.8]]), at_once=True).axes[0]
    assert texts(axes) == [".10", ".20", ".90", ".80"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["before", "at once"]


def test_equal_scores_have_equal_colours_in_every_heat_map():
    low, high = heat(np.array([[0.1], [0.3]])), heat(np.array([[0.3], [0.9]]))
    colours = [f.axes[0].collections[0] for f in (low, high)]
    faces = [c.cmap(c.norm(c.get_array().ravel())) for c in colours]
    assert to_hex(faces[0][1]) == to_hex(faces[1][0])


def test_large_matrices_are_pictures_of_block_means():
    n = 400
    matrix = np.full((n + 1, n), 0.25)
    matrix[0:2, 0:2] = [[0.0, 1.0], [NAN, 0.5]]
    axes = heat(matrix).axes[0]
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (201, 200)
    assert shown[0, 0] == pytest.approx(0.5)  # the mean of 0, 1 and 0.5
    assert shown[0, 1] == 0.25
    assert texts(axes) == []


def test_loss_maps_have_the_best_end_where_loss_is_least():
    better, worse = (heat(np.array([[9.0], [1.0]]), limits=(1.0, 9.0), lower=k).axes[0].collections[0] for k in (1, 0))
    assert better.cmap(better.norm(1.0)) == worse.cmap(worse.norm(9.0))


def frontier(*points, **wanted):
    clouds = [Cloud(f"c{k}", k, [p]) for k, p in enumerate(points)]
    return forgetting_against_learning(clouds, "accuracy", False, **wanted).axes[0]


def test_points_stand_at_their_means_with_their_intervals():
    a = Point(0.9, 0.3, 0.02, 0.05, (0.88, 0.92), (0.25, 0.35))
    axes = frontier(a, Point(0.8, None))
    marks = [tuple(map(float, (line.get_xdata()[0], line.get_ydata()[0]))) for line in axes.lines]
    assert (0.9, 0.3) in marks
    seeds = next(line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "None")
    assert list(zip(seeds.get_xdata(), seeds.get_ydata())) == [(0.88, 0.25), (0.92, 0.35)]
    spans = [np.ptp(c.get_segments()[0], axis=0) for c in axes.collections]
    assert any(np.allclose(s, [0.04, 0]) for s in spans)
    assert any(np.allclose(s, [0, 0.1]) for s in spans)
    assert any(list(line.get_xdata()) == [0.8, 0.8] for line in axes.lines)  # b: undefined forgetting, a line
    assert axes.get_xlabel().startswith("learning accuracy")
    assert axes.get_ylabel().startswith("forgetting")


def test_a_sweep_is_a_line_through_its_points_in_their_order():
    points = [Point(x, y) for x, y in ((0.9, 0.3), (0.7, 0.1), (0.8, 0.2))]
    sweep, many = Cloud("a", 0, points, line=True), Cloud("7 others", 0, points, rest=True)
    axes = forgetting_against_learning([sweep, many], "accuracy", False, "at 3 G FLOPs").axes[0]
    assert axes.get_title(loc="left") == "at 3 G FLOPs"
    (line,) = [drawn for drawn in axes.lines if drawn.get_linestyle() == "-" and len(drawn.get_xdata()) == 3]
    assert list(line.get_xdata()) == [0.9, 0.7, 0.8]


def test_the_score_is_drawn_against_cost_with_the_front():
    points = [Point(1e9, 0.5), Point(1e10, 0.9), Point(5e9, 0.4)]
    axes = score_against_cost([Cloud("a", 0, points)], [(1e9, 0.5), (1e10, 0.9)], "FLOPs", "ACC", False).axes[0]
    assert axes.get_xscale() == "log"
    front = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert list(zip(front.get_xdata(), front.get_ydata())) == [(1e9, 0.5), (1e10, 0.9)]
    assert axes.get_ylabel().startswith("ACC")


def test_one_seed_has_no_error_bar():
    assert not frontier(Point(0.9, 0.3, None, None, (0.9,), (0.3,))).collections


@pytest.mark.parametrize("label", ["_hidden", NASTY, "", "x" * 400, "日本"])
def test_every_label_is_in_the_legend(label):
    series = [Series(x, k, np.arange(3.0), np.arange(3.0)) for k, x in enumerate((label, "b"))]
    figure = figures.over_stream(series, "x", "y", None, bounded=True)
    shown = [t.get_text() for t in figure.legends[0].get_texts()]
    assert shown[1] == "b"
    assert shown[0].replace("\n", "")[:6].strip() == label[:6]


def test_lines_before_an_experience_is_learned_are_apart_from_those_after():
    axes = figures.experience_lines(MATRIX, "t", "accuracy", (0, 1)).axes[0]
    after = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if line.get_marker() == "o"]
    assert after == [([1, 2], [0.9, 0.5]), ([2], [1.0])]
    assert texts(axes) == ["1", "2"]


def test_anytime_means_are_over_the_experiences_begun():
    step, experience = np.array([0, 1, 2]), np.array([-1, 0, 1])
    scores = np.array([[0.1, 0.3], [0.8, 0.2], [0.5, 0.7]])
    axes = figures.anytime(step, scores, experience, {"slow": np.array([2])}, "t", 0, "accuracy").axes[0]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.1, 0.8, 0.6])
    assert texts(axes) == ["slow"]
    assert [line.get_xdata()[0] for line in axes.lines[1:-1]] == [0, 1]  # borders


def test_bars_have_the_lengths_of_their_levels():
    figure = figures.level_bars([("run", 2, [Bar("fast", 100, 8), Bar("slow", 50, 1)])])
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths == [[100, 50], [8, 1]]
    assert texts(figure.axes[0]) == ["run", "100", "50"]


def test_a_level_that_learns_in_each_sequence_has_no_number_of_updates():
    figure = figures.level_bars([("run", 2, [Bar("all", 100, 8), Bar("reading", 50, None)])])
    assert [bar.get_width() for bar in figure.axes[0].patches] == [100, 50]
    assert texts(figure.axes[1]) == ["8", "in each sequence"]


def test_axes_of_accuracies_end_at_0_and_1_whatever_the_intervals():
    series = Series("a", 0, np.arange(2.0), np.array([0.5, 0.6]), np.array([4.0, 4.0]))
    assert figures.over_stream([series], "x", "y", None, bounded=True).axes[0].get_ylim() == (-0.02, 1.02)
    assert figures.over_stream([series], "x", "y", None, bounded=False).axes[0].get_ylim()[1] > 4
    assert frontier(Point(0.9, 0.3, 2.0, 0.1)).get_xlim() == (-0.02, 1.02)


def test_half_width_is_students():
    values = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    width = half_width(values)
    assert width == pytest.approx([4.302652730 * 1 / 3**0.5, 0.0])
    assert half_width(values[:1]) is None


def test_average_so_far_by_hand():
    assert average_so_far(MATRIX[None]) == pytest.approx(np.array([[0.9, 0.75]]))


def test_forgetting_so_far_ends_at_the_metric():
    rows = np.array([[0.1, 0.1, 0.1], [0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.4, 0.6, 1.0]])
    found = forgetting_so_far(np.stack([rows, rows]), lower=False)
    assert found == pytest.approx(np.array([[0.2, 0.35], [0.2, 0.35]]))  # .9 - .7; then (.9 - .4, .8 - .6) / 2
    assert found[0, -1] == pytest.approx(metrics.forgetting(rows[1:]))
    assert forgetting_so_far(-rows[None], lower=True) == pytest.approx(found[:1])


def test_single_seeds_are_drawn_under_the_mean():
    seeds = np.array([[0.2, 0.4], [0.4, 0.8]])
    axes = figures.over_stream(
        [Series("a", 0, np.arange(2.0), seeds.mean(0), seeds=seeds)], "x", "y", None, False
    ).axes[0]
    thin = [list(line.get_ydata()) for line in axes.lines if line.get_linewidth() < 1]
    assert thin == seeds.tolist()


class Svg(HTMLParser):
    def __init__(self, markup):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_svg_text_stays_text():
    columns = ["<b>", "$x_"]
    parsed = Svg(inline_svg(heat(MATRIX, columns, title=NASTY), "k", NASTY))
    assert parsed.text.startswith("<b>$x_")
    assert "<script>alert(1)</script> $x_" in parsed.text
    assert not {"script", "b", "style", "metadata"} & set(parsed.tags)
    assert parsed.tags.count("text") > 10


def test_ids_of_two_figures_do_not_meet_and_all_references_resolve():
    figure = figures.over_stream([Series("a", 0, np.arange(3.0), np.arange(3.0))], "x", "y", None, False)
    ids = []
    for key in ("one", "two"):
        markup = inline_svg(figure, key, "d")
        mine = set(re.findall(r' id="([^"]+)"', markup))
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', markup))
        assert {a or b for a, b in used} == mine
        assert mine
        ids.append(mine)
    assert not ids[0] & ids[1]


def test_colours_are_the_pages_and_the_size_is_the_readers():
    figure = figures.over_stream([Series("a", 3, np.arange(3.0), np.arange(3.0))], "x", "y", None, False)
    markup = inline_svg(figure, "k", "d")
    assert "var(--run-3)" in markup
    assert "var(--ink)" in markup
    assert not {PALETTE[3][0], THEME["ink"][0], THEME["paper"][0]} & set(re.findall(r"#[0-9a-f]{6}", markup))
    assert not {"width", "height"} & {name for name, _ in Svg(markup).attributes[:4]}


def test_no_colour_of_a_heat_map_changes_with_the_scheme():
    scale = {to_hex(c) for c in mpl.colormaps["viridis"].colors}  # type: ignore[attr-defined]
    themed = [light for light, _ in (*THEME.values(), *PALETTE, *ramp())]
    assert not scale & set(themed)
    assert len(themed) == len(set(themed))


def test_the_readers_matplotlibrc_changes_nothing(tmp_path):
    ours = save_png(heat(MATRIX), tmp_path / "ours.png").read_bytes()
    with mpl.rc_context({"text.usetex": True, "axes.grid": False, "text.color": "red", "font.size": 30}):
        theirs = save_png(heat(MATRIX), tmp_path / "theirs.png").read_bytes()
    assert theirs == ours
    assert ours.startswith(b"\x89PNG")


def test_long_labels_keep_both_ends():
    assert shorten("begin" + "-" * 90 + "end", 20) == "begin-------…---" + "-end"
    assert wrapped("one two three", 8) == "one two\nthree"
    assert wrapped("a b c d e f g h i j", 5).count("\n") == 1


def test_a_long_label_takes_no_room_from_the_bars():
    short, long = (figures.level_bars([(x, 0, [Bar("all", 9, 9)])]) for x in ("a", "a long label " * 8))
    assert long.axes[1].get_position().bounds == short.axes[1].get_position().bounds


def test_experiences_are_whole_numbers_even_where_there_is_one() -> None:
    axes = figures.over_stream([Series("a", 0, np.array([2.0]), np.array([0.3]))], "x", "y", None, False).axes[0]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [2]


@pytest.mark.parametrize(
    ("value", "text"), [(3.5, "3.50"), (4.89, "4.89"), (123.0, "123"), (0.93, ".93"), (1.0, "1.0")]
)
def test_losses_have_three_figures_and_accuracies_two(value: float, text: str) -> None:
    assert score(value, 2) == text
