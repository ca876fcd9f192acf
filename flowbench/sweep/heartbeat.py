"""The sign of life of a running trial, for machines that cannot look its process up."""

import os
import signal
import threading
import time
from types import TracebackType
from typing import Self

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage

from flowbench.sweep.places import HEARTBEAT
from flowbench.terminal import say

SECONDS = 20.0


class Heartbeat:
    """Renews a trial's time stamp as long as the context lasts.

    A machine that was asleep for longer than the others wait finds its trial told as failed and
    taken over: the beat then interrupts the process, as a signal would.

    Args:
        backend: Optuna's storage.
        trial_id: The storage's name for the trial.
        seconds: Time between two beats.

    Attributes:
        lost: Whether the trial has been taken over.
    """

    def __init__(self, backend: BaseStorage, trial_id: int, seconds: float = SECONDS) -> None:
        self.lost = False
        self._backend = backend
        self._trial_id = trial_id
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(self._seconds):
            try:
                self._backend.set_trial_user_attr(self._trial_id, HEARTBEAT, time.time())
            except UpdateFinishedTrialError:
                self.lost = True
                os.kill(os.getpid(), signal.SIGINT)
                return
            except Exception as error:  # a storage that is away for a while: the next beat may pass
                say(f"no heartbeat could be recorded: {error}")
