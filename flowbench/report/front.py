"""Configurations by quality and time: which of them no other beats in both.

A configuration is what runs share that differ in nothing but the seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flowbench.report.attempts import parameters
from flowbench.report.files import Recorded
from flowbench.report.numbers import plain
from flowbench.report.seeds import SETTINGS, finished

SECONDS = "seconds_per_epoch"
TIMES = (SECONDS, "images_per_second")


@dataclass(frozen=True)
class Quality:
    """What is weighed against the time."""

    metric: str
    """A column of the table of runs."""
    sign: int
    """1 where less of it is better, −1 where more is."""


def quality(objectives: Mapping[str, str], runs: pd.DataFrame) -> Quality:
    """A study's first objective that is no time; bits per dimension where that is the loss.

    Bits order runs as the loss does, and have every constant in them.
    """
    metric = next((name for name in objectives if name not in TIMES), "val/loss")
    if metric == "val/loss" and finished(runs)["val/bpd"].notna().any():
        return Quality("val/bpd", sign=1)
    return Quality(metric, sign=-1 if objectives.get(metric) == "maximize" else 1)


def measured(metric: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The finished runs that have this metric and a time."""
    known = finished(runs)
    return known.dropna(subset=[metric, SECONDS]) if metric in known else known[:0]


def configurations(objectives: Mapping[str, str], recorded: Recorded) -> pd.DataFrame:
    """A row a configuration, the fastest first.

    Args:
        objectives: What the study is after.
        recorded: Its runs and trials.

    Returns:
        ``settings`` as pairs of name and text: the parameters of its trials, or else what tells
        runs apart; ``transform blocks parameters``; means over the runs of the metric of
        ``quality`` and of ``seconds_per_epoch``; the number of ``runs``, the numbers of the
        ``trials``; whether it is on the ``front``.
    """
    aim = quality(objectives, recorded.runs)
    runs = measured(aim.metric, recorded.runs)
    varied = parameters(objectives, recorded.search["trials"]).to_dict("index")
    settings = [_settings(run, varied) for run in runs.to_dict("records")]
    table = (
        runs.assign(settings=settings)
        .groupby("settings", sort=False)
        .agg(
            transform=("transform", "first"),
            blocks=("blocks", "first"),
            parameters=("parameters", "first"),
            **{name: (name, "mean") for name in (aim.metric, SECONDS)},
            runs=("run_id", "count"),
            trials=("trial", lambda numbers: ", ".join(map(plain, sorted(set(numbers.dropna()))))),
        )
        .reset_index()
        .sort_values([SECONDS, aim.metric], ignore_index=True)
    )
    costs = table[[SECONDS, aim.metric]].to_numpy(dtype=float) * [1, aim.sign]
    return table.assign(front=undominated(costs))


def _settings(
    run: Mapping[str, Any], varied: Mapping[int, Mapping[str, Any]]
) -> tuple[tuple[str, str], ...]:
    """What tells a run from others, but for its seed."""
    own = varied.get(run["trial"]) or {key: run[key] for key in ("transform", *SETTINGS)}
    return tuple((key, plain(own[key])) for key in own if key != "seed")


def undominated(costs: np.ndarray) -> np.ndarray:
    """Which rows no other beats: at most as much in every column, and less in one.

    Example:
        >>> undominated(np.array([[1.0, 5.0], [2.0, 4.0], [2.0, 6.0], [3.0, 4.0]])).tolist()
        [True, True, False, False]

    Shape:
        costs ``[N, M]`` -> ``[N]``
    """
    less = (costs[:, None] < costs[None]).any(axis=2)
    no_more = (costs[:, None] <= costs[None]).all(axis=2)
    return np.logical_not((less & no_more).any(axis=0))
