"""Recorded runs sorted for comparison: finished ones, configurations, series, timed rounds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from flowbench import schema
from flowbench.report.stats import shared_kernels
from flowbench.report.text import (
    AFFINE,
    MISSING,
    bins,
    configuration,
    counted,
    family,
    label,
    number,
    ordered,
    plain,
)
from flowbench.schema import BLOCKS, DATA, HASH, IMAGES, KERNELS, LAYERS, SECONDS, TIMES, TRANSFORM

AXES = {"bins": "Bins K of the spline", BLOCKS: "Blocks", LAYERS: "Layers per block"}
"""Numbers along which runs make a series, and the name of each axis."""


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """Select the finished runs: no number rests on any other."""
    return runs[runs["status"] == "finished"]


def told_apart(runs: pd.DataFrame) -> pd.DataFrame:
    """Name data sets that have one name but different images by the hash of these, too."""
    if IMAGES not in runs:
        return runs
    several = runs.groupby(DATA)[IMAGES].transform("nunique") > 1
    if not several.any():
        return runs
    named = runs[DATA] + " " + runs[IMAGES].fillna("of unknown images")
    return runs.assign(**{DATA: runs[DATA].mask(several, named)})


def untrained(runs: pd.DataFrame) -> bool:
    """Return whether the finished runs have no losses, as in a timing study."""
    return bool(finished(runs)[["train/loss", "val/loss"]].isna().all(axis=None))


def timed(runs: pd.DataFrame) -> pd.DataFrame:
    """Blank the times of runs that shared the machine with other trials.

    The others slow such a run by an unknown amount, so its seconds measure nothing.
    """
    times = [name for name in TIMES if name in runs]
    return runs.assign(**{name: runs[name].mask(runs["workers"] > 1) for name in times})


def varied(table: pd.DataFrame, machine: bool = False) -> list[str]:
    """List the settings other than the transform that differ between the rows.

    Args:
        table: Finished runs, or rounds of a timing.
        machine: Include the facts of the machine, as is right for times.
    """
    names = [name for name in schema.settings(table.columns) if name != TRANSFORM]
    names += [name for name in schema.MACHINE if machine and name in table]
    return [name for name in names if _differs(table, name)]


def _differs(table: pd.DataFrame, name: str) -> bool:
    if name != KERNELS:
        return bool(table[name].nunique(dropna=False) > 1)
    shared = table[name].map(shared_kernels).nunique(dropna=False)
    own = table.groupby(TRANSFORM)[name].nunique(dropna=False).max()
    return bool(max(shared, own) > 1)


def tuned(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Find the optimiser's settings that each transform has a value of its own of.

    A transform's own learning rate belongs to it, like its name: runs are compared across it.

    Args:
        table: Finished runs under one protocol.

    Returns:
        By setting, its value by transform; empty for a setting that varies within a transform.
    """
    found = {}
    for name in varied(table):
        own = table.groupby(TRANSFORM)[name]
        if name.startswith("optim.") and (own.nunique(dropna=False) == 1).all():
            found[name] = own.first().to_dict()
    return found


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in nothing but their seed and their machine.

    Attributes:
        name: Its name among the others: ``RQS K=8, 4 blocks``.
        transform: Its transform.
        settings: Its values of the other settings that vary.
        runs: Its runs, or its rounds of a timing.
    """

    name: str
    transform: str
    settings: dict[str, Any]
    runs: pd.DataFrame


def configurations(table: pd.DataFrame, machine: bool = False) -> list[Configuration]:
    """Group runs by their settings, in reading order: a mean over several would mean nothing.

    Args:
        table: Finished runs, or rounds of a timing.
        machine: Keep apart what ran on different machines, as is right for times.
    """
    keys = varied(table, machine)
    found = []
    for transform in ordered(table[TRANSFORM]):
        own = table[table[TRANSFORM] == transform]
        for values, part in own.groupby(keys or [TRANSFORM], dropna=False):
            settings = dict(zip(keys, values, strict=False))
            found.append(
                Configuration(configuration(transform, settings), transform, settings, part)
            )
    return found


def with_baseline(one: Configuration, table: pd.DataFrame) -> pd.DataFrame:
    """Join a configuration's rows with all of affine's, some of which can be paired with them."""
    if one.transform == AFFINE:
        return one.runs
    return pd.concat([one.runs, table[table[TRANSFORM] == AFFINE]])


def best_of_each(runs: pd.DataFrame) -> pd.DataFrame:
    """Select the runs with the settings of their transform's best run (lowest ``val/loss``).

    Maps over patches or blocks have a mean only over runs with the same patches and blocks.
    """
    best = runs.sort_values("val/loss").drop_duplicates(TRANSFORM)
    keys = schema.settings(runs.columns)
    return runs.merge(best[keys], on=keys)


@dataclass(frozen=True)
class Series:
    """Runs that differ in one number at otherwise equal settings.

    Attributes:
        across: What the number is: a key of ``AXES``.
        runs: The runs, with the number as ``x`` and the name of their line as ``line``.
        baseline: Runs of affine at these settings where it lacks the number, having no bins.
        fixed: What all of them share, in words.
    """

    across: str
    runs: pd.DataFrame
    baseline: pd.DataFrame
    fixed: str

    def lines(self) -> dict[str, tuple[str, pd.DataFrame]]:
        """Return, by the name of each line, the transform whose look it has, and its runs."""
        found: dict[str, tuple[str, pd.DataFrame]] = {}
        # A line along bins has the look of its spline with 8 bins, the same in every report.
        for transform in sorted(ordered(self.runs[TRANSFORM]), key=lambda name: bins(name) != 8):
            name = self.runs.loc[self.runs[TRANSFORM] == transform, "line"].iloc[0]
            found.setdefault(name, (transform, self.runs[self.runs["line"] == name]))
        first = self.runs["line"].drop_duplicates()
        return {name: found[name] for name in sorted(found, key=list(first).index)}


def series(table: pd.DataFrame, across: str, machine: bool = False) -> Series | None:
    """Find the runs that differ in a number and, apart from transform and seed, in nothing else.

    Of several such sets the one with the most values of the number is taken. Where no two runs
    differ in their blocks alone, sets with the same number of layers in all count too.

    Args:
        table: Finished runs, or rounds of a timing.
        across: bins, model.blocks or model.layers.
        machine: Require the same machine, as is right for times.

    Returns:
        The runs of each transform (of splines, with any number of bins) that has two values or
        more; None where there is no such transform.
    """
    if across == "bins":
        table = table.assign(x=table[TRANSFORM].map(bins), line=table[TRANSFORM].map(family))
    else:
        table = table.assign(x=table[across], line=table[TRANSFORM].map(label))
    table = table.assign(total=table[BLOCKS] * table[LAYERS])
    shared = [name for name in schema.settings(table.columns) if name not in (across, TRANSFORM)]
    shared += [name for name in schema.MACHINE if machine and name in table]
    choices = [shared]
    if across == BLOCKS:
        choices.append([*(name for name in shared if name != LAYERS), "total"])
    for keys in choices:
        groups = [group for _, group in table.groupby(keys, dropna=False)]
        best = max(groups, key=_values, default=table)
        if _values(best) > 1:
            return _series(best, across, keys)
    return None


def _values(group: pd.DataFrame) -> int:
    """Count the values of the number on the line that has the most."""
    return max(group.groupby("line")["x"].nunique(), default=0)


def _series(group: pd.DataFrame, across: str, keys: Sequence[str]) -> Series:
    many = group.groupby("line")["x"].transform("nunique") > 1
    first = group.iloc[0]
    fixed = [counted(first[BLOCKS], "block")] if across != BLOCKS else []
    if "total" in keys:
        fixed.append(f"{counted(first['total'], 'layer')} in all")
    elif across != LAYERS and pd.notna(first[LAYERS]):
        fixed.append(f"{counted(first[LAYERS], 'layer')} per block")
    baseline = group[(group[TRANSFORM] == AFFINE) & group["x"].isna()]
    return Series(across, group[many], baseline, ", ".join(fixed))


def rounds(runs: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """Return the epochs after the first of the finished runs that had the machine to themselves.

    The first epoch includes the warm-up of the process.
    """
    own = finished(runs)
    own = own[~(own["workers"] > 1)]
    epochs = history.reindex(columns=["run_id", "epoch", SECONDS, "load"])
    epochs = epochs[epochs["epoch"] > 1].dropna(subset=[SECONDS])
    kept = [*schema.settings(runs.columns), *schema.MACHINE, "scale", "started"]
    return epochs.merge(own[["run_id", *(name for name in kept if name in own)]], on="run_id")


def standing_for(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Select the timed rounds of flows that take as long per epoch as some finished run does.

    Such a flow has the same model, data and implementation; optimiser settings that change no
    epoch's time may differ.
    """
    both = [name for name in schema.settings(table.columns) if name in runs]
    keys = [name for name in both if schema.is_timed(name)]
    keys += [name for name in ("device", "kernels", "precision") if name in runs and name in table]
    wanted = set(finished(runs)[keys].map(plain).itertuples(index=False, name=None))
    rows = table[keys].map(plain).itertuples(index=False, name=None)
    return table[[row in wanted for row in rows]]


