"""What an option of the flow does: runs with another value of it against those with the usual one.

Pairs of runs agree in their seed and in every other setting.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flowbench import schema
from flowbench.config import Model
from flowbench.report.runs import varied
from flowbench.report.stats import Interval, interval, shared_kernels
from flowbench.report.text import AFFINE, configuration, label, plain
from flowbench.schema import BLOCKS, KERNELS, LAYERS_LISTED, SECONDS, SEED, TRANSFORM

CLIPPED, SPLINE = "softaffine", "rqs-8"
START, ORDER = "model.start", "model.order"
RATE = "samples/per_second"
EDGE, ENDS, REST = "patches/ratio", "ends", "rest"
"""Noise at the edge of samples; bits or nats per dimension of the first and last patch, and of
all others."""


@dataclass(frozen=True)
class Effect:
    """What one value of an option changes, each with a 95 % interval over seeds.

    Attributes:
        option: The option; its name as a setting.
        value: Its value.
        base: The value that it is compared with.
        rest: The transform and all other settings that vary, in words.
        loss: Loss minus the base's.
        ends: Loss of the first and the last patch minus the base's, where measured.
        others: Loss of all other patches minus the base's, where measured.
        edge: Noise of the samples' edge patches, divided by the base's.
        time: Seconds per epoch divided by the base's, where both had the machine to themselves.
        rate: Samples drawn per second divided by the base's, likewise.
    """

    option: str
    value: str
    base: str
    rest: str
    loss: Interval
    ends: Interval
    others: Interval
    edge: Interval
    time: Interval
    rate: Interval

    @property
    def name(self) -> str:
        """The value and the other settings in words."""
        value = label(self.value) if self.option == TRANSFORM else self.value
        return ", ".join(filter(None, [value, self.rest]))


def effects(runs: pd.DataFrame, patches: pd.DataFrame, metric: str) -> list[Effect]:
    """Measure every option of the flow that varies and whose usual value is among its values.

    Args:
        runs: Finished runs, without the times of those that shared a machine.
        patches: The evaluation by patch.
        metric: A loss.
    """
    if metric not in runs or runs[metric].isna().all():
        return []
    runs = runs.merge(_of_patches(patches), on="run_id", how="left")
    options = [name for name in varied(runs) if name in (START, ORDER, LAYERS_LISTED)]
    for name in ("model.clip", "model.qk_norm", "model.final_norm", "optim.norm_penalty"):
        options += [name] if name in varied(runs) else []
    found = [effect for option in options for effect in _effects(runs, option, metric)]
    transforms = set(runs[TRANSFORM])
    if AFFINE not in transforms and CLIPPED in transforms:
        found += _effects(runs, TRANSFORM, metric, CLIPPED)
    if len(transforms) > 2 and SPLINE in transforms and AFFINE not in transforms:
        found += _effects(runs, TRANSFORM, metric, SPLINE)
    return found


def _of_patches(table: pd.DataFrame) -> pd.DataFrame:
    """Average the losses by patch of each run over the two ends, and over the others."""
    kind = "bpd" if "bpd" in table and table["bpd"].notna().any() else "nll"
    if kind not in table or table.empty:
        return pd.DataFrame(columns=["run_id", ENDS, REST])
    last = table.groupby("run_id")["patch"].transform("max")
    end = (table["patch"] == 0) | (table["patch"] == last)
    means = {ENDS: table[end], REST: table[~end]}
    return pd.DataFrame(
        {name: own.groupby("run_id")[kind].mean() for name, own in means.items()}
    ).reset_index()


def usual(option: str, value: object) -> object:
    """Return the value that another is compared with: for layers by block, equal ones.

    Example:
        >>> usual("model.order", "snake"), usual("layers_by_block", "1-1-6-4")
        ('flip', '3-3-3-3')
    """
    if option != LAYERS_LISTED:
        group, _, name = option.rpartition(".")
        return getattr(Model(), name, None) if group == "model" else 0
    numbers = [int(number) for number in str(value).split("-")]
    return "-".join([plain(sum(numbers) / len(numbers))] * len(numbers))


def _effects(runs: pd.DataFrame, option: str, metric: str, base: object = None) -> Iterator[Effect]:
    others = [name for name in (TRANSFORM, *varied(runs)) if name != option]
    if option == TRANSFORM:
        others = [name for name in others if not name.startswith("optim.")]
    runs = runs.assign(_value=runs[option].map(plain))
    against = runs["_value"].map(lambda value: plain(base or usual(option, value)))
    sides = runs.assign(_base=against), runs.assign(_base=runs["_value"])
    pairs = pd.merge(*sides, on=[SEED, *others, "_base"], suffixes=("", "_usual"))
    pairs = pairs[pairs["_value"] != pairs["_base"]]

    def change(own: pd.DataFrame, name: str) -> Interval:
        return interval(own[name].astype(float) - own[f"{name}_usual"].astype(float))

    machine = [name for name in schema.MACHINE if name in runs]

    def ratio(own: pd.DataFrame, name: str) -> Interval:
        if name not in own:
            return interval(pd.Series(dtype=float))
        if name in schema.TIMES:
            own = own[[_alike(row, machine) for _, row in own.iterrows()]]
        logs = (np.log(own[side].astype(float)) for side in (name, f"{name}_usual"))
        return interval(next(logs) - next(logs)).exp()

    for (value, *rest), own in pairs.groupby(["_value", *others], dropna=False, sort=False):
        settings = dict(zip(others, rest, strict=True))
        transform = settings.pop(TRANSFORM, None)
        if option == LAYERS_LISTED:
            settings.pop("model.layers", None)
            settings.pop(BLOCKS, None)
        words = configuration(transform or value, settings)
        yield Effect(
            option,
            str(value),
            str(own["_base"].iloc[0]),
            words if transform else words.partition(", ")[2],
            change(own, metric),
            change(own, ENDS),
            change(own, REST),
            ratio(own, EDGE),
            ratio(own, SECONDS),
            ratio(own, RATE),
        )


def _alike(pair: pd.Series, machine: list[str]) -> bool:
    """Whether the two runs of a pair had the same machine, so that their times compare."""

    def fact(name: str) -> str:
        value = pair[name]
        return str(shared_kernels(value) if name.startswith(KERNELS) else value)

    return all(fact(name) == fact(f"{name}_usual") for name in machine)


def title(option: str) -> str:
    """Name an option at the head of a table."""
    return schema.find(option).label
