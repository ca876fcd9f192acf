"""The original paper's claims, and our own question, against what was measured here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flowbench.report.analysis import SHARED, Analysis
from flowbench.report.datasets import advantages, growths, tellings
from flowbench.report.options import ORDER, SPLINE, START, Effect
from flowbench.report.stats import Interval
from flowbench.report.text import AFFINE, MISSING, confidence, counted, flops, is_spline, label
from flowbench.schema import TRANSFORM

Verdict = Literal["supported", "contradicted", "undecided"]

TWICE = (1.5, 2.5)
ENOUGH = 0.02
"""Bits per dimension that more bins may gain without counting."""
CHEAP = 1.1
"""Times RQS's seconds per epoch that another function may take and count as cheap."""
LOG2 = math.log(2)
RULES = {
    "difference": "Differences between runs of the same seed and settings; 95 % t interval of "
    "their mean. Supported if the interval lies wholly on the claimed side of 0 for every K and "
    "every configuration, contradicted if wholly on the other side for all, otherwise undecided; "
    "undecided also below 2 seeds.",
    "ratio": "Ratios between runs of the same seed, settings and machine; 95 % t interval of their "
    f"mean logarithm. Supported if it lies wholly in [{TWICE[0]}, {TWICE[1]}], contradicted if "
    "wholly outside, otherwise undecided, for every configuration; undecided also below 2 seeds. "
    "Where a timing study timed such flows in turns, its rounds stand in the place of seeds. "
    "Trials that shared the machine are left out.",
    "patches": "Noise of the first and last two patches divided by even noise (edge ÷ even noise, "
    "see the methods); 95 % t interval of its mean logarithm over seeds. Supported if the interval "
    "lies wholly above 1 for every configuration, contradicted if it lies at or below 1 for every "
    "one, otherwise undecided; undecided also for a single seed, whose interval is that of the run "
    "itself, a jackknife over groups of images.",
    "bins": "The loss with K = 4, and with K = 8, minus the least mean loss with more bins, for "
    "runs of the same seed and settings; 95 % t interval. Supported if for one of the two the "
    f"interval lies wholly below {ENOUGH} bits/dim ({ENOUGH * LOG2:.3f} nats/dim), contradicted if "
    "for both wholly above, otherwise undecided; undecided also where no more than 8 bins were "
    "tried. The same runs choose the best larger number, so its gain looks a little too large.",
    "blocks": "The loss of a flow with n blocks minus that of affine with its largest number of "
    "blocks, between runs of the same seed and otherwise equal settings (layers per block, or "
    "layers in all); 95 % t interval. Supported if for some smaller n the interval lies wholly at "
    "or below 0, contradicted if for every smaller n wholly above, otherwise undecided.",
    "first patch": "The samples' edge ÷ even noise where the first patch is transformed, divided "
    "by its value where it is left as it is, between runs of the same seed and settings; 95 % t "
    "interval of the mean logarithm. Supported if the interval lies wholly below 1 for every start "
    "and configuration, contradicted if at or above 1 for every one, otherwise undecided.",
    "orders": "The loss minus that with the order flip, between runs of the same seed and "
    "settings; 95 % t interval. Supported if for some order the interval lies wholly below 0, "
    "contradicted if for every one wholly above, otherwise undecided.",
    "functions": "Loss minus, and seconds per epoch divided by, those of RQS K=8, between runs of "
    "the same seed, settings and machine; 95 % t intervals. Supported if for some function with "
    f"another part than RQS and affine the loss lies wholly below {ENOUGH} bits/dim and the time "
    f"wholly below {CHEAP} times; contradicted if for every one either lies wholly above; "
    "otherwise undecided. On a CPU only RQS has a kernel of its own; the others run torch's "
    "operations.",
    "compute": "The spline's loss minus the affine flow's at every budget of training FLOPs, each "
    "transform at its best trained size, paired by seed; 95 % t interval. Supported if it lies "
    "wholly below 0 for every spline and budget, contradicted if wholly above for every one, "
    "otherwise undecided.",
    "telling": "The area under the ROC curve by which the likelihood tells test images of another "
    "data set, minus that of the affine flow, between runs of the same seed; 95 % t interval. "
    "Supported if it lies wholly above 0 for every spline and set, contradicted if wholly below "
    "for every one, otherwise undecided.",
    "variance": "The affine flow's loss minus the spline's on each data set, and the difference of "
    "that between two data sets whose pixels' standard deviations are neighbours, paired by seed; "
    "95 % t interval. Supported if every such difference lies wholly above 0, contradicted if "
    "every one lies wholly below, otherwise undecided. Data sets differ in much else.",
}
"""What turns numbers into a verdict."""
UNCORRECTED = (
    "The intervals are not corrected for the number of comparisons: of twenty intervals of "
    "differences that do not exist, one is expected to miss 0."
)


