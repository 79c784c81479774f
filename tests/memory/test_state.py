"""Which heads fit a width."""

import pytest

from nested.errors import UserError
from nested.memory.state import head_size


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
