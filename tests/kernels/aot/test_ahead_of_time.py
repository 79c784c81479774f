"""Every kernel compiles for an H100 or H200 and is fit for it: registers, shared memory, instructions."""

import importlib
import pkgutil

import nested_kernels
import pytest
from compiling import SHARED, compile_ahead
from nested_kernels.launch import AotCase, recording


def all_cases() -> list[AotCase]:
    """Those of every module below `nested_kernels` that has some."""
    names = [m.name for m in pkgutil.walk_packages(nested_kernels.__path__, "nested_kernels.")]
    return [case for name in names for case in getattr(importlib.import_module(name), "AOT_CASES", ())]


CASES = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.slow) for case in all_cases()]


@pytest.mark.parametrize("case", CASES)
def test_it_compiles_within_its_budget(case: AotCase) -> None:
    with recording() as launches:
        case.call()
    assert launches
    for launch in launches:
        made = compile_ahead(launch)
        print(case.name, made)
        assert made.stack <= case.stack.get(made.name, 0), made
        assert made.shared <= SHARED, made
        assert made.wide_loads > 0, made
        assert (made.tensor_cores > 0) == made.products, made


def test_budgets_are_of_kernels_that_are_launched() -> None:
    for case in all_cases():
        with recording() as launches:
            case.call()
        assert set(case.stack) <= {launch.kernel.__name__ for launch in launches}
