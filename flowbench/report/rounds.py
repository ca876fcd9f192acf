"""Seconds per epoch, round by round: of a study of times, or of runs that were alone anyhow."""

import pandas as pd

from flowbench.report.files import TIMED, TIMING, Recorded
from flowbench.report.seeds import MODEL, SECONDS, finished
from flowbench.report.series import series

ALIKE = ["transform", *MODEL, "data", "batch", "device"]
"""What a flow of a study of times must share with one of another study to stand for it."""


def rounds(runs: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """The epochs after the first of the finished runs that had the machine to themselves.

    The first epoch has the warm-up of the process in it.
    """
    own = finished(runs)
    own = own[~(own["workers"] > 1)]
    epochs = history.reindex(columns=["run_id", "epoch", SECONDS, "load"])
    epochs = epochs[epochs["epoch"] > 1].dropna(subset=[SECONDS])
    return epochs.merge(own.drop(columns=[SECONDS, "load"]), on="run_id")[TIMED]


def standing_for(timed: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The rounds of those flows that some finished run is like."""
    return timed.merge(finished(runs)[ALIKE].drop_duplicates(), on=ALIKE)[TIMED]


def along(recorded: Recorded, across: str) -> tuple[pd.DataFrame, bool]:
    """The rounds that show seconds against a number of bins, blocks or layers.

    Returns:
        Those of the study of times; where it does not vary the number, those of the runs
        themselves; and whether it is the former. Empty where neither varies it.
    """
    timed = recorded.evaluation[TIMING]
    own = rounds(recorded.runs, recorded.history)
    for table, foreign in ((timed, True), (own, False)):
        found = series(table, across) if len(table) else None
        if found is not None:
            return table, foreign
    return own[:0], False
