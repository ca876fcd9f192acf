"""Runs that differ in one number, bins, blocks or layers, at otherwise equal settings."""

from dataclasses import dataclass

import pandas as pd

from flowbench.report.configurations import counted
from flowbench.report.labels import bins, family, label, ordered
from flowbench.report.seeds import SETTINGS

NAMES = {
    "bins": "Bins K of the spline",
    "blocks": "Blocks",
    "layers": "Layers a block",
}
"""What runs may differ in, and the name of its axis."""


@dataclass(frozen=True)
class Series:
    """The runs along one number."""

    across: str
    """bins, blocks or layers."""
    runs: pd.DataFrame
    """Their runs, with the number as ``x`` and its name as ``line``."""
    baseline: pd.DataFrame
    """Runs of affine at these settings where it has no such number, being without bins."""
    fixed: str
    """What all of them share, in words."""

    def lines(self) -> dict[str, tuple[str, pd.DataFrame]]:
        """By the name of each line the transform that it looks like, and its runs."""
        found: dict[str, tuple[str, pd.DataFrame]] = {}
        # A line along bins looks like its spline with 8, so that it does in every report.
        for transform in sorted(ordered(self.runs["transform"]), key=lambda name: bins(name) != 8):
            name = self.runs.loc[self.runs["transform"] == transform, "line"].iloc[0]
            found.setdefault(name, (transform, self.runs[self.runs["line"] == name]))
        first = self.runs["line"].drop_duplicates()
        return {name: found[name] for name in sorted(found, key=list(first).index)}


def quality(runs: pd.DataFrame) -> tuple[str, str, str]:
    """The measure of quality that the finished runs have: its column, its name and its unit."""
    if runs["val/bpd"].notna().any():
        return "val/bpd", "Validation bits per dimension", "bits/dim"
    return "val/loss", "Validation loss (nats per dimension)", "nats/dim"


def series(runs: pd.DataFrame, across: str) -> Series | None:
    """Find the runs that differ in a number and, transform and seed aside, in nothing else.

    Of several such sets of runs the one with the most values of the number. Where no two runs
    differ in their blocks alone, those that also share out the same number of layers.

    Args:
        runs: Finished runs, or rounds of a timing.
        across: bins, blocks or layers.

    Returns:
        The runs of each transform (of splines, with any number of bins) that has two values or
        more; none where there is no such transform.
    """
    if across == "bins":
        table = runs.assign(x=runs["transform"].map(bins), line=runs["transform"].map(family))
    else:
        table = runs.assign(x=runs[across], line=runs["transform"].map(label))
    table = table.assign(total=table["blocks"] * table["layers"])
    shared = [name for name in SETTINGS if name in table and name != across]
    choices = [shared]
    if across == "blocks":
        choices.append([name for name in shared if name != "layers"] + ["total"])
    for keys in choices:
        groups = [group for _, group in table.groupby(keys, dropna=False)]
        best = max(groups, key=_values, default=table)
        if _values(best) > 1:
            return _series(best, across, keys)
    return None


def _values(group: pd.DataFrame) -> int:
    """The most values of the number that one line has."""
    return max(group.groupby("line")["x"].nunique(), default=0)


def _series(group: pd.DataFrame, across: str, keys: list[str]) -> Series:
    many = group.groupby("line")["x"].transform("nunique") > 1
    first = group.iloc[0]
    fixed = [counted(first["blocks"], "block")] if across != "blocks" else []
    if "total" in keys:
        fixed.append(f"{counted(first['total'], 'layer')} in all")
    elif across != "layers" and pd.notna(first["layers"]):
        fixed.append(f"{counted(first['layers'], 'layer')} a block")
    return Series(
        across,
        group[many],
        group[(group["transform"] == "affine") & group["x"].isna()],
        ", ".join(fixed),
    )
