"""The store's SQLite file: killed in the making, of an older MLflow, moved, locked, deleted."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
import tiny
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine

from flowbench.errors import StoreError, UsageError
from flowbench.tracking import database
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES
MIGRATIONS = Path(mlflow.__file__).parent / "store" / "db_migrations"


def started(store: Store) -> str:
    """Record a run with an artifact; give its id."""
    run_id = store.start("group/quick", "run", {})
    store.text(run_id, "note.txt", "kept")
    store.finish(run_id, "FINISHED")
    return run_id


def note(store: Store, run_id: str, tmp_path: Path) -> str:
    return Path(store.client.download_artifacts(run_id, "note.txt", str(tmp_path))).read_text()


def at_version(path: Path, version: str) -> None:
    """Make the tables of an older MLflow."""
    with closing(sqlite3.connect(path)):
        InitialBase.metadata.create_all(create_engine(f"sqlite:///{path}"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", f"sqlite:///{path}")
    command.upgrade(config, version)


def test_a_store_killed_in_the_making_is_made_anew(tmp_path: Path) -> None:
    """As earlier versions left it: some tables, and one of a migration that never ended."""
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as half, half:
        half.execute("CREATE TABLE runs (run_uuid VARCHAR(32) NOT NULL)")
        half.execute("CREATE TABLE metrics (key VARCHAR(250))")
        half.execute("CREATE TABLE _alembic_tmp_metrics (key VARCHAR(250))")
    started(Store(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.8, 1.2, 1.6, 2.0])
def test_a_kill_while_the_store_is_made_leaves_nothing_behind(
    seconds: float, tmp_path: Path
) -> None:
    code = (
        "import sys, pathlib; from flowbench.tracking.store import Store; "
        "Store(pathlib.Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path])
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    started(Store(tmp_path))
    assert not list(tmp_path.glob("*.part*"))


def test_a_signal_while_the_store_is_made_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._initialize_tables", stopped)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path)
    started(Store(tmp_path))


def test_a_store_of_an_older_mlflow_is_kept_and_a_copy_brought_up_to_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = list(ScriptDirectory(str(MIGRATIONS)).walk_revisions())[1].revision
    run_id = started(Store(tiny.results(tmp_path / "now")))
    at_version(tmp_path / "mlflow.db", older)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as old, old:
        old.execute("ATTACH ? AS now", (str(tmp_path / "now" / "mlflow.db"),))
        for table in ("experiments", "runs", "tags"):
            columns = [row[1] for row in old.execute(f"PRAGMA table_info({table})")]
            names = ", ".join(columns)
            old.execute(f"DELETE FROM {table}")
            old.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM now.{table}")
    assert Store(tmp_path).get(run_id).info.status == "FINISHED"
    kept_as = tmp_path / f"mlflow.db.{older}"
    assert f"is of an older MLflow: it is brought up to date, and kept as {kept_as}" in (
        capsys.readouterr().err
    )
    with closing(sqlite3.connect(kept_as)) as kept:
        assert kept.execute("SELECT version_num FROM alembic_version").fetchone() == (older,)
        assert kept.execute("SELECT run_uuid FROM runs").fetchone() == (run_id,)


def test_moved_results_keep_their_artifacts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = started(Store(tiny.results(tmp_path / "here")))
    shutil.move(tmp_path / "here", tmp_path / "there now")
    store = Store(tmp_path / "there now")
    assert "the results were moved" in capsys.readouterr().err
    assert note(store, run_id, tmp_path) == "kept"
    assert note(store, started(store), tmp_path) == "kept"  # in the new place, and
    assert not (tmp_path / "here").exists()  # not in the old
    Store(tmp_path / "there now")
    assert "moved" not in capsys.readouterr().err


def test_a_copy_of_the_results_is_apart_from_them(tmp_path: Path) -> None:
    first = Store(tiny.results(tmp_path / "first"))
    run_id = started(first)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    second = Store(tmp_path / "second")
    for store, name in ((first, "first"), (second, "second")):
        assert store.get(run_id).info.artifact_uri.startswith((tmp_path / name).as_uri())


def test_nothing_is_recorded_into_a_deleted_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    run_id = started(store)
    shutil.rmtree(tmp_path / "results")
    with pytest.raises(StoreError, match="was deleted or replaced while"):
        store.log(run_id, {"val/loss": 1.0}, 1)
    Store(tmp_path / "results")  # another store in the same place is not this one
    with pytest.raises(StoreError, match="was deleted or replaced while"):
        store.get(run_id)


@pytest.fixture
def other(tmp_path: Path) -> sqlite3.Connection:
    """Another process's connection to the store."""
    tiny.results(tmp_path)
    return sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None, check_same_thread=False)


def test_a_locked_database_is_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([sqlite3.OperationalError("database is locked")] * 2)

    def ask() -> str:
        for error in answers:
            raise error
        return "answer"

    assert database.wait(ask) == "answer"
    assert capsys.readouterr().err.count("the store is locked by another process: waiting") == 1


@pytest.fixture
def impatient() -> Iterator[None]:
    """SQLite waits for a lock 0.1 s instead of MLflow's 20 s."""

    def shorter(*given: Any) -> tuple[str, Any]:
        _, _, statement, parameters, *_ = given
        return statement.replace("busy_timeout = 20000", "busy_timeout = 100"), parameters

    event.listen(Engine, "before_cursor_execute", shorter, retval=True)
    yield
    event.remove(Engine, "before_cursor_execute", shorter)


@pytest.mark.usefixtures("impatient")
def test_a_lock_longer_than_any_timeout_is_waited_for(
    tmp_path: Path, other: sqlite3.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    other.execute("BEGIN EXCLUSIVE")
    freed = threading.Timer(2, lambda: other.execute("ROLLBACK"))
    freed.start()
    run_id = started(store)
    freed.join()
    assert store.get(run_id).info.status == "FINISHED"
    assert "the store is locked by another process: waiting for" in capsys.readouterr().err


@pytest.mark.usefixtures("impatient")
def test_a_lock_that_stays_is_told(
    tmp_path: Path, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    monkeypatch.setattr(database, "PATIENCE", 1.0)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UsageError, match="database is locked"):
        started(store)


@pytest.mark.parametrize(
    "name", ["a b", "a#b", "o'neil", 'a"b', "ü", "a;b&c", "a:b", "a@b", "a\\b"]
)
def test_results_may_have_any_name_that_mlflow_takes(name: str, tmp_path: Path) -> None:
    run_id = started(Store(tiny.results(tmp_path / name)))
    assert note(Store(tmp_path / name), run_id, tmp_path) == "kept"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [name]


@pytest.mark.parametrize("name", ["50%20off", "a?b"])
def test_a_name_that_mlflow_reads_as_another_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not valid: MLflow reads % and"):
        Store(tmp_path / name)
    assert not list(tmp_path.iterdir())
