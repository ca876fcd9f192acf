"""The store: what is recorded of a run, whose it is, and what becomes of it."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny
import yaml
from PIL import Image

from flowbench import config
from flowbench.config import Data
from flowbench.data import load
from flowbench.errors import UsageError
from flowbench.experiment import Record, run
from flowbench.parsing import build
from flowbench.tracking import tables
from flowbench.tracking.provenance import is_gone, is_local, is_orphan, owner
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tiny.results(tmp_path_factory.mktemp("tracked")))


@pytest.fixture(scope="module")
def record(store: Store) -> Record:
    options = {"model__transform": "rqs-4", "evaluate__samples_every": 1}
    return run(tiny.experiment(**options), store)


def artifact(store: Store, run_id: str, path: str) -> Path:
    return Path(store.client.download_artifacts(run_id, path))


def test_the_whole_configuration_is_recorded(store: Store, record: Record) -> None:
    params = store.get(record.run_id).data.params
    assert params["model.transform"] == "rqs-4"
    assert params["bins"] == "4"
    assert params["optim.betas"] == "(0.9, 0.95)"
    assert params["trainer.max_epochs"] == "2"
    assert int(params["parameters"]) == sum(p.numel() for p in record.flow.parameters())
    assert params["device"]
    assert params["threads"] == "1"
    text = artifact(store, record.run_id, "config.yaml").read_text()
    assert build(yaml.safe_load(text)) == store.experiment(record.run_id)


def test_the_tags_say_where_the_numbers_come_from(store: Store, record: Record) -> None:
    tags = store.get(record.run_id).data.tags
    assert tags["version.torch"].startswith("2.")
    assert {"version.mlflow", "version.flowbench", "version.python", "commit"} <= tags.keys()
    assert "cores" in tags["machine"]
    assert tags["flowbench.digest"] == store.experiment(record.run_id).digest()
    assert tags["flowbench.pid"] == str(os.getpid())
    head = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
    assert tags["commit"].rstrip("+") == commit


def test_mlflow_knows_what_kind_of_experiment_it_is_and_its_images(
    store: Store, record: Record
) -> None:
    run = store.get(record.run_id)
    experiment = store.client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    (given,) = run.inputs.dataset_inputs
    assert given.dataset.name == "mnist-5k"
    assert given.dataset.digest == run.data.tags["data_hash"] == load(Data()).digest


def test_samples_are_recorded_as_images_and_as_numbers(store: Store, record: Record) -> None:
    with Image.open(artifact(store, record.run_id, "samples/samples.png")) as image:
        assert image.size == (10 * 30 + 2, 30 + 2)
    stepped = [file.path for file in store.client.list_artifacts(record.run_id, "images")]
    pictures = [name for name in stepped if name.endswith(".png")]
    assert [re.search(r"step.(\d+)", name)[1] for name in sorted(pictures)] == ["1", "2"]
    images = np.load(artifact(store, record.run_id, "samples.npy"))
    assert images.shape == (1, 10, 28, 28, 1)


def test_a_record_has_the_last_value_of_every_metric(store: Store, record: Record) -> None:
    assert record.metrics == store.get(record.run_id).data.metrics
    assert {"train/loss", "val/bpd", "test/bpd", "outside/block_1"} <= record.metrics.keys()


def test_tables_hold_a_row_a_run_and_a_row_an_epoch(store: Store, record: Record) -> None:
    runs, history = tables.read(store, [store.get(record.run_id)])
    (row,) = runs.to_dict("records")
    assert (row["model.transform"], row["bins"], row["trainer.max_epochs"]) == ("rqs-4", 4, 2)
    assert (row["kernels"], row["precision"]) == (record.flow.kernels(), "32-true")
    assert {name for name in row if name.startswith("optim.")} == {
        name for name in config.options() if name.startswith("optim.")
    }
    assert row["status"] == "finished"
    assert row["test/bpd"] == record.metrics["test/bpd"]
    assert list(history["epoch"]) == [1, 2]
    assert history["val/loss"].iloc[-1] == record.metrics["val/loss"]
    assert row["seconds_per_epoch"] == history["seconds_per_epoch"].iloc[1]  # not the first


# Whose a run is


def test_a_process_owns_its_runs_as_long_as_it_lives() -> None:
    mine = owner()
    assert is_local(mine)
    assert not is_gone(mine)
    assert not is_orphan(mine)
    later = {**mine, "flowbench.process_started": "1.00"}  # another process had this number
    assert is_gone(later)
    assert is_orphan(later)


@pytest.mark.parametrize("key", ["host", "boot", "pid_namespace"])
def test_a_process_that_is_counted_elsewhere_cannot_be_told_from_here(key: str) -> None:
    elsewhere = {**owner(), f"flowbench.{key}": "another", "flowbench.process_started": "1.00"}
    assert not is_local(elsewhere)
    assert not is_gone(elsewhere)
    assert is_orphan(elsewhere) == (key == "boot")  # this machine has been started again


def test_a_dead_process_that_nobody_has_asked_for_is_gone() -> None:
    code = (
        "import json; from flowbench.tracking.provenance import owner; print(json.dumps(owner()))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        named = json.loads(process.stdout.readline())
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert is_gone(named)


def test_runs_of_killed_processes_are_closed(tmp_path: Path) -> None:
    results = tiny.results(tmp_path / "results")
    code = (
        "import os, sys; from pathlib import Path; from flowbench.tracking.store import Store;"
        "Store(Path(sys.argv[1])).start('train', 'killed', {}); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(results)], check=False, timeout=120)
    assert ended.returncode == -9
    live = Store(results).start("train", "live", {})
    again = Store(results)
    statuses = {run.info.run_id: run.info.status for run in again.search("")}
    assert statuses.pop(live) == "RUNNING"
    assert list(statuses.values()) == ["KILLED"]


def test_a_run_is_closed_with_what_happened(store: Store) -> None:
    for error, status in ((None, "FINISHED"), (ValueError, "FAILED"), (SystemExit, "KILLED")):
        run_id = store.start("train", "closing", {})
        try:
            with store.closing(run_id):
                if error:
                    raise error("why")
        except (ValueError, SystemExit):
            pass
        assert store.get(run_id).info.status == status
    assert "why" in artifact(store, store.search("")[1].info.run_id, "traceback.txt").read_text()


def _open(results: Path) -> None:
    Store(results).start("train", "racing", {})


@pytest.mark.slow
def test_processes_may_open_a_new_store_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    racing = [context.Process(target=_open, args=(tmp_path / "new",)) for _ in range(3)]
    for process in racing:
        process.start()
    for process in racing:
        process.join(120)
    assert [process.exitcode for process in racing] == [0, 0, 0]
    assert len(Store(tmp_path / "new").search("")) == 3


def test_another_store_is_chosen_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tiny.results(tmp_path / "elsewhere") / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}")
    store = Store(tmp_path / "results")
    run_id = store.start("train", "there", {})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Store(tmp_path / "elsewhere").get(run_id).info.status == "RUNNING"
    assert not (tmp_path / "results" / "mlflow.db").exists()


# What cannot go on


def test_only_a_stopped_run_goes_on(store: Store, record: Record) -> None:
    experiment = store.experiment(record.run_id)
    with pytest.raises(UsageError, match="is finished: there is nothing to resume"):
        run(experiment, store, resume=record.run_id)
    live = store.start("train", "live", {})
    with pytest.raises(UsageError, match=rf"live is being run by process {os.getpid()} on .*wait"):
        run(experiment, store, resume=live)
    store.finish(live, "KILLED")
    with pytest.raises(UsageError, match=r"has no config.yaml"):
        store.experiment(live)
    with pytest.raises(UsageError, match="there is no run 'nothing'"):
        store.experiment("nothing")


def test_a_run_without_a_checkpoint_is_told(store: Store) -> None:
    run_id = store.start("train", "early", {})
    with pytest.raises(UsageError, match=f"run {run_id} left no checkpoint"):
        store.checkpoint_of(run_id)


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(UsageError, match=r"mlflow.db cannot be used: file is not a database"):
        Store(tmp_path)


def test_an_unreachable_server_is_told_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"http://127.0.0.1:9 cannot be used: .*refused"):
        Store(tmp_path)
