"""Checkpoints read back: whole, of plain values only, and of the shape that is expected."""

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flowbench.config import build, flat
from flowbench.errors import UsageError
from flowbench.module import FlowModule


def load(path: Path, device: str | None = "cpu") -> FlowModule:
    """Build the module of a checkpoint, with its weights, ready to evaluate.

    Args:
        path: The checkpoint.
        device: Where to; None for a GPU if there is one.

    Raises:
        UsageError: The file is missing, damaged, or was not written by flowbench; or there is no
            such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    content = _read(path)
    about = content["flowbench"]
    module = FlowModule(build(about["experiment"]), tuple(about["shape"]), about["classes"])
    _fill(module, content, path)
    try:
        return module.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device} is not valid: {error}") from error


def check_resumable(path: Path, module: FlowModule) -> None:
    """Make sure that training of this module can go on from a checkpoint.

    Raises:
        UsageError: The file is damaged, or was written by an experiment of another configuration.
    """
    content = _read(path)
    written = flat(asdict(build(content["flowbench"]["experiment"])))
    asked = flat(asdict(module.experiment))
    for key in sorted(written.keys() | asked.keys()):
        here, there = asked.get(key), written.get(key)
        if here != there:
            told = f"{key} is {there!r} there, {here!r} here"
            raise UsageError(f"checkpoint {path} was written by another experiment: {told}")
    _fill(module, content, path)


def _fill(module: FlowModule, content: dict[str, Any], path: Path) -> None:
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UsageError(f"checkpoint {path} does not fit the flow it names: {reason}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        if not path.is_file():
            reason = "there is no such file"
        elif path.stat().st_size == 0:
            reason = "it is empty"
        else:
            reason = "it is cut short, damaged or of another kind"
        raise UsageError(f"checkpoint {path} cannot be read: {reason}") from error
    about = content.get("flowbench") if isinstance(content, dict) else None
    if not isinstance(about, dict) or not {"experiment", "shape", "classes"} <= about.keys():
        raise UsageError(f"checkpoint {path} was not written by flowbench")
    return content
