"""What runs differ in besides transform and seed: a mean over these would mean nothing."""

from collections.abc import Mapping

import pandas as pd

from flowbench.report.labels import label, ordered
from flowbench.report.numbers import plain
from flowbench.report.seeds import MODEL, alike


def varied(runs: pd.DataFrame) -> list[str]:
    """Of blocks, layers, width and patch what differs between these runs."""
    return [name for name in MODEL if runs[name].nunique() > 1]


def configurations(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Runs by configuration, in reading order.

    Args:
        runs: Finished runs, or rounds of a timing.

    Returns:
        By the name of each transform its runs; where they differ in their model, each model's under
        a name of its own, ``RQS K=8, 4 blocks``.
    """
    keys = varied(runs)
    found = {}
    for transform in ordered(runs["transform"]):
        own = runs[runs["transform"] == transform]
        for values, part in own.groupby(keys or ["transform"], dropna=False):
            found[named(transform, dict(zip(keys, values, strict=False)))] = part
    return found


def named(transform: str, model: Mapping[str, float]) -> str:
    """Name of a configuration: its transform, and what else it has of its own.

    Example:
        >>> named("rqs-8", {"blocks": 4.0, "layers": 1.0}), named("affine", {"width": 64})
        ('RQS K=8, 4 blocks of 1 layer', 'affine, width 64')
        >>> named("affine", {"blocks": 1}), named("affine", {"layers": 2}), named("affine", {})
        ('affine, 1 block', 'affine, 2 layers a block', 'affine')
    """
    told = [label(transform)]
    if "blocks" in model:
        told.append(counted(model["blocks"], "block"))
    if "layers" in model:
        layers = counted(model["layers"], "layer")
        if "blocks" in model:
            told[-1] += f" of {layers}"
        else:
            told.append(f"{layers} a block")
    told += [f"{name} {plain(model[name])}" for name in ("width", "patch") if name in model]
    return ", ".join(told)


def counted(count: float, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1.0, "block"), counted(8, "block")
        ('1 block', '8 blocks')
    """
    return f"{plain(count)} {noun}" + ("" if count == 1 else "s")


def shown(runs: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The runs of one configuration a transform, the best in validation, and their names.

    Where all runs have one model it is all of them: nothing is chosen.

    Args:
        runs: Finished runs.
    """
    if not varied(runs):
        return runs, {name: label(name) for name in ordered(runs["transform"])}
    best, keys = alike(runs), varied(runs)
    firsts = best.drop_duplicates("transform").set_index("transform")
    return best, {
        name: named(name, firsts.loc[name, keys].to_dict()) for name in ordered(firsts.index)
    }


def paired(runs: pd.DataFrame, baseline: str) -> dict[str, tuple[str, pd.DataFrame]]:
    """What is to be compared with a baseline: by configuration its transform and both their runs.

    Args:
        runs: Runs, or rounds of a timing.
        baseline: Transform that the others are compared with.
    """
    found = {}
    for name, own in configurations(runs).items():
        transform = str(own["transform"].iloc[0])
        if transform != baseline:
            found[name] = (transform, with_baseline(own, runs, baseline))
    return found


def with_baseline(own: pd.DataFrame, runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Runs of a configuration together with all of a baseline, to be paired with some of them."""
    others = runs[runs["transform"] == baseline]
    return own if own["transform"].iloc[0] == baseline else pd.concat([own, others])
