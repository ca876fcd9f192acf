"""What more bins gain: the evidence on how many are enough."""

import pandas as pd

from flowbench.report.labels import bins, is_spline
from flowbench.report.seeds import Interval, difference, spread
from flowbench.report.series import series

FEW = (4, 8)
"""The numbers of bins that are said to be enough."""
MORE = "more bins than "
"""Begin of the name of a gain that says whether few are enough."""


def gains(runs: pd.DataFrame, metric: str) -> dict[str, Interval]:
    """How far more bins lower a loss, and what 4 or 8 gain over 2, each by its name in words.

    Of several larger numbers of bins the one with the least mean loss counts.

    Args:
        runs: Finished runs.
        metric: A loss.

    Returns:
        Nothing unless splines have more than 8 bins beside 4 or 8, at equal settings.
    """
    found = series(runs, "bins")
    if found is None:
        return {}
    own = found.runs[found.runs["transform"].map(is_spline)]
    means = spread(own, metric)["mean"].dropna()
    splines = {int(bins(str(name))): str(name) for name in means.index}
    few = [count for count in FEW if count in splines]
    if not few or max(splines) <= max(FEW):
        return {}

    def best(counts: list[int]) -> int:
        return min(counts, key=lambda count: means[splines[count]])

    gained = {}
    for count in few:
        more = best([other for other in splines if other > count])
        name = f"{MORE}K={count} (the best: K={more})"
        gained[name] = difference(own, metric, splines[count], splines[more])
    if 2 in splines:
        enough = best(few)
        name = f"K={enough} in place of K=2"
        gained[name] = difference(own, metric, splines[2], splines[enough])
    return gained
