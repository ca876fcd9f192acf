"""The original paper's claims, and our own question, against what was measured here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from flowbench.report.labels import AFFINE, is_spline, label, ordered
from flowbench.report.numbers import MISSING, confidence
from flowbench.report.seeds import Interval, cost, difference, finished, patch_ratio

Verdict = Literal["supported", "contradicted", "undecided"]

TWICE = (1.5, 2.5)
RULES = {
    "difference": "Differences between runs of the same seed and settings; 95 % t interval of "
    "their mean. Supported if the interval lies wholly on the claimed side of 0 for every K, "
    "contradicted if wholly on the other side for every K, otherwise undecided; undecided also "
    "below 2 seeds.",
    "ratio": "Ratios between runs of the same seed, settings and machine; 95 % t interval of their "
    f"mean logarithm. Supported if it lies wholly in [{TWICE[0]}, {TWICE[1]}], contradicted if "
    "wholly outside, otherwise undecided; undecided also below 2 seeds.",
    "patches": "How far the first and last two patches are from test images, divided by how far "
    "they are in real images with even noise of the strength that the others show (edge ÷ even "
    "noise, defined with the evaluation); 95 % t interval of its mean "
    "logarithm over seeds, for a transform with a single run that run's own jackknife interval "
    "over groups of images, which says nothing of other seeds. Supported if the interval lies "
    "wholly above 1 for every transform, contradicted if it lies at or below 1 for every "
    "transform, otherwise undecided.",
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


def claims(runs: pd.DataFrame) -> list[Claim]:
    """Every claim, judged by what the finished runs came to.

    Args:
        runs: All recorded runs of a study.
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
        _twice(runs),
        _open("K = 4 or 8 bins are enough.", "needs the bins study"),
        _open("RQS needs fewer blocks for the same quality.", "needs the blocks study"),
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
    found = {name: difference(runs, metric, name, AFFINE) for name in transforms}
    shown = _shown(found, lambda value: confidence(value, unit), f"{metric}, minus affine's")
    verdicts = [verdict(value, side) for value in found.values()]
    return Claim(text, shown, agreed(verdicts), "difference")


def _twice(runs: pd.DataFrame) -> Claim:
    value = cost(runs, "rqs-8", AFFINE)
    shown = _shown(
        {"rqs-8": value},
        lambda value: confidence(value, "times affine's", places=2, sign="-"),
        "seconds per epoch",
    )
    inside = TWICE[0] <= value.low and value.high <= TWICE[1]
    outside = value.high < TWICE[0] or value.low > TWICE[1]
    judged: Verdict = "supported" if inside else "contradicted" if outside else "undecided"
    return Claim("RQS K=8 costs about twice affine's time per epoch.", shown, judged, "ratio")


def _patches(runs: pd.DataFrame, text: str) -> Claim:
    if runs["patches/ratio"].isna().all():
        return _open(text, "needs an evaluation by patch")
    found = {name: patch_ratio(runs, name) for name in ordered(runs["transform"])}
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
    numbers = [f"{label(name)} {say(value)}" for name, value in found.items()]
    return f"{what}: {'; '.join(numbers)}"


def _open(text: str, needed: str) -> Claim:
    return Claim(text, f"{MISSING} ({needed})", "undecided", "none")
