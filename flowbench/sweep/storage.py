"""Optuna's storage of a study's trials: a journal below the results, or a database."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO

from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from flowbench.atomic import locked
from flowbench.errors import UsageError
from flowbench.terminal import say
from flowbench.tracking.locks import exclusive, shown


class Storage:
    """An open storage of trials; missing tables are created.

    Args:
        place: Path of a journal, ``sqlite:///FILE``, or ``postgresql://...``, which several
            machines can share.

    Attributes:
        backend: Optuna's storage object.

    Raises:
        UsageError: The address is not valid, or the storage cannot be read.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        with self.errors():
            self.backend = self._open()

    def _open(self) -> BaseStorage:
        if "://" in self.place:
            with self.locked():  # tables that several processes create at once are broken
                return RDBStorage(self.place, engine_kwargs={"pool_pre_ping": True})
        Path(self.place).parent.mkdir(parents=True, exist_ok=True)
        lock = JournalLock(Path(self.place))
        return JournalStorage(JournalFileBackend(self.place, lock_obj=lock))

    def locked(self) -> AbstractContextManager[None]:
        """Return a lock that one process at a time holds, of all that use this storage."""
        return exclusive(self.place)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of opening and reading into errors on one line."""
        hint = "check that it runs, and its name and password"
        if "://" not in self.place:
            hint = "move it away; finished runs are then taken from the store"
        try:
            yield
        except UsageError:
            raise
        except Exception as error:  # Optuna raises nearly anything on a line that is no record
            cause: BaseException = error
            while deeper := cause.__cause__:
                cause = deeper
            reason = f"{type(cause).__name__}: {cause}"
            raise UsageError(f"{shown(self.place)} cannot be read: {reason}; {hint}") from error


def artifacts(results: Path) -> FileSystemArtifactStore:
    """Return the directory of the files that belong to trials, which Optuna's pages show."""
    directory = results / "optuna" / "artifacts"
    directory.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(directory)


class JournalLock(JournalFileOpenLock):
    """Lock of a journal on the file itself; Optuna's own lock outlives the death of its holder.

    A full disk or a power failure leaves an incomplete last line, and a line appended to that would
    make the journal unreadable. Every writer holds this lock, so nobody will complete the text
    after the last newline: acquiring the lock cuts it off.

    Args:
        path: The journal.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._lock = ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock, then cut off an incomplete last line."""
        lock = ExitStack()
        self._cut_off(lock.enter_context(locked(self._path)))
        self._lock = lock  # only now: another thread may have held the lock until here
        return True

    def release(self) -> None:
        """Free the lock."""
        self._lock.close()

    def _cut_off(self, file: IO[bytes]) -> None:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        say(f"{self._path}: cut off {size - whole} bytes of an incomplete last line")
