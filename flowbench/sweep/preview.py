"""What a study would run."""

import os
import statistics
from collections.abc import Iterator
from pathlib import Path

from flowbench.config import Experiment, to_yaml
from flowbench.space import Choice, Range
from flowbench.study import StudyFile
from flowbench.sweep.planned import RETRIED_FROM
from flowbench.sweep.samplers import as_params
from flowbench.terminal import duration


def preview(
    study: StudyFile, results: Path, trials: int | None = None, price: float | None = None
) -> Iterator[str]:
    """List the trials of a grid, or the space of another sampler; the time; a configuration.

    Args:
        study: The study.
        results: Directory in which earlier runs may be recorded.
        trials: Number of trials that replaces the study's own.
        price: Money that an hour of a worker costs; None where that is of no interest.

    Yields:
        Lines.
    """
    for point in study.points:
        values = {**as_params(point.values), "seed": point.seed}
        yield " ".join(f"{key}={value}" for key, value in values.items())
    if not study.points:
        yield f"{trials or study.trials} trials by {study.sampler}, each for seeds {study.seeds}"
        for key, dimension in study.space.items():
            yield f"{key}: {_words(dimension)}"
    yield ""
    count = trials or study.trials
    each, runs = _of_a_trial(study, results)
    if each is None:
        yield f"time: {study.cost}"
    else:
        yield (
            f"time: about {duration(each * count)} of one worker for {count} trials; a trial took "
            f"{duration(each)}, the mean of {runs}"
        )
    if price is not None and each is None:
        yield "cost: unknown until a trial has run"
    elif price is not None and each is not None:
        hours = each * count / 3600
        yield f"cost: {hours:.3g} hours of a worker, {hours * price:.3g} at {price:g} an hour"
    points = [point.experiment for point in study.points]
    yield f"size: {_size(points or [first_experiment(study)])}"
    if points and (spent := _compute(points)):
        yield spent
    yield ""
    yield to_yaml(first_experiment(study)).rstrip()


def first_experiment(study: StudyFile) -> Experiment:
    """Build the first point of a grid, or of the first value or lower end of every dimension."""
    if study.points:
        return study.points[0].experiment
    first = {key: dimension.ends[0] for key, dimension in study.space.items()}
    return study.experiment(first, study.seeds[0])


def _words(dimension: Choice | Range) -> str:
    if isinstance(dimension, Choice):
        return f"one of {', '.join(map(str, dimension.values))}"
    step = f", in steps of {dimension.step:g}" if dimension.step else ""
    log = ", by its logarithm" if dimension.log else ""
    return f"{dimension.low:g} to {dimension.high:g}{step}{log}"


def _size(experiments: list[Experiment]) -> str:
    """Say how large flows are, and about how much memory the training of the largest takes."""
    from flowbench import size  # takes seconds, as torch does

    shaped = [(each, size.image_shape(each.data)) for each in experiments]
    counts = sorted({size.parameters(each.model, shape, 10) for each, shape in shaped})
    most = max(size.memory(each, shape, 10) for each, shape in shaped)
    span = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    return f"{span} parameters, about {most / 2**30:.2g} GiB of memory a worker"


def _compute(experiments: list[Experiment]) -> str:
    """Say what the trainings compute; empty where that is not known before the data are read."""
    from flowbench import size

    each = [size.training_flops(one) for one in experiments]
    known = [flops for flops in each if flops is not None]
    if len(known) < len(each):
        return ""
    return (
        f"compute: {sum(known):.2g} training FLOPs, {max(known):.2g} at most in a trial; a device "
        f"that keeps up 100 TFLOP/s takes {duration(sum(known) / 1e14)} for them"
    )


def _of_a_trial(study: StudyFile, results: Path) -> tuple[float | None, int]:
    """Return the mean seconds of a trial, from the study's finished runs, and their number."""
    if os.environ.get("MLFLOW_TRACKING_URI") or (results / "mlflow.db").exists():
        from flowbench.tracking.store import Store

        runs = Store(results).search(
            f"tags.`flowbench.study` = '{study.name}' and tags.`flowbench.role` = 'trial' "
            "and attributes.status = 'FINISHED'"
        )
        whole = [run.info for run in runs if RETRIED_FROM not in run.data.tags]
        if whole:
            each = statistics.fmean((run.end_time - run.start_time) / 1000 for run in whole)
            return each * (1 if study.points else len(study.seeds)), len(whole)
    return None, 0
