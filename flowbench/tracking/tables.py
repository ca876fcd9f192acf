"""Recorded runs as tables: a row per run, a row per run and epoch, and the evaluation's tables."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities import Run

from flowbench import schema
from flowbench.errors import UsageError
from flowbench.schema import LAYERS, LAYERS_LISTED, SECONDS, SEED, TIMES, TRANSFORM
from flowbench.tracking.store import PARENT, Store, one_line_errors

SAMPLES = "samples.npy"
VARIANTS = ("guided", "denoised", "trajectory")
"""Further arrays of images, ``guided.npy`` and so on, that a run may have."""
EVALUATION = "evaluation"
"""Directory of the artifacts with the tables of a run."""
TRIALS, IMPORTANCES = "trials.csv", "importances.csv"
"""Artifacts of a study's parent run: its trials, and the importance of each parameter."""
OBJECTIVES = "flowbench.objectives"
"""Tag of a study's parent run: minimize or maximize by the name of the metric, as JSON."""


def study_parent(store: Store, study: str) -> Run:
    """Find the newest recorded study of this name.

    Raises:
        UsageError: There is none; the message lists the recorded studies.
    """
    parents = store.search("tags.`flowbench.role` = 'study'")
    for run in parents:
        if run.data.tags["flowbench.study"] == study:
            return run
    known = ", ".join(sorted({run.data.tags["flowbench.study"] for run in parents})) or "none yet"
    raise UsageError(f"no study {study!r} is recorded in {store.uri}: recorded are {known}")


def newest(store: Store, study: str, scale: str) -> Run | None:
    """Find the newest recorded version of a study at a scale; None where there is none.

    Args:
        store: Where runs are recorded.
        study: Stem of the study's file, ``timing``.
        scale: Its scale.
    """
    name = f"{study}/{scale}"
    for run in store.search("tags.`flowbench.role` = 'study'"):
        if run.data.tags["flowbench.study"].partition("@")[0] == name:
            return run
    return None


def children(store: Store, parent_id: str) -> list[Run]:
    """Find the runs of a study, one for each configuration: the finished one, else the newest."""
    chosen: dict[str, Run] = {}
    for run in store.search(f"tags.`{PARENT}` = '{parent_id}'"):
        digest = run.data.tags["flowbench.digest"]
        if digest not in chosen or (
            run.info.status == "FINISHED" and chosen[digest].info.status != "FINISHED"
        ):
            chosen[digest] = run
    return list(chosen.values())


def read(store: Store, runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the runs' table, sorted by transform and seed, and their histories in the same order."""
    histories = [_history(store, run) for run in runs]
    rows = [_row(run, history) for run, history in zip(runs, histories, strict=True)]
    table = pd.DataFrame(rows).sort_values([TRANSFORM, SEED], ignore_index=True)
    filled = [history for history in histories if len(history)]
    history = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=["run_id"])
    order = {run_id: i for i, run_id in enumerate(table["run_id"])}
    return table, history.sort_values("run_id", key=lambda ids: ids.map(order), kind="stable")


def samples(store: Store, runs: pd.DataFrame) -> dict[str, np.ndarray[Any, Any]]:
    """Load, for each transform, the images of its best finished run (lowest ``val/loss``).

    Where runs differ in their data or noise, whose losses do not compare, there are images for each
    of these: the key is ``<transform>|gaussian``, with every value that differs.

    Shape:
        each uint8 ``[rows, classes, height, width, channels]``, and under ``<key>/guided`` and
        ``<key>/denoised`` the same; under ``<key>/trajectory``
        ``[blocks + 1, classes, height, width, channels]``
    """
    kinds = {SAMPLES: ""} | {f"{variant}.npy": f"/{variant}" for variant in VARIANTS}
    found = {}
    finished = runs[runs["status"] == "finished"]
    finished = finished.reindex(
        columns=[*finished.columns.difference(["val/loss"]), "val/loss"]
    ).sort_values("val/loss")
    protocol = list(filter(schema.is_protocol, schema.settings(finished)))
    differing = [name for name in protocol if finished[name].nunique(dropna=False) > 1]
    with one_line_errors(store.uri):
        for values, best in finished.groupby([TRANSFORM, *differing], sort=False, dropna=False):
            key = "|".join(map(str, values))
            run_id = best["run_id"].iloc[0]
            recorded = {artifact.path for artifact in store.client.list_artifacts(run_id)}
            for name, kind in kinds.items():
                if name in recorded:
                    path = Path(store.client.download_artifacts(run_id, name))
                    found[f"{key}{kind}"] = np.load(path, allow_pickle=False)
    return found


