"""The module: its optimiser, its schedule, its noise, and means that are exact."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch._dynamo.utils import counters

from flowbench import callbacks
from flowbench.checkpoint import check_resumable, load
from flowbench.config import Experiment, Optim
from flowbench.data.module import FlowData
from flowbench.errors import UsageError
from flowbench.evaluation.likelihood import bits_per_dim, objective
from flowbench.experiment import run
from flowbench.flow import Flow
from flowbench.means import Means
from flowbench.measure import evaluate
from flowbench.module import FlowModule
from flowbench.seeding import Noise
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES


def fitted(
    experiment: Experiment, *others: callbacks.Callback
) -> tuple[FlowModule, Trainer, list[float]]:
    """A module after training, and the learning rate of each of its steps."""
    rates: list[float] = []

    class Rates(callbacks.Callback):
        def on_before_optimizer_step(self, _: Trainer, __: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    module = FlowModule(experiment, (1, 28, 28), 10)
    options = {**experiment.trainer, "limit_val_batches": 0, "callbacks": [Rates(), *others]}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(**options, **quiet, enable_model_summary=False)
    trainer.fit(module, datamodule=FlowData(experiment.data, experiment.seed))
    return module, trainer, rates


@pytest.mark.slow
def test_every_shape_of_a_study_is_compiled_and_once_for_all_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.compiler.reset()
    compile_in_place = nn.Module.compile
    monkeypatch.setattr(Flow, "compile", lambda flow, **_: compile_in_place(flow, backend="eager"))
    before = counters["stats"]["unique_graphs"]
    for bins in range(1, 10):
        for seed in range(2):
            options = {"model__transform": f"rqs-{bins}", "seed": seed, "compile": True}
            module = FlowModule(tiny.experiment(**options), (1, 28, 28), 10)
            module.on_fit_start()
            z, _ = module.flow(torch.randn(3, 1, 28, 28), torch.arange(3))
            z.sum().backward()
        assert counters["stats"]["unique_graphs"] == before + bins
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("warmup_epochs", "accumulate", "steps"), [(1.0, 1, 6), (0.5, 1, 6), (0.0, 1, 6), (1.0, 4, 2)]
)
def test_the_rate_warms_up_linearly_then_falls_as_a_cosine(
    warmup_epochs: float, accumulate: int, steps: int
) -> None:
    high, low = 1e-3, 1e-5
    experiment = tiny.experiment(
        optim__lr=high,
        optim__min_lr=low,
        optim__warmup_epochs=warmup_epochs,
        trainer__max_epochs=3,
        trainer__accumulate_grad_batches=accumulate,
    )
    _, _, rates = fitted(experiment)
    total, warmup = 3 * steps, warmup_epochs * steps
    for step, rate in enumerate(rates):
        angle = math.pi * (step - warmup) / (total - warmup)
        cosine = low + (high - low) * (1 + math.cos(angle)) / 2
        expected = high * (step + 1) / (warmup + 1) if step < warmup else cosine
        assert rate == pytest.approx(expected, rel=1e-9), step
    assert len(rates) == total
    assert max(rates) == pytest.approx(high)


@pytest.mark.parametrize("warmup_epochs", [0.0, 1.0])
def test_under_a_budget_the_rate_follows_the_seconds(warmup_epochs: float) -> None:
    high, low, seconds = 1e-3, 1e-5, 20
    steps = 2 * tiny.BATCHES

    class Clock(callbacks.Callback):
        """Each step takes twice as long as the one before began with: 1 s, 3 s, 5 s, ..."""

        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            module.spent = trainer.global_step**2

    experiment = tiny.experiment(
        optim__lr=high,
        optim__min_lr=low,
        optim__warmup_epochs=warmup_epochs,
        trainer__max_epochs=-1,
        trainer__max_steps=steps,
        seconds=seconds,
    )
    _, _, rates = fitted(experiment, Clock())
    for step, rate in enumerate(rates):
        spent = max(0, step - 1) ** 2  # a step's rate is set before the clock is read at its end
        cosine = low + (high - low) * (1 + math.cos(math.pi * min(1, spent / seconds))) / 2
        warmup = min(1, (step + 1) / (warmup_epochs * tiny.BATCHES + 1))
        assert rate == pytest.approx(warmup * cosine, rel=1e-9), step
    assert len(rates) == steps
    assert rates[-1] == pytest.approx(low)


def test_only_weights_of_linear_layers_decay() -> None:
    module, trainer, _ = fitted(tiny.experiment(trainer__max_epochs=1, optim__weight_decay=0.3))
    decay, rest = trainer.optimizers[0].param_groups
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    grouped = [names[id(p)] for group in (decay, rest) for p in group["params"]]
    assert sorted(grouped) == sorted(names.values())  # each in exactly one
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    assert sorted(names[id(p)] for p in decay["params"]) == sorted(f"{n}.weight" for n in linear)


def test_the_gradient_is_clipped_and_its_norm_recorded_before() -> None:
    experiment = tiny.experiment(optim__clip=1e-3, trainer__max_epochs=1)
    norms: list[float] = []

    class Norms(callbacks.Callback):
        def on_before_zero_grad(self, _: Trainer, module: Any, __: Any) -> None:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            if gradients:
                norms.append(nn.utils.get_total_norm(gradients).item())

    module = FlowModule(experiment, (1, 28, 28), 10)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {**experiment.trainer, "limit_val_batches": 0, **quiet}
    trainer = Trainer(**options, enable_model_summary=False, callbacks=[Norms()])
    trainer.fit(module, datamodule=FlowData(experiment.data, experiment.seed))
    assert norms
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-3)
    assert trainer.callback_metrics["grad_norm"] > 0.01


@pytest.mark.parametrize("wanted", [False, True])
def test_only_an_experiment_that_says_so_is_compiled(wanted: bool) -> None:
    module = FlowModule(tiny.experiment(compile=wanted), (1, 28, 28), 10)
    module.on_fit_start()
    assert (module.flow._compiled_call_impl is not None) == wanted


def seen(share: float, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and labels that the flow is given in a training step."""
    torch.manual_seed(0)
    module = FlowModule(tiny.experiment(optim__label_dropout=share), (1, 28, 28), 10)
    given: list[Any] = []
    module.flow.register_forward_pre_hook(lambda _, arguments: given.append(arguments[:2]))
    pixels = torch.zeros(1000, 1, 28, 28, dtype=torch.uint8)
    module.training_step(tiny.batch(pixels, first), 0)
    return given[0]


