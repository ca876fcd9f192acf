"""Trained flows as models of MLflow: registered, loaded by MLflow's own functions, moved."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from flowbench.__main__ import main
from flowbench.checkpoint import load
from flowbench.errors import UsageError
from flowbench.evaluation.sampling import Sampling, draw
from flowbench.experiment import run
from flowbench.flow import Flow
from flowbench.registry import register, tracking
from flowbench.tracking.store import Store

pytestmark = pytest.mark.slow

BEST = "models:/two-quick@best"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with two runs of the study ``two/quick``, the better one registered."""
    store = Store(tmp_path_factory.mktemp("registry"))
    for seed in range(2):
        run(tiny.experiment(name="two/quick", seed=seed), store)
    assert main(["register", "two/quick", "--alias", "best", "--results", str(store.results)]) == 0
    return store


@pytest.fixture(scope="module")
def best(store: Store) -> str:
    """Id of the run with the lowest validation loss."""
    runs = store.search("attributes.status = 'FINISHED'")
    return str(min(runs, key=lambda one: one.data.metrics["val/loss"]).info.run_id)


@pytest.fixture(scope="module")
def flow(store: Store, best: str) -> Flow:
    """Its flow."""
    return load(store.checkpoint(best)).flow


@pytest.fixture(scope="module")
def model(store: Store) -> mlflow.pyfunc.PyFuncModel:
    """What MLflow loads of it as a function."""
    with tracking(store):
        return mlflow.pyfunc.load_model(BEST)


def test_the_best_flow_of_a_study_is_registered_under_an_alias(store: Store, best: str) -> None:
    found = store.client.get_model_version_by_alias("two-quick", "best")
    assert found.run_id == best
    assert (
        "of two/quick: a flow of mnist-5k with the transform affine; val/loss" in found.description
    )
    assert (store.results / "artifacts/two/quick/models").is_dir()
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_mlflow_loads_the_flow_itself(store: Store, flow: Flow) -> None:
    with tracking(store):
        loaded = mlflow.pytorch.load_model(BEST)
    images, y = torch.randn(3, *flow.shape), torch.tensor([0, 1, -1])
    torch.testing.assert_close(loaded.log_prob(images, y), flow.log_prob(images, y))


def test_pyfunc_gives_log_densities_and_samples(
    model: mlflow.pyfunc.PyFuncModel, flow: Flow
) -> None:
    labels = [1, 0, -1]
    drawn = model.predict(pd.DataFrame({"label": labels}), params={"method": "sample", "seed": 3})
    expected = draw(flow, torch.tensor(labels), Sampling(seed=3))
    images = torch.tensor(np.stack(list(drawn["image"])), dtype=torch.float32).view_as(expected)
    torch.testing.assert_close(images, expected)
    rows = pd.DataFrame({"image": list(drawn["image"].map(list)), "label": labels})
    for given, y in ((rows, torch.tensor(labels)), (rows[["image"]], None)):
        log_prob = flow.log_prob(images, y).detach()
        np.testing.assert_allclose(model.predict(given)["log_prob"], log_prob, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ({"label": [99]}, {"method": "sample"}, "label is not valid"),
        ({"label": [0]}, {}, "image is not valid"),
        ({"image": [[0.5]]}, {}, "image is not valid"),
        ({"label": [0]}, {"method": "guess"}, "method = 'guess' is not valid: log_prob or sample"),
    ],
)
def test_wrong_rows_are_named(
    model: mlflow.pyfunc.PyFuncModel,
    rows: dict[str, list[object]],
    params: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        model.predict(pd.DataFrame(rows), params=params)


def test_what_cannot_be_registered_is_named(store: Store) -> None:
    with pytest.raises(UsageError, match="there is no run 'three/quick'"):
        register(store, "three/quick", None, None)
    for noise in ("gaussian", "uniform"):
        run(tiny.experiment(name="mixed", data__noise=noise), store)
    with pytest.raises(UsageError, match=r"mixed has no best run, for data\.noise differs"):
        register(store, "mixed", None, None)


def test_a_registered_model_is_found_after_the_results_were_moved(tmp_path: Path) -> None:
    run_id = run(tiny.experiment(), Store(tmp_path / "before")).run_id
    register(Store(tmp_path / "before"), run_id, "moved", None)
    (tmp_path / "before").rename(tmp_path / "after")
    code = 'import mlflow; print(type(mlflow.pytorch.load_model("models:/moved/1")).__name__)'
    # In a process of its own: MLflow keeps in memory where it found a model.
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MLFLOW_TRACKING_URI": Store(tmp_path / "after").uri},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout == "Flow\n", ended.stderr
