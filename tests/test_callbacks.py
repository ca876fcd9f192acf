"""What happens around the steps: the clock, whole checkpoints, progress."""

import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from flowbench.callbacks import Budget, EpochClock, EveryEpochs
from flowbench.checkpoint import AtomicCheckpointIO
from flowbench.errors import Interrupted, UsageError
from flowbench.experiment import run
from flowbench.module import FlowModule
from flowbench.progress import EpochLines
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES

Fake: Any = SimpleNamespace


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tiny.results(tmp_path / "results"))


class Clocked(EpochClock):
    """A clock whose time passes when the test says so."""

    now = 0.0

    def _now(self) -> float:  # type: ignore[override]
        return self.now


def batch(clock: EpochClock, number: int, of: int, world: int = 1) -> None:
    trainer = Fake(world_size=world, num_training_batches=of)
    clock.on_train_batch_end(trainer, Fake(), None, (torch.zeros(5), None), number)


def test_the_clock_counts_training_only() -> None:
    clock = Clocked()
    clock.on_train_start(Fake(), Fake())
    clock.now = 10
    clock.on_train_epoch_start(Fake(), Fake())
    clock.now += 1
    batch(clock, 0, 2)
    with clock.paused():
        clock.now += 100
    clock.on_validation_start(Fake(), Fake())
    clock.now += 1000
    clock.on_validation_end(Fake(), Fake())
    clock.now += 2
    batch(clock, 1, 2)
    clock.on_validation_start(Fake(), Fake())
    clock.now += 1000
    clock.on_validation_end(Fake(), Fake())
    clock.now += 1000
    assert clock.lap() == (3, 10, 2)
    assert clock.lap() == (0, 0, 0)
    assert clock.working == 3 + 2000  # validations too


def test_the_clock_goes_on_in_an_epoch_that_is_resumed() -> None:
    before, after = Clocked(), Clocked()
    before.on_train_epoch_start(Fake(), Fake())
    before.now = 3
    batch(before, 0, 2, world=2)
    with before.paused():
        state = before.state_dict()
    after.load_state_dict(state)
    after.on_train_start(Fake(), Fake())
    after.now = 4
    batch(after, 1, 2, world=2)
    assert after.lap() == (7, 20, 2)


def test_elapsed_is_the_time_of_all_laps_and_the_running_one() -> None:
    before, after = Clocked(), Clocked()
    for now, step in [(0, 0), (3, 1)]:
        before.now = now
        before.on_train_epoch_start(Fake(), Fake())
        before.now += 2
        batch(before, step, 2)
        before.lap()
    before.on_train_epoch_start(Fake(), Fake())
    before.now += 0.5
    assert before.elapsed() == 4.5
    with before.paused():
        before.now += 100
        assert before.elapsed() == 4.5
        after.load_state_dict(before.state_dict())
    assert after.elapsed() == 4.5
    after.on_train_start(Fake(), Fake())
    after.now += 1
    assert after.elapsed() == 5.5
    assert after.lap()[0] == 1.5
    assert after.elapsed() == 5.5


# The budget of seconds: here every batch takes one second of a clock that is otherwise still.


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Lets time pass with training batches alone; gives the number of them."""
    batches = 0
    step = FlowModule.training_step

    def ticks(self: FlowModule, given: Any, batch_idx: int) -> Any:
        nonlocal batches
        batches += 1
        return step(self, given, batch_idx)

    monkeypatch.setattr(FlowModule, "training_step", ticks)
    monkeypatch.setattr(EpochClock, "_now", staticmethod(lambda: float(batches)))
    return lambda: batches


def seconds(store: Store, run_id: str) -> dict[int, float]:
    points = store.client.get_metric_history(run_id, "seconds_per_epoch")
    return {point.step: point.value for point in points}


@pytest.mark.parametrize(
    ("budget", "accumulate", "trained"),
    [
        (7.5, 1, 8),  # in the middle of the second epoch
        (6, 1, 6),  # with the first
        (7, 2, 8),  # a step of two batches
        (5, 4, 6),  # the last step of an epoch is shorter
        (100, 1, 12),  # max_epochs ends it earlier
    ],
)
def test_training_ends_with_the_step_in_which_its_seconds_run_out(
    budget: float, accumulate: int, trained: int, ticking: Callable[[], int], store: Store
) -> None:
    options = {"trainer__accumulate_grad_batches": accumulate, "seconds": budget}
    record = run(tiny.experiment(**options), store)
    assert ticking() == trained
    whole, begun = trained // tiny.BATCHES, math.ceil(trained / tiny.BATCHES)
    assert seconds(store, record.run_id) == dict.fromkeys(range(1, whole + 1), tiny.BATCHES)
    epochs: dict[str, set[int]] = {}
    for metric, epoch in tiny.history(store, record.run_id):
        epochs.setdefault(metric, set()).add(epoch)
    for metric in ("train/loss", "val/loss", "lr"):  # an epoch cut short has these, but no time
        assert epochs[metric] == set(range(1, begun + 1))
    assert epochs["test/loss"] == {begun}


def test_seconds_alone_end_a_training(ticking: Callable[[], int], store: Store) -> None:
    options = {key: v for key, v in tiny.experiment().trainer.items() if key != "max_epochs"}
    run(replace(tiny.experiment(), trainer=options, seconds=15), store)
    assert ticking() == 15


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(("training", 1, 1), marks=pytest.mark.slow),
        ("training", 1, 2),
        pytest.param(("test", 2, 0), marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_has_the_seconds_that_are_left(
    place: tuple[str, int, int],
    ticking: Callable[[], int],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped before the last step, in it (its clock has run out then), and behind it."""
    experiment = tiny.experiment(seconds=9, trainer__max_epochs=9)
    with monkeypatch.context() as patch:
        tiny.at(patch, *place, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted) as stopped:
            run(experiment, store)
    run(experiment, store, resume=stopped.value.run_id)
    assert ticking() == 9
    assert seconds(store, stopped.value.run_id) == {1: tiny.BATCHES}
    again = run(experiment, store).run_id
    assert tiny.same(tiny.weights(store, stopped.value.run_id), tiny.weights(store, again))
    assert tiny.history(store, stopped.value.run_id) == tiny.history(store, again)


