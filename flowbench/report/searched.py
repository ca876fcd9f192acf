"""A study as a search: what became of its trials, which are not beaten, and the figures of it."""

from collections.abc import Iterator, Mapping
from functools import partial

import pandas as pd

from flowbench.report.attempts import census
from flowbench.report.document import Block, Paragraph, Table
from flowbench.report.files import Recorded
from flowbench.report.front import configurations, measured, quality
from flowbench.report.importances import importances
from flowbench.report.labels import label, metric_label, ordered, short
from flowbench.report.numbers import MISSING, number, plain
from flowbench.report.pareto import pareto
from flowbench.report.plates import Plate, counts
from flowbench.report.seeds import SECONDS
from flowbench.report.trials import trials

NAMES = ["pareto", "trials", "importances"]
"""Every figure there may be, each a file of this name."""


def told(objectives: Mapping[str, str], recorded: Recorded) -> Iterator[Block]:
    """What has become of the trials, and a table of the configurations that no other beats.

    Args:
        objectives: minimize or maximize by metric.
        recorded: The tables.
    """
    table = recorded.search["trials"]
    if len(table):
        yield Paragraph(census(table))
    aim = quality(objectives, recorded.runs)
    found = configurations(measured(aim, objectives, recorded), aim)
    if len(found):
        means = ", means over their seeds" if (found["runs"] > 1).any() else ""
        yield Paragraph(
            f"Beaten by no other in both {_small(aim.metric)} and time per epoch: "
            f"{found['front'].sum()} of {len(found)} configurations{means}."
        )
        yield _table(found, aim.metric)


def _table(found: pd.DataFrame, metric: str) -> Table:
    """The front, with those settings in which any two of all configurations differ."""
    settings = pd.DataFrame([dict(pairs) for pairs in found["settings"]]).fillna(MISSING)
    keys = [key for key in settings if short(key) == "transform" or settings[key].nunique() > 1]
    keys.sort(key=lambda key: short(key) != "transform")
    front = found["front"]
    header = [*keys, metric, "s/epoch", "runs", "trials"]
    rows = [
        [
            *(_cell(key, own[key]) for key in keys),
            number(row[metric]),
            number(row[SECONDS], 2),
            plain(row["runs"]),
            plain(row["trials"]),
        ]
        for own, row in zip(
            *(table[front].to_dict("records") for table in (settings, found)), strict=True
        )
    ]
    return Table(header, rows)


def _cell(key: str, text: str) -> str:
    if short(key) == "transform":
        return label(text)
    try:
        return plain(float(text))
    except ValueError:
        return plain(text)


def _small(metric: str) -> str:
    words = metric_label(metric)
    return words if words == metric or words[1].isupper() else words[0].lower() + words[1:]


def plates(objectives: Mapping[str, str], recorded: Recorded) -> Iterator[Plate]:
    """The figures of the trials.

    Args:
        objectives: minimize or maximize by metric.
        recorded: The tables.
    """
    yield _pareto(objectives, recorded)
    yield _trials(objectives, recorded)
    yield _importances(recorded)


def _pareto(objectives: Mapping[str, str], recorded: Recorded) -> Plate:
    aim = quality(objectives, recorded.runs)
    runs = measured(aim, objectives, recorded)
    found = configurations(runs, aim)
    what = metric_label(aim.metric)
    several = (found["runs"] > 1).any()
    mark = "one run"
    if several:
        mark = "the mean over the seeds of a configuration, tied to a dot for each run"
    names = ", ".join(map(label, ordered(found["transform"])))
    return Plate(
        "pareto",
        partial(pareto, found, runs, aim.metric),
        f"{what} against seconds per epoch, with the front, for {names}.",
        f"{what} against seconds per epoch (a run's median over all epochs but the first). A "
        f"mark: {mark}; its colour and shape: the transform; {_blocks(found)}. The line joins what "
        "no other beats in both. "
        f"{_left_out(recorded.search['trials'])}{_beside(runs)} {counts(runs)}",
        lacking="" if len(found) else f"runs with {_small(aim.metric)} and a time",
    )


def _blocks(found: pd.DataFrame) -> str:
    known = found["blocks"].dropna().unique()
    if len(known) > 1:
        return "its area: the number of blocks"
    return f"all have {plain(known[0])} blocks" if len(known) else "the blocks are not recorded"


def _left_out(table: pd.DataFrame) -> str:
    return f"Only complete trials are shown. {census(table)} " if len(table) else ""


def _beside(runs: pd.DataFrame) -> str:
    """What the times are worth, by how many trials shared the machine."""
    workers = runs["workers"]
    if workers.isna().any():
        return "It is not recorded of every run how many ran at a time."
    if workers.max() > 1:
        return (
            f"Up to {workers.max():.0f} trials ran at a time on a machine: their seconds compare "
            "within this study and are no statement of the cost."
        )
    return "No two trials ran at a time."


def _trials(objectives: Mapping[str, str], recorded: Recorded) -> Plate:
    table = recorded.search["trials"]
    names = " and ".join(map(_small, objectives))
    return Plate(
        "trials",
        partial(trials, table, objectives),
        f"Values of {names} of every trial in the order of the trials, with the best so far.",
        "What the trials came to, in the order in which they were queued; line: the best so far "
        "of the complete ones, each objective by itself. A pruned trial has the value at which it "
        "was stopped; one that failed has none and is marked at the foot. " + census(table),
        lacking="" if len(table) and objectives else "records of the trials",
    )


def _importances(recorded: Recorded) -> Plate:
    table = recorded.search["importances"]
    chance = " Grey: the seed, which is chance." if (table["parameter"] == "seed").any() else ""
    return Plate(
        "importances",
        partial(importances, table),
        f"Share of the variance of {' and of '.join(map(_small, table['objective'].unique()))} "
        "that each parameter explains.",
        "Share of the variance of an objective over the complete trials that a parameter explains "
        "by itself, by Optuna's fANOVA (a forest of 64 trees, fixed seed); what the shares lack to "
        f"1 is due to parameters together.{chance} From so few trials a hint, no test.",
        lacking="" if len(table) else "importances, which rest on two parameters and eight trials",
    )
