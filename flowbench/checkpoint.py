"""Checkpoints read back: whole, of plain values only, and of the shape that is expected."""

import pickle
from pathlib import Path
from typing import Any

import torch

from flowbench.config import build
from flowbench.errors import UsageError
from flowbench.module import FlowModule


def load(path: Path, device: str | torch.device = "cpu") -> FlowModule:
    """Build the module of a checkpoint, with its weights, ready to evaluate.

    Raises:
        UsageError: The file is missing, damaged, or was not written by flowbench.
    """
    content = _read(path)
    about = content["flowbench"]
    module = FlowModule(build(about["experiment"]), tuple(about["shape"]), about["classes"])
    _fill(module, content, path)
    return module.to(device).eval()


def check_resumable(path: Path, module: FlowModule) -> None:
    """Make sure that training of this module can go on from a checkpoint.

    Raises:
        UsageError: The file is damaged, or was written by an experiment of another configuration.
    """
    content = _read(path)
    written = build(content["flowbench"]["experiment"])
    if written != module.experiment:
        raise UsageError(f"checkpoint {path} is of another experiment: {written}")
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
    except FileNotFoundError as error:
        raise UsageError(f"there is no checkpoint {path}") from error
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error) else "it is empty"
        raise UsageError(f"checkpoint {path} cannot be read: {reason}") from error
    if not isinstance(content, dict) or "flowbench" not in content:
        raise UsageError(f"checkpoint {path} was not written by flowbench")
    return content
