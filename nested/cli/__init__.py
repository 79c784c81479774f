"""The command line: one function per verb, which imports what it needs when it is called: --help is instant."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import typer

from nested.cli import reading, training, upkeep
from nested.cli.output import emit
from nested.errors import NestedError, UserError
from nested.stopping import terminable

VERBS: dict[str, Callable[..., None]] = {
    "run": training.run,
    "resume": training.resume,
    "report": reading.report,
    "compare": reading.compare,
    "contest": training.contest,
    "tune": training.tune,
    "worker": training.worker,
    "microscope": reading.microscope,
    "export": reading.export,
    "eval": reading.evaluate,
    "generate": reading.generate,
    "list": upkeep.list_choices,
    "show": upkeep.show_choice,
    "init": upkeep.init,
    "ui": upkeep.ui,
    "sync": upkeep.sync,
    "claims": upkeep.claims,
    "doctor": upkeep.doctor,
    "gc": upkeep.gc,
    "version": upkeep.version,
}
INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Continual-learning experiments built around nested learning.\n\nnested VERB [group=choice] [key=value]",
)
for _name, _verb in VERBS.items():
    app.command(_name)(_verb)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every failure is one line and an exit code, never a traceback for a user's mistake."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    sys.path.append(os.getcwd())  # a `_target_` may name a file beside the user's conf/
    with terminable():
        code = guarded(lambda: _called(arguments), "--json" in arguments)
    sys.exit(code)


def _called(arguments: list[str]) -> Any:
    """Call the verb that is asked for; typer's own way of doing it swallows Ctrl-C."""
    command = typer.main.get_command(app)
    _check_runs(getattr(command, "commands", {}).get(arguments[0]), arguments[1:])
    with command.make_context("nested", list(arguments)) as context:
        return command.invoke(context)


def _check_runs(verb: Any, given: list[str]) -> None:
    """Raise UserError for `runs=DIR` where --runs is an option, and the reverse: a key of the config in `run` alone."""
    option = "runs" in {p.name for p in getattr(verb, "params", [])}
    if verb is None or not (option or verb.name == "run"):
        return
    wrong, right = ("runs=", "--runs ") if option else ("--runs", "runs=")
    for word, following in zip(given, [*given[1:], "DIR"]):
        if word.startswith(wrong):
            text = f"with nested {verb.name} it is written {right}{word.partition('=')[2] or following}"
            raise UserError(text, key=wrong.strip("="), seen=word)


def guarded(act: Callable[[], Any], as_json: bool) -> int:
    """Exit code of `act`: what was raised becomes a line on standard error, and a JSON object if asked for."""
    try:
        code = act()
        return code if isinstance(code, int) else 0
    except typer.Exit as error:
        return error.exit_code
    except NestedError as error:
        fields = {k: getattr(error, k, None) for k in ("key", "seen", "allowed")}
        return _failed(str(error), error.exit_code, as_json, fields)
    except typer.TyperException as error:  # an unknown verb or option, a missing argument
        return _failed(error.format_message(), UserError.exit_code, as_json)
    except (KeyboardInterrupt, typer.Abort) as stop:
        return _failed(str(stop) or "interrupted", INTERRUPTED, as_json)
    except BrokenPipeError:  # whoever read our output has gone: nothing more can be said, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NestedError.exit_code
    except Exception as error:
        traceback.print_exc()
        said = [f"unexpected {type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
        return _failed("; ".join(said), NestedError.exit_code, as_json)


def _failed(message: str, code: int, as_json: bool, fields: Mapping[str, Any] | None = None) -> int:
    line = " ".join(message.split())
    print(f"nested: {line}", file=sys.stderr)
    if as_json:
        emit(**{"error": line, "key": None, "seen": None, "allowed": None, **(fields or {})})
    return code
