"""Files that are replaced whole or not at all, and locks that end with their process."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``path`` once it is written and on the disk.

    If the context raises, or the process dies, an earlier file at ``path`` stays as it was.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):  # after success there is none
            partial.unlink()


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[IO[bytes]]:
    """Keep other processes out of the same context; the system frees the lock of a dead process.

    Args:
        path: File to lock, made where it is missing; its content stays.
        waiting: Called once if another process holds the lock.

    Raises:
        OSError: The file cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
