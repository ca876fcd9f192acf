"""Where Optuna keeps the trials of a study: a journal beside the results, or a database."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import SQLAlchemyError

from flowbench.errors import UsageError
from flowbench.terminal import say
from flowbench.tracking.locks import exclusive, shown


class Storage:
    """The trials' storage, opened; its tables are made where they are missing.

    Args:
        place: Path of a journal, ``sqlite:///FILE``, or ``postgresql://...``, which machines can
            share.

    Attributes:
        backend: What Optuna reads and writes.

    Raises:
        UsageError: It is no such address, or cannot be read.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        with self.errors():
            self.backend = self._open()

    def _open(self) -> BaseStorage:
        if "://" in self.place:
            with self.locked():  # processes that make the tables together ruin them
                return RDBStorage(self.place, engine_kwargs={"pool_pre_ping": True})
        Path(self.place).parent.mkdir(parents=True, exist_ok=True)
        lock = JournalLock(Path(self.place))
        return JournalStorage(JournalFileBackend(self.place, lock_obj=lock))

    def locked(self) -> AbstractContextManager[None]:
        """Let one process at a time inside, of all that use this storage."""
        return exclusive(self.place)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Tell what cannot be opened or read on one line."""
        hint = "is it running, and its name and password right?"
        if "://" not in self.place:
            hint = "move it away, and the runs that the store has as finished are taken from there"
        try:
            yield
        except UsageError:
            raise
        except (SQLAlchemyError, StorageInternalError, ValueError, KeyError) as error:
            cause: BaseException = error
            while deeper := cause.__cause__:
                cause = deeper
            raise UsageError(f"{shown(self.place)} cannot be read: {cause}; {hint}") from error


class JournalLock(JournalFileOpenLock):
    """Lock of a journal, on the file itself, in place of Optuna's, which outlives a holder's death.

    Whoever gets it finds the file whole.

    A disk that was full, or a power failure, leaves a last line that is half written, and the next
    one behind it would make the journal unreadable. All that write hold this lock, so what stands
    behind the last newline now will never be finished: it is cut off.

    Args:
        path: The journal.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._file: BinaryIO | None = None

    def acquire(self) -> bool:
        """Wait for the lock, and mend the file."""
        file = self._path.open("r+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        self._mend(file)
        self._file = file
        return True

    def release(self) -> None:
        """Give the lock to the next."""
        if self._file:
            self._file.close()

    def _mend(self, file: BinaryIO) -> None:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        say(f"{self._path}: cut off {size - whole} bytes of a last line that was half written")
