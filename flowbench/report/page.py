"""The page of a study: answer, claims and figures first, everything else in an appendix."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Literal

import pandas as pd

from flowbench.report import compute, compute_tables, tables
from flowbench.report.analysis import Analysis
from flowbench.report.claims import RULES, UNCORRECTED, Claim, across, claims
from flowbench.report.datasets import Advantage, advantages, tellings
from flowbench.report.document import Block, Code, Folded, Heading, Paragraph, Picture
from flowbench.report.figures import FIGURES, style
from flowbench.report.figures.spline import CAPTION
from flowbench.report.figures.style import Plot
from flowbench.report.files import Study
from flowbench.report.options import CLIPPED, title
from flowbench.report.runs import finished
from flowbench.report.stats import over_seeds
from flowbench.report.text import (
    AFFINE,
    configuration,
    counted,
    flops,
    is_spline,
    label,
    limits,
    measured,
    number,
    plain,
)
from flowbench.schema import BLOCKS, LAYERS, SEED, TRANSFORM

Format = Literal["png", "pdf"]
SPLINE = "spline.png"
"""The figure of the spline, which all reports of a results directory share."""


def shared(study: Study) -> str:
    """Return the path of that figure as the page of a study finds it."""
    return "../" * (1 + study.name.count("/")) + SPLINE


def page(found: Sequence[Analysis], directory: Path, format: Format = "png") -> Iterator[Block]:
    """Draw the figures and write the contents of the report.

    Args:
        found: The analyses of the study's protocols.
        directory: Where to put the figures' files.
        format: pdf for figures in both formats.
    """
    first, several = found[0], len(found) > 1
    pictures, missing = drawn(found, directory, format)
    by_analysis = {id(one): claims(one) for one in found}
    together = across(found)
    yield Paragraph(first.study.question, lead="Question.")
    if by_data := advantages(found):
        yield Paragraph(_advantages(by_data, first.quality.unit), lead="Answer (all data).")
    for one in found:
        protocol = f" ({one.protocol})" if several else ""
        yield Paragraph(answer(one), lead=f"Answer{protocol}.")
    lead = _lead(first, pictures)
    numbers = count(1)
    if lead:
        yield from _numbered([pictures[lead.name]], numbers)
    yield Heading("Claims")
    if together:
        yield tables.claim_table(together)
    for one in found:
        if any(claim.rule for claim in by_analysis[id(one)]):
            if several:
                yield Paragraph("", lead=f"{one.protocol}:")
            yield tables.claim_table(by_analysis[id(one)])
    yield Paragraph("Of several configurations, the one with the weakest evidence; n counts seeds.")
    shown = {part: _shown(pictures, part, lead) for part in ("original", "results", "appendix")}
    yield Heading("The original's figures")
    yield from _numbered(
        [
            *shown["original"],
            Picture(shared(first.study), "A rational-quadratic spline and its slope", CAPTION),
        ],
        numbers,
    )
    yield Heading("Results")
    yield from tables.advantages(found)
    for one in found:
        if not one.untrained:
            if several:
                yield Paragraph("", lead=f"{one.protocol}:")
            yield tables.summary(one)
            yield from tables.fair(one)
            yield from tables.effects(one)
            yield from compute_tables.budgets(one)
            yield from tables.tellings(one)
    if not first.untrained:
        yield Paragraph(
            "Mean ± standard deviation over seeds. Times: only of runs that had the machine to "
            "themselves."
        )
    yield from _numbered(shown["results"], numbers)
    yield Paragraph(_unmeasured(by_analysis[id(first)], missing))
    yield Heading("Appendix")
    for one in found:
        ending = f" ({one.protocol})" if several else ""
        own = by_analysis[id(one)] + (together if one is first else [])
        yield from _appendix(one, own, ending)
    yield Folded("Further figures", list(_numbered(shown["appendix"], numbers)))
    yield from _records(first)


def _advantages(by_data: Sequence[Advantage], unit: str) -> str:
    """Say how much lower the spline's loss is on each data set, in one sentence."""
    first = by_data[0]
    listed = [
        f"{number(one.gap.mean)} ({limits(one.gap)}) on {one.data}, whose pixels have a standard "
        f"deviation of {number(one.spread, 2)}"
        for one in by_data
    ]
    return (
        f"{label(first.spline)} is below {label(first.base)} by {'; '.join(listed)} ({unit} in "
        "validation, 95 % intervals over seeds)."
    )


