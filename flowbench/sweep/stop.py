"""What asks a worker to stop: a signal, or the end of its standard input."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Remembers that the worker is to stop; in a run it interrupts, elsewhere it waits to be asked.

    What is written between runs, to Optuna above all, is so never torn by a signal.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._in_run = False

    @property
    def requested(self) -> bool:
        """Whether the worker is to take no further trial."""
        return self._event.is_set()

    def listen(self, descriptor: int) -> None:
        """Take SIGINT, SIGTERM and the end of a pipe that the parent holds open for the request.

        The system closes a parent's end however the parent dies.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

        def watch() -> None:
            while os.read(descriptor, 1024):  # a stream's own lock would trouble the exit
                pass
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=watch, name="parent", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Let time pass, or less of it if the worker is to stop."""
        self._event.wait(seconds)

    @contextmanager
    def in_run(self) -> Iterator[None]:
        """Interrupt what happens inside, until it handles signals itself.

        Raises:
            KeyboardInterrupt: The worker is, or was, to stop.
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
