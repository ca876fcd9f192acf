"""The life of a trial, in one process: what is run and told, what an end of any kind leaves."""

import math
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import studies
import tiny
import torch
from mlflow.tracking._tracking_service import utils
from optuna.artifacts import get_all_artifact_meta
from optuna.pruners import BasePruner, ThresholdPruner

from flowbench.__main__ import main
from flowbench.errors import Interrupted, StoreError, UsageError
from flowbench.module import FlowModule
from flowbench.study import StudyFile
from flowbench.sweep import parent, trial
from flowbench.sweep.heartbeat import Heartbeat
from flowbench.sweep.optuna_study import PARENT_RUN
from flowbench.sweep.parent import journal, sweep
from flowbench.sweep.planned import END, INDEX, OVERHEAD, OWNER, RUNS, PlannedTrials
from flowbench.sweep.stop import Stop
from flowbench.sweep.storage import Storage
from flowbench.tracking import tables
from flowbench.tracking.provenance import STARTED, owner
from flowbench.tracking.store import PARENT, Store

pytestmark = tiny.LIBRARIES


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a whole study."""
    directory = tmp_path_factory.mktemp("swept")
    studies.run(studies.study(directory), Store(tiny.results(directory / "results")))
    return directory / "results"


@pytest.fixture
def copy(swept: Path, tmp_path: Path) -> Store:
    """A copy of these, to be changed."""
    utils._artifact_repos_cache.clear()  # MLflow's, by run: it would write to the original's files
    return Store(Path(shutil.copytree(swept, tmp_path / "results")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tiny.results(tmp_path / "results"))


@pytest.fixture
def two(tmp_path: Path) -> StudyFile:
    """A grid of two points."""
    return studies.study(tmp_path, seeds=[0])


@pytest.mark.slow
def test_a_spent_budget_starts_nothing_and_the_same_command_goes_on(
    two: StudyFile, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = sweep(two, store, workers=1, budget=1e-3)
    assert (
        "the budget is spent: 0 of 2 trials done; the same command goes on"
        in capsys.readouterr().err
    )
    assert store.search(f"tags.`{PARENT}` = '{parent}'") == []
    assert sweep(two, store, workers=1, budget=600.0) == parent
    assert "the budget is spent" not in capsys.readouterr().err
    assert len(store.search(f"tags.`{PARENT}` = '{parent}'")) == 2


@contextmanager
def during(act: Callable[[FlowModule, int], Any]) -> Iterator[pytest.MonkeyPatch]:
    """Do something at the start of every training step inside."""
    step = FlowModule.training_step

    def patched(self: FlowModule, batch: Any, batch_idx: int) -> Any:
        act(self, batch_idx)
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlowModule, "training_step", patched)
        yield patch


def statuses(store: Store, made: PlannedTrials) -> list[str]:
    return [run.info.status for run in studies.recorded(store, made)]


def as_if_killed(made: PlannedTrials, number: int) -> None:
    """Leave a running trial as one whose process is dead."""
    made.storage.backend.set_trial_user_attr(made.id(number), OWNER, {**owner(), STARTED: "0.50"})


# Without disturbance


def test_every_point_is_run_in_the_grids_order(copy: Store, tmp_path: Path) -> None:
    made = studies.run(studies.study(tmp_path), copy)
    studies.assert_complete(copy, made)
    runs = studies.recorded(copy, made)
    named = [(run.data.params["model.transform"], run.data.params["seed"]) for run in runs]
    assert named == [("affine", "0"), ("additive", "0"), ("affine", "1"), ("additive", "1")]
    names = [run.info.run_name for run in runs]
    assert names == [f"{transform} seed {seed}" for transform, seed in named]
    for number, run in enumerate(runs):
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == made.trials.user_attrs[PARENT_RUN]
        assert (tags["flowbench.role"], tags["flowbench.study"]) == ("trial", "which/quick")
        assert (tags["optuna.trial"], tags["flowbench.workers"]) == (str(number), "1")
        assert made.trials.trials[number].values == [run.data.metrics["val/loss"]]


def test_a_complete_study_runs_nothing_again(copy: Store, tmp_path: Path) -> None:
    which = studies.study(tmp_path)
    before = tiny.runs(copy)
    run_id = sweep(which, copy)
    assert tiny.runs(copy) == before
    assert copy.get(run_id).info.status == "FINISHED"


def test_the_report_of_a_study_describes_its_parent_run(copy: Store) -> None:
    assert main(["report", "which/quick", "--results", str(copy.results)]) == 0
    run = copy.get(tables.study_parent(copy, "which/quick").info.run_id)
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**Question.** Which?")
    assert "**Answer.**" in note
    kept = {Path(file.path).name for file in copy.client.list_artifacts(run.info.run_id, "report")}
    assert {"report.html", "bpd.png"} <= kept
    assert not any(name.endswith(".csv") for name in kept)


SELDOM = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("parent", "experiment")]


@pytest.mark.parametrize("deleted", ["run", *SELDOM])
def test_what_was_deleted_in_the_pages_is_told_and_made_again(
    deleted: str, copy: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    which = studies.study(tmp_path)
    made = studies.run(which, copy)
    parent = sweep(which, copy)  # all has ended: it records which trials there are
    first, *others = studies.recorded(copy, made)
    if deleted == "run":
        copy.client.delete_run(first.info.run_id)
    elif deleted == "parent":
        copy.client.delete_run(parent)
    else:
        copy.client.delete_experiment(first.info.experiment_id)
    report = ["which/quick", "--results", str(copy.results)]
    if deleted == "run":
        main(["report", *report])
        told = capsys.readouterr().err
        assert "not in the store, though their trials are complete: trial 0" in told
    again = studies.run(which, copy)
    studies.assert_complete(copy, again)
    told = capsys.readouterr().err
    kept = {run.info.run_id for run in studies.recorded(copy, again)}
    assert {run.info.run_id for run in others} < kept
    if deleted == "run":
        assert "trial 0 has ended, but its runs are not in the store" in told
        assert first.info.run_id not in kept
    else:
        assert "was deleted: it is restored" in told
        assert first.info.run_id in kept
    assert len(kept) == 4
    assert copy.get(parent).info.lifecycle_stage == "active"


def test_what_a_trial_costs_beside_its_work_is_measured(copy: Store, tmp_path: Path) -> None:
    made = studies.run(studies.study(tmp_path), copy)
    for attempt in made.last_attempts():
        assert attempt.duration
        assert 0 < attempt.user_attrs[OVERHEAD] < attempt.duration.total_seconds()


@pytest.mark.slow
def test_optunas_pages_get_the_grids_of_samples(store: Store, tmp_path: Path) -> None:
    grids = {"evaluate": {"samples": 20, "samples_per_class": 1}}
    which = studies.study(tmp_path, seeds=[0], scales={"quick": grids})
    made = studies.run(which, store)
    for attempt in made.last_attempts():
        found = get_all_artifact_meta(attempt, storage=made.storage.backend)
        assert [one.mimetype for one in found] == ["image/png"] * len(found)
        (run_id,) = attempt.user_attrs[RUNS]
        copies = {path.name: path for path in store.pictures(run_id, tmp_path)}
        assert {one.filename for one in found} == set(copies) >= {"samples.png"}
        for one in found:
            file = store.results / "optuna/artifacts" / one.artifact_id
            assert file.read_bytes() == copies[one.filename].read_bytes()


def test_a_search_runs_a_trial_once_for_every_seed(store: Store, tmp_path: Path) -> None:
    objectives = {"val/bpd": "minimize", "images_per_second": "maximize"}
    options = {**studies.SEARCH, "sampler": "tpe", "trials": 2, "seeds": [0, 1]}
    scales = {"quick": {"trainer": {"max_epochs": 3}}}
    made = studies.run(
        studies.study(tmp_path, **options, objectives=objectives, scales=scales), store
    )
    studies.assert_complete(store, made)
    for attempt in made.last_attempts():
        runs = [
            run
            for run in studies.recorded(store, made)
            if run.data.tags["optuna.trial"] == str(attempt.number)
        ]
        assert [run.data.params["seed"] for run in runs] == ["0", "1"]
        bpd = [run.data.metrics["val/bpd"] for run in runs]
        assert attempt.values[0] == pytest.approx(sum(bpd) / 2, rel=1e-12)
        rates = []
        for run in runs:
            history = store.client.get_metric_history(run.info.run_id, "images_per_second")
            second, third = sorted(point.value for point in history if point.step > 1)
            rates.append((second + third) / 2)
        assert attempt.values[1] == pytest.approx(sum(rates) / 2, rel=1e-12)


def test_a_study_without_validation_goes_by_its_training_loss(store: Store, tmp_path: Path) -> None:
    scales = {"quick": {"trainer": {"limit_val_batches": 0}}}
    which = studies.study(tmp_path, space={"model.transform": ["affine"]}, scales=scales)
    made = studies.run(which, store)
    (run,) = studies.recorded(store, made)
    assert made.last_attempts()[0].values == [run.data.metrics["train/loss"]]


# Stopped and killed


def test_a_stopped_study_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    which = studies.study(tmp_path)
    stops = iter([False, True])

    def stop(_: FlowModule, batch: int) -> None:
        if batch == 3 and next(stops, False):
            signal.raise_signal(signal.SIGTERM)

    with during(stop), pytest.raises(Interrupted):
        studies.run(which, store)
    before = tiny.runs(store)
    assert sorted(before.values()) == ["FINISHED", "KILLED"]

    made = studies.run(which, store)
    studies.assert_complete(store, made)
    assert studies.states(made) == ["COMPLETE", "FAIL", *["COMPLETE"] * 3]
    assert made.trials.trials[1].user_attrs[END] == "stopped"
    assert len(tiny.runs(store)) == 4  # the stopped run went on as itself
    again = next(r for r in studies.recorded(store, made) if "optuna.retry_of" in r.data.tags)
    assert before[again.info.run_id] == "KILLED"
    assert (again.data.tags["optuna.retry_of"], again.data.tags["optuna.trial"]) == ("1", "4")


def test_a_killed_trial_goes_on_from_its_checkpoint(store: Store, two: StudyFile) -> None:
    """As after kill -9: nobody has told anything, and the run looks as if it were going on."""

    def stop(_: FlowModule, batch: int) -> None:
        if batch == 3:
            signal.raise_signal(signal.SIGTERM)

    with during(stop) as patch:
        patch.setattr(trial.Runner, "_report", lambda *_: None)
        with pytest.raises(Interrupted):
            studies.run(two, store)
    ((run_id, _),) = tiny.runs(store).items()
    store.client.update_run(run_id, status="RUNNING")
    as_if_killed(studies.planned(two, Storage(journal(two, store.results))), 0)

    made = studies.run(two, store, workers=3)
    studies.assert_complete(store, made)
    assert studies.states(made) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert len(tiny.runs(store)) == 2
    tags = store.get(run_id).data.tags
    assert (tags["optuna.retry_of"], tags["flowbench.workers"]) == ("0", "3")


def test_a_killed_trial_without_a_checkpoint_is_begun_again(store: Store, two: StudyFile) -> None:
    """As where the checkpoint is on another machine."""

    def stop(_: FlowModule, batch: int) -> None:
        if batch == 3:
            signal.raise_signal(signal.SIGTERM)

    with during(stop), pytest.raises(Interrupted):
        studies.run(two, store)
    ((left, _),) = tiny.runs(store).items()
    store.checkpoint(left).unlink()
    made = studies.run(two, store)
    studies.assert_complete(store, made)
    assert store.get(left).info.status == "KILLED"
    assert store.get(left).data.tags["optuna.retried_as"] == "2"
    assert store.get(left).data.tags["optuna.state"] == "FAIL"
    assert len(tiny.runs(store)) == 3


def test_a_run_that_was_finished_before_optuna_knew_is_not_run_again(
    copy: Store, tmp_path: Path
) -> None:
    which = studies.study(tmp_path)
    before = tiny.runs(copy)
    Path(journal(which, copy.results)).unlink()
    made = studies.run(which, copy, workers=2)
    assert tiny.runs(copy) == before
    studies.assert_complete(copy, made)
    runs = studies.recorded(copy, made)
    assert {run.data.tags["flowbench.workers"] for run in runs} == {"1"}  # as they were run


def test_a_signal_between_runs_ends_the_worker_with_all_told(
    store: Store, two: StudyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()
    tell = trial.Runner._report

    def told(self: trial.Runner, *args: Any) -> None:
        stop._on_signal(signal.SIGINT, None)
        tell(self, *args)

    monkeypatch.setattr(trial.Runner, "_report", told)
    made = studies.run(two, store, stop)
    assert studies.states(made) == ["COMPLETE", "WAITING"]
    studies.assert_agreement(store, made)


def test_what_is_left_open_at_the_end_is_closed(copy: Store, tmp_path: Path) -> None:
    """A process may die between Optuna and the tag, or at the last of its tries."""
    which = studies.study(tmp_path)
    made = studies.run(which, copy)
    first, second, *_ = studies.recorded(copy, made)
    copy.tag(first.info.run_id, {"optuna.state": "RUNNING"})
    tags = {PARENT: made.trials.user_attrs[PARENT_RUN], "optuna.trial": "99"}
    tags |= {"flowbench.role": "trial", "flowbench.digest": "x", "optuna.state": "RUNNING"}
    left = copy.start("which/quick", "left", tags)
    sweep(which, copy)
    assert copy.get(first.info.run_id).data.tags["optuna.state"] == "COMPLETE"
    assert second.data.tags["optuna.state"] == "COMPLETE"
    assert copy.get(left).info.status == "KILLED"
    assert copy.get(left).data.tags["optuna.state"] == "FAIL"


def test_a_trial_that_was_taken_over_is_given_up(
    store: Store, two: StudyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = studies.planned(two, Storage(journal(two, store.results)))

    def take(_: FlowModule, batch: int) -> None:
        if batch == 1:
            made.storage.backend.set_trial_user_attr(made.id(0), END, "died")
            made.trials.tell(0, state=optuna.trial.TrialState.FAIL)
        if batch >= 1:
            signal.pause() if batch == 2 else None  # until the beat finds out

    monkeypatch.setattr(
        trial, "Heartbeat", lambda backend, trial_id: Heartbeat(backend, trial_id, 0.2)
    )
    with during(take):
        studies.run(two, store)
    assert studies.states(made)[0] == "FAIL"
    assert statuses(store, made) == ["KILLED"]


# Failed and pruned


def diverging(self: FlowModule, _: int) -> None:
    if self.experiment.model.transform == "affine":
        with torch.no_grad():
            self.flow.blocks[1].network.proj_in.weight.fill_(torch.nan)


def test_a_failed_run_is_left_out_and_tried_again_by_the_next_command(
    store: Store,
    two: StudyFile,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with during(diverging):
        made = studies.run(two, store)
    assert statuses(store, made) == ["FAILED", "FINISHED"]
    assert studies.states(made) == ["FAIL", "COMPLETE"]
    studies.assert_agreement(store, made)
    assert "diverged at step 0 (epoch 1)" in made.trials.trials[0].user_attrs["error"]
    assert "trial 0 failed: diverged at step 0 (epoch 1)" in capsys.readouterr().err
    failed, _ = studies.recorded(store, made)
    artifacts = [found.path for found in store.client.list_artifacts(failed.info.run_id)]
    assert "traceback.txt" in artifacts
    parent._conclude(made)
    assert "1 of 2 trials failed and are left out; the last: diverged" in capsys.readouterr().err

    again = studies.run(two, store)
    studies.assert_complete(store, again)
    assert len(tiny.runs(store)) == 3


def test_too_many_failures_stop_a_study(store: Store, tmp_path: Path) -> None:
    which = studies.study(tmp_path, failures=0.2)
    with during(diverging):
        made = studies.run(which, store)
    assert studies.states(made) == ["FAIL", *["WAITING"] * 3]
    told = "1 of 4 trials of study which/quick failed, more than failures = 0.2 allows"
    told += "; the last: diverg"
    with pytest.raises(UsageError, match=told):
        parent._conclude(made)


def test_a_value_that_is_not_finite_is_a_failure(
    store: Store, two: StudyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial.Runner, "_measured", lambda *_: [math.inf])
    made = studies.run(two, store)
    assert studies.states(made) == ["FAIL", "FAIL"]
    assert made.trials.trials[0].user_attrs["error"] == "val/loss = inf is not finite"


def test_an_error_of_the_process_asks_for_a_new_one(store: Store, two: StudyFile) -> None:
    """A device may be left in any state, and whatever comes next would fail too."""

    def fails(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    with during(fails):
        made = studies.run(two, store)
    assert studies.states(made) == ["FAIL", "WAITING"]


def test_a_store_that_fails_is_not_the_trials_fault(
    store: Store, two: StudyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise StoreError("the tracking store is away")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "describe", fails)
        with pytest.raises(StoreError):
            studies.run(two, store)
    made = studies.run(two, store)
    assert [attempt.state.name for attempt in made.last_attempts()] == ["COMPLETE"] * 2
    assert made.count().failed == 0


def test_what_promises_little_is_stopped_and_marked(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strict(_: StudyFile) -> BasePruner:
        return ThresholdPruner(upper=-100.0, n_warmup_steps=2)

    monkeypatch.setattr("flowbench.sweep.optuna_study.pruner", strict)
    options = {**studies.SEARCH, "trials": 1, "pruner": "median", "seeds": [0, 1]}
    which = studies.study(tmp_path, **options, scales={"quick": {"trainer": {"max_epochs": 5}}})
    made = studies.run(which, store)
    (pruned,) = made.last_attempts()
    assert (pruned.state.name, pruned.last_step) == ("PRUNED", 2)
    (run,) = studies.recorded(store, made)
    assert (run.info.status, run.data.tags["optuna.state"]) == ("KILLED", "PRUNED")
    assert run.data.tags["flowbench.pruned"] == "true"
    assert not any(key.startswith("test/") for key in run.data.metrics)
    assert made.over()

    # Killed before Optuna knew, it is told as pruned, not trained on.
    made.trials.enqueue_trial(pruned.params, user_attrs={INDEX: 0, "try": 2, "retry_of": 0})
    studies.run(which, store)
    assert studies.states(made) == ["PRUNED", "PRUNED"]
    assert len(tiny.runs(store)) == 1


# What cannot be run


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({"scales": {"quick": {"trainer": {"devices": 2}}}}, {}, r"trainer\.devices = 2 is not"),
        ({}, {"trials": 3}, "--trials 3 is not valid: this study is a grid of 4 points"),
        ({"mode": "timing"}, {"workers": 2}, "--workers 2 is not valid: .*alone"),
        ({}, {"storage": "mysql://host/x"}, "mysql://host/x is not valid"),
    ],
)
def test_what_cannot_be_run_is_refused(
    store: Store, tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    changes = {"scales": {"quick": {"trainer": {"max_epochs": 2}}}, **changes}
    with pytest.raises(UsageError, match=told):
        sweep(studies.study(tmp_path, **changes), store, **options)
    assert store.search("") == []