@dataclass(frozen=True)
class Extractor:
    """A feature extractor, and the finished runs whose scores in its features compare.

    Attributes:
        suffix: What its metrics are named by: ``digits`` in ``fid_digits``.
        runs: Runs with the same weights and the same numbers of images.
    """

    suffix: str
    runs: pd.DataFrame

    def column(self, score: str) -> pd.Series:
        """Return a score of every run; ``fid_floor`` for the floor of fid; NaN where missing."""
        name, _, floor = score.partition("_")
        full = f"{name}_{self.suffix}{'_floor' if floor else ''}"
        return self.runs[full] if full in self.runs else pd.Series(float("nan"), self.runs.index)

    @property
    def name(self) -> str:
        """Its name with the hash of its weights, where one is recorded."""
        column = f"{HASH}{self.suffix}"
        weights = plain(self.runs[column].iloc[0]) if column in self.runs else MISSING
        return self.suffix if weights == MISSING else f"{self.suffix}, weights {weights}"

    @property
    def counts(self) -> str:
        """How many images of which kind its scores compare."""
        generated, real = (self._mean(f"fidelity/{name}") for name in ("samples", "real"))
        return f"{number(generated, 0)} generated and {number(real, 0)} test images"

    @property
    def description(self) -> str:
        """What its scores rest on, in a sentence."""
        text = f"{self.name}: {self.counts} per run"
        accuracy = self._mean(f"{HASH}{self.suffix}/accuracy")
        if pd.notna(accuracy):
            text += f", the extractor's own test accuracy {number(100 * accuracy, 2)} %"
        subset = number(self._mean("fidelity/kid_subset"), 0)
        return f"{text}." if subset == MISSING else f"{text}, KID over subsets of {subset}."

    def _mean(self, column: str) -> float:
        return float(self.runs[column].mean()) if column in self.runs else float("nan")


def extractors(runs: pd.DataFrame) -> Iterator[Extractor]:
    """Find every extractor of the finished runs, one for each weights and number of images."""
    names = (name.removesuffix("_floor") for name in runs.columns)
    parts = (name.partition("_") for name in names if "/" not in name)
    scored = [(score, suffix) for score, _, suffix in parts if score in schema.SCORES and suffix]
    for suffix in dict.fromkeys(suffix for _, suffix in scored):
        scores = [f"{score}_{suffix}" for score in schema.SCORES if f"{score}_{suffix}" in runs]
        own = runs[runs[scores].notna().any(axis=1)]
        keys = [f"{HASH}{suffix}", "fidelity/samples", "fidelity/real"]
        for _, part in own.groupby([key for key in keys if key in runs], dropna=False):
            yield Extractor(suffix, part)
