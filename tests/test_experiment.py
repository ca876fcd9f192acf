"""One experiment: interrupted anywhere and resumed, it ends as if it had never been."""

import math
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from flowbench import callbacks, checkpoint, watch
from flowbench.config import Experiment
from flowbench.data.module import FlowData
from flowbench.errors import Diverged, Interrupted, UsageError
from flowbench.evaluation import protocol
from flowbench.experiment import run
from flowbench.measure import evaluate
from flowbench.module import FlowModule
from flowbench.size import parameters
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tiny.results(tmp_path / "results"))


def interrupted(
    experiment: Experiment,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    where: tuple[str, int, int],
    number: int = signal.SIGTERM,
) -> str:
    """Stop a run by a signal at this place; give its id."""
    with monkeypatch.context() as patch:
        tiny.at(patch, *where, lambda: signal.raise_signal(number))
        with pytest.raises(Interrupted) as stopped:
            run(experiment, store)
    assert store.get(stopped.value.run_id).info.status == "KILLED"
    return stopped.value.run_id


def assert_same(store: Store, run_id: str, other: str) -> None:
    assert tiny.same(tiny.weights(store, run_id), tiny.weights(store, other))
    assert tiny.history(store, run_id) == tiny.history(store, other)
    assert store.get(run_id).info.status == store.get(other).info.status == "FINISHED"


OF_STEP = 6 * parameters(tiny.experiment().model, (1, 28, 28), 10) * 16 * 100
"""FLOPs of a step: 16 patches of 100 images."""
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"optim__ema": 0.9},
    "gaussian": {"data__noise": "gaussian"},
    "accumulated": {"trainer__accumulate_grad_batches": 2},
    "ragged": {"trainer__accumulate_grad_batches": 4},
    "twice validated": {"trainer__val_check_interval": 0.5},
    "bfloat16": {"trainer__precision": "bf16-mixed"},
    "by steps": {"trainer__max_epochs": -1, "trainer__max_steps": 10},
    "by FLOPs": {"trainer__max_epochs": -1, "flops": 10.4 * OF_STEP},
    "few images": {"data__train_images": 400},
    "seldom validated": {"trainer__check_val_every_n_epoch": 2, "trainer__max_epochs": 3},
}
PLACES = {
    "first batch": ("training", 0, 0),
    "mid-epoch": ("training", 1, 2),
    "last batch": ("training", 0, tiny.BATCHES - 1),
    "validation": ("validation", 0, 1),
    "last step": ("training", 1, 3),
    "very end": ("training", 1, tiny.BATCHES - 1),
    "test": ("test", 2, 0),
}


EVERYWHERE = ("plain", "by steps")
CASES = [
    (variant, place)
    for variant in EVERYWHERE
    for place in PLACES
    if (variant, place) != ("by steps", "very end")  # which it does not reach
]
CASES += [(variant, "mid-epoch") for variant in VARIANTS if variant not in EVERYWHERE]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tiny.results(tmp_path_factory.mktemp("shared")))


@pytest.fixture(scope="module")
def whole(shared: Store) -> Callable[[str], str]:
    """Ids of the uninterrupted runs."""
    return cache(lambda variant: run(tiny.experiment(**VARIANTS[variant]), shared).run_id)


CASES = [
    case
    if case[0] == "plain" or case[1] in ("mid-epoch", "last step", "test")
    else pytest.param(*case, marks=pytest.mark.slow)
    for case in CASES
]


