"""The tables of a report: by configuration, run by run, and how the runs were made."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd

from flowbench import schema
from flowbench.errors import UsageError
from flowbench.report import datasets, laws
from flowbench.report import runs as recorded_runs
from flowbench.report.analysis import Analysis
from flowbench.report.claims import Claim
from flowbench.report.document import Block, Paragraph, Table
from flowbench.report.laws import LEAST, QUANTITIES, WIDEST, Fit
from flowbench.report.options import ORDER, START, Effect, title
from flowbench.report.runs import AXES, Configuration, Extractor
from flowbench.report.stats import over_seeds
from flowbench.report.text import (
    AFFINE,
    MISSING,
    confidence,
    label,
    measured,
    number,
    ordered,
    plain,
)
from flowbench.schema import BLOCKS, LAYERS, LAYERS_LISTED, NOISE, SECONDS, SEED, TRANSFORM
from flowbench.transforms import parse

LIKELIHOODS = {"uniform": "test/bpd", "gaussian": "test/nll"}
"""The likelihood of each noise: bits and nats never stand in one table."""
_SCORES = [*schema.SCORES, "agreement"]


def summary(analysis: Analysis) -> Table:
    """Make a row per configuration: mean ± sd over seeds of the likelihood; cost; parameters.

    Seconds are those of runs that had the machine to themselves. Metrics that the schema does not
    know follow under their own names.
    """
    runs = analysis.runs
    extra = [name for name in _unknown(runs) if pd.api.types.is_numeric_dtype(runs[name])]
    name = analysis.quality.metric.partition("/")[2]
    metrics = [f"test/{name}", f"test/{name}_median", f"val/{name}", SECONDS, *extra]
    rows = [
        [
            *_head(one),
            *(mean(one, metric) for metric in metrics),
            _time_ratio(one, analysis),
            _range(one.runs["parameters"]),
        ]
        for one in analysis.configurations
    ]
    labels = [schema.find(metric).label for metric in metrics]
    return _table(["configuration", "seeds", *labels, "time ÷ affine's", "parameters"], rows)


def fair(analysis: Analysis) -> Iterator[Table]:
    """Make the table of losses minus affine's, where affine is given more to be fair to it."""
    if not analysis.fair:
        return
    metric, unit = analysis.quality.metric, analysis.quality.unit
    columns = {"of the same settings": analysis.differences[metric], **analysis.fair}
    rows = [
        [name, *(confidence(gaps[name], unit) for gaps in columns.values())]
        for name in analysis.differences[metric]
        if any(gaps[name].n for gaps in columns.values())
    ]
    header = ["configuration", *(f"minus affine {given}" for given in columns)]
    yield Table(header, rows, words=len(header))


def losses(analysis: Analysis) -> Table:
    """Make a row per configuration: mean ± sd over seeds of the validation loss and its terms."""
    metrics = ["val/loss", "val/prior", "val/logdet", "test/loss"]
    rows = [
        [*_head(one), *(mean(one, metric) for metric in metrics)] for one in analysis.configurations
    ]
    return _table(["configuration", "seeds", *(schema.find(name).label for name in metrics)], rows)


def mean(one: Configuration, metric: str) -> str:
    """Write a metric's mean ± sd over seeds; say where fewer seeds have it than there are.

    A time that was measured on several machines has no mean.
    """
    if metric not in one.runs:
        return MISSING
    timed = one.runs.dropna(subset=[metric])
    if metric in schema.TIMES and recorded_runs.varied(timed, machine=True):
        return f"{MISSING} (several machines)"
    average, sd, count = over_seeds(one.runs, metric)
    fewer = f" (n = {count})" if 0 < count < one.runs[SEED].nunique() else ""
    return measured(average, sd, schema.find(metric).places) + fewer


def _head(one: Configuration) -> list[str]:
    return [one.name, str(one.runs[SEED].nunique())]


def _table(header: list[str], rows: list[list[str]], words: int = 1) -> Table:
    """Make a table without the columns in which no row has a number."""
    kept = [
        place
        for place in range(len(header))
        if place < words or not rows or any(row[place] != MISSING for row in rows)
    ]
    return Table(
        [header[place] for place in kept], [[row[place] for place in kept] for row in rows], words
    )


def _time_ratio(one: Configuration, analysis: Analysis) -> str:
    if one.transform == AFFINE:
        return "1" if one.runs[SECONDS].notna().any() else MISSING
    ratio = analysis.run_time_ratios.get(one.name)
    return number(ratio.mean, 2) if ratio else MISSING


def _range(values: pd.Series) -> str:
    low, high = number(values.min(), 0), number(values.max(), 0)
    return low if low == high else f"{low} to {high}"


def claim_table(judged: list[Claim]) -> Table:
    """Make a row per measured claim: verdict, and the number with the weakest evidence."""
    rows = [
        [f"{place}. {claim.text}", claim.verdict, claim.number]
        for place, claim in enumerate(judged, start=1)
        if claim.rule
    ]
    header = ["claim", "verdict", "number (95 % interval)"]
    return Table(header, rows, words=len(header))


def claim_details(judged: list[Claim]) -> Table:
    """Make a row per measured claim: all numbers, and the name of its rule."""
    rows = [
        [str(place), claim.detail, claim.rule]
        for place, claim in enumerate(judged, start=1)
        if claim.rule
    ]
    header = ["claim", "all numbers (95 % intervals)", "rule"]
    return Table(header, rows, words=len(header))


def likelihood(analysis: Analysis) -> Iterator[Table]:
    """Make a table of the test likelihood, classification and patches for each noise."""
    for noise, metric in LIKELIHOODS.items():
        own = [one for one in analysis.configurations if (one.runs[NOISE] == noise).all()]
        names = [metric, f"{metric}_se", "test/bpd_iw", "bayes/accuracy", "bayes/ece"]
        names += ["bayes/log_loss", "bayes/entropy", "bayes/excess"]
        known = [name for name in names if any(mean(one, name) != MISSING for one in own)]
        if own and known:
            rows = [
                [
                    *_head(one),
                    *(
                        _root_mean_square(one, name) if name.endswith("_se") else mean(one, name)
                        for name in names
                    ),
                    confidence(analysis.patch_ratios[one.name], "", places=2, sign="-"),
                ]
                for one in own
            ]
            labels = [schema.find(name).label for name in names]
            yield _table(["configuration", "seeds", *labels, "edge ÷ even noise"], rows)


def robustness(analysis: Analysis) -> Table:
    """Make a row per configuration: what a few images do to its means, and what is not finite."""
    names = ["test/failed", "val/failed", "samples/nonfinite", "roundtrip/max"]
    rows = [
        [*_head(one), *(mean(one, name) for name in names[:-1]), _largest(one, names[-1])]
        for one in analysis.configurations
    ]
    return _table(["configuration", "seeds", *(schema.find(name).label for name in names)], rows)


def _largest(one: Configuration, name: str) -> str:
    value = one.runs[name].max()
    return MISSING if pd.isna(value) else f"{value:.1e}"


def _root_mean_square(one: Configuration, name: str) -> str:
    value = (one.runs[name].astype(float) ** 2).mean() ** 0.5
    return number(value, schema.find(name).places)


def fidelity(extractor: Extractor) -> Table:
    """Make a row per configuration with the scores in an extractor's features; then the floor."""
    names = [name for name in _SCORES if extractor.column(name).notna().any()]
    columns = [f"{name}_{extractor.suffix}" for name in names]
    left_out = "samples/nonfinite"
    rows = [
        [*_head(one), *(mean(one, column) for column in (*columns, left_out))]
        for one in recorded_runs.configurations(extractor.runs)
    ]
    floors = [
        number(extractor.column(f"{name}_floor").mean(), schema.find(column).places)
        for name, column in zip(names, columns, strict=True)
    ]
    labels = [schema.find(column).label for column in (*columns, left_out)]
    return _table(["configuration", "seeds", *labels], [*rows, ["floor", "", *floors, MISSING]])


def effects(analysis: Analysis) -> Iterator[Block]:
    """Make the tables of what other values of an option change, one for each option and base."""
    unit = analysis.quality.unit
    signed = partial(confidence, unit="")
    ranged = partial(confidence, unit="", places=2, sign="-")
    groups: dict[tuple[str, str], list[Effect]] = {}
    for one in analysis.effects:
        base = "" if one.option == LAYERS_LISTED else one.base  # each has equal ones of its own
        groups.setdefault((one.option, base), []).append(one)
    for (option, base), own in groups.items():
        columns: list[tuple[str, Callable[[Effect], str], bool]] = [
            (f"loss ({unit})", lambda one: signed(one.loss), True),
            ("its first and last patch", lambda one: signed(one.ends), option == START),
            ("all other patches", lambda one: signed(one.others), option == START),
            (
                "edge noise (ratio)",
                lambda one: ranged(one.edge),
                option in (START, ORDER) and any(one.edge.n for one in own),
            ),
            ("parameters per dimension", _per_dimension, option == TRANSFORM),
            ("s/epoch (ratio)", lambda one: ranged(one.time), any(one.time.n for one in own)),
            ("samples/s (ratio)", lambda one: ranged(one.rate), any(one.rate.n for one in own)),
        ]
        shown = [column for column in columns if column[2]]
        named = label(base) if option == TRANSFORM else base or "equal layers in every block"
        yield Paragraph(
            f"Differences from {named}, at the same seed and otherwise equal settings; below 0 is "
            "better. In parentheses: 95 % interval over seeds.",
            lead=f"{title(option).capitalize()}.",
        )
        yield Table(
            [title(option), *(heading for heading, _, _ in shown)],
            [[one.name, *(say(one) for _, say, _ in shown)] for one in own],
        )


def _per_dimension(one: Effect) -> str:
    try:
        return str(parse(one.value).num_params)
    except UsageError:  # of a library that is not installed
        return MISSING


def tellings(analysis: Analysis) -> Iterator[Block]:
    """Make the table of how likelihoods tell other images, if any were measured."""
    found = list(datasets.tellings(analysis))
    if not found:
        return
    changed = any(one.change.n for one in found)
    yield Paragraph(
        "How well a score separates test images of another data set from the flow's own: area "
        "under the ROC curve. 1 is perfect and 0.5 is chance; below 0.5 the other images look "
        "less unusual than the flow's own. Scores: negative log-likelihood; that less the length "
        "of the image as PNG; its distance from the training images' mean. Mean ± standard "
        "deviation over seeds; in parentheses a 95 % interval over seeds of the change.",
        lead="Images of another kind.",
    )
    by_row: dict[tuple[str, str], list[datasets.Telling]] = {}
    for one in found:
        by_row.setdefault((one.other, one.transform), []).append(one)
    header = ["other images", "configuration", *datasets.AUROC.values()]
    header += ["change of likelihood's"] if changed else []
    rows = [
        [
            other,
            label(transform),
            *(measured(one.values.mean(), one.values.std()) for one in own),
            *([confidence(own[0].change, "")] if changed else []),
        ]
        for (other, transform), own in by_row.items()
    ]
    yield Table(header, rows, words=2)


def advantages(found: Sequence[Analysis]) -> Iterator[Block]:
    """Make the table of the spline's advantage by data set, if a study has several."""
    by_data = datasets.advantages(found)
    if not by_data:
        return
    quality = found[0].quality
    base, spline = (label(name) for name in (by_data[0].base, by_data[0].spline))
    yield Paragraph(
        f"{quality.metric} of {base} minus that of {spline}, at the same seed and settings, with "
        "a 95 % interval over seeds. Pixels are on [−1, 1].",
        lead="Advantage of the spline by data set.",
    )
    header = ["data", "standard deviation of pixels", base, spline, f"difference ({quality.unit})"]
    rows = [
        [one.data, number(one.spread), *map(number, one.losses), confidence(one.gap, "")]
        for one in by_data
    ]
    yield Table(header, rows)


def equivalents(analysis: Analysis) -> Iterator[Block]:
    """Make the tables of how many of affine's blocks, and layers, reach another's loss."""
    quality = analysis.quality
    for across in (BLOCKS, LAYERS):
        noun, found = across.rpartition(".")[2], analysis.equivalents[across]
        if not found:
            continue
        along = analysis.along[across]
        yield Table(
            [
                "transform",
                noun,
                f"{quality.metric} ({quality.unit})",
                f"affine's {noun}",
                "factor",
            ],
            [
                [label(one.transform), plain(one.x), number(one.loss), one.words, one.factor]
                for one in found
            ],
        )
        yield Paragraph(
            f"{AXES[across]} that affine needs for the other transform's mean loss "
            f"({along.fixed if along else ''}): affine's means over seeds, interpolated linearly "
            "against the logarithm of the number, after taking the least loss so far. In "
            "parentheses: the numbers at which the difference, seed by seed, has a 95 % t interval "
            "that includes 0. ≥ and ≤: beyond the largest and the smallest affine flow; at 95 %: "
            "all others are excluded.",
            lead=f"{noun.capitalize()} of affine.",
        )


def scaling_laws(analysis: Analysis) -> Iterator[Block]:
    """Make the table of the scaling laws."""
    if not analysis.fits:
        return
    rows = []
    for fit in analysis.fits:
        cells = [f"not determined: {fit.why}", MISSING, MISSING, MISSING, MISSING]
        if fit.law is not None:
            places = {"a": 3, "c": 2}
            cells = [_parameter(fit, name, places.get(name)) for name in ("a", "b", "c")]
            cells += _forecast(fit)
        rows.append([QUANTITIES[fit.quantity], label(fit.transform), *cells])
    header = ["x", "transform", f"a ({analysis.quality.unit})", "b", "c"]
    yield Table([*header, "largest x: foreseen", "and trained"], rows, words=2)
    yield Paragraph(
        "Loss = a + b·x^(−c), by least squares over all runs of a transform, with 95 % intervals "
        "over resampled seeds, which are too narrow with few seeds. Not determined: fewer than "
        f"{LEAST} different x; a constant explains the runs as well (F test, 5 %); the best c or "
        f"an end of its interval is at a bound, or the ends are over {WIDEST:.0f} times apart. "
        "Training FLOPs: 6 · parameters · tokens · images seen, without attention and the "
        "transform. Foreseen: the loss at the largest x, by a law fitted to the other runs. "
        "Quantities that vary less than twofold are not listed.",
        lead="Scaling.",
    )


def _forecast(fit: Fit) -> list[str]:
    found = laws.forecast(fit)
    if found is None:
        return ["not determined without it", MISSING]
    return [confidence(value, "", sign="-") for value in (found.foreseen, found.trained)]


def _parameter(fit: Fit, name: str, places: int | None) -> str:
    value = fit.interval(name)
    if places is None:
        return f"{value.mean:.2e} ({value.low:.2e} to {value.high:.2e})"
    low, high = number(value.low, places), number(value.high, places)
    return f"{number(value.mean, places)} ({low} to {high})"


def seconds(analysis: Analysis) -> Iterator[Block]:
    """Make the table of the timed rounds."""
    if analysis.rounds.empty:
        return
    rows = []
    for one in recorded_runs.configurations(analysis.rounds, machine=True):
        low, middle, high = one.runs[SECONDS].quantile([0.25, 0.5, 0.75])
        quartiles = f"{number(middle, 2)} ({number(low, 2)} to {number(high, 2)})"
        ratio = analysis.time_ratios.get(one.name)
        cell = confidence(ratio, "", places=2, sign="-") if ratio else "1"
        load = number(one.runs["load"].median(), 2)
        rows.append([one.name, str(len(one.runs)), quartiles, cell, load])
    yield Table(
        ["flow", "rounds", "s/epoch: median (quartiles)", "time ÷ affine's", "load average"], rows
    )
    devices = ", ".join(sorted(set(analysis.rounds["device"].dropna())))
    yield Paragraph(
        "Seconds per epoch in the rounds after the first, in each of which all flows took turns, "
        f"alone on the machine ({devices}). Ratio to affine with the same settings, paired by "
        "round: geometric mean with its 95 % t interval over rounds. Load average: median of those "
        "before the rounds; the measuring itself adds to it.",
        lead="Seconds.",
    )


def front(analysis: Analysis) -> Table:
    """Make the Pareto front, with the settings in which any two configurations differ."""
    found, metric = analysis.front, analysis.aim.metric
    settings = pd.DataFrame([dict(pairs) for pairs in found["settings"]]).fillna(MISSING)
    keys = [key for key in settings if key == TRANSFORM or settings[key].nunique() > 1]
    beaten = found["front"]
    rows = [
        [
            *(label(own[key]) if key == TRANSFORM else own[key] for key in keys),
            number(row[metric], schema.find(metric).places),
            number(row[SECONDS], 2),
            plain(row["runs"]),
            row["trials"] or MISSING,
        ]
        for own, row in zip(
            *(table[beaten].to_dict("records") for table in (settings, found)), strict=True
        )
    ]
    labels = [schema.find(key).label for key in keys]
    return Table([*labels, schema.find(metric).label, "s/epoch", "runs", "trials"], rows)


_RUN_NUMBERS = [
    SEED,
    "trainer.max_epochs",
    "workers",
    *(f"val/{term}" for term in ("loss", "prior", "logdet", "bpd")),
    "test/loss",
    "test/bpd",
    *schema.TIMES[:3],
]


def run_table(table: pd.DataFrame) -> Table:
    """Make a row per run, the finished and the others, with everything in which they differ.

    Args:
        table: All recorded runs of a study.
    """
    differing = recorded_runs.varied(table, machine=True)
    numbers = [name for name in _RUN_NUMBERS if table[name].notna().any()]
    words = ["run_id", "status", TRANSFORM]
    names = list(dict.fromkeys([*words, *differing, *numbers, *_unknown(table)]))
    order = {name: place for place, name in enumerate(ordered(table[TRANSFORM].dropna()))}
    places = table[TRANSFORM].map(order)
    rows = table.assign(place=places).sort_values(["place", SEED], kind="stable")
    cells = [
        [_cell(name, value) for name, value in zip(names, row, strict=True)]
        for row in rows[names].itertuples(index=False, name=None)
    ]
    labels = ["run", "status", "transform", *(schema.find(name).label for name in names[3:])]
    return Table(labels, cells, words=len(words))


def _cell(name: str, value: Any) -> str:
    column = schema.find(name)
    if name == "run_id":
        return str(value)[:8]  # enough to tell runs apart; runs.csv has the whole
    if name == TRANSFORM:
        return label(plain(value))
    if column.kind == "metric" and not isinstance(value, str):
        return number(value, column.places)
    return plain(value)


def _unknown(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if not schema.is_known(name)]


def made(analysis: Analysis) -> Table:
    """Make a row per setting, fact and machine of the finished runs, with all their values."""
    table = recorded_runs.finished(analysis.recorded.runs)
    names = schema.settings(table.columns)
    facts = [name for name in table.columns if schema.find(name).kind in ("fact", "machine")]
    skipped = ("bins", "parameters", "evaluation/seconds")
    names += ["scale", SEED, *(name for name in facts if name not in skipped)]
    rows = [
        [schema.find(name).label, values_of(table[name])]
        for name in names
        if table[name].notna().any()
    ]
    starts = sorted(table["started"].dropna())
    rows.append(["started", f"{starts[0]} to {starts[-1]}" if starts else MISSING])
    return Table(["setting", "value"], rows, words=2)


def values_of(column: pd.Series) -> str:
    """List the distinct values of a column, each with its number of runs if there are several."""
    counts = column.map(plain).value_counts(sort=False)
    if len(counts) == 1:
        return str(counts.index[0])
    runs = {value: f"{count} run" + "s" * (count > 1) for value, count in counts.items()}
    return ", ".join(f"{value} ({count})" for value, count in runs.items())


def variations(analysis: Analysis) -> list[str]:
    """List what the finished runs differ in besides transform and seed, with its values."""
    table = recorded_runs.finished(analysis.recorded.runs)
    names = recorded_runs.varied(table, machine=True)
    hashes = [name for name in table.columns if schema.is_hash(name)]
    facts = ["commit", "flowbench", "lightning", "test/draws", "fidelity/samples", *hashes]
    names += [name for name in facts if table[name].dropna().nunique() > 1]
    found = [
        f"{schema.find(name).label}: {values_of(table[name])}"
        for name in names
        if name not in analysis.tuned
    ]
    for name, values in analysis.tuned.items():
        listed = ", ".join(f"{label(one)} {plain(values[one])}" for one in ordered(values))
        found.append(f"{schema.find(name).label}, of each transform its own: {listed}")
    return found


def skipped(analysis: Analysis) -> str:
    """Say what was not measured of which runs, and why; empty where nothing was skipped."""
    reasons = analysis.runs["skipped"].dropna().astype("str").str.split("; ").explode()
    counts = reasons[reasons != ""].value_counts()
    return "; ".join(
        f"{reason} ({count} of {len(analysis.runs)} runs)" for reason, count in counts.items()
    )
