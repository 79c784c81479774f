"""Claims: what an experiment says comes out, and whether it still does.

A file in experiments/ holds `CLAIM = Claim(...)`, written in literals only: the list of claims is read without running
anything. Where `metric` is a function of the file (`def measure(seeds): ...`), the number is what it returns; else
it is a dotted path, and the number is what stands there in the JSON object that `command` prints as its last line.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nested.errors import NestedError, UserError

PATIENCE = 3  # times its budget, after which a measurement is stopped


@dataclass(frozen=True)
class Claim:
    """One command, one expected number, one tolerance."""

    name: str
    statement: str
    command: list[str]  # what a person types to see it
    budget_seconds: float  # on the hardware named
    metric: str  # a function of the file, or a dotted path in the JSON that the command prints
    expected: float
    tolerance: float  # largest distance from the expected number at which the claim holds
    hardware: str = "2 CPU cores"
    slow: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    manifest: str = ""  # hash of the text it was measured on, if any: on another it is not compared
    domains: tuple[str, ...] = ()  # packages of Python's own sources, which that text is; none: all
    file: str = ""  # where it stands; filled in when it is read


@dataclass(frozen=True)
class Outcome:
    """One measurement of a claim."""

    date: str  # UTC
    claim: str
    holds: bool
    measured: float | None
    expected: float
    tolerance: float
    seconds: float
    budget_seconds: float
    seeds: tuple[int, ...]
    problem: str | None
    machine: dict[str, Any]

    def __str__(self) -> str:
        word = "holds" if self.holds else "does not hold"
        found = "nothing" if self.measured is None else f"{self.measured:.6g}"
        end = f"; {self.problem}" if self.problem else ""
        wanted = f"expected {self.expected:g} within {self.tolerance:g}"
        return (
            f"{self.claim} {word}: measured {found}, {wanted}; {self.seconds:.0f} of {self.budget_seconds:.0f} s{end}"
        )


def home() -> Path | None:
    """The experiments of this package: in a wheel, or in the checkout."""
    here = Path(__file__).resolve().parent
    return next((p for p in (here / "experiments", here.parent / "experiments") if p.is_dir()), None)


def claims(where: str | Path | None = None) -> list[Claim]:
    """The claims of a directory, by default our own, by name; no experiment is run. Raises UserError."""
    root = Path(where) if where is not None else home()
    found = [claim for file in sorted(root.glob("*.py")) if (claim := read(file))] if root else []
    known: dict[str, Claim] = {}
    for claim in found:
        if claim.name in known:
            raise UserError(
                f"two claims are called {claim.name!r}: {known[claim.name].file} and {claim.file}", key="claims"
            )
        known[claim.name] = claim
    return sorted(found, key=lambda c: c.name)


def read(file: Path) -> Claim | None:
    """The claim of one experiment; None for a file without one. Raises UserError where it cannot be read."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserError(f"{file}: {error}", key="claims", seen=str(file)) from None
    call = next((v for n, v in _assignments(tree) if n == "CLAIM"), None)
    if call is None:
        return None
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise _unreadable(file, "write CLAIM = Claim(name=..., statement=..., ...)")
    try:
        values = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except ValueError:
        raise _unreadable(
            file, "its values must be literals: the list of claims is read without running the file"
        ) from None
    try:
        claim = Claim(**{**values, "file": str(file.resolve())})
    except TypeError as error:
        raise _unreadable(
            file, f"{str(error).partition(' ')[2]}; it takes {', '.join(f.name for f in fields(Claim)[:-1])}"
        ) from None
    return _checked(claim, file)


def _assignments(tree: ast.Module) -> list[tuple[str, ast.expr]]:
    found = []
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        found += [(t.id, value) for t in targets if isinstance(t, ast.Name) and isinstance(value, ast.expr)]
    return found


def _unreadable(file: Path, how: str) -> UserError:
    return UserError(f"CLAIM of {file} cannot be read: {how}", key="claims", seen=str(file))


