"""Locks on files and databases that the system frees when their holder dies."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.engine import make_url

from flowbench.atomic import locked
from flowbench.errors import UsageError


@contextmanager
def exclusive(place: str) -> Iterator[None]:
    """Keep all other processes out of the context, on any machine that reaches the same place.

    A file has a lock file next to it with the suffix ``.lock``; PostgreSQL has locks of its own,
    one per database here. A process must not enter twice.

    Args:
        place: Path of a file, ``sqlite:///FILE`` or ``postgresql://...``.

    Raises:
        UsageError: It is another kind of database, or the PostgreSQL driver is not installed.
    """
    url = make_url(place) if "://" in place else None
    if url is None or url.get_backend_name() == "sqlite":
        with locked(Path(place if url is None else url.database or "").with_suffix(".lock")):
            yield
    elif url.get_backend_name() == "postgresql":
        try:
            engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        except ModuleNotFoundError as error:
            needed = "pip install 'flowbench[postgres]'"
            raise UsageError(f"{shown(place)} needs {error.name}: {needed}") from error
        with engine.connect() as connection:  # closing it frees the lock
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _key(url.database)})
            yield
    else:
        raise UsageError(f"{shown(place)} is not valid: sqlite:///FILE or postgresql://...")


def shown(place: str) -> str:
    """Write an address without its password."""
    return make_url(place).render_as_string(hide_password=True) if "@" in place else place


def _key(name: str | None) -> int:
    """Return the number of flowbench's lock in a database."""
    digest = hashlib.sha256(f"flowbench {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
