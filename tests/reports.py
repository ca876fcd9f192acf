"""What the tests of the report share: planted runs, and their analysis."""

from typing import Any

import pandas as pd

from flowbench.bench import planted
from flowbench.bench.planted import Terms, of_bits
from flowbench.report.analysis import Analysis
from flowbench.report.files import Recorded, Study, complete
from flowbench.schema import TRANSFORM

SEEDS, EPOCHS = 3, 4
PLANTED = {"affine": (0.52, 2.9, 10.0), "rqs-4": (0.50, 2.7, 15.0), "rqs-8": (0.49, 2.6, 20.0)}
"""Prior, logdet and seconds per epoch of each transform."""
RUN = f"affine-4-1-0-{'0' * 8}"
STUDY = Study("compare", "Which?", "The spline.", "flowbench sweep")


def tables(
    values: dict[str, tuple[float, float, float]] = PLANTED, seeds: int = SEEDS, **kwargs: Any
) -> Recorded:
    """Runs of 4 blocks of a layer, trained and not evaluated."""
    return planted.runs(
        [(name, 4, 1) for name in values],
        lambda name, *_: values[name][:2],
        lambda name, *_: values[name][2],
        seeds=seeds,
        epochs=EPOCHS,
        **kwargs,
    )


def sweep(points: list[tuple[str, int, int]], bpd: planted.Law, **kwargs: Any) -> Recorded:
    """Runs of these transforms, blocks and layers; runs of one seed have something in common."""
    terms: Terms = of_bits(bpd)
    return planted.runs(points, terms, **{"shared": 0.05, "seeds": SEEDS, **kwargs})


def analysis(recorded: Recorded, objectives: dict[str, str] | None = None) -> Analysis:
    """The analysis of runs of one protocol."""
    return Analysis(Study("which", "Which?", "This.", "make", objectives or {}), recorded)


def of_runs(runs: pd.DataFrame) -> Analysis:
    """The analysis of a table of runs alone."""
    return analysis(complete(Recorded(runs, pd.DataFrame(columns=["run_id", "epoch"]), {})))


def changed(recorded: Recorded, **columns: Any) -> Recorded:
    """The same with other values in some columns of the table of runs."""
    return recorded._replace(runs=recorded.runs.assign(**columns))


def among(recorded: Recorded, transform: str) -> pd.Series:
    """Which runs have a transform."""
    return recorded.runs[TRANSFORM] == transform
