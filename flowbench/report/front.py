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
from flowbench.report.seeds import SECONDS, SETTINGS, finished

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


def measured(aim: Quality, objectives: Mapping[str, str], recorded: Recorded) -> pd.DataFrame:
    """The finished runs that have both, and the ``settings`` of each, pairs of name and text.

    Those are the parameters of its trial, or where these are not recorded what tells runs apart.
    """
    runs = finished(recorded.runs)
    runs = runs.dropna(subset=[aim.metric, SECONDS]) if aim.metric in runs else runs[:0]
    varied = parameters(objectives, recorded.search["trials"]).to_dict("index")
    return runs.assign(settings=[_settings(run, varied) for run in runs.to_dict("records")])


def configurations(runs: pd.DataFrame, aim: Quality) -> pd.DataFrame:
    """A row a configuration, the fastest first.

    Args:
        runs: The runs that have both.
        aim: What is weighed against the time.

    Returns:
        ``settings``, ``transform`` and ``blocks``; means over the runs of quality and time; the
        number of ``runs``, the numbers of the ``trials``; whether it is on the ``front``.
    """
    table = (
        runs.groupby("settings", sort=False)
        .agg(
            transform=("transform", "first"),
            blocks=("blocks", "first"),
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
