"""Tables of fixed compute: best sizes and their growth, advantages, splits of layers, images."""

import math
from collections.abc import Iterator

from flowbench.report import compute
from flowbench.report.analysis import Analysis
from flowbench.report.compute import SIZES, WIDEST, Alternatives, Curve
from flowbench.report.document import Block, Paragraph, Table
from flowbench.report.text import MISSING, confidence, flops, label, measured, number
from flowbench.schema import FLOPS


def budgets(analysis: Analysis) -> Iterator[Block]:
    """Make the tables of a study whose runs end at budgets of training FLOPs, if it is one."""
    if analysis.curves:
        yield from _sizes(analysis)
        yield from _exponents(analysis)
        yield from _advantages(analysis)
    yield from _others(analysis, "split", "blocks × layers per block", "split of the layers")
    yield from _others(analysis, "data", "training images", "number of training images")


def _sizes(analysis: Analysis) -> Iterator[Block]:
    unit = analysis.quality.unit
    yield Paragraph(
        "Losses of flows of several widths, each trained for the same training FLOPs: 6 · "
        "parameters · patches · images seen, without attention and the transform: equal FLOPs are "
        "not equal time. Best trained: the size with the least mean loss. Best "
        "size: the vertex of a parabola in the logarithm of the parameters through its mean loss "
        "and those of its two neighbours, with a 95 % interval over resampled seeds. Not "
        f"determined: fewer than {SIZES} sizes, the best trained is the smallest or the largest, "
        "or the interval reaches beyond its neighbours.",
        lead="Best size by budget.",
    )
    rows = [
        [label(one.transform), flops(one.flops), _best(one), *_trained(one)]
        for one in analysis.curves
    ]
    header = ["transform", "FLOPs", "best size (parameters)", "best trained", "images seen"]
    yield Table([*header, f"its {analysis.quality.metric} ({unit})"], rows, words=2)


def _best(one: Curve) -> str:
    if one.best is None:
        return f"not determined: {one.why}"
    return f"{one.best.mean:,.0f} ({one.best.low:,.0f} to {one.best.high:,.0f})"


def _trained(one: Curve) -> list[str]:
    size = float(one.means.idxmin())
    own = one.leading["loss"]
    images = one.flops / (FLOPS * size * one.patches)
    return [f"{size:,.0f}", f"{images:,.0f}", measured(float(own.mean()), float(own.std()))]


def _exponents(analysis: Analysis) -> Iterator[Block]:
    rows = []
    for one in compute.exponents(analysis.curves):
        cell = f"not determined: {one.why}"
        if one.value is not None:
            cell = confidence(one.value, "", places=2, sign="-")
        rows.append([label(one.transform), cell, *_foreseen(analysis, one.transform)])
    header = ["transform", "e", "largest budget", "best size foreseen", "best trained there"]
    yield Table(header, rows)
    yield Paragraph(
        "Best size ∝ FLOPs^e, by a straight line through the logarithms of the best sizes of at "
        f"least {SIZES} budgets; not determined also where its interval is wider than {WIDEST}. "
        "Foreseen: by the line through the smaller budgets, for the largest one.",
        lead="Growth of the best size.",
    )


def _foreseen(analysis: Analysis, transform: str) -> list[str]:
    """Write the largest budget, the best size there by the smaller ones, and what was trained."""
    *smaller, largest = [one for one in analysis.curves if one.transform == transform]
    own = compute.exponents(smaller)
    size = MISSING
    if own and own[0].line is not None:
        size = f"{own[0].at(largest.flops):,.0f}"
    return [flops(largest.flops), size, f"{float(largest.means.idxmin()):,.0f}"]


def _advantages(analysis: Analysis) -> Iterator[Block]:
    if not (found := analysis.advantages):
        return
    unit = analysis.quality.unit
    rows = [
        [label(name), flops(budget), confidence(gap, "")]
        for name, gaps in found.items()
        for budget, gap in gaps.items()
    ]
    assert analysis.base is not None
    header = ["transform", "FLOPs", f"loss minus {label(analysis.base)}'s ({unit})"]
    yield Table(header, rows, words=2)
    yield Paragraph(
        "Each transform at its best trained size of the budget, paired by seed; 95 % t interval.",
        lead="Difference by budget.",
    )


def _others(analysis: Analysis, what: str, heading: str, noun: str) -> Iterator[Block]:
    found = compute.alternatives(analysis.runs, analysis.quality.metric, what)
    if not found:
        return
    rows = [[label(one.transform), flops(one.flops), _listed(one), _lead(one)] for one in found]
    header = ["transform", "FLOPs", f"{heading}: loss, the best first"]
    yield Table([*header, "best, and its lead over the second"], rows, words=3)
    yield Paragraph(
        f"Runs of one budget that differ in their {noun} alone; 95 % t interval over seeds. Not "
        "determined: the interval includes 0.",
        lead=f"Best {noun}.",
    )


def _listed(one: Alternatives) -> str:
    means = one.losses.mean()
    return "; ".join(f"{_name(name)}: {number(loss)}" for name, loss in means.items())


def _name(name: float | str) -> str:
    if isinstance(name, str):
        return name
    return "all" if math.isinf(name) else f"{name:,.0f}"


def _lead(one: Alternatives) -> str:
    text = confidence(one.lead, "")
    if one.lead.high < 0:
        return f"{_name(one.losses.columns[0])}: {text}"
    return f"not determined: {text}"
