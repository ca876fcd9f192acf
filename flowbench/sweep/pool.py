"""The workers of this machine: as many processes as it is worth, started again when they die."""

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
from flowbench.sweep.places import TRIES
from flowbench.sweep.worker import AGAIN, OVER, Orders
from flowbench.terminal import say

THREADS = "OMP_NUM_THREADS"
"""What torch, and the libraries below it, take their number of threads from."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
DEATHS = 2 * TRIES
"""Deaths of one worker's processes, with no trial brought to an end between, that stop the study:
twice what a trial can cause that kills every process that touches it."""
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Layout:
    """How a machine's devices are dealt to its workers.

    Attributes:
        workers: Number of processes.
        threads: Threads of each.
        devices: Names of the GPUs, as ``CUDA_VISIBLE_DEVICES`` has them; none: on the CPU.
    """

    workers: int
    threads: int
    devices: tuple[str, ...] = ()

    def environment(self, number: int) -> dict[str, str]:
        """Environment of a worker, the first of which is 1."""
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

    Several processes of one thread do more in an hour than one of several threads; where there are
    fewer trials than cores, their processes share these out. A number of threads that the
    environment sets stands.

    Args:
        study: The study.
        missing: Trials to go.
        wanted: Number of workers asked for; none for this choice.
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
    """A worker's place in the pool, and the process that is in it now.

    Args:
        number: From 1.
        log: File of its output.
        environment: What its environment has beside the command's own.
        orders: What it is told.
    """

    def __init__(
        self, number: int, log: Path, environment: Mapping[str, str], orders: Orders
    ) -> None:
        self.number = number
        self.log = log
        self.deaths = 0
        self._environment = {**os.environ, **environment}
        self._orders = orders
        self.start()

    def start(self) -> None:
        """Start a process, out of reach of the terminal's Ctrl-C: that is the command's to hear."""
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
        with suppress(BrokenPipeError):  # it died at once, which whoever watches it will see
            self._stdin.write(self._orders.write())
            self._stdin.flush()

    def ask_to_stop(self) -> None:
        """Close its standard input: it stops at the end of its step, having saved it."""
        with suppress(BrokenPipeError):  # it is dead, and never read its orders
            self._stdin.close()

    def last_line(self) -> str:
        """Give the last line of its output."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 1000))
            lines = file.read().decode(errors="replace").split("\n")
        written = [line.strip() for line in lines if line.strip()]
        return written[-1].removeprefix("flowbench: ") if written else "starting"

    def how_it_ended(self) -> str:
        """Say what the last process ended with."""
        status = self.process.returncode
        return f"signal {-status}" if status < 0 else f"exit status {status}"

    @property
    def _stdin(self) -> IO[str]:
        assert self.process.stdin
        return self.process.stdin


class Pool:
    """The workers of this machine; when the context ends they have stopped.

    Args:
        layout: How many there are, and on what.
        orders: What they are told.
        logs: Directory of their output.
    """

    def __init__(self, layout: Layout, orders: Orders, logs: Path) -> None:
        self.layout = layout
        self.orders = orders
        self.logs = logs
        self.workers: list[Worker] = []
        self._ended = 0

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        for number in range(1, self.layout.workers + 1):
            log = self.logs / f"worker-{number}.log"
            self.workers.append(Worker(number, log, self.layout.environment(number), self.orders))
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
            say("stopping the workers at the end of their steps; once more to stop at once")
        try:
            for worker in self.workers:
                worker.process.wait()
        except KeyboardInterrupt:
            self._end_at_once()

    def watch(self, ended: int) -> bool:
        """Start those that died again.

        Args:
            ended: Number of trials brought to an end so far, by all machines.

        Returns:
            Whether any is at work.

        Raises:
            UsageError: One dies again and again, and no trial ends.
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
                say(f"{died}: another takes its place; its output is in {worker.log}")
            worker.ask_to_stop()
            worker.start()
        return any(worker.process.poll() is None for worker in self.workers)

    def _end_at_once(self) -> None:
        """Let the workers mark what they leave; end those that do not answer."""
        for worker in self.workers:
            worker.process.send_signal(signal.SIGTERM)
        for worker in self.workers:
            try:
                worker.process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
