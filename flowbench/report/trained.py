"""The figures of the training: which there are and what their captions say."""

from collections.abc import Iterator
from functools import partial

import pandas as pd

from flowbench.errors import UsageError
from flowbench.report.claims import BESIDE
from flowbench.report.configurations import configurations, named, shown, varied
from flowbench.report.cost import seconds_per_epoch
from flowbench.report.curves import TERMS, bpd, losses, term
from flowbench.report.files import Recorded
from flowbench.report.plates import Plate, counts
from flowbench.report.seeds import alone, beside, finished
from flowbench.report.spikes import without_spikes
from flowbench.report.spline import spline

NAMES = ["losses", "bpd", "seconds_per_epoch", *TERMS, "spline"]
"""Every figure there may be, each a file of this name."""

_TERM_CAPTION = "{what} in every epoch of one run ({run}; {why}): loss = prior − logdet. {far}"
_ONE = "Of each transform the configuration with the lowest validation loss. "
_MEANS = (
    "Lines: mean over the n seeds of a transform; bands: ± 1 standard deviation, none for one "
    "seed. An epoch that some seed did not reach is not shown."
)


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


def plates(recorded: Recorded, run: str | None) -> Iterator[Plate]:
    """The figures of the training.

    Args:
        recorded: The tables.
        run: Run whose own curves are shown; none for the best.

    Raises:
        UsageError: There is no finished run of this id.
    """
    runs = finished(recorded.runs)
    facts = runs[["run_id", "transform", "seed", "workers"]]
    epochs = recorded.history.drop(columns=["transform", "seed"], errors="ignore")
    every = alone(epochs.merge(facts, on="run_id").sort_values(["run_id", "epoch"]))
    best, called = shown(runs)
    history = every[every["run_id"].isin(best["run_id"])]
    names = ", ".join(called.values())
    one = _ONE if varied(runs) else ""
    curves = "" if history["val/loss"].notna().any() else "validation losses by epoch"
    terms, far_terms = without_spikes(history, [f"val/{name}" for name in TERMS])
    bits, far_bits = without_spikes(history, ["val/bpd", "val/loss"])
    yield Plate(
        "losses",
        partial(losses, terms, called),
        f"Total loss, Gaussian prior and log-determinant against epochs for {names}.",
        "Total loss and its two terms, loss = prior − logdet, on the validation set. Upper row: "
        "as measured, on scales of equal length, so that the terms' changes compare. Lower row: "
        "every panel rescaled so that 0 and 1 are the least and the greatest value of any run in "
        f"any epoch. {one}{_MEANS} {far_terms} The constant ½ log 2π is left out of the prior.",
        lacking=curves,
    )
    unit = "bits per dimension" if history["val/bpd"].notna().any() else "loss in nats"
    timed = history["seconds_per_epoch"].notna().any()
    lost = f" ({BESIDE})" if beside(runs) else ""
    time = " and against training time" if timed else ""
    spent = (
        "(left) and against training time (right; the sum of the epochs' seconds, the first with "
        "its warm-up, mean over seeds)"
        if timed
        else f"only{lost}"
    )
    yield Plate(
        "bpd",
        partial(bpd, bits, called),
        f"Validation {unit} against epochs{time} for {names}.",
        f"Validation {unit} against epochs {spent}. {one}{_MEANS} {far_bits}",
        lacking=curves,
    )
    clocked = alone(runs).dropna(subset=["seconds_per_epoch"])
    yield Plate(
        "seconds_per_epoch",
        partial(seconds_per_epoch, clocked),
        f"Seconds per epoch of every run of {', '.join(configurations(clocked))}.",
        "Seconds per epoch. A mark: one run, its median over all epochs but the first, which "
        "includes warm-up; a bar: the median over a row's runs; at the right: the time divided "
        "by affine's, geometric mean of the ratios of runs with the same seed, settings and "
        f"machine. {counts(clocked)}",
        lacking="" if len(clocked) else f"seconds per epoch{lost}",
    )
    row, why = chosen(recorded.runs, run)
    own = every[every["run_id"] == row["run_id"]]
    model = {name: row[name] for name in varied(runs)}
    which = f"{named(row['transform'], model)}, seed {row['seed']:.0f}"
    for name, what in TERMS.items():
        columns = [f"train/{name}", f"val/{name}"]
        curve, far = without_spikes(own, columns)
        stages = curve[columns]
        yield Plate(
            name,
            partial(term, curve, name, which),
            f"{what} against epochs in training and validation for one run, {which}.",
            _TERM_CAPTION.format(what=what, run=f"{which}, {row['run_id'][:8]}", why=why, far=far),
            lacking="" if stages.notna().any(axis=None) else f"values of {name} by epoch",
        )
    yield Plate(
        "spline",
        spline,
        "A monotone curve through four knots on [-4, 4], the identity outside, and its slope.",
        "The transform under study, not a measurement: a rational-quadratic spline with B = 4 and "
        "K = 3 bins through knots at x = −4, −1, 2, 4, z = −4, −1, 1, 4 with slopes 1, ½, 2, 1 "
        "(left), and its derivative (right). Outside [−B, B] it is the identity.",
    )