@dataclass(frozen=True)
class Claim:
    """A claim with the numbers that decide it.

    Attributes:
        text: The claim.
        verdict: What the rule makes of the numbers.
        number: The number with the weakest evidence, with its interval.
        detail: All numbers; for a claim that was not measured, what would measure it.
        rule: Which of ``RULES`` gave the verdict; empty where nothing was measured.
    """

    text: str
    verdict: Verdict
    number: str
    detail: str
    rule: str = ""


def claims(analysis: Analysis) -> list[Claim]:
    """Judge every claim by the finished runs, in the original's order, then our own questions."""
    splines = [name for name in analysis.transforms if is_spline(name)]
    composed = [name for name in analysis.transforms if name.startswith("affine+rqs-")]
    quality = analysis.quality
    judged = [
        _sign(
            analysis,
            "Affine has the larger log-determinant term than RQS.",
            "val/logdet",
            splines,
            "nats/dim",
        ),
        _sign(
            analysis,
            "RQS has the smaller Gaussian term (prior) than affine.",
            "val/prior",
            splines,
            "nats/dim",
        ),
        _twice(analysis),
        _enough(analysis),
        _fewer(analysis),
        _patches(analysis),
        _sign(
            analysis,
            "Our own question: RQS reaches a lower total loss than affine at the same budget.",
            quality.metric,
            splines,
            quality.unit,
        ),
    ]
    if composed:
        text = "Our own question: affine + RQS reaches a lower total loss than affine."
        judged.append(_sign(analysis, text, quality.metric, composed, quality.unit))
    if START in analysis.varied:
        judged.append(_first_patch(analysis))
    if ORDER in analysis.varied:
        judged.append(_orders(analysis))
    judged += _compute(analysis) + _telling(analysis)
    if SPLINE in analysis.transforms and any(_is_other(name) for name in analysis.transforms):
        judged.append(_functions(analysis))
    return judged


def judged(found: Sequence[Analysis]) -> list[tuple[Analysis, list[Claim]]]:
    """Judge every analysis; what a study shows of its data sets is said with its first."""
    studies: dict[str, list[Analysis]] = {}
    for one in found:
        studies.setdefault(one.study.name, []).append(one)
    return [
        (one, claims(one) + (across(own) if place == 0 else []))
        for own in studies.values()
        for place, one in enumerate(own)
    ]


def across(found: Sequence[Analysis]) -> list[Claim]:
    """Judge what a study of several data sets shows of them together."""
    text = "The spline's advantage grows with the variance of the pixels' values."
    by_data = advantages(found)
    if not by_data:
        return []
    grown = growths(by_data)

    def say(value: Interval) -> str:
        return confidence(value, found[0].quality.unit)

    verdicts = [above(value) for value in grown.values()]
    weakest = _weakest(grown, say, abs)
    listed = _listed(grown, say, "growth of the difference")
    return [Claim(text, agreed(verdicts), weakest, listed, "variance")]


def verdict(value: Interval) -> Verdict:
    """Judge the claim that a difference is below 0.

    Example:
        >>> verdict(Interval(-0.5, -0.6, -0.4, n=3)), verdict(Interval(0.5, 0.4, 0.6, n=3))
        ('supported', 'contradicted')
    """
    if value.high < 0:
        return "supported"
    return "contradicted" if value.low > 0 else "undecided"


def above(value: Interval) -> Verdict:
    """Judge the claim that a difference is above 0."""
    return verdict(Interval(-value.mean, -value.high, -value.low, value.n))


def agreed(verdicts: list[Verdict]) -> Verdict:
    """Combine several verdicts: undecided unless all are the same."""
    return verdicts[0] if len(set(verdicts)) == 1 else "undecided"


def some(verdicts: list[Verdict]) -> Verdict:
    """Judge whether a claim holds of at least one: supported where any is."""
    return "supported" if "supported" in verdicts else agreed(verdicts)


def _tolerated(unit: str) -> float:
    """What counts as no gain, in a unit of the loss."""
    return ENOUGH if unit == "bits/dim" else ENOUGH * LOG2


def _sign(analysis: Analysis, text: str, metric: str, transforms: list[str], unit: str) -> Claim:
    """Judge the claim that these transforms have less of a metric than affine."""
    of = {one.name: one.transform for one in analysis.configurations}
    found = {
        name: value
        for name, value in analysis.differences[metric].items()
        if of[name] in transforms
    }
    if not any(value.n for value in found.values()):
        return _open(text, "needs runs of both with the same seed and settings")
    verdicts = [verdict(value) for value in found.values()]
    return Claim(
        text,
        agreed(verdicts),
        _weakest(found, lambda value: confidence(value, unit), abs),
        _listed(found, lambda value: confidence(value, unit), f"{metric}, minus affine's"),
        "difference",
    )


