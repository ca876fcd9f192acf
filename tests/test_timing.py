"""Timing: whole rounds over all points, recorded like training runs, whatever interrupts it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import studies
import tiny
import yaml

from flowbench.errors import Interrupted
from flowbench.module import FlowModule
from flowbench.space import put
from flowbench.study import StudyFile, read
from flowbench.timing import Timed, measure
from flowbench.tracking import tables
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES

ROUNDS = 3
LABELS = ["additive blocks 2", "affine blocks 1", "affine blocks 2"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFile:
    coupled = [["affine", 1], ["affine", 2], ["additive", 2]]
    space = {"model.transform, model.blocks": coupled}
    content = {
        "question": "How long?",
        "expected": "Seconds.",
        "cost": {"quick": "seconds"},
        "mode": "timing",
        "base": put(studies.base(space), {"trainer.max_epochs": ROUNDS}),
        "space": space,
        "scales": {"quick": {}},
    }
    file = tmp_path_factory.mktemp("study") / "times.yaml"
    file.write_text(yaml.safe_dump(content))
    return read(file)


def opened(directory: Path, study: StudyFile) -> tuple[Store, str]:
    """A store, and in it the study's run."""
    store = Store(tiny.results(directory))
    tags = {"flowbench.role": "study", "flowbench.study": study.name}
    return store, store.start(study.name, study.name, tags)


class Epochs(list[str]):
    """Takes the place of every epoch, and notes whose it was; the n-th (from 1) takes n seconds."""

    stop = 0

    def __call__(self, timed: Timed) -> dict[str, float]:
        if len(self) + 1 == self.stop:
            raise KeyboardInterrupt
        self.append(timed.label)
        return {"seconds_per_epoch": len(self), "images_per_second": 1.0}

    def rounds(self) -> list[list[str]]:
        return [self[i : i + len(LABELS)] for i in range(0, len(self), len(LABELS))]


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> Epochs:
    epochs = Epochs()
    monkeypatch.setattr(Timed, "epoch", lambda timed: epochs(timed))
    return epochs


def statuses(store: Store) -> list[str]:
    return sorted(tiny.runs(store).values())


def test_every_round_trains_each_point_for_one_epoch(study: StudyFile, tmp_path: Path) -> None:
    store, parent = opened(tmp_path / "results", study)
    measure(study, store, parent)
    runs = tables.children(store, parent)
    assert statuses(store) == ["FINISHED"] * 3
    for run in runs:
        tags = run.data.tags
        assert tags["flowbench.role"] == "trial"
        assert (tags["flowbench.study"], tags["flowbench.workers"]) == ("times/quick", "1")
        assert int(run.data.params["parameters"]) > 0
        assert run.data.metrics.keys() == {
            "seconds_per_epoch",
            "images_per_second",
            "first_epoch",
            "load",
        }
        digests = [point.experiment.digest() for point in study.points]
        assert tags["flowbench.digest"] in digests
    names = sorted(run.info.run_name for run in runs)
    assert names == [f"{label} seed 0" for label in LABELS]

    table, history = tables.read(store, runs)
    for run_id, rounds in history.groupby("run_id"):
        assert list(rounds["epoch"]) == [1, 2, 3]
        assert list(rounds["first_epoch"]) == [1, 0, 0]
        images = tiny.BATCHES * tiny.OPTIONS["data.batch"]
        rates = rounds["seconds_per_epoch"] * rounds["images_per_second"]
        assert list(rates) == pytest.approx([images] * ROUNDS)
        (row,) = table[table["run_id"] == run_id].to_dict("records")
        assert row["seconds_per_epoch"] == rounds["seconds_per_epoch"][1:].median()
    assert history["load"].min() >= 0


def test_points_take_turns_in_an_order_of_each_round(
    study: StudyFile, tmp_path: Path, epochs: Epochs
) -> None:
    store, parent = opened(tmp_path / "results", study)
    measure(study, store, parent)
    assert [sorted(one) for one in epochs.rounds()] == [LABELS] * ROUNDS
    assert len({tuple(one) for one in epochs.rounds()}) > 1


@pytest.mark.parametrize(
    ("stop", "first"),
    [
        (2, [2, 5, 8]),  # no round was whole: nothing is kept
        pytest.param(4, [1, 7, 10], marks=pytest.mark.slow),  # epochs 4 to 6 only warm up
        (6, [1, 9, 12]),  # epochs 4 and 5 were recorded, of a round that was cut off
        pytest.param(8, [1, 4, 11], marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_measuring_goes_on_with_the_round_that_was_cut_off(
    stop: int, first: list[int], study: StudyFile, tmp_path: Path, epochs: Epochs
) -> None:
    store, parent = opened(tmp_path / "results", study)
    epochs.stop = stop
    with pytest.raises(Interrupted, match="all whole rounds are recorded"):
        measure(study, store, parent)
    assert statuses(store) == ["KILLED"] * 3
    epochs.stop = 0
    measure(study, store, parent)
    assert statuses(store) == ["FINISHED"] * 3  # the same runs
    _, history = tables.read(store, tables.children(store, parent))
    seconds = {n: sorted(s) for n, s in history.groupby("epoch")["seconds_per_epoch"]}
    assert seconds == {n + 1: [at, at + 1, at + 2] for n, at in enumerate(first)}


def test_a_complete_measuring_measures_nothing_again(
    study: StudyFile, tmp_path: Path, epochs: Epochs
) -> None:
    store, parent = opened(tmp_path / "results", study)
    measure(study, store, parent)
    runs = tiny.runs(store)
    measure(study, store, parent)
    assert len(epochs) == ROUNDS * 3
    assert tiny.runs(store) == runs


def test_all_rounds_done_but_not_closed_are_closed(
    study: StudyFile, tmp_path: Path, epochs: Epochs
) -> None:
    store, parent = opened(tmp_path / "results", study)
    measure(study, store, parent)
    store.finish(next(iter(tiny.runs(store))), "KILLED")
    measure(study, store, parent)
    assert len(epochs) == ROUNDS * 3
    assert statuses(store) == ["FINISHED"] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_leaves_killed_runs(
    number: int, study: StudyFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, parent = opened(tmp_path / "results", study)
    before = signal.getsignal(signal.SIGINT)
    tiny.at(monkeypatch, "training", 0, 2, lambda: signal.raise_signal(number))
    try:
        with pytest.raises(Interrupted):
            measure(study, store, parent)
    finally:
        signal.signal(signal.SIGINT, before)
    assert statuses(store) == ["KILLED"] * 3


@pytest.mark.usefixtures("epochs")
@pytest.mark.parametrize(("load", "told"), [(0.2, False), (1.5, True)])
def test_a_busy_machine_is_told_and_recorded(
    load: float,
    told: bool,
    study: StudyFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, parent = opened(tmp_path / "results", study)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    measure(study, store, parent)
    assert ("the machine is busy (load average 1.5)" in capsys.readouterr().err) == told
    assert {run.data.metrics["load"] for run in tables.children(store, parent)} == {load}


def test_a_failure_is_every_runs(
    study: StudyFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("no")

    store, parent = opened(tmp_path / "results", study)
    monkeypatch.setattr(FlowModule, "training_step", fails)
    with pytest.raises(ValueError, match="no"):
        measure(study, store, parent)
    assert statuses(store) == ["FAILED"] * 3
