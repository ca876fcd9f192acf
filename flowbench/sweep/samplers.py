"""Optuna's samplers and pruners for a study, and values in the form that Optuna stores."""

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import Trial

from flowbench.space import parts
from flowbench.study import Choice, Range, StudyFile
from flowbench.tracking.provenance import owner

SAMPLERS: dict[str, type[RandomSampler | TPESampler | NSGAIISampler]] = {
    "grid": RandomSampler,  # chooses nothing: every queued point is complete
    "random": RandomSampler,
    "tpe": TPESampler,
    "nsga2": NSGAIISampler,
}
PRUNERS: dict[str, type[BasePruner]] = {
    "none": NopPruner,
    "median": MedianPruner,
    "hyperband": HyperbandPruner,
}


def sampler(study: StudyFile, trials: int) -> BaseSampler:
    """Make the study's sampler, with draws that no other worker and no restart repeats.

    A sampler draws the same points from the same seed, so the seed depends on the process and on
    the time.

    Args:
        study: The study.
        trials: Number of trials so far.
    """
    parts = [study.name, *map(str, study.seeds), *owner().values(), str(trials)]
    digest = hashlib.sha256(" ".join([*parts, str(time.time_ns())]).encode()).digest()
    return SAMPLERS[study.sampler](seed=int.from_bytes(digest[:4], "big"))


def pruner(study: StudyFile) -> BasePruner:
    """Make the study's pruner."""
    return PRUNERS[study.pruner]()


def suggest(trial: Trial, space: Mapping[str, Choice | Range]) -> dict[str, Any]:
    """Return a trial's values: those that it was queued with, else the sampler's."""
    return {key: _suggest(trial, key, dimension) for key, dimension in space.items()}


def as_params(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values to those that Optuna stores: other types than its own become JSON.

    Example:
        >>> as_params({"model.blocks, model.layers": [1, 8], "optim.lr": 0.1})
        {'model.blocks, model.layers': '[1, 8]', 'optim.lr': 0.1}
    """
    return {key: _plain(value) for key, value in values.items()}


def label(params: Mapping[str, Any]) -> str:
    """Name a trial by its parameters, in short.

    Example:
        >>> label({"model.transform": "rqs-8", "optim.lr": 0.00123456, "seed": 1})
        'rqs-8 lr 0.001235 seed 1'
        >>> label({"model.transform, optim.lr": '["affine", 0.01]', "seed": 1})
        'affine lr 0.01 seed 1'
    """
    words = []
    for joined, values in params.items():
        keys = parts(joined)
        several = json.loads(values) if len(keys) > 1 else [values]
        for key, value in zip(keys, several, strict=True):
            name = key.rpartition(".")[2]
            words.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return " ".join(words).removeprefix("transform ")


def _suggest(trial: Trial, key: str, dimension: Choice | Range) -> Any:
    if isinstance(dimension, Choice):
        choices = [_plain(value) for value in dimension.values]
        return dimension.values[choices.index(trial.suggest_categorical(key, choices))]
    low, high, step, log = dimension.low, dimension.high, dimension.step, dimension.log
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, step=int(step or 1), log=log)
    return trial.suggest_float(key, low, high, step=step, log=log)


def _plain(value: Any) -> Any:
    kept = value is None or isinstance(value, bool | int | float | str)
    return value if kept else json.dumps(value)
