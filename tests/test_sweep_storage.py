"""Where trials are kept: whole after a power failure, free after a death, refused in one line."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
import studies
from optuna.storages._rdb import models
from sqlalchemy import create_engine

from flowbench.errors import UsageError
from flowbench.sweep.storage import Storage
from flowbench.tracking.locks import exclusive, shown


def numbers(place: Path) -> list[int]:
    trials = optuna.load_study(study_name="s", storage=Storage(str(place)).backend).trials
    return [trial.number for trial in trials]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal of two trials."""
    place = tmp_path / "optuna" / "s.log"
    trials = optuna.create_study(study_name="s", storage=Storage(str(place)).backend)
    trials.ask()
    trials.ask()
    return place


@pytest.mark.parametrize("torn", [b'{"op_code":4,"stud', b"\0" * 600, b"{"])
def test_a_half_written_last_line_is_cut_off(
    journal: Path, torn: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = optuna.load_study(study_name="s", storage=Storage(str(journal)).backend)
    whole = journal.read_bytes()
    journal.write_bytes(whole + torn)
    assert numbers(journal) == [0, 1]
    writer = optuna.load_study(study_name="s", storage=Storage(str(journal)).backend)
    writer.ask()
    assert f"cut off {len(torn)} bytes of an incomplete last line" in capsys.readouterr().err
    assert journal.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    assert numbers(journal) == [0, 1, 2]
    assert len(reader.trials) == 3  # which had it open all the while


def test_a_journal_that_was_never_begun_is_begun(tmp_path: Path) -> None:
    (tmp_path / "s.log").write_bytes(b'{"op')
    trials = optuna.create_study(study_name="s", storage=Storage(str(tmp_path / "s.log")).backend)
    trials.ask()
    assert numbers(tmp_path / "s.log") == [0]


def test_a_journal_is_mended_by_one_that_waits_for_the_writer(journal: Path) -> None:
    """What another is writing at this moment looks torn, and is not."""
    lock = Storage(str(journal)).backend._backend._lock  # type: ignore[attr-defined]
    lock.acquire()
    with journal.open("ab") as writer:
        line = (journal.read_text().splitlines()[-1] + "\n").encode()
        writer.write(line[:10])
        writer.flush()
        trials = optuna.load_study(study_name="s", storage=Storage(str(journal)).backend)
        waiting = threading.Thread(target=trials.ask)
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
        writer.write(line[10:])
    lock.release()
    waiting.join()
    assert numbers(journal) == [0, 1, 2, 3]


def test_a_line_broken_in_the_middle_is_told(journal: Path) -> None:
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([lines[0], '{"half a li\n', *lines[1:]]))
    with pytest.raises(UsageError, match=r"s.log cannot be read: .*; move it away"):
        Storage(str(journal))


def test_a_lock_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    place = tmp_path / "s.log"
    code = (
        "import os, sys; from flowbench.tracking.locks import exclusive;"
        "lock = exclusive(sys.argv[1]); lock.__enter__(); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(place)]
    entered = threading.Event()

    def enter() -> None:
        with exclusive(str(place)):
            entered.set()

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.3)
        holder.kill()
    assert entered.wait(5)
    waiting.join()


def test_a_database_file_serves_as_well(tmp_path: Path) -> None:
    storage = Storage(f"sqlite:///{tmp_path}/trials.db")
    trials = optuna.create_study(study_name="s", storage=storage.backend)
    with storage.locked():
        trials.ask()
    trials = optuna.load_study(
        study_name="s", storage=Storage(f"sqlite:///{tmp_path}/trials.db").backend
    )
    assert len(trials.trials) == 1


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("mysql://host/trials", "mysql://host/trials is not valid: sqlite:///FILE or postgresql"),
        ("nonsense://", r"nonsense:// .*not.*valid"),
        (
            "postgresql://me:secret@127.0.0.1:9/trials",
            r"postgresql://me:\*\*\*@127.0.0.1:9/trials cannot be read: .*refused",
        ),
    ],
)
def test_what_cannot_be_opened_is_told_without_passwords(place: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        Storage(place)
    assert "secret" not in str(error.value)
    assert "secret" not in shown(place)


@pytest.mark.parametrize("tables", [["studies"], list(models.BaseModel.metadata.tables)])
def test_a_database_killed_in_the_making_is_completed(tables: list[str], tmp_path: Path) -> None:
    """Some of Optuna's tables, or all of them without their version."""
    place = f"sqlite:///{tmp_path / 'half.db'}"
    engine = create_engine(place)
    for name in tables:
        models.BaseModel.metadata.tables[name].create(engine, checkfirst=True)
    engine.dispose()
    made = studies.planned(studies.study(tmp_path / "study"), Storage(place))
    made.prepare(dict)
    assert made.count().total == 4
    assert made.claim() is not None
