"""A worker: the process that runs the trials of a study, one after another.

It reads its arguments from the first line of its standard input and works as long as that stays
open: until the command that started it dies or asks it to stop.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from flowbench.errors import Interrupted, UsageError
from flowbench.study import read
from flowbench.sweep.stop import Stop
from flowbench.terminal import say

OVER, FAILED, AGAIN, STOPPED = 0, 2, 75, 130
"""Exit statuses: all trials ended; an error; a new process must replace this one; a signal."""
IDLE_SECONDS = 2.0


@dataclass(frozen=True)
class WorkerArguments:
    """Arguments of a worker.

    Attributes:
        file: The study file.
        scale: Its scale.
        results: Directory of the results.
        storage: Optuna's storage.
        name: Name of the study in the storage.
        planned: Number of trials.
        workers: Number of workers of this machine.
        deadline: Time, in seconds since 1970, at which no trial should run any more; None: any.
    """

    file: str
    scale: str
    results: str
    storage: str
    name: str
    planned: int
    workers: int
    deadline: float | None = None

    def to_line(self) -> str:
        """Write the arguments as one line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Read the line that ``to_line`` wrote."""
        return cls(**json.loads(line))


def work(arguments: WorkerArguments, stop: Stop) -> int:
    """Run trials until all have ended; wait for other workers, whose trials may need a new attempt.

    Returns:
        The exit status.

    Raises:
        Interrupted: A signal stopped the run in progress.
        UsageError: The study's file has changed, or the store or the storage cannot be used.
    """
    from flowbench.sweep.optuna_study import PARENT_RUN, load_study
    from flowbench.sweep.planned import PlannedTrials
    from flowbench.sweep.storage import Storage
    from flowbench.sweep.trial import Runner
    from flowbench.tracking.store import Store

    study = read(Path(arguments.file), arguments.scale)
    store = Store(Path(arguments.results))
    storage = Storage(arguments.storage)
    opened = load_study(study, storage, arguments.name)
    planned = PlannedTrials(opened, storage, study, arguments.planned)
    runner = Runner(planned, store, opened.user_attrs[PARENT_RUN], arguments.workers, stop)
    while not (stop.requested or planned.over() or planned.too_many_failed()):
        if arguments.deadline and not planned.fits(arguments.deadline):
            return OVER
        trial = planned.claim()
        if trial is None:
            stop.wait(IDLE_SECONDS)
        elif not runner.run(trial):
            return AGAIN
    return STOPPED if stop.requested else OVER


def main() -> int:
    """Run a worker with the arguments on standard input."""
    stop = Stop()
    arguments = WorkerArguments.from_line(sys.stdin.readline())
    stop.listen(sys.stdin.fileno())
    try:
        return work(arguments, stop)
    except Interrupted as stopped:
        say(str(stopped))
        return STOPPED
    except KeyboardInterrupt:
        return STOPPED
    except UsageError as error:
        say(f"error: {error}")
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
