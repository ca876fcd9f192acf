"""The answer of a study in plain words, made from its numbers."""

import math
from collections.abc import Iterator, Mapping

import pandas as pd

from flowbench.report.bins import gains
from flowbench.report.blocks import fewer, worth
from flowbench.report.claims import BESIDE, Claim
from flowbench.report.configurations import configurations, counted, paired, shown, varied
from flowbench.report.labels import AFFINE, label
from flowbench.report.numbers import measured, number
from flowbench.report.seeds import (
    SETTINGS,
    Interval,
    beside,
    cost,
    difference,
    finished,
    pace,
    spread,
)


def answer(runs: pd.DataFrame, judged: list[Claim], rounds: pd.DataFrame) -> str:
    """Which transform came out best, by how much over chance, at what price.

    The best is chosen in validation, so that its test value stays a fair estimate. Where blocks,
    layers, width or patch vary, what is compared is the best configuration of each transform, and
    what the study varies is told along it.

    Args:
        runs: All recorded runs.
        judged: The claims with their verdicts.
        rounds: Seconds per epoch of flows that took turns; empty where there are none.
    """
    runs = finished(runs)
    stem, unit = "loss", "nats per dimension"
    if runs["val/bpd"].notna().any():
        stem, unit = "bpd", "bits per dimension"
    metric = f"val/{stem}"
    chosen, called = shown(runs.dropna(subset=[metric]))
    ranking = spread(chosen, metric).dropna(subset=["mean"]).sort_values("mean")
    if ranking.empty:
        told = "No finished run has a validation loss: these runs answer nothing about quality."
        return " ".join(filter(None, [told, *_pace(rounds), _tally(judged)]))
    best, *others = [str(name) for name in ranking.index]
    rivals = list(dict.fromkeys([name for name in others if name == AFFINE] + others[:1]))
    stage, name = ("val", "validation") if runs[f"test/{stem}"].isna().all() else ("test", "test")
    means = spread(chosen, f"{stage}/{stem}")
    levels = [_level(means, each, called) for each in [best, *rivals]]
    equal = [name for name in SETTINGS if name not in varied(runs)]
    gaps = [
        _gap(difference(chosen, metric, best, rival, equal), called[best], called[rival], unit)
        for rival in rivals
    ]
    count = len(configurations(runs))
    settings = " configurations" if varied(runs) else ""
    sentences = [
        f"{called[best]} has the lowest mean validation loss of {count}{settings} compared."
        if count > 1
        else f"Only {called[best]} has a validation loss: nothing is compared.",
        f"On the {name} set, in {unit} (mean ± standard deviation): {'; '.join(levels)}.",
        *gaps,
        *_along(runs, metric, unit),
        *(_pace(rounds) or _prices(runs, best)),
        _tally(judged),
    ]
    return " ".join(filter(None, sentences))


def _along(runs: pd.DataFrame, metric: str, unit: str) -> Iterator[str]:
    """What the number that the study varies does: bins, blocks or layers."""
    for gained, gain in gains(runs, metric).items():
        limits = f"95 % interval {number(gain.low)} to {number(gain.high)}, {_seeds(gain.n)}"
        limits = limits if gain.n > 1 else "one seed, no interval"
        yield f"With {gained} the validation loss falls by {number(gain.mean)} {unit} ({limits})."
    for transform, (most, gaps) in fewer(runs, metric).items():
        good = {count: gap for count, gap in gaps.items() if gap.high <= 0}
        rival = f"affine with {counted(most, 'block')}"
        if good:
            count, gap = min(good.items())
            limits = f"95 % interval {number(-gap.high)} to {number(-gap.low)}, {_seeds(gap.n)}"
            yield (
                f"{label(transform)} with {counted(count, 'block')} is already "
                f"{number(-gap.mean)} {unit} below {rival} in validation ({limits})."
            )
        else:
            yield f"No {label(transform)} with fewer blocks is surely as good as {rival}."
    for across, noun in (("blocks", "block"), ("layers", "layer")):
        table = worth(runs, metric, across)
        for transform in dict.fromkeys(one.transform for one in table):
            listed = "; ".join(
                f"with {counted(one.x, noun)} as affine with {one.told}"
                for one in table
                if one.transform == transform
            )
            each = " in each block" if across == "layers" else ""
            yield (
                f"In validation {label(transform)} is as good{each} {listed} (how many it "
                "would need, interpolated; in parentheses 95 % intervals)."
            )


def _pace(rounds: pd.DataFrame) -> list[str]:
    """What an epoch takes beside affine's, by flows that took turns."""
    if rounds.empty:
        return []
    said = []
    for name, (transform, both) in paired(rounds, AFFINE).items():
        ratio = pace(both, transform, AFFINE)
        if ratio.n > 1:
            limits = f"{number(ratio.low, 2)} to {number(ratio.high, 2)}"
            said.append(f"{name} {number(ratio.mean, 2)} ({limits}, {ratio.n} rounds)")
    if not said:
        return []
    return [f"Time per epoch as a multiple of affine's of the same model: {'; '.join(said)}."]


def _prices(runs: pd.DataFrame, best: str) -> list[str]:
    if beside(runs):
        return [f"What an epoch costs is not told: {BESIDE}."]
    dear = {best, "rqs-8"} - {AFFINE}
    return [
        _price(cost(both, transform, AFFINE), name)
        for name, (transform, both) in paired(runs, AFFINE).items()
        if transform in dear
    ]


def _level(means: pd.DataFrame, transform: str, called: Mapping[str, str]) -> str:
    mean, sd, n = means.loc[transform]
    return f"{called[transform]} {measured(mean, sd)} ({_seeds(n)})"


def _gap(gap: Interval, best: str, rival: str, unit: str) -> str:
    if not gap.n:
        return f"{best} and {rival} share no seed at equal settings."
    size = f"Seed by seed {best} is {number(-gap.mean)} {unit} below {rival}"
    if gap.n < 2:
        return f"{size}; with one shared seed this cannot be told from chance."
    limits = f"95 % interval {number(-gap.high)} to {number(-gap.low)}, {_seeds(gap.n)}"
    beyond = "more than" if gap.high < 0 else "no more than"
    return f"{size} in validation ({limits}): {beyond} the seeds' own variation explains."


def _price(ratio: Interval, name: str) -> str:
    if not ratio.n:
        return ""
    low, high = number(ratio.low, 2), number(ratio.high, 2)
    limits = "no interval" if math.isnan(ratio.low) else f"95 % interval {low} to {high}"
    times = f"{number(ratio.mean, 2)} times as long as one of affine"
    return f"An epoch of {name} takes {times} ({limits}, {_seeds(ratio.n)})."


def _seeds(n: float) -> str:
    return "1 seed" if n == 1 else f"{n:.0f} seeds"


def _tally(judged: list[Claim]) -> str:
    counts = {
        verdict: sum(claim.verdict == verdict for claim in judged)
        for verdict in ("supported", "contradicted", "undecided")
    }
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"Of the {len(judged)} claims below: {told}."