def drawn(
    found: Sequence[Analysis], directory: Path, format: Format = "png"
) -> tuple[dict[str, Picture], dict[str, str]]:
    """Draw every figure that can be drawn, as PNG and, where asked for, as PDF too.

    Returns:
        The pictures by the stem of their file, and what the other figures lack.
    """
    pictures: dict[str, Picture] = {}
    missing: dict[str, str] = {}
    denoised = [one for one in found if one.denoised]
    for plot in FIGURES:
        shown = [one for one in (plot.samples and denoised) or found if not plot.missing(one)]
        if not shown:
            missing |= {plot.name: plot.missing(found[0])} if plot.expected else {}
        for place, one in enumerate(shown):
            name = plot.name if not place else f"{plot.name}-{place + 1}"
            caption = " ".join(plot.caption(one).split())
            if one.protocol:
                caption = f"{caption} ({one.protocol})"
            for suffix in dict.fromkeys(["png", format]):
                # Saving lays a figure out for its format and leaves a trace of that in it.
                style.save(plot.draw(one), directory / f"{name}.{suffix}")
            alt = re.split("[,;:(.]", caption)[0].strip()
            pictures[name] = Picture(f"{name}.png", alt, caption)
    return pictures, missing


def _shown(pictures: dict[str, Picture], part: str, lead: Plot | None) -> list[Picture]:
    """Select a section's pictures; those of the protocols stand side by side."""
    sections = {plot.name: plot.section for plot in FIGURES}
    return [
        picture
        for name, picture in pictures.items()
        if sections[name.partition("-")[0]] == part and not (lead and name == lead.name)
    ]


def _numbered(pictures: Sequence[Picture], numbers: Iterator[int]) -> Iterator[Picture]:
    for picture, place in zip(pictures, numbers, strict=False):
        yield dataclasses.replace(picture, caption=f"Figure {place}. {picture.caption}")


def _lead(analysis: Analysis, pictures: dict[str, Picture]) -> Plot | None:
    """Choose the figure that shows the answer: what the study varies, else its curves."""
    bins = analysis.along["bins"]
    many = bins is not None and bins.runs["x"].nunique() > 2
    wanted = ["pareto"] if len(analysis.study.objectives) > 1 else []
    wanted += ["compute"]
    wanted += [
        name for name, key in (("blocks", BLOCKS), ("layers", LAYERS)) if analysis.along[key]
    ]
    wanted += ["bins"] if many else []
    wanted += ["orders", "start"]
    wanted += ["bpd", "blocks", "bins", "seconds_per_epoch", "digits"]
    plots = {plot.name: plot for plot in FIGURES}
    return next((plots[name] for name in wanted if name in pictures), None)


def answer(analysis: Analysis) -> str:
    """Say in at most 80 words which transform came out best, by how much, and at what cost.

    The best is chosen in validation, so that its test value stays a fair estimate. Where settings
    vary, the best configuration of each transform is compared.
    """
    quality, best = analysis.quality, analysis.best
    means = {name: _mean(best, name, quality.metric) for name in analysis.names}
    ranking = sorted((name for name in means if not math.isnan(means[name])), key=means.__getitem__)
    if not ranking:
        return f"These runs measure times only. {_all_times(analysis)}"
    first = ranking[0]
    stem = quality.metric.partition("/")[2]
    stage = "val" if analysis.runs[f"test/{stem}"].isna().all() else "test"
    values = {
        name: measured(*over_seeds(best[best[TRANSFORM] == name], f"{stage}/{stem}")[:2])
        for name in ranking
    }
    rival = AFFINE if AFFINE in ranking[1:] else ranking[1] if len(ranking) > 1 else None
    words = f"{analysis.names[first]} has the lowest loss: {values[first]} {stage} {quality.unit}"
    if rival:
        words += f", against {values[rival]} for {analysis.names[rival]}"
    sentences = [f"{words}."]
    gap = analysis.differences[quality.metric].get(analysis.names[first])
    if rival == AFFINE and first != AFFINE and gap and gap.n:
        sentences.append(
            f"Seed by seed it is {number(-gap.mean)} below affine in validation "
            f"({_interval(limits(gap, negate=True), gap.n)})."
        )
    sentences += [*_other_images(analysis), *_effect(analysis), *_times(analysis, first)]
    return " ".join(sentences)