@pytest.mark.parametrize(("variant", "place"), CASES)
def test_a_run_resumed_anywhere_ends_as_if_never_stopped(
    variant: str,
    place: str,
    shared: Store,
    whole: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = tiny.experiment(**VARIANTS[variant])
    stopped = interrupted(experiment, shared, monkeypatch, PLACES[place])
    assert run(experiment, shared, resume=stopped).run_id == stopped
    assert_same(shared, stopped, whole(variant))


def test_a_run_that_died_goes_on_from_its_last_checkpoint(
    shared: Store, whole: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies() -> None:
        raise RuntimeError("the power went")

    experiment = tiny.experiment(optim__ema=0.9)
    known = set(tiny.runs(shared))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0)
        tiny.at(patch, "training", 1, 4, dies)
        with pytest.raises(RuntimeError, match="the power went"):
            run(experiment, shared)
    (died,) = set(tiny.runs(shared)) - known
    assert torch.load(shared.checkpoint(died), weights_only=True)["global_step"] == 6 + 4
    run(experiment, shared, resume=died)
    assert_same(shared, died, whole("average"))


def test_flops_end_a_run_at_the_nearest_step_as_so_many_steps_do(
    shared: Store, whole: Callable[[str], str]
) -> None:
    by_flops, by_steps = (tiny.weights(shared, whole(name)) for name in ("by FLOPs", "by steps"))
    assert by_flops["global_step"] == by_steps["global_step"] == 10
    assert tiny.same(dict(by_flops["state_dict"]), dict(by_steps["state_dict"]))
    history = shared.client.get_metric_history(whole("by FLOPs"), "val/loss")
    assert [point.step for point in history] == [1, 2]


def test_a_run_of_few_images_sees_the_first_of_them_only(
    shared: Store, whole: Callable[[str], str]
) -> None:
    data = FlowData(tiny.experiment(data__train_images=400).data, seed=0)
    assert torch.equal(data.train.pixels, data.splits.train.pixels[:400])
    assert data.splits.digest == FlowData(tiny.experiment().data, seed=0).splits.digest
    weights = tiny.weights(shared, whole("few images"))
    assert weights["global_step"] == 2 * 4


def test_a_run_stopped_before_its_first_checkpoint_starts_again(
    shared: Store, whole: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny.experiment()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "describe", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted, match="no checkpoint") as stop:
            run(experiment, shared)
    stopped = stop.value.run_id
    assert shared.get(stopped).info.status == "KILLED"
    run(experiment, shared, resume=stopped)
    assert_same(shared, stopped, whole("plain"))
    assert shared.get(stopped).data.params == shared.get(whole("plain")).data.params


def test_a_run_stopped_while_it_draws_samples_is_completed(
    shared: Store, whole: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny.experiment()
    with monkeypatch.context() as patch:
        drawing = "flowbench.evaluation.protocol.draw_classes"
        patch.setattr(drawing, lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted) as stop:
            run(experiment, shared)
    assert shared.get(stop.value.run_id).info.status == "KILLED"
    record = run(experiment, shared, resume=stop.value.run_id)
    assert_same(shared, record.run_id, whole("plain"))
    assert {"val/loss", "train/loss", "test/bpd"} <= record.metrics.keys()


def test_the_average_is_what_a_run_resumed_after_training_is_tested_on(
    shared: Store, whole: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny.experiment(optim__ema=0.9)
    stopped = interrupted(experiment, shared, monkeypatch, PLACES["test"])
    record = run(experiment, shared, resume=stopped)
    averaged = tiny.weights(shared, whole("average"))["state_dict"]
    assert tiny.same(dict(record.flow.state_dict(prefix="flow.")), dict(averaged))


def test_small_batches_accumulated_train_what_large_ones_do(store: Store) -> None:
    options = {"data__flip": True, "optim__label_dropout": 0.1, "trainer__limit_val_batches": 1.0}
    split = {"data__batch": 50, "trainer__limit_train_batches": 2 * tiny.BATCHES}
    split |= {"trainer__accumulate_grad_batches": 2}
    whole, parts = (run(tiny.experiment(**options | how), store) for how in ({}, split))
    for metric in ("train/loss", "val/loss", "test/loss"):
        assert parts.metrics[metric] == pytest.approx(whole.metrics[metric], rel=1e-4)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6 + 3), (4, 2 + 1)])
