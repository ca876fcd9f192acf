"""What depends on bins, blocks and layers: figures with their captions, and tables."""

from collections.abc import Iterator
from functools import partial

import pandas as pd

from flowbench.report.blocks import worth
from flowbench.report.configurations import configurations, paired
from flowbench.report.document import Block, Paragraph, Table
from flowbench.report.files import TIMING, Recorded
from flowbench.report.labels import AFFINE, label, ordered
from flowbench.report.numbers import MISSING, confidence, number, plain
from flowbench.report.plates import Plate, counts
from flowbench.report.rounds import along, rounds
from flowbench.report.scaling import FLOPS, LEAST, QUANTITIES, WIDEST, Fit, fits
from flowbench.report.seeds import SECONDS, finished, pace, untrained
from flowbench.report.series import NAMES as AXES
from flowbench.report.series import Series, quality, series
from flowbench.report.trends import against, scaling

NAMES = [*AXES, "scaling"]
"""Every figure there may be, each a file of this name."""

_NOUNS = {"bins": "number of bins", "blocks": "number of blocks", "layers": "layers of a block"}


def plates(recorded: Recorded) -> Iterator[Plate]:
    """The figures along bins, blocks and layers.

    Args:
        recorded: The tables.
    """
    runs = finished(recorded.runs)
    metric, title, _ = quality(runs)
    for across in AXES:
        yield _against(recorded, across)
    found = fits(recorded, metric)
    names = ", ".join(label(name) for name in ordered(fit.transform for fit in found))
    yield Plate(
        "scaling",
        partial(scaling, found, title),
        f"{title} against blocks, layers, parameters and training compute for {names}.",
        f"{title} against what was scaled, a mark a run; lines: a + b·x^(−c), least squares over "
        "all runs of a transform; bands: 95 % of the fits to resampled seeds. No line: the runs do "
        "not determine one, and the table says why. Training FLOPs: "
        f"{FLOPS} · parameters · tokens · images seen, without attention and the transform.",
        lacking="" if found else "runs of one transform of which one is twice another's size",
    )


def _against(recorded: Recorded, across: str) -> Plate:
    runs = finished(recorded.runs)
    metric, title, _ = quality(runs)
    losses = series(runs.dropna(subset=[metric]), across)
    timed, foreign = along(recorded, across)
    seconds = series(timed, across) if len(timed) else None
    found = losses or seconds
    noun = _NOUNS[across]
    if found is None:
        needed = f"runs of one transform that differ in their {noun} alone"
        draw = partial(against, None, metric, title, None, needed)
        return Plate(across, draw, "", "", lacking=needed)
    names = ", ".join(found.lines())
    said = []
    if losses is not None:
        said.append(
            f"{title} against the {noun} ({losses.fixed}): mean ± 1 standard deviation over seeds, "
            "a faint mark beside it a run."
        )
    if seconds is not None:
        where = "of a study of times, in which flows took turns" if foreign else "of these runs"
        said.append(
            f"Seconds per epoch ({seconds.fixed}): median and quartiles over the epochs after the "
            f"first {where}, a faint mark beside it an epoch.{_load(timed)}"
        )
    if len(found.baseline):
        said.append("Horizontal line and band: affine, which has no bins.")
    if losses is not None and "in all" in losses.fixed:
        said.append(f"With more blocks each has fewer layers: there are {losses.fixed} throughout.")
    if losses is not None:
        said.append(counts(pd.concat([losses.runs, losses.baseline])))
    return Plate(
        across,
        partial(against, losses, metric, title, seconds, _lacking(losses)),
        f"{title if losses else 'Seconds per epoch'} against the {noun} for {names}.",
        " ".join(said),
    )


def _lacking(losses: Series | None) -> str:
    """What seconds of these flows need: those of equal layers a block are in the study of times."""
    timed = losses is not None and losses.across != "layers" and "in all" not in losses.fixed
    need = "make sweep-timing" if timed else "trials that run one by one"
    return f"needs {need}:\nno trial here had the machine to itself"


def _load(timed: pd.DataFrame) -> str:
    load = timed["load"].median()
    return "" if pd.isna(load) else f" Median load average: {number(load, 1)}."


