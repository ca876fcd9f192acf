"""Who ran something, on what and with which code: the tags that make a number traceable."""

import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from flowbench import __version__

PACKAGES = ("torch", "lightning", "mlflow", "optuna", "torch-fidelity")

HOST, PID, STARTED = "flowbench.host", "flowbench.pid", "flowbench.process_started"


def owner() -> dict[str, str]:
    """Name this process so that it can be told from a later one with the same number."""
    process = psutil.Process()
    return {
        HOST: socket.gethostname(),
        PID: str(process.pid),
        STARTED: f"{process.create_time():.2f}",
    }


def is_orphan(tags: Mapping[str, str]) -> bool:
    """Tell whether the process that ``owner`` named ran on this machine and is gone."""
    if tags.get(HOST) != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(tags[PID]))
        return f"{process.create_time():.2f}" != tags[STARTED]
    except psutil.NoSuchProcess:
        return True


def provenance() -> dict[str, str]:
    """Versions, commit and machine, as tags."""
    return {
        **{f"version.{package}": version(package) for package in PACKAGES},
        "version.flowbench": __version__,
        "version.python": platform.python_version(),
        "commit": _commit(),
        "machine": f"{processor()}, {platform.system()}",
    }


def _commit() -> str:
    """Commit of the running code, ``+`` behind it where files differ; empty outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], **_QUIET)
        changes = subprocess.run([*git, "status", "--porcelain", "--", ":/flowbench"], **_QUIET)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


_QUIET: dict[str, Any] = {"capture_output": True, "text": True, "check": True}


def processor() -> str:
    """Name the processor and count its cores."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # no such file but on Linux: the architecture's name stands
    return f"{name}, {os.cpu_count()} cores"
