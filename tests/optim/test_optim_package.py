"""`import nested.optim` must stay light."""

import subprocess
import sys

import pytest

import nested.optim

Code = """
import sys, nested.optim
assert "torch" not in sys.modules
assert nested.optim.DeltaMomentum.__name__ == "DeltaMomentum"
assert "torch" in sys.modules
"""


def test_importing_the_package_imports_no_torch():
    subprocess.run([sys.executable, "-c", Code], check=True)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Adam'"):
        getattr(nested.optim, "Adam")  # noqa: B009
