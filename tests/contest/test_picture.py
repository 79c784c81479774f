"""The picture of differences: whatever arms and candidate are called, no word is cut off."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nested.report.contest import differences

AGAINST = {"differences": [0.1, None, -0.2], "difference": 0.05, "half": 0.02, "learning": 0.9}


@pytest.mark.parametrize("length", [10, 60, 400])
def test_every_word_is_inside_the_picture(length: int):
    arms = [(k, {"title": ("wide WORDS " * 40)[:length], "against": AGAINST}) for k in range(3)]
    figure = differences(arms, ("a CANDIDATE's name " * 40)[:length])
    FigureCanvasAgg(figure).draw()
    box = figure.get_tightbbox()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()
