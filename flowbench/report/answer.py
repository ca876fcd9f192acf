"""The answer of a study in plain words, made from its numbers."""

import math

import pandas as pd

from flowbench.report.claims import Claim
from flowbench.report.labels import AFFINE, label, ordered
from flowbench.report.numbers import measured, number
from flowbench.report.seeds import Interval, cost, difference, finished, spread


def answer(runs: pd.DataFrame, judged: list[Claim]) -> str:
    """Which transform came out best, by how much over chance, at what price.

    The best is chosen in validation, so that its test value stays a fair estimate.

    Args:
        runs: All recorded runs.
        judged: The claims with their verdicts.
    """
    runs = finished(runs)
    quality, unit = "loss", "nats per dimension"
    if runs["val/bpd"].notna().any():
        quality, unit = "bpd", "bits per dimension"
    ranking = spread(runs, f"val/{quality}").dropna(subset=["mean"]).sort_values("mean")
    if ranking.empty:
        return "No finished run has a validation loss: these runs answer nothing about quality."
    best, *others = [str(name) for name in ranking.index]
    rivals = [name for name in others if name == AFFINE] + others[:1]
    stage, name = (
        ("val", "validation") if runs[f"test/{quality}"].isna().all() else ("test", "test")
    )
    means = spread(runs, f"{stage}/{quality}")
    levels = [_level(means, transform) for transform in dict.fromkeys([best, *rivals])]
    gaps = [
        _gap(difference(runs, f"val/{quality}", best, rival), best, rival, unit)
        for rival in dict.fromkeys(rivals)
    ]
    priced = [each for each in ordered(runs["transform"]) if each in {best, "rqs-8"} - {AFFINE}]
    sentences = [
        f"{label(best)} has the lowest mean validation loss of {len(ranking)} compared."
        if others
        else f"Only {label(best)} has a validation loss: nothing is compared.",
        f"On the {name} set, in {unit} (mean ± standard deviation): {'; '.join(levels)}.",
        *gaps,
        *(_price(cost(runs, each, AFFINE), each) for each in priced),
        _tally(judged),
    ]
    return " ".join(filter(None, sentences))


def _level(means: pd.DataFrame, transform: str) -> str:
    mean, sd, n = means.loc[transform]
    return f"{label(transform)} {measured(mean, sd)} ({_seeds(n)})"


def _gap(gap: Interval, best: str, rival: str, unit: str) -> str:
    if not gap.n:
        return f"{label(best)} and {label(rival)} share no seed at equal settings."
    size = f"Seed by seed {label(best)} is {number(-gap.mean)} {unit} below {label(rival)}"
    if gap.n < 2:
        return f"{size}; with one shared seed this cannot be told from chance."
    limits = f"95 % interval {number(-gap.high)} to {number(-gap.low)}, {_seeds(gap.n)}"
    beyond = "more than" if gap.high < 0 else "no more than"
    return f"{size} in validation ({limits}): {beyond} the seeds' own variation explains."


def _price(ratio: Interval, transform: str) -> str:
    if not ratio.n:
        return ""
    low, high = number(ratio.low, 2), number(ratio.high, 2)
    limits = "no interval" if math.isnan(ratio.low) else f"95 % interval {low} to {high}"
    times = f"{number(ratio.mean, 2)} times as long as one of affine"
    return f"An epoch of {label(transform)} takes {times} ({limits}, {_seeds(ratio.n)})."


def _seeds(n: float) -> str:
    return "1 seed" if n == 1 else f"{n:.0f} seeds"


def _tally(judged: list[Claim]) -> str:
    counts = {
        verdict: sum(claim.verdict == verdict for claim in judged)
        for verdict in ("supported", "contradicted", "undecided")
    }
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"Of the {len(judged)} claims below: {told}."
