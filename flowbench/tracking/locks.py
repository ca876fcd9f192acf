"""One process at a time, by locks that the system takes back from a holder that dies."""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.engine import make_url

from flowbench.errors import UsageError


@contextmanager
def exclusive(place: str) -> Iterator[None]:
    """Wait until no other process is inside, on any machine that can reach the place.

    A file's lock is on a file beside it, with ``.lock`` for its suffix; PostgreSQL has locks of its
    own, one for each database here. It is not to be entered twice by the same process.

    Args:
        place: Path of a file, ``sqlite:///FILE`` or ``postgresql://...``.

    Raises:
        UsageError: It is another kind of database, or the driver of PostgreSQL is not installed.
    """
    url = make_url(place) if "://" in place else None
    if url is None or url.get_backend_name() == "sqlite":
        path = Path(place if url is None else url.database or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    elif url.get_backend_name() == "postgresql":
        try:
            engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        except ModuleNotFoundError as error:
            needed = "pip install 'flowbench[postgres]'"
            raise UsageError(f"{shown(place)} needs {error.name}: {needed}") from error
        with engine.connect() as connection:  # closing it gives the lock back
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _key(url.database)})
            yield
    else:
        raise UsageError(f"{shown(place)} is not valid: sqlite:///FILE or postgresql://...")


def shown(place: str) -> str:
    """Write an address for people to read, without its password."""
    return make_url(place).render_as_string(hide_password=True) if "@" in place else place


def _key(name: str | None) -> int:
    """Number of flowbench's lock among those that others may take in the same database."""
    digest = hashlib.sha256(f"flowbench {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
