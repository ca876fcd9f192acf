"""What happens around the steps: the clock, whole checkpoints, progress."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from flowbench.callbacks import AtomicCheckpointIO, EpochClock, EveryEpochs
from flowbench.errors import UsageError
from flowbench.experiment import run
from flowbench.progress import EpochLines
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES

Fake: Any = SimpleNamespace


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
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("[2/9] affine · epoch 1/2 · train loss 0.")
    assert "val loss" in first
    assert "val bpd" in first
    assert first.endswith("left")
    assert second.startswith("[2/9] affine · epoch 2/2")
    assert second.endswith("s/epoch")


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

    monkeypatch.setattr("flowbench.experiment.draw_classes", draw)
    store = Store(tiny.results(tmp_path / "results"))
    options = {"optim__ema": 0.9, "evaluate__samples_every": 2}
    record = run(tiny.experiment(**options), store)
    kept = tiny.weights(store, record.run_id)
    assert len(pictured) == 2  # after the last epoch, and at the end
    for shown in pictured:
        assert tiny.same(shown, dict(kept["state_dict"]))
    assert not tiny.same(dict(kept["current_model_state"]), dict(kept["state_dict"]))
