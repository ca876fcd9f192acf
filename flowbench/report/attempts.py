"""The table of a study's trials: what was varied, and what has become of every trial.

A place of the study is tried until it is over, so it may have several rows: the last one counts.
"""

from collections.abc import Mapping

import pandas as pd

from flowbench.report.files import SEARCH


def parameters(objectives: Mapping[str, str], trials: pd.DataFrame) -> pd.DataFrame:
    """What was varied: a row a trial, under its number, and a column a parameter, all as text."""
    others = [*SEARCH["trials"], *objectives]
    numbered = trials.set_index(trials["trial"].astype(int))
    return numbered.drop(columns=others, errors="ignore")


def last(trials: pd.DataFrame) -> pd.DataFrame:
    """The last attempt at every place."""
    return trials.drop_duplicates("place", keep="last")


def is_complete(trials: pd.DataFrame) -> pd.Series:
    """Which rows have a result."""
    return trials["state"] == "COMPLETE"


def is_pruned(trials: pd.DataFrame) -> pd.Series:
    """Which rows were stopped early, for they promised little."""
    return trials["state"] == "PRUNED"


def is_failed(trials: pd.DataFrame) -> pd.Series:
    """Which rows came to nothing; not those that were stopped and go on as another."""
    return (trials["state"] == "FAIL") & trials["error"].notna()


def census(trials: pd.DataFrame) -> str:
    """How many trials have become what, in a sentence."""
    places = last(trials)
    states = {
        "complete": is_complete(places).sum(),
        "pruned": is_pruned(places).sum(),
        "failed": is_failed(places).sum(),
    }
    states["not over"] = len(places) - sum(states.values())
    told = ", ".join(
        f"{count} {state}" for state, count in states.items() if count or state != "not over"
    )
    again = len(trials) - len(places)
    tries = f" {again} earlier attempts at them failed or were interrupted." if again else ""
    return f"{len(places)} trials: {told}.{tries}"
