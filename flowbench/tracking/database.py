"""The SQLite file of a store: made whole, brought up to date, moved, waited for, and watched."""

import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.db import upgrade
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from flowbench.errors import StoreError, UsageError
from flowbench.terminal import duration, say

PATIENCE = 900.0
"""Seconds for which a call waits while another process locks the database."""


def address(path: Path) -> str:
    """Return the address of an SQLite file.

    Raises:
        UsageError: MLflow reads an address with this path as another one's.
    """
    written = f"sqlite:///{path}"  # MLflow does not know the escapes of a written URL
    if make_url(written).database != str(path):
        raise UsageError(f"{path} is not valid: MLflow reads % and ? in a path as something else")
    return written


def prepare(path: Path) -> None:
    """Make the tables, or bring those of an older MLflow up to date; the caller holds a lock.

    Both happen in a copy that takes the file's place when it is whole, so that a kill at any moment
    leaves the file as it was. Tables without a run, left by a kill of an older flowbench, are made
    anew. A file of an older MLflow is kept under its name and version.

    Args:
        path: The SQLite file, which may be missing.

    Raises:
        sqlite3.Error, MlflowException, SQLAlchemyError: It is none, or cannot be written.
    """
    if _version(path) == _current():
        return
    for leftover in path.parent.glob(f"{path.name}.part-*"):
        leftover.unlink()
    # Another name each time: MLflow keeps the connections that this process has opened.
    part = path.with_name(f"{path.name}.part-{secrets.token_hex(4)}")
    if _has_runs(path):
        with closing(sqlite3.connect(path)) as old:
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            kept = path.with_name(f"{path.name}.{_version(path)}")
            for copy in (kept, part):
                with closing(sqlite3.connect(copy)) as new:
                    old.backup(new)
        say(f"{path} is of an older MLflow: it is brought up to date, and kept as {kept}")
    make: Any = upgrade.callback  # the command itself would hide Ctrl-C
    make(address(part))
    MlflowClient(address(part)).search_experiments(max_results=1)  # makes the default experiment
    with closing(sqlite3.connect(part)) as made:
        made.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer
    for stale in (f"{path}-wal", f"{path}-shm"):
        Path(stale).unlink(missing_ok=True)
    part.replace(path)


def _current() -> str | None:
    """Return the version of the tables of this MLflow."""
    scripts = Path(mlflow.__file__).parent / "store" / "db_migrations"
    return ScriptDirectory(str(scripts)).get_current_head()


def _version(path: Path) -> str | None:
    """Return the version of the tables; None where they are missing or half made."""
    if not path.exists():
        return None
    with closing(sqlite3.connect(path)) as database:
        tables = _tables(database)
        if "alembic_version" not in tables or any(n.startswith("_alembic_tmp_") for n in tables):
            return None
        found = database.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(found[0]) if found else None


def _has_runs(path: Path) -> bool:
    if not path.exists():
        return False
    with closing(sqlite3.connect(path)) as database:
        return "runs" in _tables(database) and bool(
            database.execute("SELECT 1 FROM runs").fetchone()
        )


def _tables(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("SELECT name FROM sqlite_master")}


PLACES = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow keeps the addresses of files."""


def relocate(path: Path, artifacts: Path) -> None:
    """Point a store whose directory was moved or renamed to its artifacts' new place.

    Args:
        path: The SQLite file.
        artifacts: Directory of the artifacts, with one directory for each experiment.
    """
    moved = set()
    with closing(sqlite3.connect(path)) as database, database:
        found = database.execute("SELECT experiment_id, name, artifact_location FROM experiments")
        for number, name, old in found.fetchall():
            new = f"{artifacts.as_uri()}/{name}"
            recorded_here = old.endswith(f"/{artifacts.name}/{name}")
            if old == new or not recorded_here or not (artifacts / name).is_dir():
                continue
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (new, number),
            )
            for table, column in PLACES:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )
            moved.add(old.removesuffix(f"/{name}"))
    if moved:
        say(f"the results were moved: artifacts of {', '.join(sorted(moved))} are in {artifacts}")


class Patient:
    """An object whose methods wait while another process locks the database.

    Args:
        client: The object, MLflow's client.
        path: The SQLite file, if it is one: before each call it must be the same file still.

    Raises:
        StoreError: By a method: the file is gone or replaced.
    """

    def __init__(self, client: Any, path: Path | None) -> None:
        self._client = client
        self._path = path
        self._identity = _identity(path)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def patient(*arguments: Any, **options: Any) -> Any:
            if _identity(self._path) != self._identity:
                raise StoreError(
                    f"the store {self._path} was deleted or replaced while this process used it: "
                    "nothing more can be recorded"
                )
            return wait(lambda: method(*arguments, **options))

        return patient


def wait(action: Callable[[], Any]) -> Any:
    """Do something with a database; try again while another process locks it, and say so."""
    began, told = time.monotonic(), False
    while True:
        try:
            return action()
        except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
            if not _is_lock(error) or time.monotonic() - began > PATIENCE:
                raise
        if not told:
            say(f"the store is locked by another process: waiting for up to {duration(PATIENCE)}")
            told = True
        time.sleep(0.5)


def _is_lock(error: BaseException | None) -> bool:
    while error is not None and "database is locked" not in str(error):
        error = error.__cause__ or error.__context__
    return error is not None


def _identity(path: Path | None) -> tuple[int, int] | None:
    if path is None or not path.exists():
        return None
    status = path.stat()
    return status.st_dev, status.st_ino
