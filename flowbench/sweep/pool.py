"""The workers of this machine: processes that are started again when they die."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from flowbench.errors import UsageError
from flowbench.study import StudyFile
from flowbench.sweep.planned import TRIES
from flowbench.sweep.worker import AGAIN, OVER, WorkerArguments
from flowbench.terminal import say

THREADS = "OMP_NUM_THREADS"
"""Variable from which torch and its libraries read their number of threads."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
DEATHS = 2 * TRIES
"""Deaths of one worker's processes, without any trial ending in between, that stop the study: twice
as many as one trial causes that kills every process that runs it."""
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Layout:
    """How a machine's devices are assigned to its workers.

    Attributes:
        workers: Number of processes.
        threads: Threads of each.
        devices: Names of the GPUs, as in ``CUDA_VISIBLE_DEVICES``; empty: the CPU.
    """

    workers: int
    threads: int
    devices: tuple[str, ...] = ()

    def environment(self, number: int) -> dict[str, str]:
        """Return the environment of a worker; the first has number 1."""
        threads = {THREADS: str(self.threads)}
        if not self.devices:
            return threads
        return {**threads, VISIBLE: self.devices[(number - 1) % len(self.devices)]}

    def __str__(self) -> str:
        each = f"one on each of {len(self.devices)} GPUs" if len(self.devices) > 1 else "on the GPU"
        if not self.devices:
            each = f"{self.threads} thread{'s' * (self.threads > 1)} each"
        return f"{self.workers} worker{'s' * (self.workers > 1)}, {each}"


def layout(study: StudyFile, missing: int, wanted: int | None) -> Layout:
    """Choose the number of workers: one for each GPU; on a CPU one for each core.

    Several processes of one thread do more work per hour than one process of several threads. Where
    there are fewer trials than cores, each process gets several threads. A number of threads in
    the environment is kept.

    Args:
        study: The study.
        missing: Trials to run.
        wanted: Number of workers asked for; None for this rule.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    on_cpu = study.base.get("trainer", {}).get("accelerator") == "cpu"
    devices = () if on_cpu else _devices()
    workers = wanted or max(1, min(len(devices) or cores, missing))
    threads = os.environ.get(THREADS, "")
    each = int(threads) if threads.isdecimal() else max(1, cores // workers)
    return Layout(workers, each, devices)


def _devices() -> tuple[str, ...]:
    import torch

    indices = range(torch.cuda.device_count())
    names = os.environ.get(VISIBLE)
    return tuple(names.split(",")[i] if names else str(i) for i in indices)


class Worker:
    """A worker of the pool, and its present process.

    Args:
        number: From 1.
        log: File of its output.
        environment: Variables in addition to the command's environment.
        arguments: Its arguments.
    """

    def __init__(
        self, number: int, log: Path, environment: Mapping[str, str], arguments: WorkerArguments
    ) -> None:
        self.number = number
        self.log = log
        self.deaths = 0
        self._environment = {**os.environ, **environment}
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        """Start a process that the terminal's Ctrl-C does not reach: the command handles that."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flowbench.sweep.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
                text=True,
            )
        with suppress(BrokenPipeError):  # it died at once, which ``watch`` will see
            self._stdin.write(self._arguments.to_line())
            self._stdin.flush()

    def ask_to_stop(self) -> None:
        """Close its standard input: it saves at the end of its step and stops."""
        with suppress(BrokenPipeError):  # it died before it read its arguments
            self._stdin.close()

    def last_line(self) -> str:
        """Return the last line of its output."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 1000))
            lines = file.read().decode(errors="replace").split("\n")
        written = [line.strip() for line in lines if line.strip()]
        return written[-1].removeprefix("flowbench: ") if written else "starting"

    def how_it_ended(self) -> str:
        """Say how the last process ended."""
        status = self.process.returncode
        return f"signal {-status}" if status < 0 else f"exit status {status}"

    @property
    def _stdin(self) -> IO[str]:
        assert self.process.stdin
        return self.process.stdin


class Pool:
    """The workers of this machine; they have stopped when the context ends.

    Args:
        layout: Their number and devices.
        arguments: Their arguments.
        logs: Directory of their output.
    """

    def __init__(self, layout: Layout, arguments: WorkerArguments, logs: Path) -> None:
        self.layout = layout
        self.arguments = arguments
        self.logs = logs
        self.workers: list[Worker] = []
        self._ended = 0

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        for number in range(1, self.layout.workers + 1):
            log = self.logs / f"worker-{number}.log"
            self.workers.append(
                Worker(number, log, self.layout.environment(number), self.arguments)
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self.workers:
            worker.ask_to_stop()
        if isinstance(error, KeyboardInterrupt):
            say("stopping the workers after their steps; press Ctrl-C again to stop at once")
        try:
            for worker in self.workers:
                worker.process.wait()
        except KeyboardInterrupt:
            self._end_at_once()

    def watch(self, ended: int) -> bool:
        """Restart the workers that died.

        Args:
            ended: Number of trials that have ended so far, on all machines.

        Returns:
            Whether any worker is running.

        Raises:
            UsageError: One dies repeatedly, and no trial ends.
        """
        if ended > self._ended:
            self._ended = ended
            for worker in self.workers:
                worker.deaths = 0
        for worker in self.workers:
            status = worker.process.poll()
            if status in (None, OVER):
                continue
            if status != AGAIN:
                worker.deaths += 1
                died = f"worker {worker.number} died ({worker.how_it_ended()})"
                if worker.deaths == DEATHS:
                    again = f"{DEATHS} times in a row: {worker.last_line()}"
                    raise UsageError(f"{died} {again}; its output is in {worker.log}")
                say(f"{died}: it is restarted; its output is in {worker.log}")
            worker.ask_to_stop()
            worker.start()
        return any(worker.process.poll() is None for worker in self.workers)

    def _end_at_once(self) -> None:
        """Let the workers mark their runs as killed; kill those that do not answer."""
        for worker in self.workers:
            worker.process.send_signal(signal.SIGTERM)
        for worker in self.workers:
            try:
                worker.process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
