"""Requests that a worker stop: a signal, or the end of its standard input."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Remembers a request to stop: it interrupts a run at once, and takes effect after other work.

    So a signal never interrupts a write between runs, for instance to Optuna.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._in_run = False

    @property
    def requested(self) -> bool:
        """Whether the worker must take no further trial."""
        return self._event.is_set()

    def listen(self, descriptor: int) -> None:
        """Treat SIGINT, SIGTERM and the end of a pipe that the parent holds open as the request.

        The system closes the parent's end however the parent dies.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

        def watch() -> None:
            while os.read(descriptor, 1024):  # a stream's own lock could block the exit
                pass
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=watch, name="parent", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Wait, or return early when a request arrives."""
        self._event.wait(seconds)

    @contextmanager
    def in_run(self) -> Iterator[None]:
        """Interrupt the context on a request, until it handles signals itself.

        Raises:
            KeyboardInterrupt: The worker was asked to stop, before or in the context.
        """
        self._in_run = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._in_run = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._event.set()
        if self._in_run:
            raise KeyboardInterrupt
