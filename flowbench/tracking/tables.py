"""Recorded runs as tables: a row a run, a row a run and epoch, and what their evaluation left."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities import Run

from flowbench.errors import UsageError
from flowbench.tracking.store import PARENT, Store, one_line_errors

TERMS = ("loss", "prior", "logdet", "bpd")
LOSSES = [f"{stage}/{term}" for stage in ("train", "val") for term in TERMS]
TIMES = ["seconds_per_epoch", "first_epoch", "images_per_second", "load"]
EPOCH_METRICS = [*LOSSES, *TIMES, "lr", "grad_norm"]
BLOCK_METRICS = ("max_log_slope/", "outside/")
EPOCH_FID = "val/fid_"
PARAMS = {
    "transform": "model.transform",
    "bins": "bins",
    "blocks": "model.blocks",
    "layers": "model.layers",
    "width": "model.width",
    "patch": "model.patch",
    "seed": "seed",
    "data": "data.name",
    "noise": "data.noise",
    "epochs": "trainer.max_epochs",
    "lr": "optim.lr",
    "batch": "data.batch",
    "parameters": "parameters",
    "device": "device",
    "threads": "threads",
    "classes": "classes",
}
TAGS = {
    "scale": "flowbench.scale",
    "torch": "version.torch",
    "lightning": "version.lightning",
    "flowbench": "version.flowbench",
    "commit": "commit",
    "skipped": "skipped",
}
TRIAL_TAGS = {"trial": "optuna.trial", "workers": "flowbench.workers"}
"""Those that trials have: Optuna's number, and how many workers shared the machine."""
EXTRACTOR = "extractor_"
"""Begin of the tags that have the hash of a feature extractor's weights."""
SAMPLES = "samples.npy"
VARIANTS = ("guided", "denoised", "trajectory")
"""Further arrays of images, ``guided.npy`` and so on, that a run may have."""
EVALUATION = "evaluation"
"""Directory of the artifacts with the tables of a run."""
TRIALS, IMPORTANCES = "trials.csv", "importances.csv"
"""Artifacts of a study's parent run: a row an attempt at a trial, and what each parameter does."""
OBJECTIVES = "flowbench.objectives"
"""Tag of a study's parent run: minimize or maximize by the name of the metric, as JSON."""


def study_parent(store: Store, study: str) -> Run:
    """Find the newest recorded study of this name.

    Raises:
        UsageError: There is none; says which there are.
    """
    parents = store.search("tags.`flowbench.role` = 'study'")
    for run in parents:
        if run.data.tags["flowbench.study"] == study:
            return run
    known = ", ".join(sorted({run.data.tags["flowbench.study"] for run in parents})) or "none yet"
    raise UsageError(f"no study {study!r} is recorded in {store.uri}: recorded are {known}")


def newest(store: Store, study: str, scale: str) -> Run | None:
    """Find the newest recorded study of a file and scale, whichever version; none where none is.

    Args:
        store: Where runs are recorded.
        study: Stem of the study's file, ``timing``.
        scale: Its scale.
    """
    name = study if scale == "quick" else f"{study}-{scale}"
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
    """Read the runs' table and their histories, both sorted by transform and seed."""
    histories = [_history(store, run) for run in runs]
    rows = [_row(run, history) for run, history in zip(runs, histories, strict=True)]
    table = pd.DataFrame(rows).sort_values(["transform", "seed"], ignore_index=True)
    filled = [history for history in histories if len(history)]
    history = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=["run_id"])
    order = {run_id: i for i, run_id in enumerate(table["run_id"])}
    return table, history.sort_values("run_id", key=lambda ids: ids.map(order), kind="stable")


def samples(store: Store, runs: pd.DataFrame) -> dict[str, np.ndarray[Any, Any]]:
    """Load, for each transform, the images of its best finished run (lowest ``val/loss``).

    Shape:
        each uint8 ``[rows, classes, height, width, channels]``, and under ``<transform>/guided``
        and ``<transform>/denoised`` the same; under ``<transform>/trajectory``
        ``[blocks + 1, classes, height, width, channels]``
    """
    kinds = {SAMPLES: ""} | {f"{variant}.npy": f"/{variant}" for variant in VARIANTS}
    found = {}
    finished = runs[runs["status"] == "finished"].sort_values("val/loss")
    with one_line_errors(store.uri):
        for transform, best in finished.groupby("transform", sort=False):
            run_id = best["run_id"].iloc[0]
            recorded = {artifact.path for artifact in store.client.list_artifacts(run_id)}
            for name, kind in kinds.items():
                if name in recorded:
                    path = Path(store.client.download_artifacts(run_id, name))
                    found[f"{transform}{kind}"] = np.load(path, allow_pickle=False)
    return found


