"""The original paper's claims, and our own question, against what was measured here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from flowbench.report.bins import MORE, gains
from flowbench.report.blocks import fewer
from flowbench.report.configurations import configurations, counted, paired
from flowbench.report.labels import AFFINE, is_spline, label, ordered
from flowbench.report.numbers import MISSING, confidence
from flowbench.report.seeds import Interval, beside, cost, difference, finished, pace, patch_ratio

Verdict = Literal["supported", "contradicted", "undecided"]

TWICE = (1.5, 2.5)
ENOUGH = 0.02
"""Bits per dimension that more bins may gain without counting."""
LOG2 = math.log(2)
BESIDE = "the trials ran beside one another; make sweep-timing, or one worker alone, measures it"
"""Why seconds that were recorded are not told."""
RULES = {
    "difference": "Differences between runs of the same seed and settings; 95 % t interval of "
    "their mean. Supported if the interval lies wholly on the claimed side of 0 for every K, and "
    "where blocks or layers vary for each of them, contradicted if wholly on the other side for "
    "all, otherwise undecided; undecided also below 2 seeds.",
    "ratio": "Ratios between runs of the same seed, settings and machine; 95 % t interval of their "
    f"mean logarithm. Supported if it lies wholly in [{TWICE[0]}, {TWICE[1]}], contradicted if "
    "wholly outside, otherwise undecided; undecided also below 2 seeds. Where flows like these "
    "were timed taking turns, rounds stand in the place of seeds. Where blocks or layers vary it "
    "has to be so for each of them. Trials that ran beside others have no part in it.",
    "patches": "How far the first and last two patches are from test images, divided by how far "
    "they are in real images with even noise of the strength that the others show (edge ÷ even "
    "noise, defined with the evaluation); 95 % t interval of its mean "
    "logarithm over seeds, for a transform with a single run that run's own jackknife interval "
    "over groups of images, which says nothing of other seeds. Supported if the interval lies "
    "wholly above 1 for every transform, contradicted if it lies at or below 1 for every "
    "transform, otherwise undecided.",
    "bins": "What more bins gain: the loss with K = 4, and with K = 8, minus the least mean loss "
    "with more bins than that, between runs of the same seed and settings; 95 % t interval. "
    "Supported if for one of the two the interval lies wholly below "
    f"{ENOUGH} bits/dim ({ENOUGH * LOG2:.3f} nats/dim), contradicted if for both wholly above, "
    "otherwise undecided; undecided also where no more than 8 bins were tried. The best of more "
    "is chosen by the same runs, which makes its gain look a little larger than it is.",
    "blocks": "The loss of the spline with n blocks minus that of affine with its largest number "
    "of blocks, between runs of the same seed and otherwise equal settings (layers a block, or "
    "layers in all); 95 % t interval. Supported if for some smaller n the interval lies wholly at "
    "or below 0, contradicted if for every smaller n wholly above, otherwise undecided.",
    "none": "Not measured in this study, so undecided.",
}
"""What turns numbers into a verdict."""
UNCORRECTED = (
    "The intervals are not corrected for the number of comparisons: of twenty such intervals of "
    "differences that do not exist, one is expected to miss 0."
)


@dataclass(frozen=True)
class Claim:
    """One claim with the numbers that speak to it and what the rule makes of them."""

    text: str
    measured: str
    verdict: Verdict
    rule: str
    """Which of ``RULES`` gave the verdict."""


def claims(runs: pd.DataFrame, rounds: pd.DataFrame | None = None) -> list[Claim]:
    """Every claim, judged by what the finished runs came to.

    Args:
        runs: All recorded runs of a study.
        rounds: Seconds per epoch of flows that took turns, where there are such.
    """
    runs = finished(runs)
    splines = [name for name in ordered(runs["transform"]) if is_spline(name)]
    composed = [name for name in ordered(runs["transform"]) if name.startswith("affine+rqs-")]
    quality, unit = ("val/loss", "nats/dim")
    if runs["val/bpd"].notna().any():
        quality, unit = ("val/bpd", "bits/dim")
    judged = [
        _sign(
            runs,
            "Affine has the larger log-determinant term (logdet, which lowers the loss) than RQS.",
            "val/logdet",
            splines,
            side=-1,
        ),
        _sign(
            runs,
            "RQS has the smaller Gaussian term (prior) than affine.",
            "val/prior",
            splines,
            side=-1,
        ),
        _twice(runs, rounds),
        _enough(runs, quality, unit),
        _fewer(runs, quality, unit),
        _patches(runs, "The first and last two patches are noisier than the rest."),
        _sign(
            runs,
            "Our own question: RQS reaches a lower total loss than affine at the same budget.",
            quality,
            splines,
            side=-1,
            unit=unit,
        ),
    ]
    if composed:
        text = "Our own question: affine + RQS reaches a lower total loss than affine."
        judged.append(_sign(runs, text, quality, composed, side=-1, unit=unit))
    return judged


def verdict(value: Interval, side: int) -> Verdict:
    """What one interval of a difference says about a claim that the difference has this sign.

    Example:
        >>> difference = Interval(0.5, 0.4, 0.6, n=3)
        >>> verdict(difference, side=1), verdict(difference, side=-1)
        ('supported', 'contradicted')
    """
    low, high = sorted((side * value.low, side * value.high))
    if low > 0:
        return "supported"
    return "contradicted" if high < 0 else "undecided"


def agreed(verdicts: list[Verdict]) -> Verdict:
    """What several verdicts say together: undecided unless all are the same."""
    return verdicts[0] if len(set(verdicts)) == 1 else "undecided"


def _sign(
    runs: pd.DataFrame,
    text: str,
    metric: str,
    transforms: list[str],
    side: int,
    unit: str = "nats/dim",
) -> Claim:
    found = {
        name: difference(pair, metric, transform, AFFINE)
        for name, (transform, pair) in paired(runs, AFFINE).items()
        if transform in transforms
    }
    shown = _shown(found, lambda value: confidence(value, unit), f"{metric}, minus affine's")
    verdicts = [verdict(value, side) for value in found.values()]
    return Claim(text, shown, agreed(verdicts), "difference")


def _twice(runs: pd.DataFrame, rounds: pd.DataFrame | None) -> Claim:
    text = "RQS K=8 costs about twice affine's time per epoch."
    by_rounds = rounds is not None and not rounds.empty
    if beside(runs) and not by_rounds:
        return _open(text, BESIDE)
    found = {
        name: pace(pair, transform, AFFINE) if by_rounds else cost(pair, transform, AFFINE)
        for name, (transform, pair) in paired(rounds if by_rounds else runs, AFFINE).items()
        if transform == "rqs-8"
    }
    shown = _shown(
        found,
        lambda value: confidence(value, "times affine's", places=2, sign="-"),
        f"seconds per epoch{', n rounds' if by_rounds else ''}",
    )
    verdicts: list[Verdict] = [
        "supported"
        if TWICE[0] <= value.low and value.high <= TWICE[1]
        else "contradicted"
        if value.high < TWICE[0] or value.low > TWICE[1]
        else "undecided"
        for value in found.values()
    ]
    return Claim(text, shown, agreed(verdicts), "ratio")


def _enough(runs: pd.DataFrame, metric: str, unit: str) -> Claim:
    text = "K = 4 or 8 bins are enough."
    found = gains(runs, metric)
    if not any(value.n for value in found.values()):
        return _open(text, "needs the bins study")
    limit = ENOUGH if unit == "bits/dim" else ENOUGH * LOG2
    told = [f"{name} {confidence(value, unit)}" for name, value in found.items()]
    verdicts = [beyond(found[name], limit) for name in found if name.startswith(MORE)]
    judged: Verdict = "supported" if "supported" in verdicts else agreed(verdicts)
    return Claim(text, f"{metric} falls by: {'; '.join(told)}", judged, "bins")


def beyond(gain: Interval, limit: float) -> Verdict:
    """What a gain says about the claim that it is not beyond a limit.

    Example:
        >>> beyond(Interval(0.0, -0.01, 0.01, n=3), 0.02), beyond(Interval(1, 0.9, 1.1, 3), 0.02)
        ('supported', 'contradicted')
    """
    if gain.high < limit:
        return "supported"
    return "contradicted" if gain.low > limit else "undecided"


def _fewer(runs: pd.DataFrame, metric: str, unit: str) -> Claim:
    text = "RQS needs fewer blocks for the same quality."
    found = fewer(runs, metric)
    if not found:
        return _open(text, "needs the blocks study")
    told, verdicts = [], []
    for transform, (most, gaps) in found.items():
        listed = [f"{counted(n, 'block')} {confidence(gap, unit)}" for n, gap in gaps.items()]
        minus = f"minus affine's with {counted(most, 'block')}"
        told.append(f"{label(transform)}, {minus}: {'; '.join(listed)}")
        verdicts.append(reached(list(gaps.values())))
    return Claim(text, f"{metric} of {'. '.join(told)}", agreed(verdicts), "blocks")


def reached(gaps: list[Interval]) -> Verdict:
    """What the gaps of smaller models to a large one say about whether some is as good.

    Example:
        >>> good, bad = Interval(-1, -1.1, -0.9, n=3), Interval(1, 0.9, 1.1, n=3)
        >>> reached([bad, good]), reached([bad, bad]), reached([bad, Interval(0, -1, 1, n=3)])
        ('supported', 'contradicted', 'undecided')
    """
    if any(gap.high <= 0 for gap in gaps):
        return "supported"
    return "contradicted" if all(gap.low > 0 for gap in gaps) else "undecided"


def _patches(runs: pd.DataFrame, text: str) -> Claim:
    if runs["patches/ratio"].isna().all():
        return _open(text, "needs an evaluation by patch")
    found = {
        name: patch_ratio(own, str(own["transform"].iloc[0]))
        for name, own in configurations(runs).items()
    }
    shown = _shown(
        found,
        lambda value: confidence(value, "", places=2, sign="-"),
        "edge ÷ even noise",
    )
    verdicts: list[Verdict] = [
        "supported" if value.low > 1 else "contradicted" if value.high <= 1 else "undecided"
        for value in found.values()
    ]
    return Claim(text, shown, agreed(verdicts), "patches")


def _shown(found: dict[str, Interval], say: Callable[[Interval], str], what: str) -> str:
    if not any(value.n for value in found.values()):
        return f"{MISSING} (needs runs of both with the same seed and settings)"
    numbers = [f"{name} {say(value)}" for name, value in found.items()]
    return f"{what}: {'; '.join(numbers)}"


def _open(text: str, needed: str) -> Claim:
    return Claim(text, f"{MISSING} ({needed})", "undecided", "none")
