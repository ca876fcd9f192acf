"""The MLflow store: where runs are opened, written, found and closed."""

import json
import logging
import os
import sqlite3
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowbench import pretrained
from flowbench.config import Data, Experiment, flat, to_yaml
from flowbench.errors import Pruned, StoreError, UsageError
from flowbench.parsing import build, read_yaml
from flowbench.terminal import say
from flowbench.tracking import database
from flowbench.tracking.locks import exclusive, shown
from flowbench.tracking.provenance import HOST, PID, is_orphan, owner, provenance

# Read by MLflow when it is imported: no telemetry, an error within seconds if a server is down, no
# progress bars.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from alembic.util.exc import CommandError
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.entities import Run as Run
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME as MLFLOW_RUN_NAME
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

# MLflow logs every table that it creates, and the traceback of every error that it raises.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

PARENT = "mlflow.parentRunId"
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
"""Tag of an experiment by which MLflow knows that its runs train models; and its value."""
CONFIG = "config.yaml"
TRACEBACK = "traceback.txt"
PRUNED = "flowbench.pruned"
DATABASES = ("sqlite:", "postgresql")
"""Stores that this process opens itself; a server has its own database and artifacts."""


@contextmanager
def one_line_errors(uri: str) -> Iterator[None]:
    """Turn errors of reading and writing the store into a ``StoreError``."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError, sqlite3.Error) as error:
        cause: BaseException = error  # MLflow's own message is long and hides it
        while deeper := cause.__cause__ or cause.__context__:
            cause = deeper
        raise StoreError(
            f"the tracking store {shown(uri)} cannot be used: {cause}; valid is a writable SQLite "
            "file, or a PostgreSQL database or server that runs, set by MLFLOW_TRACKING_URI"
        ) from error


class Store:
    """The MLflow store: an SQLite file below ``results`` unless MLFLOW_TRACKING_URI says otherwise.

    Opening it closes the runs that killed processes of this machine left open.

    Args:
        results: Directory of the database, the artifacts and the checkpoints.

    Raises:
        UsageError: The directory cannot be written or the store cannot be opened.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self.artifacts: str | None = None
        own = (results / "mlflow.db").resolve()
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or database.address(own)
        file = Path(make_url(self.uri).database or "") if self.uri.startswith("sqlite:") else None
        try:
            results.mkdir(parents=True, exist_ok=True)
            if self.uri.startswith(DATABASES):
                _prepare(self.uri, file)
                artifacts = (results / "artifacts").resolve()
                self.artifacts = artifacts.as_uri()
                if file == own:
                    database.relocate(own, artifacts)
        except OSError as error:
            raise UsageError(f"results directory {results} cannot be written: {error}") from error
        with one_line_errors(self.uri):
            self.client: MlflowClient = database.Patient(MlflowClient(self.uri), file)  # type: ignore[assignment]
            self._reap()

    def experiment_id(self, name: str) -> str:
        """Find the MLflow experiment of this name, or make it."""
        with one_line_errors(self.uri):
            if found := self.client.get_experiment_by_name(name):
                if found.lifecycle_stage == "deleted":
                    self.client.restore_experiment(found.experiment_id)
                    say(f"experiment {name} was deleted: it is restored with its runs")
                made = str(found.experiment_id)
            else:
                location = f"{self.artifacts}/{name}" if self.artifacts else None
                made = str(self.client.create_experiment(name, artifact_location=location))
            if not found or KIND not in found.tags:
                self.client.set_experiment_tag(made, KIND, TRAINING)
            return made

    def start(self, group: str, name: str, tags: Mapping[str, str]) -> str:
        """Open a run, with its process and machine.

        Args:
            group: MLflow experiment under which the run appears.
            name: Name of the run.
            tags: Further tags.

        Returns:
            The run's id.
        """
        tags = {**tags, **owner(), **provenance()}
        with one_line_errors(self.uri):
            run = self.client.create_run(self.experiment_id(group), run_name=name, tags=tags)
            return str(run.info.run_id)

    def describe(self, run_id: str, experiment: Experiment, facts: Mapping[str, Any]) -> None:
        """Record a run's configuration, and facts about it and the machine; only once."""
        if self.get(run_id).data.params:
            return
        values = {**flat(asdict(experiment)), **facts}
        with one_line_errors(self.uri):
            self.client.log_text(run_id, to_yaml(experiment), CONFIG)
            params = [Param(key, str(value)) for key, value in values.items()]
            self.client.log_batch(run_id, params=params)

    def log(self, run_id: str, metrics: Mapping[str, float], epoch: int) -> None:
        """Record an epoch's metrics."""
        now = int(time.time() * 1000)
        with one_line_errors(self.uri):
            values = [Metric(key, value, now, epoch) for key, value in metrics.items()]
            self.client.log_batch(run_id, metrics=values)

    def text(self, run_id: str, name: str, text: str) -> None:
        """Save a text as an artifact of a run; an earlier one of this name is replaced."""
        with one_line_errors(self.uri):
            self.client.log_text(run_id, text, name)

    def note(self, run_id: str, text: str) -> None:
        """Describe a run in Markdown, which MLflow's page of the run shows at its top."""
        self.tag(run_id, {MLFLOW_RUN_NOTE: text})

    def files(self, run_id: str, directory: str, paths: Sequence[Path]) -> None:
        """Save files as artifacts of a run, in one of its directories."""
        with one_line_errors(self.uri):
            for path in paths:
                self.client.log_artifact(run_id, str(path), directory)

    def pictures(self, run_id: str, directory: Path) -> list[Path]:
        """Copy a run's last grids of samples into a directory; return their paths."""
        with one_line_errors(self.uri):
            found = self.client.list_artifacts(run_id, "samples")
            return [
                Path(self.client.download_artifacts(run_id, one.path, str(directory)))
                for one in found
                if one.path.endswith(".png")
            ]

    def data(self, run_id: str, data: Data, digest: str) -> None:
        """Record which images a run is about, as MLflow's input of a run."""
        about = json.dumps({"root": data.root})
        dataset = Dataset(data.name, digest, source_type="local", source=about)
        tags = [InputTag("mlflow.data.context", "training")]
        with one_line_errors(self.uri):
            self.client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    @contextmanager
    def closing(self, run_id: str) -> Iterator[None]:
        """Close a run after the context: FINISHED, KILLED by a signal, or FAILED.

        A pruned run is KILLED too, because it did not reach its end, and has a tag that says so.
        Where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is true, MLflow records the machine's load.
        """
        try:
            with one_line_errors(self.uri), self._monitored(run_id):
                yield
        except Pruned:
            self.tag(run_id, {PRUNED: "true"})
            self.finish(run_id, "KILLED")
            raise
        except (KeyboardInterrupt, SystemExit):
            with suppress(Exception):  # an error of the store must not hide the first one
                self.finish(run_id, "KILLED")
            raise
        except BaseException:
            with suppress(Exception):
                self.client.log_text(run_id, traceback.format_exc(), TRACEBACK)
            with suppress(Exception):
                self.finish(run_id, "FAILED")
            raise
        self.finish(run_id, "FINISHED")

    @contextmanager
    def _monitored(self, run_id: str) -> Iterator[None]:
        if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            yield
            return
        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def reopen(self, run_id: str) -> None:
        """Continue a stopped run; this process owns it from now on.

        Raises:
            UsageError: There is no such run, or another process runs it.
        """
        run = self.get(run_id)
        if run.info.status == "RUNNING":
            owner_of = f"process {run.data.tags[PID]} on {run.data.tags[HOST]}"
            raise UsageError(
                f"{run.info.run_name} is being run by {owner_of}: wait for it, or stop it"
            )
        with one_line_errors(self.uri):
            self.client.update_run(run_id, status="RUNNING")
        self.tag(run_id, {**owner(), **provenance()})

    def restore(self, run_id: str) -> None:
        """Bring back a run that was deleted in MLflow's pages, and its experiment."""
        with one_line_errors(self.uri):
            info = self.get(run_id).info
            self.experiment_id(self.client.get_experiment(info.experiment_id).name)
            if self.get(run_id).info.lifecycle_stage == "deleted":
                self.client.restore_run(run_id)
                say(f"run {info.run_name} was deleted: it is restored")

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        with one_line_errors(self.uri):
            given = [RunTag(key, value) for key, value in tags.items()]
            self.client.log_batch(run_id, tags=given)

    def finish(self, run_id: str, status: str) -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        with one_line_errors(self.uri):
            self.client.set_terminated(run_id, status)

    def get(self, run_id: str) -> Run:
        """Find a run by its id.

        Raises:
            UsageError: There is none.
        """
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            where = f"the store {shown(self.uri)}"
            raise UsageError(f"there is no run {run_id!r} in {where}") from error

    def experiment(self, run_id: str) -> Experiment:
        """Read back the configuration of a run.

        Raises:
            UsageError: There is no such run, or it trained nothing.
        """
        self.get(run_id)
        try:
            with tempfile.TemporaryDirectory() as directory:
                path = self.client.download_artifacts(run_id, CONFIG, directory)
                return build(read_yaml(Path(path), "configuration"))
        except (MlflowException, OSError) as error:
            raise UsageError(f"run {run_id} has no {CONFIG}: it trained nothing") from error

    @property
    def cache(self) -> Path:
        """Directory of results that several runs' evaluations share."""
        return self.results / "cache"

    def checkpoint(self, run_id: str) -> Path:
        """Return the path of a run's checkpoint."""
        return self.results / "checkpoints" / run_id / "last.ckpt"

    def checkpoint_of(self, run: str) -> Path:
        """Find the checkpoint that a run's id, a path or the name of a pretrained flow names.

        Raises:
            UsageError: It is none of them.
        """
        if Path(run).exists():
            return Path(run)
        if run in pretrained.flows():
            return pretrained.find(run)
        path = self.checkpoint(self.get(run).info.run_id)
        if not path.exists():
            raise UsageError(f"run {run} left no checkpoint in {path.parent}")
        return path

    def search(self, filter_string: str) -> list[Run]:
        """Find runs in all experiments, the newest first."""
        with one_line_errors(self.uri):
            ids = [e.experiment_id for e in self.client.search_experiments()]
            found: list[Run] = []
            token = None
            while ids:
                page = self.client.search_runs(
                    ids,
                    filter_string,
                    max_results=1000,
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
                found += page
                token = page.token
                if not token:
                    break
            return found

    def _reap(self) -> None:
        """Mark as KILLED the runs of this machine whose process is gone.

        A process that is killed outright cannot close its own runs.
        """
        for run in self.search("attributes.status = 'RUNNING'"):
            if is_orphan(run.data.tags):
                self.finish(run.info.run_id, "KILLED")


def _prepare(uri: str, file: Path | None) -> None:
    """Create the tables of a database under a lock: created by several processes they break."""
    with one_line_errors(uri), exclusive(uri):
        if file:
            database.wait(lambda: database.prepare(file))
        else:
            MlflowClient(uri).search_experiments(max_results=1)
