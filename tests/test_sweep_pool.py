"""How a machine is dealt to workers, and what becomes of one that dies."""

import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import studies

from flowbench.errors import UsageError
from flowbench.sweep import pool
from flowbench.sweep.pool import DEATHS, Layout, Pool, layout
from flowbench.sweep.worker import WorkerArguments

ARGUMENTS = WorkerArguments(
    "which.yaml", "quick", "results", "which.log", "which", planned=4, workers=1
)


@pytest.mark.parametrize(
    ("cores", "missing", "wanted", "expected"),
    [
        (8, 20, None, (8, 1)),
        (8, 3, None, (3, 2)),
        (8, 1, None, (1, 8)),
        (2, 9, 1, (1, 2)),
        (2, 9, 5, (5, 1)),
    ],
)
def test_the_cores_are_kept_busy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    missing: int,
    wanted: int | None,
    expected: tuple[int, int],
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    found = layout(studies.study(tmp_path), missing, wanted)  # whose accelerator is the CPU
    assert (found.workers, found.threads) == expected
    assert found.environment(1) == {"OMP_NUM_THREADS": str(expected[1])}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert layout(studies.study(tmp_path), missing, wanted).threads == 3


@pytest.mark.parametrize(
    ("visible", "devices"), [(None, ["0", "1"]), ("5,7", ["5", "7"]), ("5,7,9", ["5", "7"])]
)
def test_every_gpu_has_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, devices: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    scales = {"quick": {"trainer": {"accelerator": "auto"}}}
    found = layout(studies.study(tmp_path, scales=scales), 9, None)
    given = [found.environment(number)["CUDA_VISIBLE_DEVICES"] for number in (1, 2, 3)]
    assert given == [*devices, devices[0]]
    assert (found.workers, str(found)) == (2, "2 workers, one on each of 2 GPUs")


class Stand:
    """Runs a few lines of Python in place of a worker's."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        script = directory / "stand.py"
        script.write_text(textwrap.dedent(code))
        popen = pool.subprocess.Popen
        patched = lambda _, **options: popen([sys.executable, str(script)], **options)  # noqa: E731
        monkeypatch.setattr(pool.subprocess, "Popen", patched)
        self.pool = Pool(Layout(1, 1), ARGUMENTS, directory / "logs")

    def watch(self, seconds: float = 0.0, **options: Any) -> int:
        """Watch until nobody works; give the number of looks."""
        looks = 0
        with self.pool:
            while self.pool.watch(options["ended"](looks)):
                looks += 1
                time.sleep(seconds or 0.02)
        return looks


def test_a_worker_gets_its_arguments_and_stops_when_its_input_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        import sys
        print(sys.stdin.readline(), end="", flush=True)
        sys.stdin.read()
        print("flowbench: stopped")
    """
    stand = Stand(tmp_path, monkeypatch, code)
    with stand.pool:
        worker = stand.pool.workers[0]
        while "which.yaml" not in worker.last_line():
            assert stand.pool.watch(0)
        assert WorkerArguments.from_line(worker.last_line()) == ARGUMENTS
    assert worker.process.returncode == 0
    assert worker.last_line() == "stopped"
    assert not stand.pool.watch(0)


def test_a_worker_that_dies_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand = Stand(tmp_path, monkeypatch, "raise SystemExit('no memory left')")
    told = rf"worker 1 died \(exit status 1\) {DEATHS} times in a row: no memory left; .*1.log"
    with pytest.raises(UsageError, match=told):
        stand.watch(ended=lambda _: 0)
    assert capsys.readouterr().err.count("it is restarted") == DEATHS - 1


def test_deaths_count_only_as_long_as_no_trial_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        import pathlib, sys
        count = pathlib.Path(__file__).with_name("count")
        deaths = len(count.read_text()) if count.exists() else 0
        count.write_text("x" * (deaths + 1))
        sys.exit(1 if deaths < 3 * 6 else 0)
    """
    stand = Stand(tmp_path, monkeypatch, code)
    stand.watch(ended=lambda looks: looks // 2)
    assert len((tmp_path / "count").read_text()) == 3 * DEATHS + 1


def test_a_worker_that_asks_for_a_new_process_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = """
        import pathlib, sys
        count = pathlib.Path(__file__).with_name("count")
        begun = len(count.read_text()) if count.exists() else 0
        count.write_text("x" * (begun + 1))
        sys.exit(75 if begun < 2 * 6 else 0)
    """
    Stand(tmp_path, monkeypatch, code).watch(ended=lambda _: 0)
    assert len((tmp_path / "count").read_text()) == 2 * DEATHS + 1
    assert "died" not in capsys.readouterr().err
