"""Sweeps as they are really run: several processes, killed one by one, or all at once."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import studies
import tiny

from flowbench.study import StudyFile
from flowbench.sweep.parent import journal
from flowbench.sweep.planned import PlannedTrials
from flowbench.sweep.storage import Storage
from flowbench.tracking.store import Store

pytestmark = [*tiny.LIBRARIES, pytest.mark.slow]

SECONDS = 400
"""After which a test takes something for hung, on a machine however busy."""


class Sweep:
    """``flowbench sweep`` in a process of its own."""

    def __init__(self, which: StudyFile, results: Path, *options: str) -> None:
        self.output = results.parent / "output.txt"
        command = [sys.executable, "-m", "flowbench", "sweep", str(which.path)]
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                [*command, f"--results={results}", *options], stdout=output, stderr=output
            )

    def workers(self) -> list[psutil.Process]:
        """The worker processes that it has started."""
        found = psutil.Process(self.process.pid).children()
        return [child for child in found if "flowbench.sweep.worker" in child.cmdline()]

    def end(self) -> int:
        """Wait for the end."""
        return self.process.wait(SECONDS)

    def text(self) -> str:
        """What it has written."""
        return self.output.read_text()


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As this process: threads of several commands that spin for a core make each other crawl."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tiny.results(tmp_path / "results")


@pytest.fixture
def which(tmp_path: Path) -> StudyFile:
    """Four trials of some seconds each."""
    return studies.study(tmp_path, scales={"quick": {"trainer": {"max_epochs": 25}}})


@pytest.fixture
def begin(results: Path) -> Iterator[Callable[..., Sweep]]:
    """Start sweeps; whatever is left of them is ended."""
    begun: list[Sweep] = []

    def begin(which: StudyFile, *options: str) -> Sweep:
        begun.append(Sweep(which, results, *options))
        return begun[-1]

    yield begin
    for sweep in begun:
        if sweep.process.poll() is None:
            sweep.process.kill()
            sweep.process.wait()


def until(holds: Callable[[], object]) -> None:
    """Wait for something to come true."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def opened(which: StudyFile, results: Path) -> PlannedTrials:
    return studies.planned(which, Storage(journal(which, results)))


def training(results: Path, count: int) -> Callable[[], bool]:
    """Whether so many runs have recorded an epoch and are going on."""
    store = Store(results)

    def checkpoints() -> bool:
        open_ = [run_id for run_id, status in tiny.runs(store).items() if status == "RUNNING"]
        return sum(store.checkpoint(run_id).exists() for run_id in open_) >= count

    return checkpoints


def by_digest(store: Store, made: PlannedTrials) -> dict[str, str]:
    runs = studies.recorded(store, made)
    return {run.data.tags["flowbench.digest"]: run.info.run_id for run in runs}


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def assert_complete(which: StudyFile, results: Path) -> PlannedTrials:
    made = opened(which, results)
    studies.assert_complete(Store(results), made)
    return made


def test_workers_share_a_study_and_survive_the_death_of_one(
    begin: Callable[..., Sweep], which: StudyFile, results: Path
) -> None:
    sweep = begin(which, "--workers=2")
    until(training(results, 2))
    first, second = sweep.workers()
    first.kill()
    assert sweep.end() == 0, sweep.text()
    assert gone([first, second])
    made = assert_complete(which, results)
    assert "worker 1 died (signal 9): it is restarted" in sweep.text()
    assert "its process died" in sweep.text()
    assert len(tiny.runs(Store(results))) == 4  # the run went on as itself
    (again,) = [attempt for attempt in made.all_attempts() if "retry_of" in attempt.user_attrs]
    assert again.user_attrs["try"] == 2
    runs = studies.recorded(Store(results), made)
    assert {run.data.tags["flowbench.workers"] for run in runs} == {"2"}
    assert (results / "which" / "quick" / "report.html").exists()


def test_workers_stop_with_their_parent_and_the_study_goes_on(
    begin: Callable[..., Sweep], which: StudyFile, results: Path
) -> None:
    """It is killed, the next time asked to stop; the third time it comes to the end."""
    sweep = begin(which, "--workers=2")
    until(training(results, 2))
    workers = sweep.workers()
    sweep.process.kill()
    sweep.process.wait()
    until(lambda: gone(workers))
    store = Store(results)
    assert list(tiny.runs(store).values()) == ["KILLED", "KILLED"]
    assert studies.states(opened(which, results))[:2] == ["FAIL", "FAIL"]

    sweep = begin(which, "--workers=2")
    until(training(results, 2))
    workers = sweep.workers()
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.end() == 130
    assert gone(workers)
    again = (
        f"continue with: flowbench sweep {which.path} --scale quick --workers=2 --results {results}"
    )
    assert again in sweep.text()
    made = opened(which, results)
    assert not {"RUNNING"} & {*tiny.runs(store).values(), *studies.states(made)}
    studies.assert_agreement(store, made)
    parent = store.get(made.trials.user_attrs["parent"])
    assert parent.info.status == "KILLED"

    assert begin(which, "--workers=2").end() == 0
    assert_complete(which, results)
    assert len(tiny.runs(store)) == 4
    assert store.get(parent.info.run_id).info.status == "FINISHED"


def test_a_study_goes_on_after_every_process_was_killed_and_ends_as_if_never(
    begin: Callable[..., Sweep],
    which: StudyFile,
    results: Path,
    tmp_path: Path,
) -> None:
    sweep = begin(which, "--workers=2")
    until(training(results, 2))
    workers = sweep.workers()
    for process in (*workers, psutil.Process(sweep.process.pid)):
        process.kill()
    sweep.process.wait()
    until(lambda: gone(workers))

    assert begin(which, "--workers=1").end() == 0
    made = assert_complete(which, results)
    assert sum("retry_of" in attempt.user_attrs for attempt in made.all_attempts()) == 2
    killed, whole = Store(results), Store(tiny.results(tmp_path / "whole"))
    ours, theirs = by_digest(killed, made), by_digest(whole, studies.run(which, whole))
    assert len(tiny.runs(killed)) == len(ours) == 4
    for digest, run_id in ours.items():
        assert tiny.same(tiny.weights(killed, run_id), tiny.weights(whole, theirs[digest]))
        assert tiny.history(killed, run_id) == tiny.history(whole, theirs[digest])


def test_commands_that_start_together_share_one_study(
    begin: Callable[..., Sweep], results: Path, tmp_path: Path
) -> None:
    which = studies.study(tmp_path, scales={"quick": {"trainer": {"max_epochs": 15}}})
    sweeps = [begin(which, "--workers=1") for _ in range(2)]
    assert [sweep.end() for sweep in sweeps] == [0, 0], sweeps[0].text()
    made = assert_complete(which, results)
    store = Store(results)
    assert len(store.search("tags.`flowbench.role` = 'study'")) == 1
    processes = {run.data.tags["flowbench.pid"] for run in studies.recorded(store, made)}
    assert len(processes) == 2


def test_a_worker_that_cannot_start_is_told_with_its_last_words(
    begin: Callable[..., Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken" / "torch"  # which the command itself does without
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no torch today')")
    which = studies.study(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    sweep = begin(which, "--workers=1")
    assert sweep.end() == 2
    last = sweep.text().splitlines()[-1]
    assert "worker 1 died (exit status 1) 6 times in a row: ImportError: no torch" in last
    assert "worker-1.log" in last
