"""Process, machine and code of a run, as tags that make its numbers traceable."""

import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from flowbench import __version__

PACKAGES = ("torch", "lightning", "mlflow", "optuna", "torch-fidelity")

HOST, BOOT, NAMESPACE = "flowbench.host", "flowbench.boot", "flowbench.pid_namespace"
PID, STARTED = "flowbench.pid", "flowbench.process_started"


def owner() -> dict[str, str]:
    """Identify this process, so that a later one with the same number is not taken for it.

    A process number is unique only within a boot and a container. The start time is in seconds
    after the boot, so corrections of the machine's clock do not change it.
    """
    process = psutil.Process()
    return {
        HOST: socket.gethostname(),
        BOOT: _boot(),
        NAMESPACE: _namespace(),
        PID: str(process.pid),
        STARTED: f"{_started(process):.2f}",
    }


def is_local(tags: Mapping[str, str]) -> bool:
    """Return whether the process of ``owner``, dead or alive, can be looked up from here."""
    here = {HOST: socket.gethostname(), BOOT: _boot(), NAMESPACE: _namespace()}
    return all(tags.get(key) == value for key, value in here.items())


def is_gone(tags: Mapping[str, str]) -> bool:
    """Return whether the process of ``owner`` is known to have ended."""
    if not is_local(tags):
        return False
    try:
        process = psutil.Process(int(tags[PID]))
        if (
            process.status() == psutil.STATUS_ZOMBIE
        ):  # dead, but its parent has not read its exit status
            return True
        return (
            abs(_started(process) - float(tags[STARTED])) > 2
        )  # the time of the boot is known to a second
    except psutil.NoSuchProcess:
        return True


def is_orphan(tags: Mapping[str, str]) -> bool:
    """Return whether the process of ``owner`` is gone, or its machine has been restarted."""
    restarted = tags.get(HOST) == socket.gethostname() and tags.get(BOOT) != _boot()
    return restarted or is_gone(tags)


def _started(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()


@cache
def _boot() -> str:
    """Return the id of this boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:  # not Linux
        return f"{psutil.boot_time():.0f}"


@cache
def _namespace() -> str:
    """Return the id of the process number's namespace; on Linux every container has its own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        return ""


def provenance() -> dict[str, str]:
    """Return versions, commit and machine, as tags."""
    return {
        **{f"version.{package}": version(package) for package in PACKAGES},
        "version.flowbench": __version__,
        "version.python": platform.python_version(),
        "commit": _commit(),
        "machine": f"{processor()}, {platform.system()}",
    }


@cache
def _commit() -> str:
    """Return the commit of the running code, with ``+`` if files differ; empty without git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], **_QUIET)
        changes = subprocess.run([*git, "status", "--porcelain", "--", ":/flowbench"], **_QUIET)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


_QUIET: dict[str, Any] = {"capture_output": True, "text": True, "check": True}


def processor() -> str:
    """Return the name of the processor and its number of cores."""
    name = platform.processor() or platform.machine()
    try:
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: the name of the architecture
    return f"{name}, {os.cpu_count()} cores"
