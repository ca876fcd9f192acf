"""What stops a worker, a signal or its parent's end: at once in a run, elsewhere when it asks."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from flowbench.sweep.stop import Stop

Listening = tuple[Stop, Callable[[], None]]


@pytest.fixture
def listening() -> Iterator[Listening]:
    """A worker's ``Stop``, and what ends its parent."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    read, write = os.pipe()
    stop = Stop()
    stop.listen(read)

    def end() -> None:
        with suppress(OSError):  # a second time
            os.close(write)

    yield stop, end
    end()
    for thread in threading.enumerate():
        if thread.name == "parent":
            thread.join()
    os.close(read)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_a_run_only_asks(listening: Listening, number: signal.Signals) -> None:
    stop, _ = listening
    assert not stop.requested
    signal.raise_signal(number)
    assert stop.requested
    with pytest.raises(KeyboardInterrupt), stop.in_run():
        pytest.fail("a run was begun")


def test_a_signal_in_a_run_interrupts_it(listening: Listening) -> None:
    stop, _ = listening
    with pytest.raises(KeyboardInterrupt), stop.in_run():
        signal.raise_signal(signal.SIGINT)
    assert stop.requested
    signal.raise_signal(signal.SIGINT)  # behind the run it no longer interrupts


def test_the_end_of_the_parent_interrupts_a_run(listening: Listening) -> None:
    stop, end = listening
    threading.Timer(0.1, end).start()
    with pytest.raises(KeyboardInterrupt), stop.in_run():
        time.sleep(10)
    assert stop.requested


def test_waiting_ends_early_when_the_worker_is_to_stop(listening: Listening) -> None:
    stop, end = listening
    threading.Timer(0.1, end).start()
    began = time.monotonic()
    stop.wait(10)
    assert time.monotonic() - began < 5
    assert stop.requested
