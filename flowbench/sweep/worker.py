"""A worker: the process that runs the trials of a study, one after another.

It reads its orders from the first line of its standard input and works as long as that stays open,
which is as long as the command that started it lives and does not ask it to stop.
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
"""Exit statuses: nothing is left; an error; a new process is to take its place; by a signal."""
IDLE_SECONDS = 2.0


@dataclass(frozen=True)
class Orders:
    """What a worker is told.

    Attributes:
        file: The study file.
        scale: Its scale.
        results: Directory of all that is recorded.
        storage: Where Optuna keeps the trials.
        name: Name of the study there.
        planned: Number of trials.
        workers: Number of workers of this machine.
    """

    file: str
    scale: str
    results: str
    storage: str
    name: str
    planned: int
    workers: int

    def write(self) -> str:
        """Write them as a line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def read(cls, line: str) -> Self:
        """Read what ``write`` wrote."""
        return cls(**json.loads(line))


def work(orders: Orders, stop: Stop) -> int:
    """Run trials until none is left; while others are still at theirs, be there if they die.

    Returns:
        The exit status.

    Raises:
        Interrupted: A signal stopped the run in progress.
        UsageError: The study's file has changed, or the store or the storage cannot be used.
    """
    from flowbench.sweep.places import Places
    from flowbench.sweep.storage import Storage
    from flowbench.sweep.studies import PARENT_RUN, load_study
    from flowbench.sweep.trial import Runner
    from flowbench.tracking.store import Store

    study = read(Path(orders.file), orders.scale)
    store = Store(Path(orders.results))
    storage = Storage(orders.storage)
    opened = load_study(study, storage, orders.name)
    places = Places(opened, storage, study, orders.planned)
    runner = Runner(places, store, opened.user_attrs[PARENT_RUN], orders.workers, stop)
    while not (stop.requested or places.over() or places.too_many_failed()):
        trial = places.claim()
        if trial is None:
            stop.wait(IDLE_SECONDS)
        elif not runner.run(trial):
            return AGAIN
    return STOPPED if stop.requested else OVER


def main() -> int:
    """Work by the orders on standard input."""
    stop = Stop()
    orders = Orders.read(sys.stdin.readline())
    stop.listen(sys.stdin.fileno())
    try:
        return work(orders, stop)
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
