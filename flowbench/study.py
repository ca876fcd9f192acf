"""A study as its file describes it: the question, what varies, how it is searched, the scales."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from flowbench import schema
from flowbench.config import Experiment, check, check_name, flat
from flowbench.errors import UsageError
from flowbench.parsing import build, parse_as, read_yaml
from flowbench.space import LIST, Choice, Range, merge, parts, put, read_space

__all__ = ["Choice", "Point", "Range", "StudyFile", "read"]

QUICK, GRID, TIMING = "quick", "grid", "timing"
STUDIES = Path(__file__).parent / "studies"
"""The studies that come with flowbench: in a checkout a link to ``sweeps``."""
BY_SCALE = ("space", "seeds", "trials")
"""Keys that a scale may set in addition to values of the experiment."""
SEARCH = ("sampler", "pruner", "mode", "objectives", "seeds")
"""Keys that decide the results together with the space and the experiment."""


@dataclass(frozen=True)
class Content:
    """The content of a study file, at one scale.

    ``cost`` is a text for each scale; ``base`` and ``scales`` hold values of the experiment; what
    the other keys mean is said at ``StudyFile``.
    """

    question: str
    expected: str
    cost: dict[str, Any]
    base: dict[str, Any]
    space: dict[str, Any]
    scales: dict[str, dict[str, Any]]
    seeds: list[int] = field(default_factory=lambda: [0])
    sampler: Literal["grid", "random", "tpe", "nsga2"] = "grid"
    pruner: Literal["none", "median", "hyperband"] = "none"
    objectives: dict[str, Literal["minimize", "maximize"]] = field(
        default_factory=lambda: {"val/loss": "minimize"}
    )
    trials: int | None = None
    failures: float = 0.5
    mode: Literal["train", "timing"] = "train"

    def __post_init__(self) -> None:
        for entry in fields(self):
            if entry.name != "trials" and getattr(self, entry.name) is None:
                raise UsageError(f"{entry.name} is empty: give it a value or leave it out")
        whole = all(type(seed) is int for seed in self.seeds)
        distinct = len(set(self.seeds)) == len(self.seeds) > 0
        check(whole and distinct, "seeds", self.seeds, f"{LIST}, all integers")
        valid = "a metric and its direction, as val/loss: minimize"
        check(bool(self.objectives), "objectives", self.objectives, valid)
        for metric in self.objectives:
            if not schema.is_objective(metric):
                known = "a metric, as val/loss, test/bpd, seconds_per_epoch or fid_digits"
                raise UsageError(f"unknown objective {metric}: valid is {known}")
        check(0 <= self.failures <= 1, "failures", self.failures, "a number in [0, 1]")
        if self.sampler == GRID:
            valid = "left out, since a grid runs all of its points"
            check(self.trials is None, "trials", self.trials, valid)
        else:
            valid = f"an integer of at least 1, which sampler {self.sampler} needs"
            check((self.trials or 0) >= 1, "trials", self.trials, valid)


NOT_FREE = {
    "name": "its runs are named by the file",
    "seed": "seeds lists the repeats of every point",
    **{
        entry.name: "it is a key of its own, valid for all scales"
        for entry in fields(Content)
        if entry.name not in ("question", "expected", "cost", "base", "scales", *BY_SCALE)
    },
}
"""Keys that neither base, space nor a scale may set, and why."""


@dataclass(frozen=True)
class Point:
    """One trial of a grid: its values, its seed, and the experiment with both."""

    values: dict[str, Any]
    seed: int
    experiment: Experiment


@dataclass(frozen=True)
class StudyFile:
    """A ``sweeps/*.yaml`` at one scale.

    Attributes:
        path: The file.
        name: The file's stem and the scale, ``bins/quick``: the name of the runs, of the directory
            in ``results`` and of the report.
        scale: quick (minutes on a laptop), medium (hours) or full (the original protocol).
        question: What the study asks.
        expected: What was expected before any run.
        cost: Its cost at this scale, in words.
        base: Values, nested, that all of its experiments share.
        space: What varies, by dotted key; keys that vary together stand in one: ``"a.b, a.c"``.
        sampler: grid (every point), or how Optuna chooses the points: random, tpe, nsga2.
        pruner: none, or Optuna's pruner of unpromising trials: median, hyperband.
        objectives: minimize or maximize, by metric.
        seeds: Repeats of every point.
        trials: Number of trials planned; those of a grid are its points.
        failures: Share of the planned trials, in [0, 1], above which failures stop the study.
        mode: train, or timing: nothing but seconds per epoch, alone on the machine.
        points: All trials of a grid, seeds outermost: points take turns, so that a drift
            of the machine's speed affects all points equally. Empty for the other samplers.
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
        search = {name: getattr(self, name) for name in SEARCH}
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

    Args:
        path: The file; or the name alone of a study that comes with flowbench.
        scale: One of its scales.

    Raises:
        UsageError: The file, a key, a value or the scale is not valid.
    """
    if not path.is_file() and path == Path(path.stem):
        path = STUDIES / f"{path}.yaml"
    if not path.exists():
        shipped = ", ".join(file.stem for file in sorted(STUDIES.glob("*.yaml")))
        raise UsageError(f"there is no study file {path}; with flowbench come {shipped}")
    content = read_yaml(path, "study file")
    try:
        check_name("the file's name", path.stem)
        study = _study(path, scale, content)
        study = _as_grid(study) if study.sampler == GRID else _tried(study)
        _check_once(study)
        return study
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _study(path: Path, scale: str, content: Mapping[str, Any]) -> StudyFile:
    scales, space = content.get("scales"), content.get("space")
    own = scales.get(scale) if isinstance(scales, dict) else None
    if isinstance(scales, dict) and scale not in scales:
        raise UsageError(f"no scale {scale!r}: valid are {', '.join(map(str, scales))}")
    own = own if isinstance(own, dict) else {}
    given = {**content, **{key: own[key] for key in BY_SCALE if key in own}}
    if isinstance(space, dict) and isinstance(own.get("space"), dict):
        given["space"] = {**space, **own["space"]}
    read = parse_as(Content, given)
    base = merge(read.base, {key: own[key] for key in own if key not in BY_SCALE})
    for key in [*base, *(part for joined in read.space for part in parts(joined))]:
        if key in NOT_FREE:
            raise UsageError(f"{key} cannot stand in base, space or a scale: {NOT_FREE[key]}")
    study = StudyFile(
        path=path,
        name=f"{path.stem}/{scale}",
        scale=scale,
        question=read.question.strip(),
        expected=read.expected.strip(),
        cost=str(read.cost.get(scale, "of unknown cost")).strip(),
        base=base,
        space=read_space(read.space),
        sampler=read.sampler,
        pruner=read.pruner,
        mode=read.mode,
        objectives=dict(read.objectives),
        seeds=tuple(read.seeds),
        trials=read.trials or 0,
        failures=read.failures,
    )
    _check_together(study)
    return study


def _check_once(study: StudyFile) -> None:
    """Refuse two values for one key, of which one would silently win."""
    varied = [part for joined in study.space for part in parts(joined)]
    fixed = flat(study.base)
    for key in varied:
        if varied.count(key) > 1:
            raise UsageError(f"{key} stands twice in space: leave one of them out")
        if any(f"{name}.".startswith(f"{key}.") for name in fixed):
            raise UsageError(f"{key} stands in space and has a value besides: leave one out")


_NEEDS: dict[str, tuple[str, Callable[[Experiment], bool]]] = {
    r"(?!val/)(fid|kid|precision|recall|agreement)_|patches/|samples/": (
        "evaluate.samples above 0",
        lambda experiment: experiment.evaluate.samples > 0,
    ),
    r"bayes/": (
        "evaluate.bayes above 0 and model.conditional",
        lambda experiment: experiment.evaluate.bayes > 0 and experiment.model.conditional,
    ),
    r"val/fid_": (
        "evaluate.fidelity_every above 0",
        lambda experiment: experiment.evaluate.fidelity_every > 0,
    ),
    r".*/bpd": ("data.noise = uniform", lambda experiment: experiment.data.noise == "uniform"),
    r"test/nll": ("data.noise = gaussian", lambda experiment: experiment.data.noise == "gaussian"),
    r"val/(?!loss)": (
        "trainer.limit_val_batches above 0",
        lambda experiment: experiment.trainer.get("limit_val_batches") != 0,
    ),
}
"""What objectives, by the beginnings of their names, need of an experiment to be measured."""


