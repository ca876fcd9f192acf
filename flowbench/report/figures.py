"""The figures of a report: which there are, what their captions say, which cannot be drawn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

from flowbench.errors import UsageError
from flowbench.report import style
from flowbench.report.cost import seconds_per_epoch
from flowbench.report.curves import TERMS, bpd, losses, term
from flowbench.report.digits import digits
from flowbench.report.document import Picture
from flowbench.report.files import Recorded
from flowbench.report.labels import label, ordered
from flowbench.report.seeds import finished
from flowbench.report.spikes import without_spikes
from flowbench.report.spline import spline

Format = Literal["png", "pdf"]

NAMES = ["losses", "bpd", "seconds_per_epoch", "digits", *TERMS, "spline"]
"""Every figure there may be, each a file of this name."""

_TERM_CAPTION = "{what} in every epoch of one run ({run}; {why}): loss = prior − logdet. {far}"
_SHOWN = 3  # rows of samples of a transform
_MEANS = (
    "Lines: mean over the n seeds of a transform; bands: ± 1 standard deviation, none for one "
    "seed. An epoch that some seed did not reach is not shown."
)


@dataclass(frozen=True)
class _Plate:
    name: str
    draw: Callable[[], Figure]
    alt: str
    caption: str
    lacking: str = ""  # what would be needed to draw it, where that is not there


def draw(
    recorded: Recorded, directory: Path, format: Format, run: str | None
) -> tuple[list[Picture], list[str]]:
    """Draw what can be drawn, each figure as PNG and, where wanted, as PDF besides.

    Args:
        recorded: The tables and samples.
        directory: Where to put the files.
        format: pdf for figures in both formats.
        run: Run whose own curves are shown; none for the best.

    Returns:
        The figures with their captions, and one sentence for each figure left out.

    Raises:
        UsageError: There is no finished run of this id.
    """
    pictures, left_out = [], []
    for plate in list(_plates(recorded, run)):  # a wrong run is told before any is drawn
        if plate.lacking:
            left_out.append(f"{plate.name}: not drawn, for there are no {plate.lacking}.")
            continue
        for suffix in dict.fromkeys(["png", format]):
            # Saving lays a figure out for its format and leaves a trace of that in it.
            style.save(plate.draw(), directory / f"{plate.name}.{suffix}")
        pictures.append(Picture(f"{plate.name}.png", plate.alt, plate.caption))
    return pictures, left_out


def chosen(runs: pd.DataFrame, run: str | None) -> tuple[pd.Series, str]:
    """The run asked for, or else the one with the lowest validation loss, and why it was taken.

    Raises:
        UsageError: There is no finished run of this id.
    """
    runs = finished(runs)
    if run is not None:
        if run not in set(runs["run_id"]):
            valid = ", ".join(runs["run_id"])
            raise UsageError(f"run {run!r} is not a finished run of this study: valid are {valid}")
        return runs[runs["run_id"] == run].iloc[0], "the run asked for"
    for metric, name in (("val/bpd", "bits per dimension"), ("val/loss", "loss")):
        if runs[metric].notna().any():
            return runs.loc[runs[metric].idxmin()], f"the lowest final validation {name} of all"
    return runs.iloc[0], "the first recorded, for none has a validation loss"


def _plates(recorded: Recorded, run: str | None) -> Iterator[_Plate]:
    runs = finished(recorded.runs)
    facts = runs[["run_id", "transform", "seed"]]
    epochs = recorded.history.drop(columns=["transform", "seed"], errors="ignore")
    history = epochs.merge(facts, on="run_id").sort_values(["run_id", "epoch"])
    names = ", ".join(label(name) for name in ordered(runs["transform"]))
    curves = "" if history["val/loss"].notna().any() else "validation losses by epoch"
    terms, far_terms = without_spikes(history, [f"val/{name}" for name in TERMS])
    bits, far_bits = without_spikes(history, ["val/bpd", "val/loss"])
    yield _Plate(
        "losses",
        partial(losses, terms),
        f"Total loss, Gaussian prior and log-determinant against epochs for {names}.",
        "Total loss and its two terms, loss = prior − logdet, on the validation set. Upper row: "
        "as measured, on scales of equal length, so that the terms' changes compare. Lower row: "
        "every panel rescaled so that 0 and 1 are the least and the greatest value of any run in "
        f"any epoch. {_MEANS} {far_terms} The constant ½ log 2π is left out of the prior.",
        lacking=curves,
    )
    unit = "bits per dimension" if history["val/bpd"].notna().any() else "loss in nats"
    yield _Plate(
        "bpd",
        partial(bpd, bits),
        f"Validation {unit} against epochs and against training time for {names}.",
        f"Validation {unit} against epochs (left) and against training time (right; the sum of the "
        f"epochs' seconds, the first with its warm-up, mean over seeds). {_MEANS} {far_bits}",
        lacking=curves,
    )
    yield _Plate(
        "seconds_per_epoch",
        partial(seconds_per_epoch, runs),
        f"Seconds per epoch of every run of {names}.",
        "Seconds per epoch. A mark: one run, its median over all epochs but the first, which "
        "includes warm-up; a bar: the transform's median over runs; at the right: the time divided "
        "by affine's, geometric mean of the ratios of runs with the same seed, settings and "
        f"machine. {_counts(runs.dropna(subset=['seconds_per_epoch']))}",
        lacking="" if runs["seconds_per_epoch"].notna().any() else "seconds per epoch",
    )
    yield _Plate(
        "digits",
        partial(digits, {name: images[:_SHOWN] for name, images in recorded.samples.items()}),
        f"Generated images of every class from {', '.join(map(label, recorded.samples))}.",
        "Samples by class (columns), the first drawn from each transform's best run: one run a "
        "transform, images unselected.",
        lacking="" if recorded.samples else "samples",
    )
    row, why = chosen(recorded.runs, run)
    own = history[history["run_id"] == row["run_id"]]
    which = f"{label(row['transform'])}, seed {row['seed']:.0f}"
    for name, what in TERMS.items():
        columns = [f"train/{name}", f"val/{name}"]
        curve, far = without_spikes(own, columns)
        stages = curve[columns]
        yield _Plate(
            name,
            partial(term, curve, name, which),
            f"{what} against epochs in training and validation for one run, {which}.",
            _TERM_CAPTION.format(what=what, run=f"{which}, {row['run_id'][:8]}", why=why, far=far),
            lacking="" if stages.notna().any(axis=None) else f"values of {name} by epoch",
        )
    yield _Plate(
        "spline",
        spline,
        "A monotone curve through four knots on [-4, 4], the identity outside, and its slope.",
        "The transform under study, not a measurement: a rational-quadratic spline with B = 4 and "
        "K = 3 bins through knots at x = −4, −1, 2, 4, z = −4, −1, 1, 4 with slopes 1, ½, 2, 1 "
        "(left), and its derivative (right). Outside [−B, B] it is the identity.",
    )


def _counts(runs: pd.DataFrame) -> str:
    counts = runs.groupby("transform")["run_id"].count()
    return f"Runs: {', '.join(f'{label(name)} {counts[name]}' for name in ordered(counts.index))}."