def _mean(best: pd.DataFrame, name: str, metric: str) -> float:
    return over_seeds(best[best[TRANSFORM] == name], metric)[0]


def _interval(ends: str, seeds: int) -> str:
    return ends if "no interval" in ends else f"95 % interval {ends}, {counted(seeds, 'seed')}"


def _other_images(analysis: Analysis) -> Iterator[str]:
    """Say how likely a spline finds each other data set's images, a sentence each."""
    splines = [name for name in analysis.transforms if is_spline(name)]
    for one in tellings(analysis):
        if one.score == "auroc" and one.transform in splines and one.change.n:
            share = number(one.values.mean())
            less = "less" if one.values.mean() > 0.5 else "more"
            yield (
                f"{label(one.transform)} finds {one.other} {less} likely than its own images "
                f"(AUROC {share}, {number(one.change.mean, sign='+')} to the affine flow's, "
                f"{limits(one.change)})."
            )


def _effect(analysis: Analysis) -> Iterator[str]:
    """Say what the number that the study varies does, in one sentence."""
    unit = analysis.quality.unit
    if few := [gain for gain in analysis.gains if gain.few > 2]:
        gain = few[-1]
        yield (
            f"K={gain.more} gains {number(gain.by.mean)} {unit} over K={gain.few} "
            f"({limits(gain.by)})."
        )
    yield from _options(analysis)
    yield from _budgets(analysis)
    for transform, one in analysis.fewer.items():
        good = [n for n, gap in one.gaps.items() if gap.high <= 0]
        affine = f"affine with {counted(one.most, 'block')}"
        if good:
            gap = one.gaps[min(good)]
            yield (
                f"{label(transform)} with {counted(min(good), 'block')} is already "
                f"{number(-gap.mean)} {unit} below {affine} ({limits(gap, negate=True)})."
            )
        else:
            yield f"No {label(transform)} with fewer blocks is surely as good as {affine}."
    if not analysis.fewer and (found := analysis.equivalents[LAYERS]):
        least = found[0]
        layers = counted(least.x, "layer")
        name = label(least.transform)
        yield f"{name} with {layers} per block is as good as affine with {least.words}."


def _budgets(analysis: Analysis) -> Iterator[str]:
    """Say how the best size, and the difference from affine, go with the budget of compute."""
    unit = analysis.quality.unit
    for exponent in compute.exponents(analysis.curves):
        if (value := exponent.value) is not None:
            yield (
                f"{label(exponent.transform)}'s best size grows as FLOPs^{number(value.mean, 2)} "
                f"({limits(value, 2)})."
            )
    for transform, gaps in analysis.advantages.items():
        known = [gap for gap in gaps.values() if gap.n > 1]
        if is_spline(transform) and len(known) > 1:
            first, last = min(gaps), max(gaps)
            yield (
                f"At equal FLOPs {label(transform)} differs from {label(str(analysis.base))} by "
                f"{number(gaps[first].mean, sign='+')} {unit} ({limits(gaps[first], sign='+')}) at "
                f"{flops(first)}, {number(gaps[last].mean, sign='+')} "
                f"({limits(gaps[last], sign='+')}) at {flops(last)}."
            )