def _check_measured(study: StudyFile, experiment: Experiment) -> None:
    """Refuse an objective that an experiment of the study will not measure."""
    if study.mode == TIMING:
        return
    for objective in study.objectives:
        for pattern, (valid, holds) in _NEEDS.items():
            if re.match(pattern, objective) and not holds(experiment):
                raise UsageError(f"objective {objective} needs {valid}")


def _check_together(study: StudyFile) -> None:
    """Refuse settings that are valid, but not with one another."""
    if study.sampler == GRID:
        others = "random, tpe, nsga2"
        for key, dimension in study.space.items():
            valid = f"{LIST} with sampler grid; low and high with one of {others}"
            check(isinstance(dimension, Choice), f"space.{key}", asdict(dimension), valid)
    if study.pruner != "none":
        # A pruner compares trials by one number that is known after every epoch.
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
    for point in points:
        _check_measured(study, point.experiment)
    if study.mode == TIMING:
        _check_rounds([point.experiment for point in points])
    return replace(study, points=tuple(points), trials=len(points))


def _check_rounds(experiments: list[Experiment]) -> None:
    for experiment in experiments:
        check(experiment.seconds is None, "seconds", experiment.seconds, "null in mode timing")
        check(experiment.flops is None, "flops", experiment.flops, "null in mode timing")
        rounds = experiment.trainer.get("max_epochs")
        valid = "the same integer of at least 2 for all points in mode timing: its rounds"
        shared = rounds == experiments[0].trainer.get("max_epochs")
        check(shared and type(rounds) is int and rounds >= 2, "trainer.max_epochs", rounds, valid)


def _tried(study: StudyFile) -> StudyFile:
    """Build an experiment at every end of the space, one key after another."""
    first = {key: dimension.ends[0] for key, dimension in study.space.items()}
    for key, dimension in study.space.items():
        for value in dimension.ends:
            _check_measured(study, study.experiment({**first, key: value}, study.seeds[0]))
    return study