def _twice(analysis: Analysis) -> Claim:
    text = "RQS K=8 costs about twice affine's time per epoch."
    if analysis.shared and analysis.rounds.empty:
        return _open(text, SHARED)
    eight = label("rqs-8")
    found = {
        name: value
        for name, value in analysis.time_ratios.items()
        if name.partition(", ")[0] == eight
    }
    if not any(value.n for value in found.values()):
        return _open(text, "needs times of both on one machine")
    verdicts: list[Verdict] = [
        "supported"
        if TWICE[0] <= value.low and value.high <= TWICE[1]
        else "contradicted"
        if value.high < TWICE[0] or value.low > TWICE[1]
        else "undecided"
        for value in found.values()
    ]

    def say(value: Interval) -> str:
        return confidence(value, "times affine's", places=2, sign="-")

    unit = "" if analysis.rounds.empty else ", n rounds"
    return Claim(
        text,
        agreed(verdicts),
        _weakest(found, say, lambda mean: -abs(math.log(mean / 2))),
        _listed(found, say, f"seconds per epoch{unit}"),
        "ratio",
    )


def _enough(analysis: Analysis) -> Claim:
    text = "K = 4 or 8 bins are enough."
    gains, unit = analysis.gains, analysis.quality.unit
    if not any(gain.by.n for gain in gains):
        return _open(text, "needs the bins study")
    limit = _tolerated(unit)
    few = [gain for gain in gains if gain.few > 2]
    verdicts = [beyond(gain.by, limit) for gain in few]
    words = {
        id(gain): f"K={gain.more} gains {confidence(gain.by, unit)} over K={gain.few}"
        for gain in gains
    }
    least = min(few, key=lambda gain: gain.by.mean)
    return Claim(
        text,
        some(verdicts),
        words[id(least)],
        f"{analysis.quality.metric}: {'; '.join(words.values())}",
        "bins",
    )


def beyond(gain: Interval, limit: float) -> Verdict:
    """Judge the claim that a gain is not beyond a limit.

    Example:
        >>> beyond(Interval(0.0, -0.01, 0.01, n=3), 0.02), beyond(Interval(1, 0.9, 1.1, 3), 0.02)
        ('supported', 'contradicted')
    """
    if gain.high < limit:
        return "supported"
    return "contradicted" if gain.low > limit else "undecided"


def _fewer(analysis: Analysis) -> Claim:
    text = "RQS needs fewer blocks for the same quality."
    found, unit = analysis.fewer, analysis.quality.unit
    if not found:
        return _open(text, "needs the blocks study")
    details, numbers, verdicts = [], [], []
    for transform, one in found.items():
        listed = {
            n: f"{counted(n, 'block')} {confidence(gap, unit)}" for n, gap in one.gaps.items()
        }
        against = f"minus affine's with {counted(one.most, 'block')}"
        details.append(f"{label(transform)}, {against}: {'; '.join(listed.values())}")
        good = [n for n, gap in one.gaps.items() if gap.high <= 0]
        shown = min(good) if good else max(one.gaps)
        numbers.append(f"{label(transform)}, {listed[shown]} {against}")
        verdicts.append(reached(list(one.gaps.values())))
    detail = f"{analysis.quality.metric} of {'. '.join(details)}"
    return Claim(text, agreed(verdicts), "; ".join(numbers), detail, "blocks")


def reached(gaps: list[Interval]) -> Verdict:
    """Judge by the gaps of smaller models to a large one whether some is as good.

    Example:
        >>> good, bad = Interval(-1, -1.1, -0.9, n=3), Interval(1, 0.9, 1.1, n=3)
        >>> reached([bad, good]), reached([bad, bad]), reached([bad, Interval(0, -1, 1, n=3)])
        ('supported', 'contradicted', 'undecided')
    """
    if any(gap.high <= 0 for gap in gaps):
        return "supported"
    return "contradicted" if all(gap.low > 0 for gap in gaps) else "undecided"


def _patches(analysis: Analysis) -> Claim:
    text = "The first and last two patches are noisier than the rest."
    if analysis.runs["patches/ratio"].isna().all():
        return _open(text, "needs an evaluation by patch")
    found = analysis.patch_ratios
    verdicts: list[Verdict] = [
        "undecided"
        if value.n < 2
        else "supported"
        if value.low > 1
        else "contradicted"
        if value.high <= 1
        else "undecided"
        for value in found.values()
    ]

    def say(value: Interval) -> str:
        return confidence(value, "", places=2, sign="-")

    return Claim(
        text,
        agreed(verdicts),
        _weakest(found, say, lambda mean: abs(math.log(mean))),
        _listed(found, say, "edge ÷ even noise"),
        "patches",
    )