def test_labels_are_hidden_by_chance_and_the_noise_stays_as_it_was() -> None:
    images, y = seen(0.0, 3)
    dropped_images, dropped = seen(0.3, 3)
    assert torch.equal(y, torch.arange(1000) % 10)
    assert torch.equal(dropped_images, images)
    hidden = dropped != y
    assert (dropped[hidden] == -1).all()
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / 1000) ** 0.5)


def test_hidden_labels_follow_from_their_place_alone() -> None:
    assert torch.equal(seen(0.3, 3)[1], seen(0.3, 3)[1])
    assert not torch.equal(seen(0.3, 3)[1], seen(0.3, 4)[1])


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_share_of_hidden_labels_is_in_its_range(share: float) -> None:
    with pytest.raises(UsageError, match=r"optim.label_dropout = .* a number in \[0, 1\)"):
        Optim(label_dropout=share)


def test_images_are_mirrored_by_chance_each_with_its_label() -> None:
    torch.manual_seed(0)
    given: list[Any] = []
    pixels = torch.zeros(1000, 1, 28, 28, dtype=torch.uint8)
    pixels[..., :14] = 200  # bright on the left
    for flip in (False, True, True):
        module = FlowModule(tiny.experiment(data__flip=flip), (1, 28, 28), 10)
        module.flow.register_forward_pre_hook(lambda _, arguments: given.append(arguments[:2]))
        module.training_step(tiny.batch(pixels), 3)
    plain, first, again = (
        images[..., 0].mean((1, 2)) > images[..., -1].mean((1, 2)) for images, _ in given
    )
    assert plain.all()
    assert (~first).float().mean().item() == pytest.approx(0.5, abs=5 * (0.25 / 1000) ** 0.5)
    assert first.equal(again)
    assert all(y.equal(torch.arange(1000) % 10) for _, y in given)