def evaluation(store: Store, runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Read the tables that the runs' evaluation left, ``evaluation/NAME.csv``, by their name.

    Returns:
        Each table of all runs that have it, ``run_id`` first, sorted by transform and seed.

    Raises:
        UsageError: The store cannot be read, or an artifact is not a table.
    """
    parts: dict[str, list[pd.DataFrame]] = {}
    for run in sorted(runs, key=_order):
        for name, table in _evaluation(store, run):
            table.insert(0, "run_id", run.info.run_id)
            parts.setdefault(name, []).append(table)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}


def search(store: Store, parent: Run) -> dict[str, pd.DataFrame]:
    """Read what a study has recorded of its trials, as text, so that every digit stays.

    Returns:
        ``trials`` and ``importances``, each where it is recorded.

    Raises:
        UsageError: The store cannot be read, or an artifact is not a table.
    """
    found, run_id = {}, parent.info.run_id
    with one_line_errors(store.uri), tempfile.TemporaryDirectory() as scratch:
        recorded = {artifact.path for artifact in store.client.list_artifacts(run_id)}
        for name in (TRIALS, IMPORTANCES):
            if name in recorded:
                path = Path(store.client.download_artifacts(run_id, name, scratch))
                try:
                    found[path.stem] = pd.read_csv(
                        path, dtype="str", keep_default_na=False, na_values=[""]
                    )
                except ValueError as error:
                    raise UsageError(f"{name} of run {run_id} is not a table: {error}") from error
    return found


def objectives(parent: Run) -> dict[str, str]:
    """Read what a study minimizes and maximizes; empty where it is not recorded."""
    recorded: dict[str, str] = json.loads(parent.data.tags.get(OBJECTIVES, "{}"))
    return recorded


def _order(run: Run) -> tuple[str, int]:
    params = run.data.params
    return params.get(TRANSFORM, ""), int(params.get(SEED, 0))


def _evaluation(store: Store, run: Run) -> Iterator[tuple[str, pd.DataFrame]]:
    where = f"{run.info.artifact_uri}/{EVALUATION}"  # by run_id MLflow asks the store thrice a file
    with one_line_errors(store.uri), tempfile.TemporaryDirectory() as scratch:
        if not list_artifacts(where, tracking_uri=store.uri):
            return
        directory = Path(download_artifacts(where, dst_path=scratch, tracking_uri=store.uri))
        for path in sorted(directory.glob("*.csv")):
            try:
                yield path.stem, pd.read_csv(path)
            except ValueError as error:
                raise UsageError(
                    f"{EVALUATION}/{path.name} of run {run.info.run_id} is not a table: {error}"
                ) from error


def _row(run: Run, history: pd.DataFrame) -> dict[str, Any]:
    """Gather a run's row: its settings and facts, its final metrics, its tags, its times."""
    params, tags = run.data.params, run.data.tags
    row: dict[str, Any] = {"run_id": run.info.run_id, "status": run.info.status.lower()}
    row |= {TRANSFORM: None, SEED: None}
    for key, value in params.items():
        if schema.is_setting(key) or key in schema.COLUMNS:
            row[key] = value if schema.find(key).text else _plain(value)
    row |= _layers(row)
    row |= {key: value for key, value in _metrics(run).items() if schema.find(key).final}
    for name, column in schema.COLUMNS.items():
        if column.tag:
            value = tags.get(column.tag, "")
            row[name] = value if column.text else float(value or "nan")
    row["name"] = row["name"] or "train"
    row |= {key: value for key, value in tags.items() if schema.is_hash(key)}
    row |= times(history)
    row["started"] = pd.Timestamp(run.info.start_time, unit="ms").isoformat(timespec="seconds")
    return row


def _layers(row: Mapping[str, Any]) -> dict[str, Any]:
    """Split layers that are listed by block into their mean and the list."""
    listed = row.get(LAYERS)
    if not isinstance(listed, str):
        return {}
    layers = [int(number) for number in re.findall(r"\d+", listed)]
    return {LAYERS: sum(layers) / len(layers), LAYERS_LISTED: "-".join(map(str, layers))}


def times(history: pd.DataFrame) -> dict[str, float]:
    """Summarise the times of one run's epochs.

    Returns:
        Medians over the epochs after the first, which includes the warm-up, and the sum of the
        seconds of all.
    """
    later = history[history["epoch"] > 1] if len(history) else history
    of_epochs = [key for key in TIMES if schema.find(key).epochs]
    row = {key: later[key].median() if key in later else np.nan for key in of_epochs}
    row["training_seconds"] = history[SECONDS].sum() if SECONDS in history else np.nan
    return row


def _history(store: Store, run: Run) -> pd.DataFrame:
    """Read one run's epochs; of an epoch recorded twice, as after a kill, the last record.

    A metric that the schema does not know is part of the history if it has several epochs.
    """
    columns: dict[str, dict[int, float]] = {}
    for key in _metrics(run):
        if schema.find(key).epochs:
            points = store.client.get_metric_history(run.info.run_id, key)
            latest = sorted(points, key=lambda point: point.timestamp)
            values = {point.step: point.value for point in latest}
            if schema.is_known(key) or len(values) > 1:
                columns[key] = values
    if not columns:
        return pd.DataFrame()
    table = pd.DataFrame(columns).rename_axis("epoch").sort_index().reset_index()
    table.insert(0, "run_id", run.info.run_id)
    return table[["run_id", "epoch", *sorted(columns, key=_metric_order)]]


def _metrics(run: Run) -> dict[str, float]:
    """Return a run's last metrics, without the machine's load, whose steps are no epochs."""
    return {key: value for key, value in run.data.metrics.items() if not key.startswith("system/")}


def _metric_order(metric: str) -> tuple[int, str, int]:
    """Sort the metrics of the schema as it lists them, and those of blocks by their number."""
    known = list(schema.COLUMNS)
    place = known.index(metric) if metric in known else len(known)
    stem, _, number = metric.rpartition("_")
    return (place, stem, int(number)) if number.isdecimal() else (place, metric, 0)


def _plain(value: str) -> str | int | float:
    """Read a recorded parameter: a number where it is one, else its text."""
    try:
        number = json.loads(value)
    except json.JSONDecodeError:
        return value
    return number if type(number) in (int, float) else value


def lost(runs: pd.DataFrame, search: Mapping[str, pd.DataFrame]) -> str:
    """Name the complete trials of a study that have no run, since it was deleted; or nothing."""
    trials = search.get(Path(TRIALS).stem)
    if trials is None or "trial" not in runs:
        return ""
    complete = trials["trial"][trials["state"] == "COMPLETE"].astype(int)
    recorded = set(runs["trial"].dropna().astype(int))
    return ", ".join(f"trial {number}" for number in complete if number not in recorded)
