"""Optuna's own pages on a study's storage, for who wants to ask more than our page says."""

from __future__ import annotations

import contextlib
import importlib.util
import socket

from nested.errors import UserError, install
from nested.tuning.study import Study

HOST = "127.0.0.1"


def check(port: int) -> None:
    """Raise UserError where optuna-dashboard is not installed, or the port is taken."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        text = f"a study's dashboard needs the package optuna-dashboard: {install('dashboard')}"
        raise UserError(text, key="--study", seen="optuna_dashboard", allowed=["nested report STUDY"])
    try:
        socket.create_server((HOST, port)).close()
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{said}; choose another with --port", key="--port", seen=port) from None


def serve(study: Study, port: int) -> None:
    """Show every study of the storage on this machine, until Ctrl-C."""
    from optuna_dashboard import run_server  # pyright: ignore[reportMissingImports]

    with contextlib.suppress(KeyboardInterrupt):
        run_server(study.storage, host=HOST, port=port)
