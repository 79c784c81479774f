"""Where a study's trials are kept: a SQLite file, a journal file on a shared disk, PostgreSQL, Optuna's gRPC proxy.

A storage is made once, by the command that makes the study, before any worker opens it: two that make the same tables
at once fail both. An address is recorded without its password; PostgreSQL takes that from ~/.pgpass or PGPASSWORD, and
processes of ours from the environment.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sqlite3
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from nested.errors import UserError, install
from nested.tracking import shown

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

VARIABLE = "NESTED_TUNE_STORAGE"  # the whole address, for processes that this one starts
PATIENCE = 5  # seconds to answer
BUSY_SECONDS = 60  # how long a writer waits for the others
KINDS = ["sqlite:///FILE", "journal", "journal:///FILE", "postgresql://USER@HOST/DATABASE", "grpc://HOST:PORT"]


def address(wanted: str | None, path: Path) -> str:
    """The storage of the study at `path` as an address, files by absolute path. Raises UserError for another kind."""
    if wanted is None:
        return f"sqlite:///{path / 'study.db'}"
    if wanted == "journal":
        return f"journal:///{path / 'study.journal'}"
    kind, _, rest = wanted.partition("://")
    if kind in ("sqlite", "journal") and rest.strip("/"):
        return f"{kind}:///{Path(rest.removeprefix('/')).expanduser().resolve()}"
    if kind.partition("+")[0] == "postgresql" and rest:
        return wanted
    if kind == "grpc" and re.fullmatch(r"[^/:]+:\d+", rest):
        return wanted
    text = f"cannot use {shown(wanted)!r}; allowed: {', '.join(KINDS)}"
    raise UserError(text, key="tune.storage", seen=shown(wanted), allowed=KINDS)


def without_password(uri: str) -> str:
    """The address as it may be recorded."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1@", uri)


def opened(uri: str, grace_seconds: float = BUSY_SECONDS) -> BaseStorage:
    """The storage at an address. Raises UserError when it cannot be reached: what was tried, and how to start one."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kind = uri.partition(":")[0].partition("+")[0]
    given = os.environ.get(VARIABLE)
    uri = given if given and without_password(given) == uri else uri
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what of Optuna is still called experimental
        if kind == "journal":
            return _journal(Path(uri.removeprefix("journal:///")), grace_seconds)
        return {"sqlite": _sqlite, "postgresql": _postgresql, "grpc": _grpc}[kind](uri)


def _sqlite(uri: str) -> BaseStorage:
    from optuna.storages import RDBStorage, get_storage
    from sqlalchemy import event

    file = Path(uri.removeprefix("sqlite:///"))
    try:
        with sqlite3.connect(file) as connection:  # readers and the writer are then not in each other's way
            connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        made = RDBStorage(uri, engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})
    except Exception as error:
        raise _unreachable(uri, error, "choose a file that can be written, on a disk of this machine") from None

    @event.listens_for(made.engine, "connect")
    def _settle(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")  # safe against a kill; in WAL mode the file stays sound

    made.engine.dispose()
    return get_storage(made)  # type: ignore[arg-type]  # with a cache of the trials that have ended


def _journal(file: Path, grace_seconds: float) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    try:
        file.touch()
        lock = JournalFileSymlinkLock(
            str(file), max(3, round(min(grace_seconds / 4, 10)))
        )  # of a killed writer: workers live longer
        return JournalStorage(JournalFileBackend(str(file), lock))
    except OSError as error:
        raise _unreachable(f"journal://{file}", error, "choose a file that can be written") from None


def _postgresql(uri: str) -> BaseStorage:
    from optuna.storages import RDBStorage, get_storage

    if importlib.util.find_spec("psycopg2") is None:
        text = f"PostgreSQL needs the package psycopg2: {install('postgres')}"
        raise UserError(text, key="tune.storage", seen=shown(uri))
    driver = re.sub(r"^postgresql://", "postgresql+psycopg2://", uri)
    options = {"connect_args": {"connect_timeout": PATIENCE}, "pool_pre_ping": True}
    try:
        return get_storage(RDBStorage(driver, engine_kwargs=options))  # type: ignore[arg-type]
    except Exception as error:
        how = "start one with: initdb -D DIR && pg_ctl -D DIR start && createdb nested"
        raise _unreachable(uri, error, how) from None


def _grpc(uri: str) -> BaseStorage:
    from optuna.storages import GrpcStorageProxy

    host, _, port = uri.removeprefix("grpc://").rpartition(":")
    how = (
        'start one with: python -c "from optuna.storages import get_storage, run_grpc_proxy_server as run; '
        f"run(get_storage('sqlite:///study.db'), host='{host}', port={port})\""
    )
    try:
        made = GrpcStorageProxy(host=host, port=int(port))
        made.wait_server_ready(timeout=PATIENCE)
    except ImportError as error:
        raise _unreachable(uri, error, "pip install grpcio protobuf") from None
    except ConnectionError as error:
        raise _unreachable(uri, error, how) from None
    return made


def _unreachable(uri: str, error: Exception, how: str) -> UserError:
    cause = error.__cause__ or error
    said = shown(" ".join(str(cause).split("\n")[0].split())) or type(cause).__name__
    return UserError(f"cannot reach {shown(uri)}: {said}; {how}", key="tune.storage", seen=shown(uri))
