"""Many kills, locks and full disks, at random moments of several studies: nothing is lost."""

import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import studies
import tiny

from flowbench.study import StudyFile
from flowbench.sweep.parent import journal
from flowbench.sweep.storage import Storage
from flowbench.tracking.store import Store

pytestmark = [*tiny.LIBRARIES, pytest.mark.slow]

EVENTS = {"files": 35, "PostgreSQL": 15}
SECONDS = 300
FULL = 200_000
"""Largest file, in bytes, that a process may write once its disk is full."""


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The command and its workers."""
    try:
        command = psutil.Process(process.pid)
        return [command, *command.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def each(act: Callable[[psutil.Process], object]) -> Callable[[list[psutil.Process]], None]:
    """Do something to all processes that still live."""

    def to_all(processes: list[psutil.Process]) -> None:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                act(process)

    return to_all


def fill(process: psutil.Process) -> None:
    process.rlimit(psutil.RLIMIT_FSIZE, (FULL, FULL))


kill, interrupt, full = each(psutil.Process.kill), each(psutil.Process.terminate), each(fill)


def lock(path: Path, seconds: float) -> None:
    """Keep everybody else out of the store for some seconds."""
    other = sqlite3.connect(path, isolation_level=None, timeout=1)
    try:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        other.execute("ROLLBACK")
    except sqlite3.OperationalError:
        pass  # somebody writes just now
    finally:
        other.close()


@pytest.mark.parametrize("kind", EVENTS)
def test_every_trial_is_run_once_whatever_happens(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    results, chance = tmp_path / "results", random.Random(kind)
    results.mkdir()
    storage = ""
    if kind == "PostgreSQL":
        request.getfixturevalue("runs")  # sets MLFLOW_TRACKING_URI
        storage = request.getfixturevalue("trials")
    begun: list[StudyFile] = []

    def start(which: StudyFile) -> subprocess.Popen[bytes]:
        options = [
            "--workers=2",
            f"--results={results}",
            *([f"--storage={storage}"] * bool(storage)),
        ]
        command = [sys.executable, "-m", "flowbench", "sweep", str(which.path), *options]
        with (tmp_path / "output.txt").open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=output)

    def another() -> None:
        """Begin a study of eight trials."""
        changes = {"seeds": [0, 1, 2, 3], "failures": 1.0}
        begun.append(studies.study(tmp_path / f"study{len(begun)}", **changes))
        path = begun[-1].path.with_name(f"study{len(begun)}.yaml")
        begun[-1].path.rename(path)
        begun[-1] = studies.read(path)

    another()
    happened = 0
    while happened < EVENTS[kind]:
        process = start(begun[-1])
        while process.poll() is None and happened < EVENTS[kind]:
            time.sleep(chance.uniform(0.5, 6))
            processes = family(process)
            if not processes:
                break
            happened += 1
            event = chance.choice(["all", "all", "one", "command", "stop", "full", "lock"])
            if event == "all":
                kill(processes)
            elif event == "one":
                kill([chance.choice(processes)])
            elif event == "command":
                kill(processes[:1])
            elif event == "stop":
                interrupt(processes[:1])
            elif event == "full":
                full(processes)
            elif kind == "files" and (results / "mlflow.db").exists():
                lock(results / "mlflow.db", chance.uniform(0.5, 6))
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs: {(tmp_path / 'output.txt').read_text()}") from None
        if status == 0:
            another()
    for which in begun:
        process = start(which)
        assert process.wait(SECONDS) == 0, (tmp_path / "output.txt").read_text()[-3000:]
        made = studies.planned(which, Storage(storage or journal(which, results)))
        studies.assert_complete(Store(results), made)
        assert made.total == 8
    lines = (tmp_path / "output.txt").read_text().splitlines()
    assert [line for line in lines if "Traceback" in line or "a fault of flowbench" in line] == []