@pytest.mark.parametrize("transform", ["affine", "rqs-4"])
def test_recomputed_activations_give_the_same_gradients(transform: str) -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        module = FlowModule(
            tiny.experiment(model__transform=transform, recompute=recompute), (1, 28, 28), 10
        )
        generator = torch.Generator().manual_seed(1)
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        pixels = torch.randint(256, (8, 1, 28, 28), generator=generator, dtype=torch.uint8)
        module.training_step(tiny.batch(pixels), 3).backward()
        gradients.append([p.grad for p in module.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, rtol=1e-4, atol=1e-7)


def test_sampling_in_between_does_not_change_the_training(tmp_path: Path) -> None:
    store = Store(tiny.results(tmp_path / "results"))
    without = run(tiny.experiment(), store).run_id
    drawn = run(tiny.experiment(evaluate__samples_every=1), store).run_id
    assert tiny.same(tiny.weights(store, without), tiny.weights(store, drawn))


# Means


def test_means_do_not_depend_on_how_images_are_dealt() -> None:
    values = torch.randn(10)

    def mean(*sizes: int) -> float:
        means = Means()
        for part in values.split(list(sizes)):
            means.add(len(part), loss=part.mean())
        return means.take()["loss"]

    assert mean(10) == pytest.approx(mean(1, 2, 7)) == pytest.approx(values.mean().item())


def test_means_start_anew_once_taken() -> None:
    means = Means()
    means.add(1, loss=torch.tensor(1.0))
    means.peak(slope=torch.tensor(2.0))
    means.peak(slope=torch.tensor(1.0))
    assert means.take() == {"loss": 1.0, "slope": 2.0}
    assert means.take() == {}


def test_means_go_on_from_a_checkpoint() -> None:
    first, second = Means(), Means()
    first.add(3, loss=torch.tensor(1.0))
    first.peak(slope=torch.tensor(2.0))
    second.load_state_dict(first.state_dict())
    second.add(1, loss=torch.tensor(5.0))
    second.peak(slope=torch.tensor(1.0))
    assert second.take() == {"loss": 2.0, "slope": 2.0}


def test_recorded_losses_are_means_over_all_images(tmp_path: Path) -> None:
    store = Store(tiny.results(tmp_path / "results"))
    options = {"data__batch": 300, "trainer__limit_val_batches": 1.0}  # 500 images: unequal shares
    record = run(tiny.experiment(**options), store)
    module = load(store.checkpoint(record.run_id))
    val = FlowData(module.experiment.data, 0).splits.val
    images = module.dequantise(val.pixels, Noise(2412, ids=torch.arange(500)))
    with torch.no_grad():
        prior, logdet = objective(*module.flow(images, val.labels))
    assert record.metrics["val/prior"] == pytest.approx(prior.item(), rel=1e-5)
    assert record.metrics["val/logdet"] == pytest.approx(logdet.item(), rel=1e-5)
    loss = record.metrics["val/prior"] - record.metrics["val/logdet"]
    assert record.metrics["val/loss"] == pytest.approx(loss, abs=1e-6)
    assert record.metrics["val/bpd"] == pytest.approx(bits_per_dim(loss), abs=1e-5)
    again = evaluate(record.run_id, store, {})
    assert again["test/loss"] == pytest.approx(record.metrics["test/loss"], rel=1e-6)


# Checkpoints


def written(path: Path, **options: Any) -> FlowModule:
    """A module and its checkpoint, without any training."""
    module = FlowModule(tiny.experiment(**options), (1, 28, 28), 10)
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, path)
    return module


def test_a_checkpoint_is_the_same_density(tmp_path: Path) -> None:
    module = written(tmp_path / "c.ckpt", model__transform="rqs-4").eval()
    images, y = torch.rand(3, 1, 28, 28), torch.tensor([0, 1, -1])
    again = load(tmp_path / "c.ckpt")
    assert again.experiment == module.experiment
    assert torch.equal(again.flow.log_prob(images, y), module.flow.log_prob(images, y))


