"""What a state weighs, and which heads fit a width."""

import pytest
import torch

from nested.errors import UserError
from nested.memory.state import Convolved, head_size, state_bytes


def test_a_states_bytes_are_those_of_its_tensors_however_they_nest() -> None:
    seen = torch.zeros(2, 3, dtype=torch.float64)
    wide = torch.zeros(1, 5).expand(2, 5)  # counted as each sequence's own
    assert state_bytes(seen) == 48
    assert state_bytes({"a": [Convolved(seen, wide), None], "read": 7}) == 48 + 40
    assert state_bytes(None) == 0


def test_heads_fit_where_they_divide_the_width_into_sizes_that_can_be_turned() -> None:
    assert head_size(12, 4) == 3
    assert head_size(12, 3, rotary=True) == 4
    with pytest.raises(
        UserError, match=r"5 heads do not divide a width of 12; heads that do: 1, 2, 3, 4, 6, 12"
    ) as caught:
        head_size(12, 5)
    assert (caught.value.key, caught.value.seen) == ("model.heads", 5)
    with pytest.raises(UserError, match=r"4 heads .* 12 into even sizes; heads that do: 1, 2, 3, 6"):
        head_size(12, 4, rotary=True)
    with pytest.raises(UserError, match="none, take an even width"):
        head_size(7, 1, rotary=True)