def _checked(claim: Claim, file: Path) -> Claim:
    if claim.metric not in _functions(file) and not claim.command:
        raise _unreadable(file, f"metric {claim.metric!r} is no function of the file, and no command prints it")
    if not (math.isfinite(claim.expected) and claim.tolerance >= 0 and claim.budget_seconds > 0):
        raise _unreadable(file, "expected must be finite, tolerance at least 0, budget_seconds more than 0")
    return claim


def _functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def check(claim: Claim, out: str | Path | None = None) -> Outcome:
    """Measure a claim again, in a process of its own; the outcome is appended to `out` as one dated line of JSON."""
    begin = time.monotonic()
    measured, problem = _measured(claim)
    holds = measured is not None and abs(measured - claim.expected) <= claim.tolerance
    outcome = Outcome(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        claim=claim.name,
        holds=holds,
        measured=measured,
        expected=claim.expected,
        tolerance=claim.tolerance,
        seconds=round(time.monotonic() - begin, 3),
        budget_seconds=claim.budget_seconds,
        seeds=tuple(claim.seeds),
        problem=problem,
        machine=_machine(),
    )
    if out is not None:
        _append(Path(out), outcome)
    return outcome


def _append(out: Path, outcome: Outcome) -> None:
    try:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
    except OSError as error:
        raise NestedError(f"cannot append to {out}: {error.strerror}; the outcome was: {outcome}") from None


def _measured(claim: Claim) -> tuple[float | None, str | None]:
    """(number, problem); what the experiment says on standard error goes to the terminal."""
    if claim.manifest and (here := _manifest(claim.domains)) != claim.manifest:
        there = f"the text here, sources of Python {platform.python_version()}, has manifest {here}"
        return None, f"it was measured on other text: {there}, and it was {claim.manifest}; nothing can be compared"
    own = claim.metric in _functions(Path(claim.file))
    seeds = [str(seed) for seed in claim.seeds]
    command = [sys.executable, "-m", "nested.claims", claim.file, claim.metric, *seeds] if own else claim.command
    limit = claim.budget_seconds * PATIENCE
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=limit, env=_environment(), check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"stopped after {limit:.0f} s, {PATIENCE} times its budget"
    except OSError as error:
        return None, f"cannot start {command[0]}: {error.strerror}"
    if done.returncode:
        return None, f"exit code {done.returncode} of: {' '.join(command)}"
    try:
        return _number(json.loads(done.stdout.splitlines()[-1]), "value" if own else claim.metric), None
    except (ValueError, IndexError, NestedError) as error:
        return None, f"no number in the last line of output: {error}"


def _manifest(domains: Sequence[str]) -> str:
    from nested.sequences.text import manifest, standard_library

    found = standard_library()
    return manifest({name: found.get(name, []) for name in domains or found})


def _environment() -> dict[str, str]:
    """This environment, with our package and the programs beside this interpreter found first."""
    ours, programs = str(Path(__file__).resolve().parents[1]), str(Path(sys.executable).parent)
    front = {"PYTHONPATH": ours, "PATH": programs}
    return os.environ | {k: os.pathsep.join([v, *filter(None, [os.environ.get(k)])]) for k, v in front.items()}


def _number(values: Any, path: str) -> float:
    """The number at a dotted path; steps into lists are positions."""
    for name in path.split("."):
        if isinstance(values, list) and name.isdigit() and int(name) < len(values):
            values = values[int(name)]
        elif isinstance(values, Mapping) and name in values:
            values = values[name]
        else:
            raise NestedError(f"nothing at {path!r}")
    if isinstance(values, bool) or not isinstance(values, int | float) or not math.isfinite(values):
        raise NestedError(f"{values!r} at {path!r} is no finite number")
    return float(values)


def _machine() -> dict[str, Any]:
    from nested.environment import PACKAGES, git_state, package_version

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {p: package_version(p) for p in PACKAGES},
        "git": git_state(Path(__file__).resolve().parent),
    }


def _measure(file: str, function: str, *seeds: str) -> None:
    """In the process of its own: run the experiment's function and print its number as the last line."""
    spec = importlib.util.spec_from_file_location(f"experiment_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    value = getattr(module, function)([int(seed) for seed in seeds])
    print(f"\n{json.dumps({'value': float(value)})}", flush=True)


if __name__ == "__main__":
    _measure(*sys.argv[1:])
