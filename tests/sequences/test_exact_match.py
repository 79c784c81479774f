"""How sequences are judged."""

import torch

from nested.sequences.exact_match import IGNORED, exact_match, positions_right

TARGETS = torch.tensor([[IGNORED, 3, 4], [5, IGNORED, 1], [2, 2, 2]])
ANSWERS = torch.tensor([[9, 3, 4], [5, 0, 0], [2, 2, 2]])


def test_a_sequence_counts_where_every_judged_position_is_right():
    assert exact_match(ANSWERS, TARGETS).tolist() == [True, False, True]


def test_positions_count_one_by_one():
    assert positions_right(ANSWERS, TARGETS) == (6, 7)


def test_what_is_not_judged_is_never_right_even_if_it_is_answered_so():
    answers = TARGETS.clone()
    assert positions_right(answers, TARGETS) == (7, 7)


def test_cross_entropy_leaves_out_what_is_not_judged():
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED
