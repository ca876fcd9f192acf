"""Everything that a report computes about a study, each thing once and only where it is needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from flowbench import schema
from flowbench.errors import UsageError
from flowbench.report import compute, evidence, laws, options, runs
from flowbench.report.files import TIMING, Recorded, Study
from flowbench.report.options import CLIPPED
from flowbench.report.runs import AXES, Configuration, Extractor, Series, with_baseline
from flowbench.report.stats import Interval, difference, patch_ratio, time_ratio, undominated
from flowbench.report.text import AFFINE, configuration, label, ordered, plain
from flowbench.schema import (
    BLOCKS,
    EPOCHS,
    LAYERS,
    NOISE,
    SECONDS,
    SEED,
    TIMES,
    TRANSFORM,
    WIDTH,
)

SHARED = "the trials shared the machine; make sweep-timing, or one worker alone, measures it"
"""Why recorded seconds are not used."""


FAIR = {"at least as large": WIDTH, "trained at least as long": EPOCHS}
"""What affine may be given to be fair to it, and the setting that gives it."""


@dataclass(frozen=True)
class Quality:
    """The measure by which runs are ranked.

    Attributes:
        metric: A column of the table of runs.
        title: Its name along an axis.
        unit: Its unit in short.
        sign: 1 where less is better, −1 where more is.
    """

    metric: str
    title: str
    unit: str
    sign: int = 1


class Analysis:
    """The finished runs of a study under one protocol (data and noise), and what follows from them.

    Args:
        study: The study's texts.
        recorded: Its recorded runs, under one protocol.
        protocol: Name of the protocol where the study has several, else empty.
        chosen: Run whose own curves are drawn; None for the best.
    """

    def __init__(
        self, study: Study, recorded: Recorded, protocol: str = "", chosen: str | None = None
    ) -> None:
        self.study = study
        self.recorded = recorded
        self.protocol = protocol
        self._chosen = chosen

    # Runs

    @cached_property
    def tuned(self) -> dict[str, dict[str, object]]:
        """The optimiser's settings that each transform has its own value of, by transform."""
        return runs.tuned(runs.finished(self.recorded.runs))

    @cached_property
    def compared(self) -> pd.DataFrame:
        """The finished runs with all settings but the tuned ones, across which they compare."""
        return runs.finished(self.recorded.runs).drop(columns=list(self.tuned))

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The finished runs, with the times of those alone that had the machine to themselves."""
        return runs.timed(self.compared)

    @cached_property
    def denoised(self) -> bool:
        """Whether the flows were trained with Gaussian noise, so that samples are denoised."""
        return bool((self.runs[NOISE] == "gaussian").all())

    @cached_property
    def transforms(self) -> list[str]:
        """The transforms of the finished runs, in reading order."""
        return ordered(self.runs[TRANSFORM])

    @cached_property
    def base(self) -> str | None:
        """The affine flow to compare with; clipped where there is one, whose losses stray less."""
        return next((name for name in (CLIPPED, AFFINE) if name in self.transforms), None)

    @cached_property
    def varied(self) -> list[str]:
        """The settings other than the transform that differ between the finished runs."""
        return runs.varied(self.runs)

    @cached_property
    def configurations(self) -> list[Configuration]:
        """The configurations of the finished runs."""
        return runs.configurations(self.runs)

    @cached_property
    def untrained(self) -> bool:
        """Whether the runs have no losses, as in a timing study."""
        return runs.untrained(self.runs)

    @cached_property
    def shared(self) -> bool:
        """Whether seconds were recorded, but none by a run that had the machine to itself."""
        recorded = self.compared[SECONDS].notna().any()
        return bool(recorded and self.runs[SECONDS].isna().all())

    @cached_property
    def quality(self) -> Quality:
        """Bits per dimension in validation where the runs have them, else the validation loss."""
        metric = "val/bpd" if self.runs["val/bpd"].notna().any() else "val/loss"
        unit = "bits/dim" if metric == "val/bpd" else "nats/dim"
        return Quality(metric, schema.find(metric).axis, unit)

    @cached_property
    def best(self) -> pd.DataFrame:
        """The runs of one configuration per transform, the best in validation."""
        return runs.best_of_each(self.runs) if self.varied else self.runs

    @cached_property
    def names(self) -> dict[str, str]:
        """The name of each transform's best configuration."""
        firsts = self.best.drop_duplicates(TRANSFORM).set_index(TRANSFORM)
        return {
            name: configuration(name, firsts.loc[name, self.varied].to_dict())
            for name in ordered(firsts.index)
        }

    @cached_property
    def history(self) -> pd.DataFrame:
        """The epochs of all finished runs, with their transform and seed."""
        facts = self.runs[["run_id", TRANSFORM, SEED, "workers"]]
        every = self.recorded.history.merge(facts, on="run_id")
        return runs.timed(every.sort_values(["run_id", "epoch"]))

    @cached_property
    def best_history(self) -> pd.DataFrame:
        """The epochs of each transform's best configuration."""
        return self.history[self.history["run_id"].isin(self.best["run_id"])]

    @cached_property
    def one(self) -> tuple[pd.Series, str]:
        """The run whose own curves are drawn, and why this one.

        Raises:
            UsageError: There is no finished run with the id that was asked for.
        """
        if self._chosen is not None:
            if self._chosen not in set(self.runs["run_id"]):
                valid = ", ".join(self.runs["run_id"])
                raise UsageError(
                    f"run {self._chosen!r} is not a finished run of this study: valid are {valid}"
                )
            return self.runs[self.runs["run_id"] == self._chosen].iloc[0], "the run asked for"
        metric = self.quality.metric
        if self.runs[metric].notna().any():
            row = self.runs.loc[self.runs[metric].idxmin()]
            return row, f"the lowest {self.quality.title.lower()} of all"
        return self.runs.iloc[0], "the first recorded, because none has a validation loss"

    # Times

    @cached_property
    def own_rounds(self) -> pd.DataFrame:
        """The timed epochs of these runs themselves."""
        return runs.rounds(self.compared, self.recorded.history)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """The rounds of a timing study, this one or another, in which flows took turns."""
        return self.own_rounds if self.untrained else self.recorded.evaluation[TIMING]

    @cached_property
    def time_ratios(self) -> dict[str, Interval]:
        """Seconds per epoch divided by affine's, by configuration: over rounds, else over seeds."""
        by_round = not self.rounds.empty
        table = self.rounds if by_round else self.runs
        unit = "epoch" if by_round else SEED
        return {
            one.name: time_ratio(with_baseline(one, table), one.transform, AFFINE, unit)
            for one in runs.configurations(table, machine=True)
            if one.transform != AFFINE
        }

    @cached_property
    def run_time_ratios(self) -> dict[str, Interval]:
        """Seconds per epoch of the runs themselves divided by affine's, by configuration."""
        return {
            one.name: time_ratio(with_baseline(one, self.runs), one.transform, AFFINE)
            for one in self.timed_configurations
        }

    @cached_property
    def timed_configurations(self) -> list[Configuration]:
        """The configurations with a time, those of different machines apart."""
        return runs.configurations(self.runs.dropna(subset=[SECONDS]), machine=True)

    # Comparisons

    @cached_property
    def differences(self) -> dict[str, dict[str, Interval]]:
        """By metric and configuration, its difference from affine, paired by seed."""
        return {
            metric: {
                one.name: difference(with_baseline(one, self.runs), metric, one.transform, AFFINE)
                for one in self.configurations
                if one.transform != AFFINE
            }
            for metric in ("val/logdet", "val/prior", self.quality.metric)
        }

    @cached_property
    def fair(self) -> dict[str, dict[str, Interval]]:
        """By what affine is given and configuration, its loss minus that of such an affine flow.

        A spline takes more parameters and time than affine of the same settings. The study's grid
        decides how many channels, and how many epochs, make up for that.
        """
        found = {}
        for given, key in FAIR.items():
            keys = [name for name in schema.settings(self.runs.columns) if name != key]
            found[given] = {
                one.name: difference(
                    pd.concat([one.runs, _more(self.runs, key, one)]),
                    self.quality.metric,
                    one.transform,
                    AFFINE,
                    keys,
                )
                for one in self.configurations
                if one.transform != AFFINE
            }
        return {given: gaps for given, gaps in found.items() if any(gap.n for gap in gaps.values())}

    @cached_property
    def along(self) -> Mapping[str, Series | None]:
        """The runs with a loss along bins, blocks and layers, each None where none differ so."""
        known = self.runs.dropna(subset=[self.quality.metric])
        return {across: runs.series(known, across) for across in AXES}

    @cached_property
    def seconds_along(self) -> Mapping[str, tuple[Series | None, pd.DataFrame]]:
        """Timed rounds along bins, blocks and layers, and the table that they are from.

        Those of the timing study; where it does not vary the number, those of the runs themselves.
        """
        found: dict[str, tuple[Series | None, pd.DataFrame]] = {}
        for across in AXES:
            found[across] = (None, self.own_rounds[:0])
            for table in (self.recorded.evaluation[TIMING], self.own_rounds):
                one = runs.series(table, across, machine=True) if len(table) else None
                if one is not None:
                    found[across] = (one, table)
                    break
        return found

    @cached_property
    def effects(self) -> list[options.Effect]:
        """What the options of the flow change, in the order of the configuration."""
        patches = self.recorded.evaluation["patches"]
        return options.effects(self.runs, patches, self.quality.metric)

    @cached_property
    def gains(self) -> list[evidence.Gain]:
        """What more bins gain."""
        return evidence.gains(self.along["bins"], self.quality.metric)

    @cached_property
    def fewer(self) -> dict[str, evidence.Fewer]:
        """How flows with fewer blocks compare with affine's largest, by transform."""
        return evidence.fewer(self.along[BLOCKS], self.quality.metric)

    @cached_property
    def equivalents(self) -> dict[str, list[evidence.Equivalent]]:
        """How many of affine's blocks, and layers, reach the other transforms' losses."""
        metric = self.quality.metric
        return {key: evidence.equivalents(self.along[key], metric) for key in (BLOCKS, LAYERS)}

    @cached_property
    def fits(self) -> list[laws.Fit]:
        """The scaling laws."""
        patches = self.recorded.evaluation["patches"]
        along = {key: self.along[key] for key in (BLOCKS, LAYERS)}
        spent = laws.training_flops(self.runs, self.recorded.history, patches)
        found = laws.fits(self.runs, along, spent, self.quality.metric)
        return found + compute.frontier(self.curves)

    @cached_property
    def curves(self) -> list[compute.Curve]:
        """The losses of every budget of training FLOPs by the size of the flow."""
        return compute.curves(self.runs, self.recorded.evaluation["patches"], self.quality.metric)

    @cached_property
    def advantages(self) -> dict[str, dict[float, Interval]]:
        """By transform and budget, its loss minus the affine flow's, each at its best size."""
        return compute.advantages(self.curves, self.base) if self.base else {}

    # Evaluation

    @cached_property
    def extractors(self) -> list[Extractor]:
        """The feature extractors, each with the runs whose scores compare."""
        return list(runs.extractors(self.runs))

    @cached_property
    def best_extractors(self) -> list[Extractor]:
        """The same, with each transform's best configuration only."""
        return list(runs.extractors(self.best))

    @cached_property
    def patch_ratios(self) -> dict[str, Interval]:
        """Noise of the edge patches divided by even noise, by configuration."""
        return {one.name: patch_ratio(one.runs) for one in self.configurations}

    @cached_property
    def evaluated(self) -> Mapping[str, pd.DataFrame]:
        """The tables of the evaluation, of the runs that they can be averaged over."""
        known = runs.best_of_each(self.runs)[["run_id", TRANSFORM]]
        tables = self.recorded.evaluation.items()
        return {name: table.merge(known, on="run_id") for name, table in tables if name != TIMING}

    # Trials

    @cached_property
    def aim(self) -> Quality:
        """The study's first objective other than a time; bits per dimension if that is the loss."""
        objectives = self.study.objectives
        metric = next((name for name in objectives if name not in TIMES), "val/loss")
        if metric == "val/loss" and self.quality.metric == "val/bpd":
            return self.quality
        sign = -1 if objectives.get(metric) == "maximize" else 1
        return Quality(metric, schema.find(metric).axis, "", sign)

    @cached_property
    def weighed(self) -> pd.DataFrame:
        """The finished runs with that objective and a time, whether or not they ran alone.

        ``settings`` has the values that vary, as pairs of name and text. Runs on different machines
        are kept apart.
        """
        metric = self.aim.metric
        known = self.compared
        known = known.dropna(subset=[metric, SECONDS]) if metric in known else known[:0]
        keys = [TRANSFORM, *runs.varied(self.compared, machine=True)]
        rows = known[keys].map(plain).to_dict("records")
        return known.assign(settings=[tuple(row.items()) for row in rows])

    @cached_property
    def front(self) -> pd.DataFrame:
        """A row per configuration, the fastest first.

        ``settings``, ``transform`` and ``blocks``; means over the runs of objective and time; the
        number of ``runs``, the numbers of the ``trials``; whether no other beats it in both:
        ``front``.
        """
        metric = self.aim.metric
        table = (
            self.weighed.groupby("settings", sort=False)
            .agg(
                transform=(TRANSFORM, "first"),
                blocks=(BLOCKS, "first"),
                **{name: (name, "mean") for name in (metric, SECONDS)},
                runs=("run_id", "count"),
                trials=(
                    "trial",
                    _numbers,
                ),
            )
            .reset_index()
            .sort_values([SECONDS, metric], ignore_index=True)
        )
        costs = table[[SECONDS, metric]].to_numpy(dtype=float) * [1, self.aim.sign]
        return table.assign(front=undominated(costs))

    # Words

    def counts(self, table: pd.DataFrame) -> str:
        """Say how many runs a figure shows, by transform."""
        found = table.groupby(TRANSFORM)["run_id"].nunique()
        if found.nunique() == 1:
            return f"{found.iloc[0]} runs of each." if found.iloc[0] > 1 else "One run of each."
        return (
            f"Runs: {', '.join(f'{label(name)} {found[name]}' for name in ordered(found.index))}."
        )


