"""A study: what is missing is run, once, whatever happened before."""

import shutil
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
import tiny
import torch
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from flowbench.errors import Interrupted, UsageError
from flowbench.module import FlowModule
from flowbench.study import StudyFile, read
from flowbench.sweep import sweep
from flowbench.tracking.store import Store
from flowbench.tracking.tables import children, study_parent

pytestmark = tiny.LIBRARIES


def study(directory: Path, **changes: Any) -> StudyFile:
    base: dict[str, Any] = {}
    for key, value in tiny.OPTIONS.items():
        group, _, name = key.rpartition(".")
        base.setdefault(group, {})[name] = value
    base["trainer"]["max_epochs"] = 1
    grid = {"model.transform": ["affine", "additive"], "seed": [0, 1]}
    content = {
        "question": "Which?",
        "expected": "This one.",
        "cost": {"quick": "seconds"},
        "base": base,
        "grid": grid,
        "scales": {"quick": {}},
        **changes,
    }
    file = directory / "which.yaml"
    file.write_text(yaml.safe_dump(content))
    return read(file)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a whole study."""
    directory = tmp_path_factory.mktemp("swept")
    sweep(study(directory), Store(tiny.results(directory / "results")))
    return directory / "results"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tiny.results(tmp_path / "results"))


def states(store: Store) -> list[str]:
    """States of Optuna's trials, in order."""
    journal = JournalStorage(JournalFileBackend(str(store.results / "optuna" / "which.log")))
    (name,) = optuna.get_all_study_names(storage=journal)
    return [
        trial.state.name for trial in optuna.load_study(study_name=name, storage=journal).trials
    ]


def statuses(store: Store) -> list[str]:
    """Statuses of the recorded runs, in the order in which they were started."""
    return list(reversed(tiny.runs(store).values()))


def parent_status(store: Store) -> str:
    return str(study_parent(store, "which").info.status)


def assert_complete(store: Store, points: int = 4) -> None:
    """Every point has one finished run; Optuna and MLflow agree; nothing is open."""
    parent = study_parent(store, "which")
    chosen = children(store, parent.info.run_id)
    assert [run.info.status for run in chosen] == ["FINISHED"] * points
    assert statuses(store).count("FINISHED") == states(store).count("COMPLETE") == points
    assert "RUNNING" not in statuses(store) + states(store)
    assert parent.info.status == "FINISHED"


def test_every_point_is_run_in_the_grids_order(swept: Path) -> None:
    store = Store(swept)
    assert_complete(store)
    runs = list(reversed(store.search("tags.`flowbench.role` = 'trial'")))
    named = [(run.data.params["model.transform"], run.data.params["seed"]) for run in runs]
    assert named == [("affine", "0"), ("affine", "1"), ("additive", "0"), ("additive", "1")]
    parent = study_parent(store, "which")
    for number, run in enumerate(runs):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["flowbench.trial"] == str(number)
    assert parent.data.tags["flowbench.question"] == "Which?"
    assert [found.path for found in store.client.list_artifacts(parent.info.run_id)] == [
        "which.yaml"
    ]


def test_a_complete_study_runs_nothing_again(swept: Path, tmp_path: Path) -> None:
    store = Store(swept)
    before = tiny.runs(store)
    parent = study_parent(store, "which").info.run_id
    assert sweep(study(tmp_path), store) == parent
    assert tiny.runs(store) == before
    assert_complete(store)


def test_a_changed_study_is_another_one(swept: Path, tmp_path: Path) -> None:
    results = shutil.copytree(swept, tmp_path / "results")
    store = Store(results)
    before = study_parent(store, "which").info.run_id
    changed = study(tmp_path, grid={"seed": [7]})
    assert sweep(changed, store) != before
    assert len(tiny.runs(store)) == 5


