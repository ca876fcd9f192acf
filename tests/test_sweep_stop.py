"""What stops a worker: a signal or the end of its parent, at once in a run, elsewhere when asked."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from flowbench.sweep.stop import Stop


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for end in (read, write):
        with suppress(OSError):  # the test has closed it
            os.close(end)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_a_run_only_asks(pipe: tuple[int, int], number: signal.Signals) -> None:
    stop = Stop()
    stop.listen(pipe[0])
    assert not stop.requested
    signal.raise_signal(number)
    assert stop.requested
    with pytest.raises(KeyboardInterrupt), stop.in_run():
        pytest.fail("a run was begun")


def test_a_signal_in_a_run_interrupts_it(pipe: tuple[int, int]) -> None:
    stop = Stop()
    stop.listen(pipe[0])
    with pytest.raises(KeyboardInterrupt), stop.in_run():
        signal.raise_signal(signal.SIGINT)
    assert stop.requested
    signal.raise_signal(signal.SIGINT)  # behind the run it no longer interrupts


def test_the_end_of_the_parent_is_a_signal(pipe: tuple[int, int]) -> None:
    stop = Stop()
    stop.listen(pipe[0])
    os.write(pipe[1], b"more orders are no end")
    stop.wait(0.1)
    assert not stop.requested
    with pytest.raises(KeyboardInterrupt), stop.in_run():
        os.close(pipe[1])
        time.sleep(10)


def test_waiting_ends_early_when_the_worker_is_to_stop(pipe: tuple[int, int]) -> None:
    stop = Stop()
    stop.listen(pipe[0])
    os.close(pipe[1])
    began = time.monotonic()
    stop.wait(10)
    assert time.monotonic() - began < 5
    assert stop.requested