def test_devices_stop_at_the_step_that_the_first_one_names() -> None:
    clock, module = Clocked(), Fake(spent=0.0)
    trainer = Fake(
        strategy=Fake(broadcast=lambda _: 5.0),  # what the first device's clock shows
        accumulate_grad_batches=1,
        num_training_batches=9,
        should_stop=False,
    )
    budget: Any = Budget(5.0, clock, module)
    budget.on_train_batch_end(trainer, module, None, None, 0)
    assert (module.spent, trainer.should_stop) == (5.0, True)


def test_a_failed_checkpoint_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "below" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)

    def full(_: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UsageError, match=r"last\.ckpt cannot be written: .*No space left"):
            AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    assert torch.load(path) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_checkpoint_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file" / "last.ckpt")


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [1, 2, 3, 4]), (3, [3])])
def test_every_epochs(every: int, expected: list[int]) -> None:
    acted: list[int] = []
    callback = EveryEpochs(every, acted.append)
    for epoch in range(4):
        callback.on_train_epoch_end(Fake(current_epoch=epoch, is_global_zero=True), Fake())
        callback.on_train_epoch_end(Fake(current_epoch=epoch, is_global_zero=False), Fake())
    assert acted == expected


def test_an_epoch_leaves_one_line_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny.experiment(), Store(tiny.results(tmp_path / "results")), label="[2/9] affine")
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("[2/9] affine · epoch 1/2 · train loss 0.")
    assert "val loss" in first
    assert "val bpd" in first
    assert first.endswith("left")
    assert second.startswith("[2/9] affine · epoch 2/2")
    assert second.endswith("s/epoch")
    assert last == "[2/9] affine · evaluating"


def test_a_terminal_has_a_bar_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = EpochLines("affine")
    trainer = Fake(max_epochs=-1, current_epoch=0, is_global_zero=True, num_training_batches=6)
    lines.on_train_start(trainer, Fake())
    lines.on_train_batch_start(trainer, Fake(), None, 0)
    lines.on_train_batch_start(trainer, Fake(), None, 3)
    lines.epoch_done({"train/loss": 1.0}, 1)
    shown = capsys.readouterr().err
    assert "affine · epoch 1" in shown
    assert "3/6" in shown
    assert "affine · epoch 1 · train loss 1.0000\n" in shown
    lines.on_exception()


def test_the_average_is_pictured_and_the_weights_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictured: list[dict[str, Any]] = []

    def draw(flow: torch.nn.Module, *_: Any) -> torch.Tensor:
        pictured.append({k: v.clone() for k, v in flow.state_dict(prefix="flow.").items()})
        return torch.zeros(1, 10, 28, 28, 1, dtype=torch.uint8).numpy()

    monkeypatch.setattr("flowbench.evaluation.protocol.draw_classes", draw)
    store = Store(tiny.results(tmp_path / "results"))
    options = {"optim__ema": 0.9, "evaluate__samples_every": 2}
    record = run(tiny.experiment(**options), store)
    kept = tiny.weights(store, record.run_id)
    assert len(pictured) == 2  # after the last epoch, and at the end
    for shown in pictured:
        assert tiny.same(shown, dict(kept["state_dict"]))
    assert not tiny.same(dict(kept["current_model_state"]), dict(kept["state_dict"]))