def test_a_signal_waits_for_the_step_and_keeps_it(
    accumulate: int, steps: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny.experiment(trainer__accumulate_grad_batches=accumulate)
    stopped = interrupted(experiment, store, monkeypatch, ("training", 1, 2))
    kept = torch.load(store.checkpoint(stopped), weights_only=True)
    assert kept["global_step"] == steps


def test_a_signal_in_validation_lets_the_epoch_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = interrupted(tiny.experiment(), store, monkeypatch, ("validation", 0, 0))
    kept = torch.load(store.checkpoint(stopped), weights_only=True)
    assert (kept["epoch"], kept["global_step"]) == (0, 6)


def test_a_second_signal_stops_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    tiny.at(monkeypatch, "training", 1, 2, twice)
    with pytest.raises(Interrupted) as stopped:
        run(tiny.experiment(), store)
    run_id = stopped.value.run_id
    assert store.get(run_id).info.status == "KILLED"
    assert torch.load(store.checkpoint(run_id), weights_only=True)["global_step"] == 6


def test_the_handlers_of_signals_return(store: Store) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(tiny.experiment(trainer__max_epochs=1), store)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# Failures


def failed(store: Store) -> str:
    """The id of the one run, which has failed; its traceback is recorded."""
    ((run_id, status),) = tiny.runs(store).items()
    assert status == "FAILED"
    assert "traceback.txt" in [found.path for found in store.client.list_artifacts(run_id)]
    return run_id


@pytest.fixture(params=[1, pytest.param(4, marks=pytest.mark.slow), 64])
def asked_every(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Batches between questions to the watch: after each as on a CPU, or seldom as on a GPU."""
    monkeypatch.setitem(watch.STEPS, "cpu", request.param)
    return request.param


@pytest.mark.usefixtures("asked_every")
def test_a_loss_that_is_not_finite_names_its_step_and_block(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted: list[FlowModule] = []
    init = FlowModule.__init__

    def keep(self: FlowModule, *rest: Any) -> None:
        init(self, *rest)
        planted.append(self)

    @torch.no_grad()
    def plant() -> None:
        planted[0].flow.blocks[1].network.proj_in.weight[0, 0] = torch.inf

    monkeypatch.setattr(FlowModule, "__init__", keep)
    tiny.at(monkeypatch, "training", 1, 3, plant)
    with pytest.raises(Diverged, match=r"step 9 \(epoch 2\): the loss is nan, first in block 1"):
        run(tiny.experiment(), store)
    kept = torch.load(store.checkpoint(failed(store)), weights_only=True)
    assert kept["global_step"] == 6
    assert all(weight.isfinite().all() for weight in kept["state_dict"].values())


@pytest.mark.usefixtures("asked_every")
@pytest.mark.parametrize("accumulated", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("factor", "where"),
    [(torch.nan, r"norm is nan, first in block 1 .*bias"), (1e38, "norm is inf, but every")],
)
def test_a_gradient_that_is_not_finite_names_its_block(
    factor: float, where: str, accumulated: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = FlowModule.training_step

    def patched(self: FlowModule, batch: Any, batch_idx: int) -> Any:
        loss = step(self, batch, batch_idx)
        if self.current_epoch == 1 and batch_idx == 2:
            bias = self.flow.blocks[1].network.proj_out.bias
            bias.register_hook(lambda gradient: torch.full_like(gradient, factor))
        return loss

    monkeypatch.setattr(FlowModule, "training_step", patched)
    number = {1: 8, 2: 4}[accumulated]
    with pytest.raises(Diverged, match=rf"step {number} \(epoch 2\): the gradient's {where}"):
        run(tiny.experiment(trainer__accumulate_grad_batches=accumulated), store)
    kept = torch.load(store.checkpoint(failed(store)), weights_only=True)
    assert all(weight.isfinite().all() for weight in kept["state_dict"].values())


def test_a_full_disk_leaves_the_earlier_checkpoint(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full(content: dict[str, Any], file: Any) -> None:
        if content["epoch"] == 0:
            return save(content, file)
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UsageError, match=r"checkpoint .*last\.ckpt cannot be written: .*No space"):
        run(tiny.experiment(), store)
    path = store.checkpoint(failed(store))
    assert torch.load(path, weights_only=True)["global_step"] == 6
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_of_another_experiment_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = interrupted(tiny.experiment(), store, monkeypatch, PLACES["mid-epoch"])
    with pytest.raises(UsageError, match=r"model\.width is 16 there, 32 here"):
        run(tiny.experiment(model__width=32), store, resume=stopped)
    assert store.get(stopped).info.status == "KILLED"


REFUSED = {
    "unknown transform 'affin'": {"model__transform": "affin"},
    "5000": {"model__transform": "rqs-5000"},
    "patch 5 does not divide images of 28x28": {"model__patch": 5},
    "unknown key trainer.max_epoch:.*max_epochs": {"trainer__max_epoch": 3},
    "trainer.logger cannot be set: runs are": {"trainer__logger": True},
    "trainer.gradient_clip_val cannot be set: set optim.clip": {"trainer__gradient_clip_val": 1},
    "trainer.max_epochs = -1, trainer.max_steps = None is not": {"trainer__max_epochs": -1},
    "flops = -1": {"flops": -1.0},
    "data.train_images = 0": {"data__train_images": 0},
    "data.train_images = 10000000 is not valid: at most": {"data__train_images": 10_000_000},
    "trainer.max_epochs = 'x'": {"trainer__max_epochs": "x"},
    "trainer.precision = 'nonsense' is not valid: 32-true": {"trainer__precision": "nonsense"},
    "trainer.precision = 'bf16-true'": {"trainer__precision": "bf16-true"},
    "trainer.precision = '16-mixed' is not.*on a CPU": {"trainer__precision": "16-mixed"},
    "trainer.deterministic = 'foo'.*true or false": {"trainer__deterministic": "foo"},
    "trainer.min_epochs = 'a'": {"trainer__min_epochs": "a"},
    "trainer.accumulate_grad_batches = -1": {"trainer__accumulate_grad_batches": -1},
    "trainer.accumulate_grad_batches = 2.5": {"trainer__accumulate_grad_batches": 2.5},
    "trainer.max_steps = 0": {"trainer__max_steps": 0},
    "trainer.fast_dev_run cannot be set": {"trainer__fast_dev_run": True},
    "trainer.overfit_batches = 1.5 is not valid": {"trainer__overfit_batches": 1.5},
    "trainer.limit_train_batches = 0 is": {"trainer__limit_train_batches": 0},
    "trainer: .*0.0001": {"trainer__limit_train_batches": 0.0001},
    "trainer.val_check_interval = 0": {"trainer__val_check_interval": 0},
    "trainer: .*val_check_interval": {"trainer__val_check_interval": 1000},
    "trainer.check_val_every_n_epoch = 0": {"trainer__check_val_every_n_epoch": 0},
    "trainer: .*torch_xla": {"trainer__accelerator": "tpu"},
    "trainer.strategy = 'ddp_spawn'": {"trainer__strategy": "ddp_spawn"},
    "trainer: .*profiler": {"trainer__profiler": "nix"},
    "evaluate.guidance = inf is not valid: a finite number": {"evaluate__guidance": math.inf},
    "optim.clip = inf": {"optim__clip": math.inf},
    "optim.weight_decay = inf": {"optim__weight_decay": math.inf},
    "optim.warmup_epochs = inf": {"optim__warmup_epochs": math.inf},
    "data.noise_std = inf": {"data__noise_std": math.inf},
    r"name = '\.\.' is not valid": {"name": "../x"},
    "data.root = '' is not valid": {"data__root": ""},
    "weights of Inception /nowhere: there is no such file": {
        "evaluate__inception_weights": "/nowhere",
        "evaluate__samples": 10,
    },
    "train-images": {"data__name": "mnist", "data__root": "/nowhere"},
}


@pytest.mark.parametrize("told", REFUSED)
def test_a_wrong_configuration_is_told_before_anything_is_recorded(told: str, store: Store) -> None:
    with pytest.raises(UsageError, match=told):
        run(tiny.experiment(**REFUSED[told]), store)
    assert tiny.runs(store) == {}
    assert not (store.results / "checkpoints").exists()


# What is measured


def test_a_picture_that_cannot_be_drawn_costs_no_training(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*_: Any, **__: Any) -> Any:
        raise Diverged("4 of 4 samples are not finite")

    monkeypatch.setattr(protocol, "draw_classes", breaks)
    record = run(tiny.experiment(evaluate__samples_every=1), store)
    assert store.get(record.run_id).info.status == "FINISHED"
    assert "not measured: 4 of 4 samples are not finite" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), OSError("disk full")])
def test_a_failing_evaluation_costs_nothing_that_was_trained(
    error: Exception, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(protocol, "density", fails)
        record = run(tiny.experiment(), store)
    recorded = store.get(record.run_id)
    assert recorded.info.status == "FINISHED"
    assert str(error) in recorded.data.tags["skipped"]
    assert "val/loss" in recorded.data.metrics
    assert "test/loss" not in recorded.data.metrics
    files = {file.path for file in store.client.list_artifacts(record.run_id)}
    assert ("traceback.txt" in files) is isinstance(error, RuntimeError)
    assert "test/loss" in evaluate(record.run_id, store, {})
    assert "test/loss" in store.get(record.run_id).data.metrics
    assert "disk full" not in store.get(record.run_id).data.tags["skipped"]


def test_nothing_is_recorded_that_was_not_measured(store: Store) -> None:
    without = run(tiny.experiment(trainer__limit_val_batches=0), store)
    of_epochs = without.metrics.keys() - {"val/failed"}  # which is of the whole evaluation
    assert not any(key.startswith(("val/", "max_", "outside")) for key in of_epochs)
    assert "train/bpd" in without.metrics

    options = {"trainer__check_val_every_n_epoch": 2, "trainer__max_epochs": 3}
    seldom = run(tiny.experiment(**options), store)
    epochs = {epoch for key, epoch in tiny.history(store, seldom.run_id) if key == "val/loss"}
    assert epochs == {2, 3}  # the last is validated whatever the interval

    gaussian = run(tiny.experiment(data__noise="gaussian"), store)
    assert not any(key.endswith("/bpd") for key in gaussian.metrics)


def test_an_epoch_cut_short_has_no_time(store: Store) -> None:
    experiment = tiny.experiment(trainer__max_epochs=-1, trainer__max_steps=8)
    run_id = run(experiment, store).run_id
    losses = store.client.get_metric_history(run_id, "train/loss")
    assert [point.step for point in losses] == [1, 2]
    times = store.client.get_metric_history(run_id, "seconds_per_epoch")
    assert [point.step for point in times] == [1]
    validated = store.client.get_metric_history(run_id, "val/loss")
    assert [point.step for point in validated] == [1, 2]  # though its last epoch ended early


def test_metrics_are_recorded_once_an_epoch(shared: Store, whole: Callable[[str], str]) -> None:
    run_id = whole("plain")
    metrics = shared.get(run_id).data.metrics
    at_the_end = ("test/", "evaluation/", "roundtrip/", "samples/", "val/failed")
    per_epoch = [key for key in metrics if not key.startswith(at_the_end)]
    assert {"train/prior", "val/logdet", "lr", "grad_norm", "seconds_per_epoch"} <= set(per_epoch)
    assert {"max_log_slope/block_1", "outside/block_0", "images_per_second"} <= set(per_epoch)
    for key in per_epoch:
        assert [p.step for p in shared.client.get_metric_history(run_id, key)] == [1, 2], key
    (tested,) = shared.client.get_metric_history(run_id, "test/loss")
    assert tested.step == 2


def test_only_training_counts_as_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def costs(owner: Any, name: str, seconds: float) -> None:
        done = getattr(owner, name)

        def patched(*given: Any, **named: Any) -> Any:
            now[0] += seconds
            return done(*given, **named)

        monkeypatch.setattr(owner, name, patched)

    monkeypatch.setattr(callbacks.EpochClock, "_now", staticmethod(lambda: now[0]))
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0)
    costs(FlowModule, "training_step", 1)
    costs(FlowModule, "configure_optimizers", 10)
    costs(FlowModule, "validation_step", 100)
    costs(torch, "save", 1000)
    monkeypatch.setattr("flowbench.experiment.grid", lambda images: images[0, 0])
    costs(__import__("flowbench.experiment").experiment, "grid", 10000)
    options = {"evaluate__samples_every": 1, "trainer__val_check_interval": 0.5}
    run_id = run(tiny.experiment(**options), store).run_id
    assert now[0] > 20000
    seconds = store.client.get_metric_history(run_id, "seconds_per_epoch")
    assert [point.value for point in seconds] == [tiny.BATCHES, tiny.BATCHES]
    rates = store.client.get_metric_history(run_id, "images_per_second")
    assert [point.value for point in rates] == [100, 100]
    first = store.client.get_metric_history(run_id, "first_epoch")
    assert [point.value for point in first] == [1, 0]
