"""Several workers, and machines, on a PostgreSQL that is really there: the trials and the runs."""

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import psutil
import pytest
import studies
import tiny

from flowbench.errors import UsageError
from flowbench.sweep.parent import sweep
from flowbench.sweep.storage import Storage
from flowbench.tracking.locks import exclusive
from flowbench.tracking.store import Store

pytestmark = [*tiny.LIBRARIES, pytest.mark.slow]

SECONDS = 400
NUMBERS = itertools.count()


@pytest.mark.usefixtures("runs")
def test_machines_that_begin_together_make_the_tables_once(trials: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import optuna;"
        "from flowbench.sweep.storage import Storage; from flowbench.tracking.store import Store;"
        "storage = Storage(sys.argv[1]); Store(Path(sys.argv[2])).start('train', 'racing', {});"
        "optuna.create_study(study_name='s', storage=storage.backend, load_if_exists=True).ask()"
    )
    racing = [
        subprocess.Popen([sys.executable, "-c", code, trials, str(tmp_path / str(number))])
        for number in range(3)
    ]
    assert [process.wait(SECONDS) for process in racing] == [0, 0, 0]
    assert len(Store(tmp_path).search("")) == 3
    asked = optuna.load_study(study_name="s", storage=Storage(trials).backend).trials
    assert [trial.number for trial in asked] == [0, 1, 2]


def test_one_database_for_both_is_refused(
    runs: str, trials: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="name one database: each needs its own"):
        sweep(studies.study(tmp_path), Store(tmp_path), storage=runs)
    Storage(trials)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trials)
    with pytest.raises(UsageError, match=r"cannot be used: No such revision"):
        Store(tmp_path)


def test_the_lock_lets_one_inside(trials: str) -> None:
    entered = threading.Event()

    def enter() -> None:
        with exclusive(trials):
            entered.set()

    with exclusive(trials):
        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.5)
    assert entered.wait(5)
    waiting.join()


@pytest.mark.usefixtures("runs")
def test_three_workers_finish_a_search_although_one_is_killed(trials: str, tmp_path: Path) -> None:
    options = {**studies.SEARCH, "trials": 6}
    scales = {"quick": {"trainer": {"max_epochs": 20}}}
    which = studies.study(tmp_path, **options, scales=scales)
    results = tmp_path / "results"
    command = [sys.executable, "-m", "flowbench", "sweep", str(which.path)]
    command += ["--workers=3", f"--storage={trials}", f"--results={results}"]
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + SECONDS
        while not list(results.glob("checkpoints/*/last.ckpt")):
            assert time.monotonic() < deadline
            assert process.poll() is None, (tmp_path / "output.txt").read_text()
            time.sleep(0.2)
        running = studies.planned(which, Storage(trials)).last_attempts()
        victim = next(t for t in running if t.state.name == "RUNNING" and t.params)
        psutil.Process(int(victim.user_attrs["owner"]["flowbench.pid"])).kill()
        assert process.wait(SECONDS) == 0, (tmp_path / "output.txt").read_text()
    finally:
        process.kill()
        process.wait()

    made = studies.planned(which, Storage(trials))
    store = Store(results)
    studies.assert_complete(store, made)
    (again,) = [attempt for attempt in made.all_attempts() if "retry_of" in attempt.user_attrs]
    assert again.user_attrs["retry_of"] == victim.number
    assert again.params == victim.params
    assert len(made.all_attempts()) == 7
    drawn = [attempt.params["optim.lr"] for attempt in made.last_attempts()]
    assert len(set(drawn)) == 6  # no worker repeats another's
    workers = {run.data.tags["flowbench.pid"] for run in studies.recorded(store, made)}
    assert len(workers) >= 2
    assert (results / "artifacts" / "which" / "quick").is_dir()
    assert not (results / "mlflow.db").exists()