def _options(analysis: Analysis) -> Iterator[str]:
    """Say what the best value of each option does, in one sentence each."""
    unit = analysis.quality.unit
    known = [one for one in analysis.effects if one.loss.n and one.base != CLIPPED]
    for option, base in dict.fromkeys((one.option, one.base) for one in known):
        own = [one for one in known if (one.option, one.base) == (option, base)]
        best = min(own, key=lambda one: one.loss.mean)
        named = label(base) if option == TRANSFORM else base
        among = f", the best of {len(own)}" if len(own) > 1 else ""
        yield (
            f"{title(option).capitalize()} {best.name}, instead of {named}: "
            f"{number(best.loss.mean, sign='+')} {unit} ({limits(best.loss)}){among}."
        )


def _times(analysis: Analysis, transform: str) -> Iterator[str]:
    """Say what an epoch costs, divided by affine's."""
    own = label(transform)
    wanted = {name: r for name, r in analysis.time_ratios.items() if r.n and name.startswith(own)}
    if wanted:
        name, ratio = list(wanted.items())[-1]
        times = f"{number(ratio.mean, 2)} times affine's"
        yield f"An epoch of {name} takes {times} ({limits(ratio, 2)})."
    elif analysis.shared:
        yield "Times are not compared: the trials shared the machine (make sweep-timing)."


def _all_times(analysis: Analysis) -> str:
    """Say what an epoch costs for the transforms with the longest times, divided by affine's."""
    known = {name: ratio for name, ratio in analysis.time_ratios.items() if ratio.n}
    longest = sorted(known, key=lambda name: -known[name].mean)[:6]
    listed = "; ".join(
        f"{name} {number(known[name].mean, 2)} ({limits(known[name], 2)})"
        for name in known
        if name in longest
    )
    return f"An epoch, divided by affine's: {listed}." if listed else ""


def _unmeasured(judged: list[Claim], missing: dict[str, str]) -> str:
    """Say in one line which claims and figures these runs have no data for."""
    open_claims = [
        f"claim {place} ({claim.detail})"
        for place, claim in enumerate(judged, start=1)
        if not claim.rule
    ]
    parts = [f"Not measured: {', '.join(open_claims)}."] if open_claims else []
    parts += [f"No data for the figures {', '.join(missing)}."] if missing else []
    return " ".join(parts) or "Everything that a report can show was measured."


def _appendix(analysis: Analysis, judged: list[Claim], ending: str) -> Iterator[Folded]:
    details: list[Block] = [tables.claim_details(judged)]
    used = {claim.rule for claim in judged if claim.rule}
    details += [
        Paragraph(rule, lead=f"Rule: {name}.") for name, rule in RULES.items() if name in used
    ]
    yield Folded(f"Claims: all numbers and rules{ending}", [*details, Paragraph(UNCORRECTED)])
    evaluation: list[Block] = [] if analysis.untrained else [tables.losses(analysis)]
    evaluation += tables.likelihood(analysis)
    for extractor in analysis.extractors:
        evaluation += [tables.fidelity(extractor), Paragraph(extractor.description, "Extractor.")]
    if not analysis.untrained:
        evaluation.append(tables.robustness(analysis))
    if reasons := tables.skipped(analysis):
        evaluation.append(Paragraph(f"{reasons}.", lead="Skipped."))
    if evaluation:
        yield Folded(f"Losses and evaluation by configuration{ending}", evaluation)
    numbers = [*tables.equivalents(analysis), *tables.scaling_laws(analysis)]
    if numbers:
        yield Folded(f"What affine would need, and scaling laws{ending}", numbers)
    if timed := list(tables.seconds(analysis)):
        yield Folded(f"Seconds per epoch{ending}", timed)
    if len(analysis.front):
        front = analysis.front["front"]
        yield Folded(
            f"Pareto front{ending}",
            [
                Paragraph(
                    f"No other configuration beats these in both {analysis.aim.title.lower()} and "
                    f"time per epoch: {front.sum()} of {len(front)}."
                ),
                tables.front(analysis),
            ],
        )


