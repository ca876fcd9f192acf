import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sqlalchemy import NullPool, create_engine, text

# A shell that starts the tests in the background lets them, and all they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # for fixtures of modules too, which come before those of tests


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    # torch.manual_seed also notes where it was called, for every kind of GPU that is not there.
    (torch if torch.cuda.is_available() else torch.default_generator).manual_seed(0)
    torch.set_num_threads(1)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


# A PostgreSQL for the tests that want one

NUMBERS = itertools.count()


def binaries() -> Path | None:
    """Where the server's programs are; Debian keeps them off the path."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


def as_server() -> dict[str, str]:
    """Whom to run the server as: it refuses root."""
    return {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server on a port of its own, with a data directory to be thrown away."""
    programs = binaries()
    if not programs:
        pytest.skip("PostgreSQL is NOT tested here: apt-get install postgresql")
    directory = Path(tempfile.mkdtemp(prefix="flowbench-postgres-", dir="/tmp"))
    if account := as_server().get("user"):
        os.chown(directory, pwd.getpwnam(account).pw_uid, -1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run(
            [str(programs / command[0]), *command[1:]],
            check=True,
            capture_output=True,
            cwd=directory,
            **as_server(),  # type: ignore[call-overload]
        )

    data = str(directory / "data")
    run("initdb", "-D", data, "-U", "flowbench", "--auth=trust", "--no-sync")
    options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c fsync=off"
    run("pg_ctl", "-D", data, "-w", "-l", str(directory / "log"), "-o", options, "start")
    try:
        yield f"postgresql://flowbench@127.0.0.1:{port}"
    finally:
        run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(directory)


@pytest.fixture
def trials(server: str) -> str:
    """The address of a new database, for Optuna."""
    return created(server)


@pytest.fixture
def runs(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a new database, which MLflow is told of."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", created(server))
    return os.environ["MLFLOW_TRACKING_URI"]


def created(server: str) -> str:
    name = f"made_{next(NUMBERS)}"
    engine = create_engine(f"{server}/postgres", poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return f"{server}/{name}"