def blocks(recorded: Recorded) -> Iterator[Block]:
    """The tables: what affine would need, the scaling laws, the seconds.

    Args:
        recorded: The tables.
    """
    runs = finished(recorded.runs)
    metric, _, unit = quality(runs)
    for across in ("blocks", "layers"):
        if table := worth(runs, metric, across):
            found = series(runs.dropna(subset=[metric]), across)
            yield Table(
                ["transform", across, f"{metric} ({unit})", f"affine's {across}", "factor"],
                [
                    [label(one.transform), plain(one.x), number(one.loss), one.told, one.factor]
                    for one in table
                ],
            )
            yield Paragraph(
                f"How many {AXES[across].lower()} affine needs for the mean loss that the other "
                f"transform has ({found.fixed if found else ''}): affine's means over seeds, "
                "interpolated linearly against the logarithm of the number, the least loss so far "
                "counting where one with more is higher. In parentheses the numbers at which the "
                "difference, seed by seed, has a 95 % t interval that includes 0. ≥ and ≤: beyond "
                "the largest and the smallest affine flow; at 95 %: all others are excluded.",
                lead=f"{across.capitalize()} of affine.",
            )
    yield from _laws(fits(recorded, metric), unit)
    yield from _seconds(recorded)


def _laws(found: list[Fit], unit: str) -> Iterator[Block]:
    if not found:
        return
    rows = []
    for fit in found:
        cells = [f"not determined: {fit.why}", MISSING, MISSING]
        if fit.law is not None:
            places = {"a": 3, "c": 2}
            cells = [_parameter(fit, name, places.get(name)) for name in ("a", "b", "c")]
        rows.append([QUANTITIES[fit.quantity], label(fit.transform), *cells])
    yield Table(["x", "transform", f"a ({unit})", "b", "c"], rows, words=2)
    yield Paragraph(
        "Loss = a + b·x^(−c), by least squares over all runs of a transform, with 95 % intervals "
        "over resampled seeds (the same for all), too narrow with few seeds. Not determined: fewer "
        f"than {LEAST} different x; a constant explains the runs as well (F test, 5 %); the best c "
        f"or an end of its interval is at a bound, or the ends are more than {WIDEST:.0f} times "
        "apart. What varies less than twofold is not listed; where all runs see as many images, "
        "compute is proportional to parameters. With four values of x three parameters fit almost "
        "anything: the law is a summary of these runs, not a promise beyond them.",
        lead="Scaling.",
    )


def _parameter(fit: Fit, name: str, places: int | None) -> str:
    value = fit.interval(name)
    if places is None:
        return f"{value.mean:.2e} ({value.low:.2e} to {value.high:.2e})"
    low, high = number(value.low, places), number(value.high, places)
    return f"{number(value.mean, places)} ({low} to {high})"


def timing(recorded: Recorded) -> pd.DataFrame:
    """The rounds that ratios of times rest on: of a study of times, this one or another."""
    runs = finished(recorded.runs)
    timed = recorded.evaluation[TIMING]
    return rounds(runs, recorded.history) if untrained(runs) else timed


def _seconds(recorded: Recorded) -> Iterator[Block]:
    timed = timing(recorded)
    if timed.empty:
        return
    ratios = {
        name: confidence(pace(both, transform, AFFINE), "", places=2, sign="-")
        for name, (transform, both) in paired(timed, AFFINE).items()
    }
    rows = []
    for name, own in configurations(timed).items():
        low, middle, high = own[SECONDS].quantile([0.25, 0.5, 0.75])
        quartiles = f"{number(middle, 2)} ({number(low, 2)} to {number(high, 2)})"
        load = number(own["load"].median(), 2)
        rows.append([name, str(len(own)), quartiles, ratios.get(name, "1"), load])
    yield Table(
        ["flow", "rounds", "s/epoch: median (quartiles)", "time ÷ affine's", "load average"], rows
    )
    yield Paragraph(
        "Seconds per epoch in the rounds after the first, in each of which all flows took turns, "
        f"alone on the machine ({', '.join(sorted(set(timed['device'].dropna())))}). Ratio to "
        "affine with the same model, paired by round: geometric mean with its 95 % t interval over "
        "rounds. Load average: median of those before the rounds; the measuring is itself a part "
        "of it.",
        lead="Seconds.",
    )
