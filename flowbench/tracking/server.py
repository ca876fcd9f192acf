"""MLflow's own pages on the recorded runs."""

import os
import socket
import sys
from pathlib import Path

from flowbench.errors import UsageError
from flowbench.terminal import say


def serve(results: Path, host: str, port: int) -> None:
    """Replace this process by MLflow's server: one worker, no telemetry, no job runner.

    Raises:
        UsageError: Nothing is recorded here, the store is a server already, or the port is taken.
    """
    if remote := os.environ.get("MLFLOW_TRACKING_URI"):
        if remote.startswith("http"):
            raise UsageError(f"the runs are on a server already: open {remote}")
        uri = remote
    else:
        if not (results / "mlflow.db").exists():
            raise UsageError(f"nothing is recorded in {results}: run a study or train first")
        from flowbench.tracking.store import Store

        uri = Store(results).uri
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "a port is an integer from 0 to 65535"
        raise UsageError(f"{host}:{port} cannot be listened on: {reason}") from error
    # Without the query MLflow opens its pages for language models, which show no runs.
    page = f"http://{host}:{port}/#/experiments?workflowType=machine_learning"
    say(f"{page} in about ten seconds; Ctrl-C ends it")
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    options = ["--host", host, "--port", str(port), "--workers", "1"]
    options += ["--backend-store-uri", uri]
    options += ["--artifacts-destination", str((results / "artifacts").resolve())]
    command = [sys.executable, "-m", "mlflow", "server", *options]
    os.execve(sys.executable, command, environment)
