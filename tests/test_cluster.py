"""Several machines as a cluster has them: a server, a database, and workers that come and go."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest
import studies
import tiny

from flowbench.__main__ import main
from flowbench.study import StudyFile
from flowbench.sweep.parent import journal
from flowbench.sweep.storage import Storage
from flowbench.tracking.store import Store

pytestmark = [*tiny.LIBRARIES, pytest.mark.slow]

SECONDS = 400
SLURM = Path(__file__).parents[1] / "sweeps/slurm.sh"


def wait_until(
    what: str,
    holds: Callable[[], object],
    among: list[subprocess.Popen[bytes]],
    log: Path,
) -> None:
    """Wait for something while processes run."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"{what}: {log.read_text()}"
        assert all(process.poll() is None for process in among), log.read_text()
        time.sleep(0.2)


@pytest.fixture
def tracking(runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an MLflow server that keeps its runs in PostgreSQL; the environment has it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}"]
    command += ["--workers=1", "--backend-store-uri", runs]
    command += ["--artifacts-destination", str(tmp_path / "served")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = tmp_path / "server.txt"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return bool(urlopen(f"{address}/health").status == 200)
        except OSError:
            return False

    try:
        wait_until("the server", answers, [server], log)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.usefixtures("tracking")
def test_three_machines_share_a_study_and_one_is_killed(
    trials: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = {"quick": {"trainer": {"max_epochs": 20}}}
    which = studies.study(tmp_path, seeds=[0, 1, 2], scales=scales)
    monkeypatch.setenv("FLOWBENCH_STORAGE", trials)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    log = tmp_path / "machines.txt"
    with ExitStack() as running, log.open("wb") as output:
        machines = []
        for number in range(3):  # each with a disk of its own
            disk = tmp_path / f"machine{number}"
            disk.mkdir()
            command = ["sh", str(SLURM), str(which.path), "quick"]
            machine = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, cwd=disk
            )
            running.callback(_kill, machine)
            machines.append(machine)
        wait_until(
            "a checkpoint",
            lambda: list(tmp_path.glob("machine0/results/checkpoints/*/last.ckpt")),
            machines,
            log,
        )
        _kill(machines[0])
        assert [machine.wait(SECONDS) for machine in machines[1:]] == [0, 0], log.read_text()

    store = Store(tmp_path / "machine1/results")
    made = studies.planned(which, Storage(trials))
    studies.assert_complete(store, made)
    (again,) = [attempt for attempt in made.all_attempts() if "retry_of" in attempt.user_attrs]
    ended = [run for run in studies.recorded(store, made) if run.info.status == "KILLED"]
    assert [run.data.tags["optuna.retried_as"] for run in ended] == [str(again.number)]
    for run in studies.recorded(store, made):
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert list((tmp_path / "served").rglob("config.yaml"))
    assert not list(tmp_path.glob("machine*/results/mlflow.db"))
    for number in (1, 2):  # each that lived reports the whole study
        report = tmp_path / f"machine{number}/results" / which.name / "report.md"
        assert "6 recorded: 6 finished." in report.read_text()


@pytest.mark.parametrize("missing", ["MLFLOW_TRACKING_URI", "FLOWBENCH_STORAGE"])
def test_the_slurm_script_says_what_it_lacks(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "FLOWBENCH_STORAGE"):
        monkeypatch.setenv(name, "postgresql://here/x")
    monkeypatch.delenv(missing)
    ended = subprocess.run(["sh", str(SLURM), "bins"], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert f"{missing}: the address of" in ended.stderr


def _kill(machine: subprocess.Popen[bytes]) -> None:
    """Kill a command and its workers, as a machine dies."""
    for child in _children(machine.pid):
        os.kill(child, signal.SIGKILL)
    machine.kill()
    machine.wait()


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in text.read_text().split()] if text.exists() else []


def test_jobs_of_submitit_share_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    which, results = studies.study(tmp_path), tmp_path / "results"
    command = [sys.executable, "-m", "flowbench", "submit", str(which.path), "--jobs", "2"]
    command += ["--results", str(results), "--cluster", "local", "--set", "timeout_min=10"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in said.splitlines()] == ["job", "job"]
    logs = results / "logs" / which.name / "jobs"
    deadline = time.monotonic() + SECONDS
    while len(list(logs.glob("*_result.pkl"))) < 2:
        assert time.monotonic() < deadline, [file.read_text() for file in logs.glob("*.err")]
        time.sleep(0.5)
    made = studies.planned(which, Storage(journal(which, results)))
    studies.assert_complete(Store(results), made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "2"], "need a database or a server: set FLOWBENCH_STORAGE or give --storage"),
        (["--jobs", "2", "--storage=postgresql://here/x"], "server: set MLFLOW_TRACKING_URI"),
        (
            ["--jobs", "2", "--cluster", "local", "--set", "hours=3"],
            "submitit on local: Parameter 'hours'",
        ),
        (["--jobs", "2", "--set", "hours"], "'hours' is not valid: KEY=VALUE"),
    ],
)
def test_what_cannot_be_submitted_is_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLOWBENCH_STORAGE", "")
    which: StudyFile = studies.study(tmp_path)
    options = ["submit", str(which.path), "--results", str(tmp_path / "results"), *arguments]
    assert main(options) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
