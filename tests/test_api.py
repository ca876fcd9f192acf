"""The public interface as a stranger uses it: own loops, own Trainers, flows of other libraries."""

import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import tiny
import torch
import zuko
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.distributions import Distribution, Independent, Normal, TransformedDistribution

import flowbench
from flowbench import Experiment, Flow, FlowData, FlowModule, Univariate, load, parse, run

pytestmark = tiny.LIBRARIES


def small(classes: int = 0) -> Flow:
    torch.manual_seed(0)
    flow = Flow((1, 4, 4), classes, transform="rqs-4", patch=2, blocks=2, layers=1, width=8)
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return flow


def test_every_public_name_is_there_and_documented() -> None:
    for name in flowbench.__all__:
        assert getattr(flowbench, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flowbench.nothing
    assert (Path(flowbench.__file__).parent / "py.typed").exists()


def test_importing_the_package_loads_no_torch() -> None:
    code = "import flowbench, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_flow_learns_in_ones_own_loop() -> None:
    flow = small()
    images = 0.1 * torch.randn(64, 1, 4, 4) + 0.5
    adam = torch.optim.Adam(flow.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = -flow.log_prob(images).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 5


def test_module_and_data_in_ones_own_trainer_with_its_logger_and_checkpoints(tmp_path) -> None:
    experiment = Experiment(
        model=tiny.experiment().model,
        data=tiny.experiment().data,
        evaluate=tiny.experiment().evaluate,
    )
    data = FlowData(experiment.data, seed=0)
    module = FlowModule(experiment, data.splits.shape, data.splits.classes)
    kept = ModelCheckpoint(
        tmp_path / "kept", "best", monitor="val/loss", enable_version_counter=False
    )
    trainer = Trainer(
        max_epochs=2,
        limit_train_batches=3,
        limit_val_batches=1,
        logger=CSVLogger(tmp_path, name="log"),
        callbacks=[kept],
        log_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    assert {"train/loss", "val/loss", "grad_norm"} <= trainer.callback_metrics.keys()
    written = next((tmp_path / "log").rglob("metrics.csv")).read_text()
    assert "val/loss" in written
    assert "train/loss" in written
    again = load(tmp_path / "kept" / "best.ckpt")
    images = torch.rand(2, 1, 28, 28)
    y = torch.tensor([1, 2])
    assert again.flow.log_prob(images, y).shape == (2,)


def test_run_records_and_load_reads(tmp_path) -> None:
    record = run(tiny.experiment(trainer__max_epochs=1), tmp_path)
    assert "test/bpd" in record.metrics
    again = load(record.run_id, tmp_path)
    for here, there in zip(record.flow.parameters(), again.flow.parameters(), strict=True):
        assert here.cpu().equal(there)


def test_a_pretrained_flow_has_a_name() -> None:
    assert load("mnist-rqs-8").experiment.model.transform == "rqs-8"


# --- torch.distributions -------------------------------------------------------------------------


@pytest.mark.parametrize("y", [None, torch.tensor([0, 2, 1])], ids=["none", "labels"])
def test_a_flows_distribution_is_one_of_torchs(y: torch.Tensor | None) -> None:
    flow = small(classes=3)
    made = flow.distribution(y)
    assert isinstance(made, Distribution)
    batch = torch.Size([]) if y is None else y.shape
    assert (made.batch_shape, made.event_shape) == (batch, (1, 4, 4))
    torch.manual_seed(1)
    drawn = made.sample((2,))
    assert drawn.shape == (2, *batch, 1, 4, 4)
    assert made.log_prob(drawn).shape == (2, *batch)
    labels = torch.full((2,), -1) if y is None else y.repeat(2)
    expected = flow.log_prob(drawn.reshape(-1, 1, 4, 4), labels)
    assert torch.allclose(made.log_prob(drawn).flatten(), expected)
    one = torch.zeros(1, 4, 4)
    assert made.log_prob(one).shape == batch  # broadcast against the labels
    made.log_prob(one).sum().backward()
    assert all(p.grad is not None for p in flow.blocks[0].network.proj_out.parameters())


@pytest.mark.parametrize("name", ["affine", "rqs-4", "cubic-4", "affine+srqs-4"])
def test_a_transform_alone_is_one_of_torchs(name: str) -> None:
    transform = parse(name)
    torch.manual_seed(0)
    univariate = Univariate(transform, torch.randn(5, 3, transform.num_params, dtype=torch.float64))
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    z = univariate(x)
    assert torch.allclose(univariate.inv(z), x, atol=1e-9)
    (slope,) = torch.autograd.grad(z.sum(), x)
    assert torch.allclose(univariate.log_abs_det_jacobian(x, z), slope.log())
    normal = Independent(Normal(torch.zeros(5, 3).double(), torch.ones(5, 3).double()), 1)
    density = TransformedDistribution(normal, [univariate.inv])
    expected = normal.log_prob(z) + slope.log().sum(-1)
    assert torch.allclose(density.log_prob(x), expected)


def test_zuko_takes_a_transform_for_its_own_flows() -> None:
    transform = parse("rqs-8")
    torch.manual_seed(0)
    flow = zuko.flows.MAF(
        3,
        context=0,
        transforms=2,
        univariate=lambda params: Univariate(transform, params),
        shapes=[(transform.num_params,)],
    )
    x = torch.randn(100, 3)
    x = torch.stack([x[:, 0], x[:, 0] ** 2 + 0.1 * x[:, 1], x[:, 2]], 1)
    adam = torch.optim.Adam(flow.parameters(), 1e-2)
    before = -flow().log_prob(x).mean().item()
    for _ in range(50):
        loss = -flow().log_prob(x).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss.item() < before - 0.5
    assert flow().sample((4,)).isfinite().all()


@pytest.mark.slow
def test_the_readmes_lines_run_as_they_stand(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("### From Python\n")[2]
    lines = section.partition("```python\n")[2].partition("```")[0]
    assert "from flowbench import" in lines
    quick = "max_epochs=1, limit_train_batches=1, limit_val_batches=1, accelerator='cpu'"
    quick += ", logger=False, enable_checkpointing=False, log_every_n_steps=1"
    small = {"Experiment()": "tiny.experiment()", "max_epochs=5": quick}
    for wanted, instead in small.items():
        assert wanted in lines
        lines = lines.replace(wanted, instead)
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, "lightning": lightning, "zuko": zuko, "tiny": tiny}
    names["batch"] = torch.rand(2, 3, 32, 32)
    exec(lines, names)
    assert names["images"].shape == (4, 10, 1, 28, 28)
    assert names["loss"].isfinite()
    assert len(list((tmp_path / "results" / "checkpoints").iterdir())) == 1
