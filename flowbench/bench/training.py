"""One step of training: TarFlow's way, and flows of several transforms and precisions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flowbench.bench.flows import CLASSES, MODEL, SHAPE, device
from flowbench.bench.machine import fastest, limits
from flowbench.bench.measure import peak_memory, seconds, spread
from flowbench.bench.tarflow import TarFlow, noisy
from flowbench.config import Data, Experiment
from flowbench.data import Batch, load
from flowbench.evaluation import likelihood
from flowbench.flow import Flow
from flowbench.kernels import memory
from flowbench.module import FlowModule
from flowbench.parsing import build

BATCH = 256
RATE = 1e-4
"""Learning rate: no matter for the time, and small enough for one batch again and again."""
BASELINE = "TarFlow's way, float32"
RATIOS = "TarFlow's way's seconds / these; to affine: those of affine at equal precision / these"


@dataclass(frozen=True)
class Case:
    """A flow that is trained, in which precision, compiled by torch or not."""

    transform: str
    precision: str = "float32"
    compile: bool = False

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return f"{self.transform}, {self.precision}" + (", compiled" if self.compile else "")


CASES = (
    Case("affine"),
    Case("rqs-8"),
    Case("rqs-32"),
    Case("affine", "bf16"),
    Case("rqs-8", "bf16"),
    Case("rqs-32", "bf16"),
)
COMPILED = (Case("affine", "bf16", compile=True), Case("rqs-8", "bf16", compile=True))
"""Measured on a GPU only: a CPU takes minutes to compile them and gains nothing."""


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure; a row for each case: times, images per second, ratios, share of the machine's rate.

    A step is the loss of a batch, its gradient, clipping and fused AdamW, as in any run. The share
    is that of the step's matrix products, at the rate at which the machine multiplies matrices of
    the same precision, in the step's time. TarFlow's way differs in the flow, and takes its
    noise from torch's generator: clipping and AdamW are ours.
    """
    memory.keep()  # for every subject
    cases = CASES + (COMPILED if device().type == "cuda" else ())
    batch = digits(BATCH)
    before = limits()
    baseline = tarflow_step(experiment(Case("affine")), batch)
    steps: dict[str, Callable[[], None]] = {BASELINE: baseline}
    steps |= {case.name: step(case, batch) for case in cases}
    taken = seconds(steps, repeats, warmup=2)
    peaks = {name: peak_memory(work) for name, work in steps.items()}
    rates = fastest(before, limits())
    middle = {name: spread(times)["seconds"] for name, times in taken.items()}
    for name, case in {BASELINE: None, **{case.name: case for case in cases}}.items():
        precision = case.precision if case else "float32"
        make = partial(Flow, transform=case.transform) if case else TarFlow
        work = products(partial(make, SHAPE, CLASSES, **MODEL), BATCH)
        row = {
            "case": name,
            "setting": f"batch {BATCH}",
            **spread(taken[name]),
            "images_per_second": BATCH / middle[name],
            "ratio": middle[BASELINE] / middle[name],
            "ratio_of": RATIOS,
            "flop": work,
            "share": work / middle[name] / rates[f"matmul_{precision}"],
            "peak_bytes": peaks[name],
            **rates,
        }
        if case:
            row["ratio_to_affine"] = middle[Case("affine", precision).name] / middle[name]
        yield row


def digits(count: int) -> Batch:
    """The first training images of mnist-5k and their labels."""
    train = load(Data("mnist-5k")).train
    assert train.labels is not None
    ids = torch.arange(count, device=device())
    return Batch(train.pixels[:count].to(device()), train.labels[:count].to(device()), ids)


def experiment(case: Case, model: Mapping[str, Any] = MODEL) -> Experiment:
    """Build the experiment whose steps are measured."""
    options = {"transform": case.transform, **model}
    return build({"model": options, "data": {"batch": BATCH}, "compile": case.compile})


def step(case: Case, batch: Batch, model: Mapping[str, Any] = MODEL) -> Callable[[], None]:
    """Make a case's training step."""
    return step_of(experiment(case, model), batch, case.precision == "bf16")


def step_of(chosen: Experiment, batch: Batch, bf16: bool) -> Callable[[], None]:
    """Make a training step of an experiment, as Lightning would run it under its precision."""
    torch.manual_seed(0)
    module = FlowModule(chosen, SHAPE, CLASSES).to(device())
    module.on_fit_start()

    def loss() -> Tensor:
        with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
            return module.training_step(batch, 0)

    return _step(module, module.flow, loss)


def tarflow_step(chosen: Experiment, batch: Batch, bf16: bool = False) -> Callable[[], None]:
    """Make the step of the baseline, for the affine flow of an experiment."""
    torch.manual_seed(0)
    module = FlowModule(chosen, SHAPE, CLASSES).to(device())
    flow = TarFlow.of(module.flow)
    if chosen.compile:
        flow.compile()

    def loss() -> Tensor:
        with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
            z, log_det = flow(noisy(batch.pixels), batch.labels)
            return 0.5 * z.float().square().mean() - log_det.mean()

    return _step(module, flow, loss)


def _step(module: FlowModule, flow: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    module.flow = flow  # type: ignore[assignment]  # the baseline's gradients are clipped too
    adam = torch.optim.AdamW(
        flow.parameters(),
        lr=RATE,
        betas=(0.9, 0.95),
        fused=True,
        capturable=device().type == "cuda",  # the step as a whole can be captured too
    )

    def work() -> None:
        adam.zero_grad()
        loss().backward()
        module.configure_gradient_clipping(adam)
        adam.step()

    return work


def products(make: Callable[[], nn.Module], batch: int) -> int:
    """Count the FLOPs of all matrix products of a step, forward and backward, attention's too.

    They are counted on a plain flow without memory: neither kernels of our own nor a compiler hide
    any, nor does precision matter.
    """
    with torch.device("meta"):
        flow = make()
        images, y = torch.empty(batch, *SHAPE), torch.empty(batch, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        prior, logdet = likelihood.objective(*flow(images, y))
        (prior - logdet).backward()
    return counter.get_total_flops()