def test_a_stopped_study_goes_on_where_it_was(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = iter([False, True])
    step = FlowModule.training_step

    def patched(self: FlowModule, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 3 and next(stops, False):
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(FlowModule, "training_step", patched)
        with pytest.raises(Interrupted):
            sweep(study(tmp_path), store)
    assert statuses(store) == ["FINISHED", "KILLED"]
    assert states(store)[:2] == ["COMPLETE", "FAIL"]
    assert parent_status(store) == "KILLED"
    before = list(tiny.runs(store))

    sweep(study(tmp_path), store)
    assert_complete(store)
    assert len(tiny.runs(store)) == 4  # the stopped run went on as itself
    assert set(before) < set(tiny.runs(store))


def test_a_run_that_was_finished_before_optuna_knew_is_not_run_again(
    swept: Path, tmp_path: Path
) -> None:
    results = shutil.copytree(swept, tmp_path / "results")
    shutil.rmtree(results / "optuna")
    store = Store(results)
    before = tiny.runs(store)
    sweep(study(tmp_path), store)
    assert tiny.runs(store) == before
    assert_complete(store)


def test_a_trial_left_open_by_a_kill_is_run_again(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = shutil.copytree(swept, tmp_path / "results")
    store = Store(results)
    journal = JournalStorage(JournalFileBackend(str(results / "optuna" / "which.log")))
    (name,) = optuna.get_all_study_names(storage=journal)
    shutil.rmtree(results / "optuna")
    trials = optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(_made(results / "optuna") / "which.log"))),
    )
    trials.ask()  # killed before it had any parameters
    trials.enqueue_trial({"model.transform": "affine", "seed": 0})
    monkeypatch.setattr("flowbench.sweep.say", lambda _: None)
    sweep(study(tmp_path), store)
    assert states(store) == ["FAIL", *["COMPLETE"] * 4]
    assert_complete(store)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_a_failed_run_is_left_out_and_tried_again_the_next_time(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = FlowModule.training_step

    def diverges(self: FlowModule, batch: Any, batch_idx: int) -> Any:
        if self.experiment.model.transform == "affine" and self.experiment.seed == 1:
            with torch.no_grad():
                self.flow.blocks[1].network.proj_in.weight.fill_(torch.nan)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(FlowModule, "training_step", diverges)
        sweep(study(tmp_path), store)
    assert statuses(store) == ["FINISHED", "FAILED", "FINISHED", "FINISHED"]
    assert states(store) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert parent_status(store) == "FINISHED"
    told = capsys.readouterr().err
    assert "[2/4] affine seed 1 failed: diverged at step 0 (epoch 1)" in told
    assert "first in block 1 of 2" in told
    assert "1 of 4 runs failed" in told
    failed = next(run_id for run_id, status in tiny.runs(store).items() if status == "FAILED")
    assert "traceback.txt" in [found.path for found in store.client.list_artifacts(failed)]

    sweep(study(tmp_path), store)
    assert_complete(store)
    assert len(tiny.runs(store)) == 5


def test_a_study_whose_runs_all_fail_has_failed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(FlowModule, "training_step", fails)
    with pytest.raises(UsageError, match="every run of study which failed"):
        sweep(study(tmp_path, grid={"seed": [0]}), store)
    assert parent_status(store) == "FAILED"


def test_a_study_that_is_being_run_is_refused(store: Store, tmp_path: Path) -> None:
    which = study(tmp_path)
    tags = {"flowbench.role": "study", "flowbench.study": "which"}
    parent = store.start("which", "which", {**tags, "flowbench.digest": which.digest()})
    with pytest.raises(UsageError, match=r"which is being run by process \d+ on .*: wait"):
        sweep(which, store)
    assert store.get(parent).info.status == "RUNNING"
    assert tiny.runs(store) == {}


def test_a_damaged_journal_is_told_and_can_be_moved_away(swept: Path, tmp_path: Path) -> None:
    results = shutil.copytree(swept, tmp_path / "results")
    journal = results / "optuna" / "which.log"
    journal.write_text('{"half a li\n' + journal.read_text())
    with pytest.raises(UsageError, match=r"which.log cannot be read: .*move it away"):
        sweep(study(tmp_path), Store(results))
    journal.unlink()
    sweep(study(tmp_path), Store(results))
    assert_complete(Store(results))


def test_a_study_without_validation_runs(store: Store, tmp_path: Path) -> None:
    scales = {"quick": {"trainer": {"limit_val_batches": 0}}}
    sweep(study(tmp_path, grid={"seed": [0]}, scales=scales), store)
    assert_complete(store, points=1)


def test_a_study_that_asks_for_several_devices_is_refused(store: Store, tmp_path: Path) -> None:
    scales = {"quick": {"trainer": {"devices": 2}}}
    with pytest.raises(UsageError, match=r"trainer\.devices = 2 is not valid in a study"):
        sweep(study(tmp_path, scales=scales), store)
    assert store.search("") == []