_METHODS = (
    (
        "Losses.",
        "loss = prior − logdet in nats per dimension, without the constant ½ log 2π of the prior. "
        "Bits per dimension include every constant and exist only with uniform noise. The best run "
        "and configuration are chosen by validation; the test set is used once, at the end.",
    ),
    (
        "Differences and ratios.",
        "Runs are paired by seed at equal settings: every recorded option except name, seed, data "
        "root and the evaluation's. Times are paired only if device, threads, precision, kernels "
        "and torch agree as well. Means are over the seeds of one configuration, never over "
        "several. 95 % t intervals take the seeds' differences to be normally distributed.",
    ),
    (
        "Curves.",
        "Lines: means over the seeds of a transform; an epoch that some seed did not reach is left "
        "out. Outliers, more than ten interquartile ranges beyond a quartile, are listed and not "
        "drawn.",
    ),
    (
        "Test likelihood.",
        "Mean over the draws of the noise; standard error: of one run's value over these draws, "
        "root mean square over runs. Importance-weighted: the bound with the mean over the draws "
        "inside the logarithm. Bayes: the class of the highest likelihood under equal priors.",
    ),
    (
        "Edge ÷ even noise.",
        "(distance + 1) / (floor + 1) of the first and last two patches, divided by its value in "
        "training images with as much even noise as the other patches show. distance and floor: "
        "how far the high-frequency amplitude of generated and of training images is from that of "
        "test images, in grey levels. 1: the edge is no noisier than the rest.",
    ),
    (
        "Robustness.",
        "Median: over test images and draws. Worse than under the identity: the share of noisy "
        "images to which the flow gives less likelihood than a standard normal does. Samples that "
        "are not finite are left out of FID and its like if they are at most 1 %; above that there "
        "is no score. Round trip: the largest error of mapping 100 noisy test images to noise and "
        "back in float32, on pixels in [−1, 1].",
    ),
    (
        "FID and its like.",
        "Generated against test images; floor: training images in place of generated ones. Values "
        "compare only between equal weights and numbers of images, so each such set has its own "
        "table. Class agreement: the share of images in which the extractor's classifier reads the "
        "class that was asked for. Images of flows trained with Gaussian noise are denoised first.",
    ),
    (
        "Limits.",
        "Other data may rank the transforms otherwise; the background of digits rewards very steep "
        "maps. The order at this budget need not be the order at convergence. Times hold for the "
        "machine named here.",
    ),
)


def _records(analysis: Analysis) -> Iterator[Folded]:
    """Write the methods, the runs' table and how to make both again."""
    table = analysis.recorded.runs
    methods = [Paragraph(text, lead=lead) for lead, text in _METHODS]
    varying = tables.variations(analysis)
    methods.insert(
        0,
        Paragraph(
            f"Besides transform and seed the runs differ in: {'; '.join(varying)}."
            if varying
            else "The runs differ in nothing but transform and seed.",
            lead="What varies.",
        ),
    )
    methods.insert(0, Paragraph(analysis.study.expected, lead="Expected before any run."))
    yield Folded("Methods", methods)
    yield Folded("Runs", [Paragraph(_census(analysis)), tables.run_table(table)])
    yield Folded(
        "Settings, machine and command",
        [
            tables.made(analysis),
            Paragraph("This command makes the runs and this report again:"),
            Code(analysis.study.command),
        ],
    )


def _census(analysis: Analysis) -> str:
    """Count the runs by status, and name those that are left out."""
    table = analysis.recorded.runs
    statuses = table["status"].value_counts()
    counts = ", ".join(f"{number} {status}" for status, number in statuses.items())
    others = table.drop(finished(table).index)
    if others.empty:
        return f"{len(table)} recorded: {counts}."
    named = "; ".join(
        f"{status} {run[:8]} ({configuration(plain(transform), {})}, seed {plain(seed)})"
        for run, status, transform, seed in others[
            ["run_id", "status", TRANSFORM, SEED]
        ].itertuples(index=False)
    )
    return f"{len(table)} recorded: {counts}. No number includes those left out: {named}."