def _first_patch(analysis: Analysis) -> Claim:
    text = "Leaving the first patch as it is causes the noise at the edge of samples."
    found = {one.name: one.edge for one in analysis.effects if one.option == START and one.edge.n}
    if not found:
        return _open(text, "needs samples with and without a transformed first patch")

    def say(value: Interval) -> str:
        return confidence(value, "times as much noise", places=2, sign="-")

    verdicts: list[Verdict] = [
        "supported" if one.high < 1 else "contradicted" if one.low >= 1 else "undecided"
        for one in found.values()
    ]
    weakest = _weakest(found, say, lambda mean: -mean)
    what = "edge ÷ even noise, divided by identity's"
    return Claim(text, agreed(verdicts), weakest, _listed(found, say, what), "first patch")


def _orders(analysis: Analysis) -> Claim:
    text = "Other orders of the patches than the alternating raster help."
    found = {one.name: one.loss for one in analysis.effects if one.option == ORDER and one.loss.n}
    if not found:
        return _open(text, "needs the order flip and another one")

    def say(value: Interval) -> str:
        return confidence(value, analysis.quality.unit)

    best = min(found, key=lambda name: found[name].mean)
    verdicts = [verdict(value) for value in found.values()]
    return Claim(
        text,
        some(verdicts),
        f"{best}: {say(found[best])}, best of {len(found)}",
        _listed(found, say, f"{analysis.quality.metric}, minus flip's"),
        "orders",
    )


def _functions(analysis: Analysis) -> Claim:
    text = "Some other function than RQS is as expressive and as cheap."
    found = [
        one
        for one in analysis.effects
        if one.option == TRANSFORM and one.base == SPLINE and _is_other(one.value) and one.loss.n
    ]
    if not found:
        return _open(text, "needs RQS K=8 and other functions")
    limit = _tolerated(analysis.quality.unit)

    def say(one: Effect) -> str:
        loss = confidence(one.loss, analysis.quality.unit)
        if not one.time.n:
            return f"{loss}, no times"
        return f"{loss}, {confidence(one.time, 'times the time', places=2, sign='-')}"

    verdicts: list[Verdict] = []
    for one in found:
        good = beyond(one.loss, limit), beyond(one.time, CHEAP)
        verdicts.append("contradicted" if "contradicted" in good else agreed(list(good)))
    best = min(found, key=lambda one: one.loss.mean)
    return Claim(
        text,
        some(verdicts),
        f"{best.name}: {say(best)}, best of {len(found)}",
        "against RQS K=8: " + "; ".join(f"{one.name} {say(one)}" for one in found),
        "functions",
    )


def _compute(analysis: Analysis) -> list[Claim]:
    found = {
        f"{label(name)}, {flops(budget)} FLOPs": gap
        for name, gaps in analysis.advantages.items()
        if is_spline(name)
        for budget, gap in gaps.items()
    }
    if not found:
        return []

    def say(value: Interval) -> str:
        return confidence(value, analysis.quality.unit)

    verdicts = [verdict(value) for value in found.values()]
    text = "Our own question: at equal compute, each at its best size, the spline's loss is lower."
    listed = _listed(found, say, "loss minus the affine flow's")
    return [Claim(text, agreed(verdicts), _weakest(found, say, abs), listed, "compute")]


def _telling(analysis: Analysis) -> list[Claim]:
    found = {
        f"{label(one.transform)}, {one.other}": one.change
        for one in tellings(analysis)
        if one.score == "auroc" and is_spline(one.transform) and one.change.n
    }
    if not found:
        return []

    def say(value: Interval) -> str:
        return confidence(value, "")

    verdicts = [above(value) for value in found.values()]
    text = "Our own question: the spline's likelihood tells other images better than affine's."
    listed = _listed(found, say, "AUROC of likelihood, minus the affine flow's")
    return [Claim(text, agreed(verdicts), _weakest(found, say, abs), listed, "telling")]


def _is_other(transform: str) -> bool:
    """Whether a transform has a part that is neither affine nor a rational-quadratic spline."""
    parts = {part.partition("-")[0] for part in transform.split("+")}
    return bool(parts - {AFFINE, "additive", "softaffine", "loft", "rqs", "srqs", "zuko:rqs"})


def _weakest(
    found: Mapping[str, Interval],
    say: Callable[[Interval], str],
    strength: Callable[[float], float],
) -> str:
    """Write the number with the weakest evidence."""
    known = {name: value for name, value in found.items() if value.n}
    name = min(known, key=lambda name: strength(known[name].mean))
    among = f", weakest of {len(known)}" if len(known) > 1 else ""
    return f"{name}: {say(known[name])}{among}"


def _listed(found: Mapping[str, Interval], say: Callable[[Interval], str], what: str) -> str:
    return f"{what}: {'; '.join(f'{name} {say(value)}' for name, value in found.items())}"


def _open(text: str, needed: str) -> Claim:
    return Claim(text, "undecided", MISSING, needed)
