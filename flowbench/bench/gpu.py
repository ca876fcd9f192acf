"""What a GPU does for flows: splines, training steps, samples and the whole protocol, in minutes.

``make gpu-check`` runs it. Each part writes a table to ``results/gpu`` once it is measured, and is
skipped where that is there: the same command goes on after a stop. It needs torch, lightning and
pandas, but neither MLflow nor Optuna. Without a GPU the same code runs on small sizes, to rehearse:
those times mean nothing.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from flowbench.bench.flows import CLASSES, SHAPE, device
from flowbench.bench.machine import facts, limits
from flowbench.bench.measure import seconds, spread
from flowbench.bench.training import products, step_of, tarflow_step
from flowbench.callbacks import Budget, EpochClock, EpochRecord
from flowbench.capture import Replayed
from flowbench.checkpoint import AtomicCheckpointIO, read
from flowbench.config import Data, Evaluate, Experiment, Model
from flowbench.data import Batch
from flowbench.data.module import FlowData
from flowbench.evaluation import likelihood
from flowbench.evaluation.density import TEST_NOISE, density
from flowbench.evaluation.sampling import GPU_BATCH, Sampling, draw
from flowbench.flow import Flow
from flowbench.module import FlowModule, build_flow
from flowbench.seeding import Noise
from flowbench.terminal import say
from flowbench.tracking.provenance import provenance
from flowbench.trainer import known_warnings, make_trainer
from flowbench.transforms import parse
from flowbench.transforms.spline import Spline

CUDA = torch.cuda.is_available()
MODEL = Model(blocks=8, layers=4, width=128) if CUDA else Model(blocks=2, layers=1, width=32)
BATCHES = (256, 2048) if CUDA else (16,)
SCALARS = 49 * 16 * 2048 if CUDA else 2000
SAMPLES = 10_000 if CUDA else 20
TRANSFORMS = ("affine", "rqs-4", "rqs-8", "rqs-32")
PROTOCOL = ("affine", "rqs-4", "rqs-8")
EPOCHS = 100 if CUDA else 1
ROOT = "data"
BASELINE = "TarFlow's way, compiled"
TWO = ("affine", "rqs-8")
"""Transforms whose flows are measured in more ways."""
AS_IT_IS, CAPTURED, FLOAT32 = ", as it is", ", captured", ", float32"
"""Endings of the cases that are trained without ``capture``, with it, and without bf16."""
WHOLE = ", in one graph"
"""Ending of the cases whose whole step, clipping and AdamW too, is one CUDA graph."""
SEEDS = 4
TOGETHER = f", {SEEDS} seeds together"
"""Ending of the cases in which several flows are trained as one model."""
Rows = Iterator[dict[str, Any]]


def splines() -> Rows:
    """Time a spline, forward and backward, and give its share of the least bytes' time.

    The least is every raw parameter, input and gradient read or written once, at the measured rate
    of copying.
    """
    rates = limits()
    for name in TRANSFORMS[1:]:
        spline = parse(name)
        assert isinstance(spline, Spline)
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(SCALARS, device=device(), requires_grad=True)
            planes = torch.randn(spline.num_params, SCALARS, device=device(), dtype=dtype)
            params = planes.T.requires_grad_()
            ways = {"kernel": spline.forward, "torch": _plain(spline)}
            if CUDA:
                ways["compiled"] = torch.compile(_plain(spline))
            works = {
                way: partial(_spline_step, forward, x, params) for way, forward in ways.items()
            }
            taken = seconds(works, repeats=10, warmup=3)
            least = SCALARS * (3 * spline.num_params * params.element_size() + 8 * x.element_size())
            for way, times in taken.items():
                row = {"case": f"{name}, {way}", "setting": f"{dtype}, {SCALARS} scalars"}
                measured = spread(times)
                share = least / rates["copy"] / measured["seconds"]
                yield {**row, **measured, "share": share, **rates}


def _plain(spline: Spline) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def forward(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return spline.plain_forward(x, params.float())

    return forward


def _spline_step(
    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, params: Tensor
) -> None:
    x.grad = params.grad = None
    z, log_slope = forward(x, params)
    (z.sum() + log_slope.sum()).backward()


def steps() -> Rows:
    """Time a training step in bf16: as it is, captured, compiled, both, and of four seeds.

    ``share`` is that of its matrix products, at the measured rate of large ones. ``kernels`` is the
    time of the step's kernels alone, by torch's profiler: what a step without gaps would take. A
    step in one graph has clipping and AdamW in it too, which no run has: it shows what there is
    left to gain.
    """
    rates = limits()
    for batch in BATCHES:
        images, small = _random(batch), batch == BATCHES[0]
        affine = experiment("affine")
        always = {"affine" + AS_IT_IS: step_of(affine, images, bf16=True)}
        if CUDA:
            always["affine" + CAPTURED] = step_of(replace(affine, capture=True), images, bf16=True)
        if small:
            always[BASELINE] = tarflow_step(replace(affine, compile=CUDA), images, bf16=True)
        for group in chain([always], _groups(images, small)):
            works = always | group
            taken = {name: spread(times) for name, times in seconds(works, 20, warmup=3).items()}
            for name in group:
                kernels = _kernel_seconds(works[name]) if name.endswith(AS_IT_IS) else None
                yield _row(name, batch, taken, rates) | {"kernels": kernels} | rates
            del works, group  # their graphs keep memory


def _groups(images: Batch, small: bool) -> Iterator[dict[str, Callable[[], None]]]:
    """Make the steps that take turns with the baseline: in groups, as a card's memory is small."""
    make = partial(step_of, batch=images, bf16=True)
    for transform in TRANSFORMS:
        own = experiment(transform)
        works: dict[str, Callable[[], None]] = {}
        if transform != "affine":  # whose steps take turns with all
            works[transform + AS_IT_IS] = make(own)
            if CUDA:
                works[transform + CAPTURED] = make(replace(own, capture=True))
        if small and CUDA:
            works[transform + WHOLE] = Replayed(make(own))
        if small and transform in TWO:
            works[transform + FLOAT32] = make(own, bf16=False)
            if CUDA:
                compiled = replace(own, compile=True)
                if transform == "affine":  # compiling takes a minute each time
                    works[f"{transform}, compiled"] = make(compiled)
                works[f"{transform}, compiled{CAPTURED}"] = make(replace(compiled, capture=True))
        if works:
            yield works
    for transform in TWO if small else ():
        count = len(images.ids)
        works = {transform + TOGETHER: together(transform, count)}
        if CUDA:
            replayed = Replayed(together(transform, count, capturable=True))
            works[transform + TOGETHER + WHOLE] = replayed
        yield works


