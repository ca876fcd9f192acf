"""Trained flows as models of MLflow: logged with their run, registered, and loaded again.

MLflow calls such a module a flavour. A flow is saved in two forms. ``mlflow.pytorch.load_model``
reads the first, a pickle of MLflow's, and gives the ``Flow`` itself. ``mlflow.pyfunc.load_model``
reads the second, flowbench's checkpoint, with ``weights_only=True``; its ``predict`` gives
log-densities or samples.
"""

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow import pyfunc, pytorch
from mlflow.entities import Run
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from flowbench import __version__
from flowbench.checkpoint import load
from flowbench.errors import UsageError
from flowbench.evaluation import sampling
from flowbench.module import FlowModule
from flowbench.tracking.store import Store, one_line_errors

CHECKPOINT = "flow.ckpt"
METHODS = ("log_prob", "sample")
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(Array(DataType.double), "image", required=False),
            ColSpec(DataType.long, "label", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(DataType.double, "log_prob", required=False),
            ColSpec(Array(DataType.double), "image", required=False),
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("method", DataType.string, METHODS[0]),
            ParamSpec("seed", DataType.long, 0),
            ParamSpec("temperature", DataType.double, 1.0),
        ]
    ),
)
"""A row per image: its numbers in one list, channel by channel; and its class."""


class PyfuncFlow:
    """What ``mlflow.pyfunc.load_model`` gives for a flow.

    Args:
        module: The flow.
    """

    def __init__(self, module: FlowModule) -> None:
        self.flow = module.flow

    def predict(self, rows: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Give the log-density of every image, or a sample for every row.

        Args:
            rows: ``image``, C · H · W numbers on [−1, 1], for log-densities; ``label``, its class;
                where it is left out, or −1, there is none.
            params: ``method`` is log_prob or sample; ``seed`` and ``temperature`` are of samples.

        Returns:
            ``log_prob`` in nats, or ``image`` as above.

        Raises:
            UsageError: There is no such method, a class is unknown, or images are missing or of
                another size.
        """
        chosen = {param.name: param.default for param in SIGNATURE.params} | (params or {})
        labels = self._labels(rows)
        with torch.no_grad():
            if chosen["method"] == "log_prob":
                log_prob = self.flow.log_prob(self._images(rows), labels)
                return pd.DataFrame({"log_prob": log_prob.double()})
            if chosen["method"] == "sample":
                how = sampling.Sampling(int(chosen["seed"]), float(chosen["temperature"]))
                images = sampling.draw(self.flow, labels, how)
                return pd.DataFrame({"image": list(images.flatten(1).double().numpy())})
        raise UsageError(f"method = {chosen['method']!r} is not valid: {' or '.join(METHODS)}")

    def _labels(self, rows: pd.DataFrame) -> torch.Tensor:
        labels = rows.get("label", pd.Series(-1, rows.index)).fillna(-1).astype(int)
        if ((labels < -1) | (labels >= self.flow.classes)).any():
            valid = f"-1 (none) to {self.flow.classes - 1}"
            raise UsageError(f"label is not valid: {labels.min()} to {labels.max()}, not {valid}")
        return torch.tensor(labels.to_numpy())

    def _images(self, rows: pd.DataFrame) -> torch.Tensor:
        shape = tuple(self.flow.shape)
        numbers = int(np.prod(shape))
        if "image" not in rows or {len(image) for image in rows["image"]} != {numbers}:
            raise UsageError(f"image is not valid: {numbers} numbers, {shape}, in every row")
        images = np.stack([np.asarray(image, np.float32) for image in rows["image"]])
        return torch.from_numpy(images).reshape(-1, *shape)


def save_model(path: str, mlflow_model: Model, checkpoint: Path) -> None:
    """Save the flow of a checkpoint; ``Model.log`` calls it.

    Args:
        path: Directory of the model, which is made.
        mlflow_model: What describes it.
        checkpoint: The checkpoint.
    """
    needs = [f"flowbench=={__version__}"]
    flow = load(checkpoint).flow
    pytorch.save_model(
        flow,
        path,
        mlflow_model=mlflow_model,
        pip_requirements=needs,
        signature=SIGNATURE,
        serialization_format="pickle",
    )
    shutil.copyfile(checkpoint, Path(path) / CHECKPOINT)
    environment = mlflow_model.flavors["python_function"]["env"]
    pyfunc.add_to_model(mlflow_model, __name__, data=CHECKPOINT, env=environment)
    mlflow_model.save(str(Path(path) / MLMODEL_FILE_NAME))


def _load_pyfunc(path: str) -> PyfuncFlow:
    """Load a flow for ``mlflow.pyfunc``, which calls this by its name."""
    return PyfuncFlow(load(Path(path)))


@contextmanager
def tracking(store: Store) -> Iterator[None]:
    """Have MLflow's own functions use a store inside; they know no other way to name it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(store.uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it


def register(store: Store, of: str, name: str | None, alias: str | None) -> tuple[str, str]:
    """Log a trained flow as a model of its run, and register it.

    Args:
        store: Where it is recorded.
        of: A run's id, or a study such as bins/quick, whose best run in validation is taken.
        name: Registered name; None for the study's, with - for /.
        alias: Alias to give to this version, such as best.

    Returns:
        The run, and the address by which MLflow loads the model.

    Raises:
        UsageError: There is no such run or study, or no best one, or no checkpoint; or the name or
            the alias is not valid.
    """
    run = _best(store, of)
    checkpoint = store.checkpoint_of(run.info.run_id)
    name = name or run.data.params["name"].replace("/", "-")
    with one_line_errors(store.uri), tracking(store), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Any type hint is inferred")  # of MLflow's own
        logged = store.client.create_logged_model(
            run.info.experiment_id, "flow", run.info.run_id, params=run.data.params
        )
        made = Model.log(
            None,
            flavor=sys.modules[__name__],
            model_id=logged.model_id,
            run_id=run.info.run_id,
            registered_model_name=name,
            checkpoint=checkpoint,
        )
        number = made.registered_model_version
        store.client.update_model_version(name, str(number), _about(run))
        if alias:
            store.client.set_registered_model_alias(name, alias, str(number))
    return str(run.info.run_id), f"models:/{name}@{alias}" if alias else f"models:/{name}/{number}"


def _about(run: Run) -> str:
    """Describe a flow in Markdown."""
    params, metrics = run.data.params, run.data.metrics
    found = [
        f"{key} {metrics[key]:.4g}"
        for key in ("val/loss", "test/bpd", "test/nll")
        if key in metrics
    ]
    return (
        f"{run.info.run_name} of {params['name']}: a flow of {params['data.name']} with the "
        f"transform {params['model.transform']}; {', '.join(found)}. As a function: one row an "
        "image, with the parameters method (log_prob or sample), seed and temperature."
    )


def _best(store: Store, of: str) -> Run:
    """Find a run, or the finished run of a study with the lowest validation loss."""
    with one_line_errors(store.uri):
        study = store.client.get_experiment_by_name(of)
    if study is None:
        return store.get(of)
    runs = [
        run
        for run in store.search("attributes.status = 'FINISHED'")
        if run.info.experiment_id == study.experiment_id and "val/loss" in run.data.metrics
    ]
    for key in ("data.name", "data.noise"):
        if len(values := {run.data.params[key] for run in runs}) > 1:
            raise UsageError(
                f"{of} has no best run, for {key} differs: {', '.join(sorted(values))}"
            )
    if not runs:
        raise UsageError(f"{of} has no finished run with a validation loss")
    return min(runs, key=lambda run: run.data.metrics["val/loss"])
