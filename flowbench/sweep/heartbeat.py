"""The time stamp of a running trial, for machines that cannot look up its process."""

import os
import signal
import threading
import time
from types import TracebackType
from typing import Self

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage

from flowbench.sweep.planned import HEARTBEAT
from flowbench.terminal import say

SECONDS = 20.0


class Heartbeat:
    """Renews a trial's time stamp as long as the context lasts.

    If this machine was asleep for longer than the others wait, another one has marked the trial as
    failed and taken it over: the heartbeat then interrupts this process, as a signal would.

    Args:
        backend: Optuna's storage.
        trial_id: The storage's id of the trial.
        seconds: Time between two time stamps.

    Attributes:
        lost: Whether another process has taken the trial over.
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
            except Exception as error:  # the storage may be back at the next one
                say(f"no heartbeat could be recorded: {error}")