def _row(
    name: str, batch: int, taken: dict[str, dict[str, float]], rates: dict[str, float]
) -> dict[str, Any]:
    """What is said of a step, given the times of those that it took turns with."""
    transform, flows = name.partition(",")[0], SEEDS if TOGETHER in name else 1
    precision = "float32" if FLOAT32 in name else "bf16"
    measured = taken[name]
    row = {"case": name, "setting": f"batch {batch}, {precision}", **measured}
    row["images_per_second"] = flows * batch / measured["seconds"]
    if name != BASELINE:
        least = flows * _products(transform, batch) / rates[f"matmul_{precision}"]
        row["share"] = least / measured["seconds"]
    if BASELINE in taken and precision == "bf16":
        row["ratio"] = flows * taken[BASELINE]["seconds"] / measured["seconds"]
    affine = taken.get("affine" + name.removeprefix(transform))
    if affine:
        row["to_affine"] = measured["seconds"] / affine["seconds"]
    return row


@cache
def _products(transform: str, batch: int) -> int:
    return products(partial(build_flow, experiment(transform), SHAPE, CLASSES), batch)


def _random(count: int) -> Batch:
    """Images of noise, with labels."""
    ids = torch.arange(count, device=device())
    pixels = torch.randint(256, (count, *SHAPE), dtype=torch.uint8, device=device())
    return Batch(pixels, ids % CLASSES, ids)


