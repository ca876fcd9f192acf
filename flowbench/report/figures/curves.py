"""Figures of the metrics recorded every epoch: of one run, and of all transforms together."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowbench.report.analysis import SHARED, Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import Plot
from flowbench.report.stats import without_outliers
from flowbench.report.text import configuration
from flowbench.schema import SECONDS, SEED, TRANSFORM

TERMS = {"loss": "Total loss", "prior": "Gaussian prior ½‖z‖²", "logdet": "Log-determinant"}
NATS = "nats per dimension"


def _one(analysis: Analysis) -> tuple[pd.DataFrame, str, str]:
    """Return the epochs of the chosen run without outliers, a sentence on these, and its name."""
    row, _ = analysis.one
    own = analysis.history[analysis.history["run_id"] == row["run_id"]]
    columns = [f"{stage}/{name}" for name in TERMS for stage in ("train", "val")]
    name = configuration(row[TRANSFORM], {key: row[key] for key in analysis.varied})
    return *without_outliers(own, columns), f"{name}, seed {row[SEED]:.0f}"


@style.context()
def run_losses(analysis: Analysis) -> Figure:
    """Draw the Gaussian prior, the log-determinant and the total loss of one run."""
    history, _, name = _one(analysis)
    figure = Figure(figsize=(style.PAGE, 2.5), layout="constrained")
    panels = figure.subplots(1, 3)
    stages = {
        "train": ("Training", style.TRAINING, "solid", "o"),
        "val": ("Validation", style.VALIDATION, "dashed", "s"),
    }
    for axes, term in zip(panels, ("prior", "logdet", "loss"), strict=True):
        for stage, (label, colour, line, marker) in stages.items():
            values = history.set_index("epoch")[f"{stage}/{term}"].dropna()
            axes.plot(
                values.index,
                values,
                color=colour,
                linestyle=line,
                marker=marker,
                markevery=_every(values),
                label=label,
            )
        axes.set(title=TERMS[term], ylabel=NATS.capitalize())
        _epochs(axes)
    style.legend_below(figure, 2, title=name)
    return figure


def _run_losses_caption(analysis: Analysis) -> str:
    _, outliers, name = _one(analysis)
    _, why = analysis.one
    return (
        f"Gaussian prior, log-determinant and total loss (= prior − log-determinant) per epoch of "
        f"one run: {name} ({why}). {outliers}"
    )


def _without_curves(analysis: Analysis) -> str:
    return "" if analysis.best_history["val/loss"].notna().any() else "losses by epoch"


@style.context()
def losses(analysis: Analysis) -> Figure:
    """Draw the total loss and its two terms in validation, as they are and normalised.

    The upper panels have scales of one length, so that the terms' changes can be compared with each
    other; the lower ones show each term between the smallest (0) and the largest (1) value that any
    run has in any epoch.
    """
    history, _ = _validation(analysis)
    figure = Figure(figsize=(style.PAGE, 4.3), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True)
    for raw, normalised, name in zip(*grid, TERMS, strict=True):
        metric = f"val/{name}"
        low, high = history[metric].min(), history[metric].max()
        unit = history.assign(**{metric: (history[metric] - low) / (high - low or 1.0)})
        counts = _means(raw, history, metric, analysis)
        _means(normalised, unit, metric, analysis)
        raw.set(title=TERMS[name], ylabel=NATS.capitalize())
        normalised.set(ylabel="Normalised to [0, 1]", ylim=(-0.05, 1.05))
        _epochs(normalised)
    _equal_spans(list(grid[0]))
    _legend(figure, counts)
    return figure


def _validation(analysis: Analysis) -> tuple[pd.DataFrame, str]:
    return without_outliers(analysis.best_history, [f"val/{name}" for name in TERMS])


def _losses_caption(analysis: Analysis) -> str:
    return (
        "Total loss and its two terms on the validation set per epoch, as measured (top) and "
        f"rescaled to [0, 1] (bottom). Lines: means over seeds; bands: ± 1 standard deviation. "
        f"{_best(analysis)}{_validation(analysis)[1]}"
    )


def _best(analysis: Analysis) -> str:
    return "The best configuration of each transform. " if analysis.varied else ""


@style.context()
def bpd(analysis: Analysis) -> Figure:
    """Draw validation bits per dimension against epochs and against training time.

    Where no run has bits per dimension, the validation loss stands in its place under its own name;
    where none was timed, there is no panel against time.
    """
    history, _ = _bits(analysis)
    metric = analysis.quality.metric
    timed = history[SECONDS].notna().any()
    figure = Figure(figsize=(style.PAGE if timed else style.COLUMN, 2.9), layout="constrained")
    left, *others = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    counts = _means(left, history, metric, analysis)
    left.set(ylabel=analysis.quality.title)
    _epochs(left)
    for right in others:
        spent = history.sort_values("epoch").groupby("run_id")[SECONDS].cumsum(skipna=False)
        _means(right, history.assign(elapsed=spent), metric, analysis, at="elapsed")
        right.set(xlabel="Training time (s)", xlim=(0, None))
    _legend(figure, counts)
    return figure


def _bits(analysis: Analysis) -> tuple[pd.DataFrame, str]:
    return without_outliers(analysis.best_history, ["val/bpd", "val/loss"])


def _bpd_caption(analysis: Analysis) -> str:
    timed = analysis.best_history[SECONDS].notna().any()
    time = "per epoch (left) and against training time (right)" if timed else "per epoch"
    why = f" No times: {SHARED}." if analysis.shared else ""
    return (
        f"{analysis.quality.title} {time}. Lines: means over seeds; bands: ± 1 standard deviation. "
        f"{_best(analysis)}{_bits(analysis)[1]}{why}"
    )


def over_seeds(history: pd.DataFrame, metric: str, transform: str) -> pd.DataFrame:
    """Return a metric of one transform, a row per epoch and a column per seed.

    Epochs that some seed lacks are left out: a mean whose members change would jump without cause.
    """
    chosen = history[history[TRANSFORM] == transform]
    table = chosen.groupby(["epoch", SEED])[metric].mean().unstack(SEED)
    return table.dropna(axis="columns", how="all").dropna()


def _means(
    axes: Axes, history: pd.DataFrame, metric: str, analysis: Analysis, at: str = "epoch"
) -> set[int]:
    """Draw a metric's mean over seeds, with a band of one standard deviation, by transform.

    Returns:
        The numbers of seeds of the transforms.
    """
    drawn = style.looks(history[TRANSFORM])
    tables = {name: over_seeds(history, metric, name) for name in drawn}
    seeds = {name: table for name, table in tables.items() if not table.empty}
    counts = {table.shape[1] for table in seeds.values()}
    for name, table in seeds.items():
        look, mean, sd = drawn[name], table.mean(axis=1), table.std(axis=1)
        title = analysis.names.get(name, look.label)
        place = over_seeds(history, at, name).mean(axis=1).reindex(mean.index)
        axes.plot(
            place,
            mean,
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            markevery=_every(mean),
            label=title if len(counts) == 1 else f"{title} (n = {table.shape[1]})",
        )
        axes.fill_between(place, mean - sd, mean + sd, color=look.colour, alpha=0.18, linewidth=0)
    return counts


def _every(values: pd.Series) -> int:
    return max(1, round(len(values) / 8))


def _epochs(axes: Axes) -> None:
    axes.set(xlabel="Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _equal_spans(panels: list[Axes]) -> None:
    """Give the panels scales of one length, without values below 0 where there can be none."""
    limits = [panel.get_ylim() for panel in panels]
    span = max(high - low for low, high in limits)
    for panel, (low, high) in zip(panels, limits, strict=True):
        bottom = (low + high - span) / 2
        bottom = max(bottom, 0.0) if low >= 0 else bottom
        panel.set_ylim(bottom, bottom + span)


def _legend(figure: Figure, counts: set[int]) -> None:
    """Put the legend below the panels; its title says what lines and bands are."""
    n = f"n = {max(counts)}" if len(counts) == 1 else "n"
    band = "no bands" if counts == {1} else "bands ± 1 sd"
    title = f"Validation set: mean over {n} seed{'' if counts == {1} else 's'}, {band}"
    style.legend_below(figure, 4 if figure.get_figwidth() == style.PAGE else 2, title)


RUN_LOSSES = Plot("run_losses", "original", run_losses, _run_losses_caption, _without_curves)
LOSSES = Plot("losses", "original", losses, _losses_caption, _without_curves)
BPD = Plot("bpd", "results", bpd, _bpd_caption, _without_curves)
