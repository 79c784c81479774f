"""`import nested.memory` must stay light, and hold every memory by name."""

import subprocess
import sys

import pytest
from torch import nn

import nested.memory

Code = """
import sys, nested.memory
assert "torch" not in sys.modules
assert nested.memory.DeltaMemory.__name__ == "DeltaMemory"
assert "torch" in sys.modules
"""


def test_importing_the_package_imports_no_torch() -> None:
    subprocess.run([sys.executable, "-c", Code], check=True)


@pytest.mark.parametrize("name", nested.memory.__all__)
def test_every_public_name_is_a_memory(name: str) -> None:
    made = getattr(nested.memory, name)
    assert made.__name__ == name
    assert issubclass(made, nn.Module)
    assert callable(made.initial_state)


def test_every_memory_that_a_choice_names_is_public() -> None:
    from nested.config import composed, options

    files = [composed(None, [f"+model='{name}'"], None)["model"] for name in options("model")]
    parts = [part for file in files for part in file.values() if isinstance(part, dict)]
    assert len(parts) > 10
    assert {part["_target_"].rpartition(".")[2] for part in parts} <= set(nested.memory.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match=r"module 'nested\.memory' has no attribute 'Delta'"):
        getattr(nested.memory, "Delta")  # noqa: B009
