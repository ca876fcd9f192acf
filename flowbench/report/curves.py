"""Figures of what is recorded every epoch: one run's terms, and all transforms side by side."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowbench.report import style

TERMS = {"loss": "Total loss", "prior": "Gaussian prior ½‖z‖²", "logdet": "Log-determinant"}
NATS = "nats per dimension"


@style.context()
def term(history: pd.DataFrame, name: str, title: str) -> Figure:
    """One term of the loss against the epoch, in training and validation, for one run.

    Args:
        history: The epochs of this run.
        name: loss, prior or logdet.
        title: Which run it is.
    """
    figure = Figure(figsize=(style.COLUMN, 2.6), layout="constrained")
    axes = figure.subplots()
    stages = {"train": ("Training", "#0072b2", "solid"), "val": ("Validation", "#d55e00", "dashed")}
    for stage, (label, colour, line) in stages.items():
        values = history.set_index("epoch")[f"{stage}/{name}"].dropna()
        axes.plot(
            values.index,
            values,
            color=colour,
            linestyle=line,
            marker="o" if stage == "train" else "s",
            markevery=_every(values),
            label=label,
        )
    axes.set(title=title, ylabel=f"{TERMS[name]}\n({NATS})")
    _epochs(axes)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@style.context()
def losses(history: pd.DataFrame, names: Mapping[str, str] | None = None) -> Figure:
    """The total loss and its two terms in validation, all transforms: as they are, and normalised.

    The upper panels have scales of one length, so that the terms' changes can be compared with each
    other; the lower ones show each term between the smallest (0) and the largest (1) value that any
    run has in any epoch.

    Args:
        history: The epochs of the runs.
        names: What to call the transforms, where that is more than their own name.
    """
    figure = Figure(figsize=(style.PAGE, 4.3), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True)
    for raw, normalised, name in zip(*grid, TERMS, strict=True):
        metric = f"val/{name}"
        low, high = history[metric].min(), history[metric].max()
        unit = history.assign(**{metric: (history[metric] - low) / (high - low or 1.0)})
        counts = _means(raw, history, metric, names)
        _means(normalised, unit, metric, names)
        raw.set(title=TERMS[name], ylabel=NATS.capitalize())
        normalised.set(ylabel="Normalised to [0, 1]", ylim=(-0.05, 1.05))
        _epochs(normalised)
    _equal_spans(list(grid[0]))
    _legend(figure, grid[0][0], counts)
    return figure


@style.context()
def bpd(history: pd.DataFrame, names: Mapping[str, str] | None = None) -> Figure:
    """Validation bits per dimension against epochs and against training time, all transforms.

    Where no run has bits per dimension, the validation loss takes their place under its own name;
    where none was timed, there is no panel against time.

    Args:
        history: The epochs of the runs.
        names: What to call the transforms, where that is more than their own name.
    """
    metric, label = "val/bpd", "Validation bits per dimension"
    if history[metric].isna().all():
        metric, label = "val/loss", f"Validation loss ({NATS})"
    timed = history["seconds_per_epoch"].notna().any()
    figure = Figure(figsize=(style.PAGE if timed else style.COLUMN, 2.9), layout="constrained")
    left, *others = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    counts = _means(left, history, metric, names)
    left.set(ylabel=label)
    _epochs(left)
    for right in others:
        _means(right, _timed(history), metric, names, at="elapsed")
        right.set(xlabel="Training time (s)", xlim=(0, None))
    _legend(figure, left, counts)
    return figure


def over_seeds(history: pd.DataFrame, metric: str, transform: str) -> pd.DataFrame:
    """A metric of one transform, a row an epoch and a column a seed.

    Epochs that some seed lacks are left out: a mean whose members change would jump without cause.
    """
    chosen = history[history["transform"] == transform]
    table = chosen.groupby(["epoch", "seed"])[metric].mean().unstack("seed")
    return table.dropna(axis="columns", how="all").dropna()


def _means(
    axes: Axes,
    history: pd.DataFrame,
    metric: str,
    names: Mapping[str, str] | None,
    at: str = "epoch",
) -> set[int]:
    """Draw a metric's mean over seeds, with a band of one standard deviation, by transform.

    Returns:
        The numbers of seeds of the transforms.
    """
    looks = style.looks(history["transform"])
    tables = {name: over_seeds(history, metric, name) for name in looks}
    seeds = {name: table for name, table in tables.items() if not table.empty}
    counts = {table.shape[1] for table in seeds.values()}
    for name, table in seeds.items():
        look, mean, sd = looks[name], table.mean(axis=1), table.std(axis=1)
        called = (names or {}).get(name, look.label)
        place = over_seeds(history, at, name).mean(axis=1).reindex(mean.index)
        axes.plot(
            place,
            mean,
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            markevery=_every(mean),
            label=called if len(counts) == 1 else f"{called} (n = {table.shape[1]})",
        )
        axes.fill_between(place, mean - sd, mean + sd, color=look.colour, alpha=0.18, linewidth=0)
    return counts


def _timed(history: pd.DataFrame) -> pd.DataFrame:
    """The history with the seconds spent so far; unknown after an epoch that was not timed."""
    spent = history.sort_values("epoch").groupby("run_id")["seconds_per_epoch"]
    return history.assign(elapsed=spent.cumsum(skipna=False))


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


def _legend(figure: Figure, axes: Axes, counts: set[int]) -> None:
    """Below the panels, where it covers nothing; says what lines and bands are."""
    n = f"n = {max(counts)}" if len(counts) == 1 else "n"
    band = "no bands" if counts == {1} else "bands ± 1 sd"
    title = f"Validation set: mean over {n} seed{'' if counts == {1} else 's'}, {band}"
    handles, labels = axes.get_legend_handles_labels()
    columns = min(4 if figure.get_figwidth() == style.PAGE else 2, len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title)
