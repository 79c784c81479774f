"""What can go wrong, and how it is said: one class for each exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class NestedError(Exception):
    """A defect of ours or of the machine (exit code 1)."""

    exit_code = 1


class UserError(NestedError):
    """The user's mistake, mendable by the user (exit code 2): what was seen, what is allowed, how to mend it."""

    exit_code = 2

    def __init__(self, message: str, *, key: str | None = None, seen: Any = None, allowed: Any = None):
        super().__init__(f"{key}: {message}" if key else message)
        self.message, self.key, self.seen, self.allowed = message, key, seen, allowed

    def at(self, key: str) -> UserError:
        """The same error with another key."""
        return UserError(self.message, key=key, seen=self.seen, allowed=self.allowed)


class Diverged(NestedError):
    """A loss or a parameter is no longer finite (exit code 3); everything recorded before it is kept."""

    exit_code = 3


class Pruned(NestedError):
    """A tuner's trial that is not worth continuing; what it reached is kept."""


class Interrupted(KeyboardInterrupt):
    """The user stopped a run (exit code 130); everything is saved. A loop over runs stops as at any Ctrl-C."""

    def __init__(self, run_id: str, problems: list[str]):
        said = ["interrupted, everything is saved", *problems, f"continue with: nested resume {run_id}"]
        super().__init__("; ".join(said))


def install(extra: str) -> str:
    """The command that adds an optional part of this package, in a checkout or as it came from an index."""
    checkout = Path(__file__).resolve().parents[1]
    from_files = (checkout / "pyproject.toml").is_file()
    return f"pip install -e '{checkout}[{extra}]'" if from_files else f"pip install 'nested-cl[{extra}]'"


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"`, or nothing where no allowed word is near."""
    spelled = {a.lower(): a for a in allowed}
    found = difflib.get_close_matches(str(word).lower(), list(spelled), n=1, cutoff=0.6)
    return f" (did you mean {spelled[found[0]]!r}?)" if found else ""


def unknown(kind: str, word: str, allowed: Iterable[str], key: str | None = None) -> UserError:
    """The error for a word that is none of `allowed`; without a key of its own the word is the key."""
    known = sorted(set(allowed))
    text = f"unknown {kind} {word!r}{nearest(word, known)}; allowed: {', '.join(known)}"
    error = UserError(text, key=key, seen=word, allowed=known)
    error.key = key or word
    return error
