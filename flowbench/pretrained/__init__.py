"""Trained flows that come with flowbench, each a file of weights and a line about it.

``flows.json`` says of each where it is from: the command of its study, its configuration's
transform and noise, its measurements, and the hash of its file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from flowbench.errors import UsageError

HERE = Path(__file__).parent
INDEX = "flows.json"
LARGEST = 3 * 2**20
"""Bytes of a file, at most."""


def flows(directory: Path = HERE) -> dict[str, dict[str, Any]]:
    """Return what is known of every flow, by its name."""
    path = directory / INDEX
    known: dict[str, dict[str, Any]] = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    )
    return known


def find(name: str, directory: Path = HERE) -> Path:
    """Return the path of a flow's checkpoint.

    Raises:
        UsageError: There is no flow of this name, or its file is not the one that was shipped.
    """
    known = flows(directory)
    if name not in known:
        valid = ", ".join(known) or "none"
        raise UsageError(f"there is no pretrained flow {name!r}: there are {valid}")
    path = directory / f"{name}.ckpt"
    if not path.exists() or digest(path) != known[name]["sha256"]:
        raise UsageError(f"{path} is missing or damaged: install flowbench again")
    return path


def digest(path: Path) -> str:
    """Hash a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