def evaluation(store: Store, runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Read the tables that the runs' evaluation left, ``evaluation/NAME.csv``, by their name.

    Returns:
        Each table of all runs that have it, ``run_id`` first, sorted by transform and seed.

    Raises:
        UsageError: The store cannot be read, or what it has is not a table.
    """
    parts: dict[str, list[pd.DataFrame]] = {}
    for run in sorted(runs, key=_place):
        for name, table in _evaluation(store, run):
            table.insert(0, "run_id", run.info.run_id)
            parts.setdefault(name, []).append(table)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}


def search(store: Store, parent: Run) -> dict[str, pd.DataFrame]:
    """Read what a study has told of its trials, as text, so that every digit stays.

    Returns:
        ``trials`` and ``importances``, each where it is recorded.

    Raises:
        UsageError: The store cannot be read, or what it has is not a table.
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
    """Read what a study minimizes and maximizes; nothing where it has not told."""
    told: dict[str, str] = json.loads(parent.data.tags.get(OBJECTIVES, "{}"))
    return told


def _place(run: Run) -> tuple[str, int]:
    params = run.data.params
    return params.get("model.transform", ""), int(params.get("seed", 0))


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
    params, tags = run.data.params, run.data.tags
    row: dict[str, Any] = {
        "run_id": run.info.run_id,
        "name": tags.get("flowbench.study", "train"),
        "status": run.info.status.lower(),
    }
    row |= {column: _plain(params.get(key)) for column, key in PARAMS.items()}
    final = {
        key: value
        for key, value in run.data.metrics.items()
        if key in LOSSES or not _is_of_epochs(key)
    }
    row |= {key: final.get(key, np.nan) for key in LOSSES} | final
    row |= {column: float(tags.get(key, "nan")) for column, key in TRIAL_TAGS.items()}
    later = history[history["epoch"] > 1] if len(history) else history
    for key in ("seconds_per_epoch", "images_per_second", "load"):
        row[key] = later[key].median() if key in later else np.nan
    row["seconds"] = history["seconds_per_epoch"].sum() if len(history) else np.nan
    row |= {column: tags.get(key, "") for column, key in TAGS.items()}
    row |= {key: value for key, value in tags.items() if key.startswith(EXTRACTOR)}
    row["started"] = pd.Timestamp(run.info.start_time, unit="ms").isoformat(timespec="seconds")
    return row


def _history(store: Store, run: Run) -> pd.DataFrame:
    """Read one run's epochs; of an epoch recorded twice, as after a kill, the last record."""
    columns: dict[str, dict[int, float]] = {}
    for key in run.data.metrics:
        if _is_of_epochs(key):
            points = store.client.get_metric_history(run.info.run_id, key)
            latest = sorted(points, key=lambda point: point.timestamp)
            columns[key] = {point.step: point.value for point in latest}
    if not columns:
        return pd.DataFrame()
    table = pd.DataFrame(columns).rename_axis("epoch").sort_index().reset_index()
    ordered = [key for key in EPOCH_METRICS if key in table]
    ordered += sorted(key for key in table if key.startswith(EPOCH_FID))
    blocks = sorted(
        (key for key in table if key.startswith(BLOCK_METRICS)),
        key=lambda key: (key.split("_")[0], int(key.rsplit("_", 1)[1])),
    )
    params = run.data.params
    head = pd.DataFrame(
        {
            "run_id": run.info.run_id,
            "transform": params["model.transform"],
            "seed": int(params["seed"]),
        },
        index=table.index,
    )
    return pd.concat([head, table[["epoch", *ordered, *blocks]]], axis=1)


def _is_of_epochs(metric: str) -> bool:
    return metric in EPOCH_METRICS or metric.startswith((*BLOCK_METRICS, EPOCH_FID))


def _plain(value: str | None) -> Any:
    try:
        return json.loads(value) if value is not None else None
    except json.JSONDecodeError:
        return value
