"""Every kernel compiles for an H100 or H200 and is fit for it: registers, shared memory, instructions."""

import ast
import importlib
import pkgutil
from types import ModuleType

import nested_kernels
import pytest
from compiling import SHARED, compile_ahead
from nested_kernels.launch import AotCase, recording
from triton import JITFunction


def modules() -> list[ModuleType]:
    names = [m.name for m in pkgutil.walk_packages(nested_kernels.__path__, "nested_kernels.")]
    return [importlib.import_module(name) for name in names]


def all_cases() -> list[AotCase]:
    """Those of every module below `nested_kernels` that has some."""
    return [case for module in modules() for case in getattr(module, "AOT_CASES", ())]


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


def launched_kernels() -> set[str]:
    """All that Triton compiles but what another one calls; by module and name."""
    functions = [f for module in modules() for f in vars(module).values() if isinstance(f, JITFunction)]
    called = [
        f.fn.__globals__.get(node.id)
        for f in functions
        for node in ast.walk(ast.parse(f.src))
        if isinstance(node, ast.Name)
    ]
    return {full_name(f) for f in functions} - {full_name(f) for f in called if isinstance(f, JITFunction)}


def full_name(kernel: JITFunction) -> str:
    return f"{kernel.__module__}.{kernel.__name__}"


def test_every_kernel_is_launched_by_a_case() -> None:
    with recording() as launches:
        for case in all_cases():
            case.call()
    assert {full_name(launch.kernel) for launch in launches} == launched_kernels()
