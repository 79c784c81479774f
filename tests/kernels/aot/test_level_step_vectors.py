"""What full tiles of a step of levels move is moved in vectors of 16 bytes."""

import pytest
from compiling import compile_ahead
from nested_kernels.launch import recording
from nested_kernels.level_step.library import AOT_CASES

# loads and stores of a thread: of float32 two of each tensor, of bfloat16 one
WANTED = {
    "step of levels, float32": {"reduce": 8 + 2, "apply": 8 + 6},
    "step of levels, bfloat16": {"reduce": 6 + 2, "apply": 6 + 5},
}


@pytest.mark.parametrize("case", [case for case in AOT_CASES if case.name in WANTED], ids=lambda case: case.name)
def test_full_tiles_are_moved_in_vectors(case) -> None:
    with recording() as launches:
        case.call()
    found = {launch.kernel.__name__: compile_ahead(launch).vectors for launch in launches}
    assert found.keys() == WANTED[case.name].keys()
    assert all(found[name] >= most for name, most in WANTED[case.name].items()), found
