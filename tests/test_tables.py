"""What is read from the store: runs, their epochs, and what their evaluation left."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from mlflow.entities import Metric, Param

from flowbench.errors import UsageError
from flowbench.tracking import tables
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tiny.results(tmp_path / "results"))


def recorded(
    store: Store,
    transform: str,
    seed: int,
    loss: float = 0.0,
    tables: dict[str, pd.DataFrame] | None = None,
    images: dict[str, int] | None = None,
) -> str:
    """A finished run with these tables and images of one value."""
    run_id = store.start("study", f"{transform} {seed}", {"extractor_digits": "12e45678"})
    params = [Param("model.transform", transform), Param("seed", str(seed)), Param("classes", "10")]
    values = {"val/loss": loss, "seconds_per_epoch": 1.0, "images_per_second": 1.0}
    metrics = [Metric(key, value, 1, 1) for key, value in {**values, "fid_digits": 3.5}.items()]
    store.client.log_batch(run_id, metrics=metrics, params=params)
    for name, table in (tables or {}).items():
        store.client.log_text(run_id, table.to_csv(index=False), f"evaluation/{name}.csv")
    for name, value in (images or {}).items():
        path = store.results / f"{name}.npy"
        np.save(path, np.full((2, 10, 8, 8, 1), value, dtype=np.uint8))
        store.client.log_artifact(run_id, str(path))
    store.finish(run_id, "FINISHED")
    return run_id


def test_tables_of_all_runs_are_joined_in_their_order(store: Store) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3))
    two = recorded(
        store,
        "affine",
        2,
        tables={
            "patches": pd.DataFrame({"bpd": values[2]}),
            "confusion": pd.DataFrame({"label": [0, 1], "count": [5, 6]}),
        },
    )
    recorded(store, "affine", 3)
    ten = recorded(store, "affine", 10, tables={"patches": pd.DataFrame({"bpd": values[1]})})
    last = recorded(store, "rqs-8", 0, tables={"patches": pd.DataFrame({"nll": values[0]})})
    found = tables.evaluation(store, store.search(""))
    assert found.keys() == {"patches", "confusion"}
    patches = found["patches"]
    assert list(patches.columns) == ["run_id", "bpd", "nll"]
    assert list(dict.fromkeys(patches["run_id"])) == [two, ten, last]
    assert patches["bpd"].dropna().tolist() == [*values[2], *values[1]]
    assert patches["nll"].dropna().tolist() == values[0].tolist()
    assert found["confusion"].to_dict("list") == {
        "run_id": [two, two],
        "label": [0, 1],
        "count": [5, 6],
    }


def test_runs_that_were_not_evaluated_leave_no_tables(store: Store) -> None:
    recorded(store, "affine", 0)
    assert tables.evaluation(store, store.search("")) == {}


def test_what_is_not_a_table_is_told_with_its_run(store: Store) -> None:
    run_id = recorded(store, "affine", 0)
    store.client.log_text(run_id, "", "evaluation/patches.csv")
    message = f"evaluation/patches.csv of run {run_id} is not a table: No columns"
    with pytest.raises(UsageError, match=message):
        tables.evaluation(store, store.search(""))


def test_images_are_those_of_the_best_run_under_their_kinds(store: Store) -> None:
    recorded(store, "affine", 0, loss=2.0, images={"samples": 1, "guided": 2})
    recorded(store, "affine", 1, loss=1.0, images={"samples": 3, "trajectory": 4, "denoised": 5})
    recorded(store, "rqs-8", 0, loss=3.0, images={"samples": 6})
    runs, _ = tables.read(store, store.search(""))
    found = {key: int(images.max()) for key, images in tables.samples(store, runs).items()}
    assert found == {"affine": 3, "affine/denoised": 5, "affine/trajectory": 4, "rqs-8": 6}


def test_scores_and_their_extractor_are_columns(store: Store) -> None:
    recorded(store, "affine", 0)
    runs, _ = tables.read(store, store.search(""))
    (row,) = runs.to_dict("records")
    assert (row["fid_digits"], row["extractor_digits"], row["classes"]) == (3.5, "12e45678", 10)


def test_workers_and_load_are_columns_of_runs(store: Store) -> None:
    run_id = recorded(store, "affine", 0)
    store.tag(run_id, {"flowbench.workers": "2"})
    metrics = [Metric("load", value, step, step) for step, value in ((1, 9.0), (2, 1.0), (3, 2.0))]
    metrics += [Metric("seconds_per_epoch", 1.0, step, step) for step in (1, 2, 3)]
    store.client.log_batch(run_id, metrics=metrics)
    recorded(store, "rqs-8", 0)
    runs, _ = tables.read(store, store.search(""))
    assert runs["workers"].fillna(0).tolist() == [2, 0]
    assert runs["load"].fillna(0).tolist() == [1.5, 0]


def test_the_newest_study_of_a_file_and_scale_is_found_whatever_its_version(store: Store) -> None:
    ids = {}
    for name in ("timing/quick", "timing/quick@2", "timing/full", "other/quick"):
        tags = {"flowbench.role": "study", "flowbench.study": name}
        ids[name] = store.start(name, name, tags)
    found = {scale: tables.newest(store, "timing", scale) for scale in ("quick", "full", "tiny")}
    assert {scale: run.info.run_id for scale, run in found.items() if run} == {
        "quick": ids["timing/quick@2"],
        "full": ids["timing/full"],
    }