def losses_of(flows: list[Flow]) -> tuple[dict[str, Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """Make one model of several flows of one shape: what each kernel does, it does for all.

    Returns:
        Their parameters, each with a first dimension for the flows; and a function of images
        ``[S, B, C, H, W]`` and labels ``[S, B]`` that gives the loss of each flow, ``[S]``.
    """
    parameters, buffers = torch.func.stack_module_state(flows)
    first = flows[0]

    def loss(own: dict[str, Tensor], state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        z, log_det = torch.func.functional_call(first, (own, state), (x, y))
        prior, logdet = likelihood.objective(z, log_det)
        return prior - logdet

    every = torch.func.vmap(loss)
    return parameters, lambda x, y: every(parameters, buffers, x, y)


def together(transform: str, batch: int, capturable: bool = False) -> Callable[[], None]:
    """Make a step of several seeds at once, each with its images, loss, clipping and AdamW.

    Args:
        transform: The flows' transform.
        batch: Images of each seed.
        capturable: Let AdamW count its steps on the GPU.
    """
    torch.manual_seed(0)
    modules = [FlowModule(experiment(transform), SHAPE, CLASSES).to(device()) for _ in range(SEEDS)]
    parameters, losses = losses_of([module.flow for module in modules])
    values = list(parameters.values())
    adam = torch.optim.AdamW(values, lr=1e-4, fused=True, capturable=capturable)
    pixels, y, ids = _random(SEEDS * batch)
    y = y.view(SEEDS, batch)

    def work() -> None:
        adam.zero_grad()
        with torch.autocast(device().type, torch.bfloat16):
            images = modules[0].dequantise(pixels, Noise(0, ids=ids))
            found = losses(images.unflatten(0, (SEEDS, batch)), y)
        found.sum().backward()
        squares = [
            value.grad.flatten(1).square().sum(1) for value in values if value.grad is not None
        ]
        scale = (torch.stack(squares).sum(0).sqrt() + 1e-6).reciprocal().clamp(max=1.0)
        for value in values:
            if value.grad is not None:
                value.grad.mul_(scale.view(-1, *[1] * (value.dim() - 1)))
        adam.step()

    return work


def _kernel_seconds(work: Callable[[], None]) -> float | None:
    """Add up the times of a step's kernels; None without a GPU."""
    work()
    if not CUDA:
        return None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


def samples() -> Rows:
    """Time the drawing of images, networks in float32 and in bf16; and a batch as one graph.

    So few batches are not replayed; ``draw`` does that with many of one size.
    """
    for transform in TWO:
        flow = FlowModule(experiment(transform), SHAPE, CLASSES).to(device()).eval().flow
        y = torch.arange(SAMPLES) % CLASSES
        for bf16 in (False, True):
            draw(flow, y[:CLASSES], Sampling(0, bf16=bf16))
            began = time.perf_counter()
            draw(flow, y, Sampling(0, bf16=bf16))
            taken = time.perf_counter() - began
            name = f"{transform}, {'bf16' if bf16 else 'float32'}"
            yield {"case": name, "setting": f"{SAMPLES} images", "seconds": taken}
    for transform in TWO if CUDA else ():
        flow = FlowModule(experiment(transform), SHAPE, CLASSES).to(device()).eval().flow
        y = torch.arange(GPU_BATCH, device=device()) % CLASSES
        z = torch.randn(GPU_BATCH, flow.tokens, flow.features, device=device())
        as_it_is = partial(flow.inverse, z, y)
        works: dict[str, Callable[[], object]] = {"as it is": as_it_is}
        works["in one graph"] = Replayed(as_it_is)
        for way, times in seconds(works, 5, warmup=1).items():
            case = {"case": f"{transform}, {way}", "setting": f"{GPU_BATCH} images"}
            yield {**case, **spread(times)}


def experiment(transform: str, root: str = ROOT) -> Experiment:
    """Build the original's experiment: full MNIST, 100 epochs, bf16."""
    return Experiment(
        name="gpu",
        model=replace(MODEL, transform=transform),
        data=Data("mnist-5k" if root == ROOT and not CUDA else "mnist", root=root),
        evaluate=Evaluate(samples=0, bayes=0, samples_every=0),
        trainer={"max_epochs": EPOCHS, "precision": "bf16-mixed"}
        | ({} if CUDA else {"limit_train_batches": 3, "accelerator": "cpu"}),
    )


def protocol(out: Path, root: str, deadline: float) -> Rows:
    """Train the original's flows, one after another, as far as the time allows; keep checkpoints.

    A run that the time cuts short keeps its shape: the learning rate falls over the seconds it has.
    ``flowbench import CHECKPOINT`` records them in a store and ``flowbench evaluate`` measures them
    anywhere. A flow whose checkpoint is there is not trained again. A flow is captured if that made
    its steps shorter in ``step.csv``.

    Raises:
        RuntimeError: No time is left for a flow.
    """
    for number, transform in enumerate(PROTOCOL):
        path = out / f"{transform}.ckpt"
        if path.exists():
            yield read(path)["flowbench"]["measured"]
            continue
        left = (deadline - time.monotonic()) / (len(PROTOCOL) - number)
        if CUDA and left < 20:
            raise RuntimeError(f"no time is left for {transform}: give --minutes more")
        chosen = experiment(transform, root)
        capture = _gains(out / "step.csv", transform)
        budget = replace(chosen, capture=capture, seconds=max(left - 15, 5.0))
        yield train(budget, path)


def _gains(steps: Path, transform: str) -> bool:
    """Whether a flow's captured steps were measured to be shorter."""
    if not steps.exists():
        return False
    taken = pd.read_csv(steps).groupby("case")["seconds"].min()
    plain, replayed = (taken.get(transform + way, 0.0) for way in (AS_IT_IS, CAPTURED))
    return bool(0 < replayed < plain)


def train(chosen: Experiment, path: Path) -> dict[str, Any]:
    """Train one flow without a store; return its last epoch, and its test loss.

    The checkpoint has everything that a store would: every epoch, the results, where it ran.
    """
    data = FlowData(chosen.data, chosen.seed)
    data.prepare_data()
    torch.manual_seed(chosen.seed)
    module = FlowModule(chosen, data.splits.shape, data.splits.classes)
    trainer, clock = make_trainer(chosen), EpochClock()
    began = time.strftime("%Y-%m-%dT%H:%M:%S")
    history: list[dict[str, float]] = []

    def record(metrics: dict[str, float], epoch: int) -> bool:
        history.append({**metrics, "epoch": float(epoch)})
        say(f"{chosen.model.transform} · epoch {epoch} · {metrics.get('val/loss', 0):.4f}")
        return False

    trainer.callbacks += [  # type: ignore[attr-defined]
        clock,
        Budget(chosen.seconds or 0.0, clock, module),
        EpochRecord(clock, module.trained, module.evaluated, record),
    ]
    with known_warnings():
        trainer.fit(module, datamodule=data)
    flow = module.flow.to(device(), torch.float32).eval()
    tested = density(
        flow, data.splits.test, module.dequantise, chosen.data.noise, 1, TEST_NOISE, 500
    )
    row = {"case": chosen.model.transform, "setting": f"{EPOCHS} epochs", **history[-1]}
    row |= {"training_seconds": clock.elapsed(), **tested.metrics}
    where = facts()
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    checkpoint["flowbench"] |= {
        "history": history,
        "measured": row,
        "tags": {
            **provenance(),
            **data.splits.tags,
            "began": began,
        },
        "facts": {
            **{key: str(where[key]) for key in ("device", "threads")},
            "kernels": module.flow.kernels(chosen.compile, device()),
        },
    }
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    return row


def tests(out: Path) -> None:
    """Run the tests marked gpu, where pytest is there; their output goes to ``tests.txt``."""
    path = out / "tests.txt"
    if path.exists() or not (CUDA and Path("tests").is_dir()):
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    path.write_text(done.stdout + done.stderr, encoding="utf-8")
    print("\n".join(done.stdout.splitlines()[-3:]))


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, and print the tables last."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    parser.add_argument("--data", default=ROOT, help="directory of MNIST's files")
    parsed = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * parsed.minutes
    out: Path = parsed.out
    out.mkdir(parents=True, exist_ok=True)
    if not CUDA:
        say("no GPU here: a rehearsal on the CPU, whose times mean nothing")
    tests(out)
    parts: dict[str, Callable[[], Rows]] = {
        "spline": splines,
        "step": steps,
        "sample": samples,
        "protocol": partial(protocol, out, parsed.data, deadline),
    }
    for name, measure in parts.items():
        path = out / f"{name}.csv"
        if not path.exists():
            say(f"measuring: {name}")
            rows: list[dict[str, Any]] = []
            try:
                for row in measure():
                    rows.append(row)
                    pd.DataFrame(rows).assign(**facts()).to_csv(f"{path}.partial", index=False)
            except (RuntimeError, ValueError) as error:  # the other parts are worth their minutes
                say(f"{name} stopped after {len(rows)} rows: {' '.join(str(error).split())[:300]}")
                continue
            Path(f"{path}.partial").replace(path)
    shown = ["case", "setting", "seconds", "share", "kernels", "ratio", "to_affine", "test/loss"]
    rates = ["matmul_float32", "matmul_bf16", "copy"]
    for path in sorted(out.glob("*.csv*")):
        table = pd.read_csv(path)
        print(f"\n{path.name}\n{table[[key for key in shown if key in table]].to_string()}")
        if set(rates) <= set(table):
            float32, bf16, copied = table[rates].iloc[0] / 1e12
            print(
                f"this machine: products of matrices {float32:.3g} TFLOP/s in float32, {bf16:.3g} "
                f"in bf16; copying {copied:.3g} TB/s"
            )


if __name__ == "__main__":
    main()
