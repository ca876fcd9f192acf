"""A study as its file describes it: the question, what varies, how it is searched, the scales."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flowbench import schema
from flowbench.config import Experiment, check, flat
from flowbench.errors import UsageError
from flowbench.parsing import build, read_yaml
from flowbench.space import LIST, Choice, Range, merge, parts, put, read_space

__all__ = ["Choice", "Point", "Range", "StudyFile", "read"]

QUICK, GRID, TIMING = "quick", "grid", "timing"
REQUIRED = {
    "question": "text",
    "expected": "text",
    "cost": "a mapping",
    "base": "a mapping",
    "space": "a mapping",
    "scales": "a mapping",
}
OPTIONAL: dict[str, Any] = {
    "seeds": [0],
    "sampler": GRID,
    "pruner": "none",
    "objectives": {"val/loss": "minimize"},
    "trials": None,
    "failures": 0.5,
    "mode": "train",
}
"""What a file may leave out, and what it means then."""
BY_SCALE = ("space", "seeds", "trials")
"""Keys that a scale may set in addition to values of the experiment."""
NAMES = {
    "sampler": (GRID, "random", "tpe", "nsga2"),
    "pruner": ("none", "median", "hyperband"),
    "mode": ("train", TIMING),
}
NOT_FREE = {
    "name": "its runs are named by the file",
    "seed": "seeds lists the repeats of every point",
    **dict.fromkeys(set(OPTIONAL) - set(BY_SCALE), "it is a key of its own, valid for all scales"),
}
"""What neither base, space nor a scale may set, and why."""


@dataclass(frozen=True)
class Point:
    """One trial of a grid: the values that make it, its seed, the experiment that they make."""

    values: dict[str, Any]
    seed: int
    experiment: Experiment


@dataclass(frozen=True)
class StudyFile:
    """A ``sweeps/*.yaml`` at one scale.

    Attributes:
        path: The file.
        name: The file's stem, followed by the scale unless that is quick; the name of the runs,
            the results directory and the report.
        scale: quick (minutes on a laptop) or full (the original protocol).
        question: What the study asks.
        expected: What was expected before any run.
        cost: What it costs at this scale.
        base: Values, nested, that all of its experiments share.
        space: What varies, by dotted key; keys that vary together stand in one: ``"a.b, a.c"``.
        sampler: grid (every point), or how Optuna chooses the points: random, tpe, nsga2.
        pruner: none, or how Optuna stops trials that promise little: median, hyperband.
        objectives: minimize or maximize, by metric.
        seeds: Repeats of every point.
        trials: Number of trials planned; those of a grid are its points.
        failures: Share of the planned trials, in [0, 1], above which failures stop the study.
        mode: train, or timing: nothing but seconds per epoch, alone on the machine.
        points: All trials of a grid, seeds outermost: points take turns, so that a machine's drift
            hits all alike. Empty for the other samplers.
    """

    path: Path
    name: str
    scale: str
    question: str
    expected: str
    cost: str
    base: dict[str, Any]
    space: dict[str, Choice | Range]
    sampler: str
    pruner: str
    objectives: dict[str, str]
    seeds: tuple[int, ...]
    trials: int
    failures: float
    mode: str
    points: tuple[Point, ...] = ()

    def experiment(self, values: Mapping[str, Any], seed: int) -> Experiment:
        """Build the experiment of a point.

        Args:
            values: A value for every key of the space; for coupled keys a list.
            seed: Its seed.

        Raises:
            UsageError: A key or a value is none of an experiment's.
        """
        return build(put(self.base, {"name": self.name, "seed": seed, **values}))

    def definition(self) -> dict[str, Any]:
        """Give all that decides the results, defaults too, by dotted name, as JSON knows it.

        Without the number of trials: more of them add results and change none.
        """
        first = {key: dimension.ends[0] for key, dimension in self.space.items()}
        shared = flat(asdict(self.experiment(first, self.seeds[0])))
        varied = [part for key in self.space for part in parts(key)]
        for key in ("seed", *varied):
            shared.pop(key, None)
        search = {name: getattr(self, name) for name in (*NAMES, "objectives", "seeds")}
        space = {f"space.{key}": asdict(dimension) for key, dimension in self.space.items()}
        plain: dict[str, Any] = json.loads(json.dumps(flat({**shared, **space, **search})))
        return plain

    def digest(self) -> str:
        """Hash of all that decides the results: another one means another study."""
        text = json.dumps(self.definition(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(path: Path, scale: str = QUICK) -> StudyFile:
    """Read a study file and build every experiment of its grid.

    Where there is no grid, an experiment is built for every value and both ends of every range.

    Raises:
        UsageError: The file, a key, a value or the scale is not valid.
    """
    if not path.exists():
        shipped = ", ".join(str(file) for file in sorted(Path("sweeps").glob("*.yaml")))
        raise UsageError(f"there is no study file {path}; here are: {shipped or 'none'}")
    content = read_yaml(path, "study file")
    try:
        _check_keys(content)
        study = _study(path, scale, content)
        return _as_grid(study) if study.sampler == GRID else _tried(study)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _check_keys(content: Mapping[str, Any]) -> None:
    for key in content:
        if key not in {**REQUIRED, **OPTIONAL}:
            raise UsageError(f"unknown key {key}: valid are {', '.join([*REQUIRED, *OPTIONAL])}")
    for key, valid in REQUIRED.items():
        kind = str if valid == "text" else dict
        check(isinstance(content.get(key), kind), key, content.get(key), valid)


def _study(path: Path, scale: str, content: Mapping[str, Any]) -> StudyFile:
    scales = content["scales"]
    if scale not in scales:
        raise UsageError(f"no scale {scale!r}: valid are {', '.join(map(str, scales))}")
    own = scales[scale]
    check(isinstance(own, dict), f"scales.{scale}", own, "a mapping")
    check(isinstance(own.get("space", {}), dict), "space", own.get("space"), "a mapping")
    given = {**OPTIONAL, **content, **{key: own[key] for key in BY_SCALE if key in own}}
    base = merge(content["base"], {key: own[key] for key in own if key not in BY_SCALE})
    space = {**content["space"], **own.get("space", {})}
    for key in [*base, *(part for joined in space for part in parts(joined))]:
        if key in NOT_FREE:
            raise UsageError(f"{key} cannot stand in base, space or a scale: {NOT_FREE[key]}")
    study = StudyFile(
        path=path,
        name=path.stem if scale == QUICK else f"{path.stem}-{scale}",
        scale=scale,
        question=content["question"].strip(),
        expected=content["expected"].strip(),
        cost=str(content["cost"].get(scale, "of unknown cost")).strip(),
        base=base,
        space=read_space(space),
        sampler=_one_of("sampler", given),
        pruner=_one_of("pruner", given),
        mode=_one_of("mode", given),
        objectives=_objectives(given["objectives"]),
        seeds=_seeds(given["seeds"]),
        trials=_trials(given["trials"], given["sampler"]),
        failures=_share("failures", given["failures"]),
    )
    _check_together(study)
    return study


def _one_of(key: str, given: Mapping[str, Any]) -> str:
    check(given[key] in NAMES[key], key, given[key], f"one of {', '.join(NAMES[key])}")
    return str(given[key])


def _objectives(given: Any) -> dict[str, str]:
    valid = "a metric and its direction, as val/loss: minimize"
    check(isinstance(given, dict) and bool(given), "objectives", given, valid)
    for metric, direction in given.items():
        if not schema.is_objective(str(metric)):
            known = "a metric, as val/loss, test/bpd, seconds_per_epoch or fid_digits"
            raise UsageError(f"unknown objective {metric}: valid is {known}")
        directions = ("minimize", "maximize")
        check(direction in directions, f"objectives.{metric}", direction, "minimize or maximize")
    return dict(given)


def _seeds(given: Any) -> tuple[int, ...]:
    whole = isinstance(given, list) and all(type(seed) is int for seed in given)
    check(whole and len(set(given)) == len(given) > 0, "seeds", given, f"{LIST}, all integers")
    return tuple(given)


def _trials(given: Any, sampler: str) -> int:
    if sampler == GRID:
        check(given is None, "trials", given, "left out, since a grid runs all of its points")
        return 0
    valid = f"an integer of at least 1, which sampler {sampler} needs"
    check(type(given) is int and given >= 1, "trials", given, valid)
    return int(given)


def _share(key: str, given: Any) -> float:
    number = isinstance(given, int | float) and not isinstance(given, bool)
    check(number and 0 <= given <= 1, key, given, "a number in [0, 1]")
    return float(given)


def _check_together(study: StudyFile) -> None:
    """Refuse settings that are valid, but not with one another."""
    if study.sampler == GRID:
        others = ", ".join(NAMES["sampler"][1:])
        for key, dimension in study.space.items():
            valid = f"{LIST} with sampler grid; low and high with one of {others}"
            check(isinstance(dimension, Choice), f"space.{key}", asdict(dimension), valid)
    if study.pruner != "none":
        # What a trial is judged by on its way has to be one number, known after every epoch.
        first, *more = study.objectives
        judged = not more and first.startswith(("train/", "val/"))
        valid = f"a single one, of train/* or val/*, with pruner {study.pruner}"
        check(judged, "objectives", list(study.objectives), valid)
    if study.mode == TIMING:
        for key, valid in {"sampler": GRID, "pruner": "none"}.items():
            check(getattr(study, key) == valid, key, getattr(study, key), f"{valid} in mode timing")


def _as_grid(study: StudyFile) -> StudyFile:
    """Add the points of a grid."""
    values = itertools.product(*(dimension.ends for dimension in study.space.values()))
    chosen = [dict(zip(study.space, point, strict=True)) for point in values]
    made = [(point, study.experiment(point, study.seeds[0])) for point in chosen]
    points = [
        Point(point, seed, replace(experiment, seed=seed))
        for seed in study.seeds
        for point, experiment in made
    ]
    if study.mode == TIMING:
        _check_rounds([point.experiment for point in points])
    return replace(study, points=tuple(points), trials=len(points))


def _check_rounds(experiments: list[Experiment]) -> None:
    for experiment in experiments:
        check(experiment.seconds is None, "seconds", experiment.seconds, "null in mode timing")
        rounds = experiment.trainer.get("max_epochs")
        valid = "the same integer of at least 2 for all points in mode timing: its rounds"
        shared = rounds == experiments[0].trainer.get("max_epochs")
        check(shared and type(rounds) is int and rounds >= 2, "trainer.max_epochs", rounds, valid)


def _tried(study: StudyFile) -> StudyFile:
    """Build an experiment at every end of the space, one key after another."""
    first = {key: dimension.ends[0] for key, dimension in study.space.items()}
    for key, dimension in study.space.items():
        for value in dimension.ends:
            study.experiment({**first, key: value}, study.seeds[0])
    return study
