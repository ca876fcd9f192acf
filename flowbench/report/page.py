"""The page of a study, block by block: question, answer, results, trials, making, limits."""

import dataclasses
from collections.abc import Iterator
from itertools import count

import pandas as pd

from flowbench.report import searched, sweeps, tables
from flowbench.report.answer import answer
from flowbench.report.claims import BESIDE, RULES, UNCORRECTED, claims
from flowbench.report.document import Block, Bullets, Code, Heading, Paragraph
from flowbench.report.extractors import extractors
from flowbench.report.files import Recorded
from flowbench.report.labels import label
from flowbench.report.numbers import plain
from flowbench.report.plates import Drawn
from flowbench.report.scores import scores
from flowbench.report.seeds import finished, untrained
from flowbench.report.study import Study


def page(
    study: Study,
    recorded: Recorded,
    along: Drawn,
    training: Drawn,
    evaluation: Drawn,
    search: Drawn,
) -> Iterator[Block]:
    """The contents of a report.

    Args:
        study: Its words.
        recorded: All its recorded runs.
        along: The figures along bins, blocks and layers.
        training: The figures of the training.
        evaluation: The figures of the evaluation.
        search: The figures of the trials.
    """
    runs, timed, numbers = recorded.runs, sweeps.timing(recorded), count(1)
    judged = claims(runs, timed)
    yield Paragraph(study.question, lead="Question.")
    yield Paragraph(study.expected, lead="Expected.")
    yield Paragraph(answer(runs, judged, timed), lead="Answer.")
    yield from _summary(runs)
    yield Heading("Claims")
    yield tables.claim_table(judged)
    for name, rule in RULES.items():
        yield Paragraph(rule, lead=f"Rule: {name}.")
    yield Paragraph(UNCORRECTED)
    yield Heading("Bins, blocks and layers")
    yield from _figures(along, numbers)
    yield from sweeps.blocks(recorded)
    yield Heading("Training")
    yield from _figures(training, numbers)
    yield Heading("Evaluation")
    yield from scores(runs)
    yield from _figures(evaluation, numbers)
    yield Heading("Trials")
    yield from searched.told(study.objectives, recorded)
    yield from _figures(search, numbers)
    yield Heading("Runs")
    yield Paragraph(_census(runs))
    yield tables.run_table(runs)
    yield Heading("How these numbers were made")
    yield tables.made(runs)
    yield from _warning(runs)
    yield Paragraph("The runs and this report are made again by:")
    yield Code(study.command)
    yield Heading("What they do not show")
    yield Bullets(list(_limits(runs)))


def _summary(runs: pd.DataFrame) -> Iterator[Block]:
    """Means over seeds; a study of times, which has a table of its own, trains nothing."""
    if untrained(runs):
        return
    yield Heading("Summary by transform")
    yield tables.summary(runs)
    yield Paragraph(
        "Mean ± standard deviation over seeds of the finished runs' final values. loss = prior − "
        "logdet, in nats per dimension without the constant ½ log 2π; bits/dim has every constant "
        "and exists only for runs with uniform noise. The last but one column is the geometric "
        f"mean of ratios paired by seed.{_beside(runs)}"
    )


def _beside(runs: pd.DataFrame) -> str:
    """What keeps seconds out of the summary, where something does."""
    count = int((finished(runs)["workers"] > 1).sum())
    if not count:
        return ""
    return (
        f" Seconds of the {count} runs that ran beside others ({BESIDE}) have no part in any "
        "figure, ratio or mean; the table of runs has them with their number of workers."
    )


def _figures(drawn: Drawn, numbers: Iterator[int]) -> Iterator[Block]:
    for picture, number in zip(drawn.pictures, numbers, strict=False):
        yield dataclasses.replace(picture, caption=f"Figure {number}. {picture.caption}")
    if drawn.left_out:
        yield Bullets(drawn.left_out)


def _census(runs: pd.DataFrame) -> str:
    """How many runs ended how; those left out are named."""
    counts = runs["status"].value_counts()
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    others = runs[runs["status"] != "finished"]
    if others.empty:
        return f"{len(runs)} recorded: {told}."
    named = "; ".join(
        f"{status} {run[:8]} ({label(plain(transform))}, seed {plain(seed)})"
        for run, status, transform, seed in others[
            ["run_id", "status", "transform", "seed"]
        ].itertuples(index=False)
    )
    return f"{len(runs)} recorded: {told}. No number above rests on those left out: {named}."


def _warning(runs: pd.DataFrame) -> Iterator[Paragraph]:
    if mixed := tables.mixed(runs):
        told = "; ".join(mixed)
        yield Paragraph(
            f"The finished runs differ in more than transform and seed ({told}). Differences and "
            "ratios pair runs that agree in their settings, and ratios of time also in device, "
            "threads and torch. Means are by configuration where blocks, layers, width or patch "
            "differ; the figures show all configurations, or say which. Beyond that means and "
            "figures pool all runs, but for maps over patches, blocks and classes, which rest on "
            "the settings of each transform's best run, and for scores by extractor, which are "
            "kept apart by its weights and the numbers of images.",
            lead="Mixed runs.",
        )


def _limits(runs: pd.DataFrame) -> Iterator[str]:
    runs = finished(runs)
    seeds = runs.groupby("transform")["seed"].nunique()
    least, most = seeds.min(), seeds.max()
    shown = f"{least}" if least == most else f"{least} to {most}"
    yield (
        f"Seeds: {shown} a transform. The intervals take the seeds' differences to be normally "
        "distributed, which so few can neither confirm nor refute."
    )
    yield (
        f"Data: {tables.values_of(runs['data'])}. Other data may rank the transforms otherwise; "
        "the background of digits rewards very steep maps."
    )
    yield (
        f"Epochs: {tables.values_of(runs['epochs'])}. The order at this budget need not be the "
        "order at convergence."
    )
    yield "All transforms share one set of optimiser settings, tuned for none of them."
    yield "Times hold for the machine named above; elsewhere their ratio may differ."
    if extractors(runs):
        yield (
            "FID, KID, precision and recall see what their extractor sees; they compare with no "
            "value from another extractor, other weights or another number of images."
        )
    else:
        yield "Likelihood is not sample quality: the samples are shown, not scored by these losses."
    if runs["val/bpd"].isna().any() and runs["test/bpd"].isna().any():
        yield (
            "Runs without uniform noise have no bits per dimension, and their losses compare only "
            "with runs of the same noise."
        )