def wider(content: dict[str, Any]) -> dict[str, Any]:
    content["flowbench"]["experiment"]["model"]["width"] = 32
    return content


def without(written: bytes, key: str) -> bytes:
    content, made = torch.load(io.BytesIO(written)), io.BytesIO()
    del content[key]
    torch.save(content, made)
    return made.getvalue()


BROKEN = {
    "it is empty": lambda _: b"",
    "has no weights: state_dict is missing": lambda good: without(good, "state_dict"),
    "it is cut short, damaged": lambda good: good[: len(good) // 2],
    "it is cut short, damaged or": lambda _: b"x" * 1000,
    "was not written by flowbench": {"state_dict": {}},
    "c.ckpt was not written by flowbench": [1],
    r"does not fit the flow it names: size mismatch for flow\.blocks": wider,
}


@pytest.mark.parametrize("told", BROKEN)
def test_a_broken_checkpoint_is_told(told: str, tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    written(path)
    damage: Any = BROKEN[told]
    if damage is wider:
        torch.save(wider(torch.load(path)), path)
    elif callable(damage):
        path.write_bytes(damage(path.read_bytes()))
    else:
        torch.save(damage, path)
    with pytest.raises(UsageError, match=told):
        load(path)


def test_no_flipped_bit_of_a_checkpoint_changes_a_weight(tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    right = written(path).state_dict()
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), len(whole) // 150):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        try:
            found = load(path).state_dict()
        except UsageError:
            refused += 1
        else:
            assert all(torch.equal(found[key], right[key]) for key in right)
    assert refused > 100


def test_training_does_not_continue_from_weights_alone(tmp_path: Path) -> None:
    module = written(tmp_path / "c.ckpt")
    with pytest.raises(UsageError, match=r"can continue from .*c\.ckpt: epoch is missing"):
        check_resumable(tmp_path / "c.ckpt", module)


def test_a_missing_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: there is no such file"):
        load(tmp_path / "c.ckpt")


def test_a_step_asks_nothing_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each question would make the host wait for all that was queued before."""
    module = FlowModule(tiny.experiment(), (1, 28, 28), 10)
    adam = torch.optim.AdamW(module.parameters(), fused=True)
    pixels = torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8)
    asked: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(torch.Tensor, name)

        def ask(self: torch.Tensor, *arguments: Any) -> Any:
            asked.append(name)
            return method(self, *arguments)

        return ask

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    for number in range(3):
        adam.zero_grad()
        module.training_step(tiny.batch(pixels), number).backward()
        module.configure_gradient_clipping(adam)
        adam.step()
    assert asked == []
    assert module.watch.ask() is None
    assert asked == ["tolist"]


@pytest.mark.gpu
def test_a_hundred_steps_never_wait_for_the_gpu() -> None:
    module = FlowModule(tiny.experiment(), (1, 28, 28), 10).cuda()
    adam = torch.optim.AdamW(module.parameters(), fused=True)
    pixels = torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8, device="cuda")
    for number in range(103):
        torch.cuda.set_sync_debug_mode("error" if number >= 3 else "default")
        adam.zero_grad()
        module.training_step(tiny.batch(pixels), number).backward()
        module.configure_gradient_clipping(adam)
        adam.step()
    torch.cuda.set_sync_debug_mode("default")
    assert module.watch.ask() is None


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_the_penalty_on_latents_is_minimised_but_not_recorded(weight: float) -> None:
    chosen = tiny.experiment(optim__norm_penalty=weight, model__blocks=3)
    module = FlowModule(chosen, (1, 28, 28), 10)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.flow.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    images, y = torch.rand(4, 1, 28, 28, generator=generator), torch.arange(4)
    loss, prior, logdet = module._objective(module.flow, images, y)
    torch.testing.assert_close((prior, logdet), objective(*module.flow(images, y)))
    between = [step.z.square().mean() for step in module.flow.trace(images, y)][:-1]
    assert len(between) == 2
    torch.testing.assert_close(loss, prior - logdet + weight * sum(between))
