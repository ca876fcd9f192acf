"""The recorded runs as tables: by transform, run by run, and how they were made."""

from typing import Any

import pandas as pd

from flowbench.report.claims import Claim
from flowbench.report.configurations import configurations, with_baseline
from flowbench.report.document import Table
from flowbench.report.extractors import is_score
from flowbench.report.files import KNOWN, is_hash
from flowbench.report.labels import AFFINE, label, ordered
from flowbench.report.numbers import MISSING, measured, number, plain
from flowbench.report.seeds import alone, cost, finished, spread

_SUMMARY = {
    "test/bpd": ("test bits/dim", 3),
    "val/bpd": ("val bits/dim", 3),
    "val/loss": ("val loss (nats/dim)", 3),
    "val/prior": ("val prior (nats/dim)", 3),
    "val/logdet": ("val logdet (nats/dim)", 3),
    "seconds_per_epoch": ("s/epoch", 2),
}
_RUN_WORDS = {"run_id": "run", "status": "status", "transform": "transform"}
_RUN_NUMBERS = {
    "seed": ("seed", 0),
    "blocks": ("blocks", 0),
    "layers": ("layers", 0),
    "epochs": ("epochs", 0),
    "workers": ("workers", 0),
    "val/loss": ("val loss", 3),
    "val/prior": ("val prior", 3),
    "val/logdet": ("val logdet", 3),
    "val/bpd": ("val bits/dim", 3),
    "test/loss": ("test loss", 3),
    "test/bpd": ("test bits/dim", 3),
    "seconds_per_epoch": ("s/epoch", 2),
    "images_per_second": ("images/s", 0),
    "seconds": ("total s", 0),
}
_MADE = {
    "data": "data",
    "noise": "noise",
    "scale": "scale",
    "epochs": "epochs",
    "batch": "batch (images)",
    "lr": "learning rate",
    "blocks": "blocks",
    "layers": "layers a block",
    "width": "width (channels)",
    "patch": "patch (pixels)",
    "seed": "seed",
    "device": "device",
    "threads": "threads",
    "torch": "torch",
    "lightning": "lightning",
    "flowbench": "flowbench",
    "commit": "commit",
}
_EVALUATED = {
    "test/draws": "draws of the noise in the test",
    "bayes/images": "images classified",
    "fidelity/samples": "images generated for the fidelity",
    "fidelity/real": "test images of the fidelity",
}


def summary(runs: pd.DataFrame) -> Table:
    """A row a configuration: mean ± sd over seeds of losses, cost, ratio to affine, parameters.

    Seconds are those of runs that had the machine to themselves. Numeric columns that no part of
    the report knows follow as they are named.
    """
    runs = alone(finished(runs))
    extra = [name for name in _extra(runs) if pd.api.types.is_numeric_dtype(runs[name])]
    metrics = _SUMMARY | {name: (name, 3) for name in extra}
    columns = [means(runs, metric, places) for metric, (_, places) in metrics.items()]
    header = ["transform", "seeds", *(name for name, _ in metrics.values())]
    rows = []
    for name, own in configurations(runs).items():
        row = [name, str(own["seed"].nunique()), *(cells[name] for cells in columns)]
        rows.append([*row, _ratio(own, runs), _range(own["parameters"])])
    return Table([*header, "time ÷ affine's", "parameters"], rows)


def means(runs: pd.DataFrame, metric: str, places: int) -> dict[str, str]:
    """A metric's mean ± sd over seeds by configuration; says where fewer seeds have it than are.

    Args:
        runs: The finished runs.
        metric: A column of them.
        places: Decimal places.
    """
    cells = {}
    for name, own in configurations(runs).items():
        ((mean, sd, count),) = spread(own, metric).to_numpy()
        fewer = f" (n = {count:.0f})" if 0 < count < own["seed"].nunique() else ""
        cells[name] = measured(mean, sd, places) + fewer
    return cells


def _ratio(own: pd.DataFrame, runs: pd.DataFrame) -> str:
    transform = own["transform"].iloc[0]
    if transform == AFFINE:
        return "1" if own["seconds_per_epoch"].notna().any() else MISSING
    return number(cost(with_baseline(own, runs, AFFINE), transform, AFFINE).mean, 2)


def _range(values: pd.Series) -> str:
    low, high = number(values.min(), 0), number(values.max(), 0)
    return low if low == high else f"{low} to {high}"


def run_table(runs: pd.DataFrame) -> Table:
    """A row a run, the finished and the others; columns this module does not know come last."""
    numbers = {name: title for name, (title, _) in _RUN_NUMBERS.items()}
    names = _RUN_WORDS | numbers | {name: name for name in _extra(runs)}
    order = {
        transform: place for place, transform in enumerate(ordered(runs["transform"].dropna()))
    }
    places = runs["transform"].map(order)
    table = runs.assign(place=places).sort_values(["place", "seed"], kind="stable")
    rows = [
        [_cell(name, value) for name, value in zip(names, row, strict=True)]
        for row in table[list(names)].itertuples(index=False, name=None)
    ]
    return Table(list(names.values()), rows, words=len(_RUN_WORDS))


def _cell(name: str, value: Any) -> str:
    if name in _RUN_NUMBERS:
        return number(value, _RUN_NUMBERS[name][1])
    if name == "run_id":
        return str(value)[:8]  # enough to tell runs apart; runs.csv has the whole
    if name == "transform":
        return label(plain(value))
    return plain(value)


def _extra(runs: pd.DataFrame) -> list[str]:
    told = [*KNOWN, "evaluation/seconds"]
    return [name for name in runs.columns if name not in told and not is_score(name)]


def claim_table(judged: list[Claim]) -> Table:
    """A row a claim: what was measured, the verdict and the name of its rule."""
    rows = [
        [f"{place}. {claim.text}", claim.measured, claim.verdict, claim.rule]
        for place, claim in enumerate(judged, start=1)
    ]
    header = ["claim", "measured here", "verdict", "rule"]
    return Table(header, rows, words=len(header))


def made(runs: pd.DataFrame) -> Table:
    """What the finished runs were made with; several values where they differ."""
    runs = finished(runs)
    rows = [[name, values_of(runs[column])] for column, name in _settings(runs).items()]
    starts = sorted(runs["started"].dropna())
    rows.append(["started", f"{starts[0]} to {starts[-1]}" if starts else MISSING])
    return Table(["setting", "value"], rows, words=2)


def values_of(column: pd.Series) -> str:
    """The distinct values of a column, each with its number of runs where there are several."""
    counts = column.map(plain).value_counts(sort=False)
    if len(counts) == 1:
        return str(counts.index[0])
    return ", ".join(f"{value} ({_runs(count)})" for value, count in counts.items())


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def mixed(runs: pd.DataFrame) -> list[str]:
    """What the finished runs should share and do not, each with its values."""
    runs = finished(runs)
    return [
        f"{name}: {values_of(runs[column])}"
        for column, name in _settings(runs).items()
        if column != "seed" and runs[column].nunique(dropna=False) > 1
    ]


def _settings(runs: pd.DataFrame) -> dict[str, str]:
    """What runs were made with, by column; of the evaluation what some run has."""
    hashes = {name: name.replace("_", " of ", 1) for name in runs.columns if is_hash(name)}
    evaluated = [name for name in [*_EVALUATED, *hashes] if runs[name].notna().any()]
    return _MADE | {name: (_EVALUATED | hashes)[name] for name in evaluated}
