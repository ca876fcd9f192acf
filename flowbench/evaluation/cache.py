"""Results that take long to compute, kept in files named by the hash of their inputs."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowbench.archive import read_tensors
from flowbench.atomic import locked, replacing
from flowbench.errors import UsageError
from flowbench.terminal import say


def digest(value: Any) -> str:
    """SHA-256 of tensors and plain values, nested in mappings.

    Two values of one digest are equal to the last bit, in type, shape and names.

    Example:
        >>> digest({"a": torch.zeros(2), "b": 1})[:16]
        '479e85998f041323'
    """
    total = hashlib.sha256()
    if isinstance(value, Tensor):
        total.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for key in sorted(value):
            total.update(f"{key!r}: {digest(value[key])} ".encode())
    else:
        total.update(repr(value).encode())
    return total.hexdigest()


def cached(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read a file, or compute its content and write it; several processes compute it once.

    A file that is damaged, or was not written under this name, is computed again.

    Args:
        path: The file; its name has the hash of all inputs of the content.
        make: Computes the content: tensors and plain values, nested in dicts.

    Raises:
        UsageError: The directory cannot be written.
    """
    with ExitStack() as stack:
        waiting = f"waiting for another process to make {path}"
        try:
            stack.enter_context(locked(path.with_suffix(".lock"), lambda: say(waiting)))
        except OSError as error:
            raise UsageError(f"cache directory {path.parent} cannot be written: {error}") from error
        if path.exists():
            try:
                return read(path)
            except UsageError as error:
                say(f"{error}; it is computed again")
        content = make()
        _write(path, content)
        return content


def read(path: Path) -> dict[str, Any]:
    """Read the content of a file that ``cached`` wrote.

    Raises:
        UsageError: It is missing, damaged or another file.
    """
    try:
        file = read_tensors(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if isinstance(file, dict) and {"content", "digest"} <= file.keys():
        content: dict[str, Any] = file["content"]
        if file["digest"] == digest({"name": path.name, "content": content}):
            return content
    raise UsageError(f"{path} has another content than flowbench wrote")


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        with replacing(path) as file:
            total = digest({"name": path.name, "content": content})
            torch.save({"content": content, "digest": total}, file)
    except (OSError, RuntimeError) as error:  # torch's writer hides an OSError with a RuntimeError
        raise UsageError(f"cache file {path} cannot be written: {error}") from error