def _more(table: pd.DataFrame, key: str, one: Configuration) -> pd.DataFrame:
    """Select the affine runs that have more of a setting than a configuration's runs."""
    if key not in table:
        return table[:0]
    return table[(table[TRANSFORM] == AFFINE) & (table[key] > one.runs[key].max())]


def _numbers(trials: pd.Series) -> str:
    return ", ".join(map(plain, sorted(set(trials.dropna()))))


def analyses(study: Study, recorded: Recorded, chosen: str | None = None) -> list[Analysis]:
    """Analyse the runs of each protocol by themselves: their losses measure different things.

    Args:
        study: The study's texts.
        recorded: All its recorded runs.
        chosen: Run whose own curves are drawn; None for the best.

    Returns:
        One analysis, or one for each protocol (data and noise) of the finished runs; the first is
        that with bits per dimension, or else with the most runs.
    """
    recorded = recorded._replace(runs=runs.told_apart(recorded.runs))
    finished = runs.finished(recorded.runs)
    keys = [name for name in runs.varied(finished) if schema.is_protocol(name)]
    if not keys:
        return [Analysis(study, recorded, chosen=chosen)]
    groups = sorted(
        finished.groupby(keys, dropna=False),
        key=lambda group: (group[1]["val/bpd"].isna().all(), -len(group[1])),
    )
    found = []
    for values, own in groups:
        name = ", ".join(
            f"{schema.find(key).label} {plain(value)}"
            for key, value in zip(keys, values, strict=True)
        )
        ending = "|" + "|".join(map(plain, values))
        theirs = chosen if chosen is None or chosen in set(own["run_id"]) else None
        found.append(Analysis(study, _restricted(recorded, own, ending), name, theirs))
    if chosen is not None and chosen not in set(finished["run_id"]):
        found[0] = Analysis(study, found[0].recorded, found[0].protocol, chosen)
    return found


def _restricted(recorded: Recorded, own: pd.DataFrame, ending: str) -> Recorded:
    """Select the runs of a protocol, and all that belongs to them."""
    ids = set(own["run_id"])
    samples: dict[str, np.ndarray] = {}
    for key, images in recorded.samples.items():
        name, slash, kind = key.partition("/")
        if name.endswith(ending):
            samples[name.removesuffix(ending) + slash + kind] = images
    evaluation = {
        name: table if name == TIMING else table[table["run_id"].isin(ids)]
        for name, table in recorded.evaluation.items()
    }
    history = recorded.history[recorded.history["run_id"].isin(ids)]
    return Recorded(own, history, samples, evaluation, recorded.search)
