"""A study as its file describes it: the question, the base experiment, the grid, the scales."""

import copy
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flowbench.config import Experiment, build
from flowbench.errors import UsageError

KEYS = ("question", "expected", "cost", "base", "grid", "scales")
QUICK = "quick"


@dataclass(frozen=True)
class Point:
    """One cell of a study's grid: the values that make it, and the experiment that they make."""

    values: dict[str, Any]
    experiment: Experiment


@dataclass(frozen=True)
class StudyFile:
    """A ``sweeps/*.yaml`` at one scale.

    Attributes:
        path: The file.
        name: The file's stem, with the scale behind it unless that is quick; names the runs, the
            results directory and the report.
        scale: quick (minutes on a laptop) or full (the original protocol).
        question: What the study asks.
        expected: What was expected before any run.
        cost: What it costs at this scale.
        points: All cells of the grid, in order.
    """

    path: Path
    name: str
    scale: str
    question: str
    expected: str
    cost: str
    grid: dict[str, list[Any]]
    points: tuple[Point, ...]

    def digest(self) -> str:
        """Hash of everything that decides the results: another one means another study."""
        digests = [point.experiment.digest() for point in self.points]
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]


def read(path: Path, scale: str = QUICK) -> StudyFile:
    """Read a study file and build every experiment of its grid.

    Raises:
        UsageError: The file, a key, a value or the scale is not valid.
    """
    content = _load(path)
    for key in content:
        if key not in KEYS:
            raise UsageError(f"{path}: unknown key {key}: valid are {', '.join(KEYS)}")
    if missing := [key for key in KEYS if key not in content]:
        raise UsageError(f"{path}: missing key {', '.join(missing)}")
    scales = content["scales"]
    if scale not in scales:
        raise UsageError(f"{path}: no scale {scale!r}: valid are {', '.join(scales)}")
    name = path.stem if scale == QUICK else f"{path.stem}-{scale}"
    overrides = dict(scales[scale])
    grid = {**content["grid"], **overrides.pop("grid", {})}
    base = _merge(content["base"], overrides)
    points = []
    for values in itertools.product(*grid.values()):
        cell = dict(zip(grid, values, strict=True))
        nested = _merge(base, {"name": name})
        for key, value in cell.items():
            nested = _merge(nested, _nest(key, value))
        try:
            points.append(Point(cell, build(nested)))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    return StudyFile(
        path=path,
        name=name,
        scale=scale,
        question=content["question"].strip(),
        expected=content["expected"].strip(),
        cost=str(content["cost"][scale]).strip(),
        grid=grid,
        points=tuple(points),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        shipped = ", ".join(str(file) for file in sorted(Path("sweeps").glob("*.yaml")))
        raise UsageError(f"there is no study file {path}; here are: {shipped or 'none'}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"study file {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"study file {path} is not a mapping: valid keys are {', '.join(KEYS)}")
    return content


def _nest(key: str, value: Any) -> dict[str, Any]:
    """``a.b``, v -> ``{a: {b: v}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else copy.deepcopy(value)
    return merged
