"""What takes long to compute and follows from its inputs alone, in files named by their hash."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    """Read a file, or make its content and write it; several processes make it once.

    It is there whole or not at all. One that is damaged, or is not what was written under this
    name, is made anew.

    Args:
        path: The file; its name has the hash of all that the content follows from.
        make: Makes the content: tensors and plain values, nested in dicts.

    Raises:
        UsageError: The directory cannot be written.
    """
    with _locked(path):
        if path.exists():
            try:
                return read(path)
            except UsageError as error:
                say(f"{error}; it is made anew")
        content = make()
        _write(path, content)
        return content


def read(path: Path) -> dict[str, Any]:
    """Read the content of a file that ``cached`` has written.

    Raises:
        UsageError: It is missing, damaged or another file.
    """
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on a broken file
        raise UsageError(f"{path} is damaged or of another kind") from error
    if isinstance(file, dict) and {"content", "digest"} <= file.keys():
        content: dict[str, Any] = file["content"]
        if file["digest"] == digest({"name": path.name, "content": content}):
            return content
    raise UsageError(f"{path} has another content than flowbench wrote there")


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write beside the final place, sync, rename."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            total = digest({"name": path.name, "content": content})
            torch.save({"content": content, "digest": total}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer hides the one behind the other
        raise UsageError(f"cache file {path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):  # there is none after success
            partial.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from the same file inside."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError as error:
        raise UsageError(f"cache directory {path.parent} cannot be written: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process to make {path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
