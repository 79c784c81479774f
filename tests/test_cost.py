"""What a state weighs."""

from collections import OrderedDict

import torch

from nested.cost import tensor_bytes
from nested.memory.state import Convolved


def test_a_states_bytes_are_those_of_its_tensors_however_they_nest() -> None:
    seen = torch.zeros(2, 3, dtype=torch.float64)
    wide = torch.zeros(1, 5).expand(2, 5)  # counted as each sequence's own
    assert tensor_bytes(seen) == 48
    assert tensor_bytes({"a": [Convolved(seen, wide), None], "read": 7}) == 48 + 40
    assert tensor_bytes(OrderedDict(a=seen)) == 48
    assert tensor_bytes(None) == 0
