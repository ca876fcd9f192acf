"""A study as its file describes it: the question, the base experiment, the grid, the scales."""

import copy
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowbench.config import Experiment, build, read_yaml
from flowbench.errors import UsageError

KEYS = {"question": str, "expected": str, "cost": dict, "base": dict, "grid": dict, "scales": dict}
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
        grid: The values of every key that varies.
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
    scales = content["scales"]
    if scale not in scales:
        raise UsageError(f"{path}: no scale {scale!r}: valid are {', '.join(scales)}")
    name = path.stem if scale == QUICK else f"{path.stem}-{scale}"
    overrides = scales[scale]
    if not isinstance(overrides, dict):
        raise UsageError(f"{path}: scales.{scale} = {overrides!r} is not valid: a mapping")
    grid = _grid(path, {**content["grid"], **overrides.pop("grid", {})})
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
        cost=str(content["cost"].get(scale, "of unknown cost")).strip(),
        grid=grid,
        points=tuple(points),
    )


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        shipped = ", ".join(str(file) for file in sorted(Path("sweeps").glob("*.yaml")))
        raise UsageError(f"there is no study file {path}; here are: {shipped or 'none'}")
    content = read_yaml(path, "study file")
    for key in content:
        if key not in KEYS:
            raise UsageError(f"{path}: unknown key {key}: valid are {', '.join(KEYS)}")
    for key, kind in KEYS.items():
        if not isinstance(content.get(key), kind):
            valid = "text" if kind is str else "a mapping"
            raise UsageError(f"{path}: {key} = {content.get(key)!r} is not valid: {valid}")
    return content


def _grid(path: Path, grid: dict[str, Any]) -> dict[str, list[Any]]:
    for key, values in grid.items():
        if not isinstance(values, list) or not values or any(values.count(v) > 1 for v in values):
            valid = "a list of different values"
            raise UsageError(f"{path}: grid.{key} = {values!r} is not valid: {valid}")
    return grid


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
