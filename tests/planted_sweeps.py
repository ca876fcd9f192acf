"""Recorded runs made up for the tests of what depends on bins, blocks and layers."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from flowbench.report.files import Recorded, complete

SEEDS, EPOCHS, IMAGES, TOKENS = 3, 4, 4000, 49
Law = Callable[[str, int, int], float]
"""Bits per dimension of a transform with blocks and layers."""


def twice(transform: str, blocks: int, layers: int) -> float:
    """Seconds per epoch: a second for a layer, two with a spline."""
    return blocks * layers * (1.0 if transform == "affine" else 2.0)


def sweep(
    points: Iterable[tuple[str, int, int]],
    bpd: Law,
    seconds: Law = twice,
    seeds: int = SEEDS,
    sd: float = 1e-3,
    workers: float = 1,
) -> Recorded:
    """Runs of every transform, number of blocks and number of layers, each with every seed."""
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 0.05, seeds)  # what runs of one seed have in common
    runs, history, patches = [], [], []
    for transform, blocks, layers in points:
        for seed in range(seeds):
            final = bpd(transform, blocks, layers) + shared[seed] + generator.normal(0, sd)
            run_id = f"{transform}-{blocks}-{layers}-{seed}"
            taken = seconds(transform, blocks, layers) * np.exp(generator.normal(0, 0.02, EPOCHS))
            for epoch in range(1, EPOCHS + 1):
                now = final + np.exp(-epoch)
                losses = {f"{stage}/bpd": now for stage in ("train", "val")}
                losses |= {f"{stage}/loss": now * np.log(2) for stage in ("train", "val")}
                rate = IMAGES / taken[epoch - 1]
                times = {"seconds_per_epoch": taken[epoch - 1], "images_per_second": rate}
                history.append({"run_id": run_id, "epoch": epoch, **times, **losses, "load": 1.5})
            ends = {f"{stage}/bpd": final for stage in ("train", "val", "test")}
            ends |= {name.replace("bpd", "loss"): final * np.log(2) for name in ends}
            own = {"run_id": run_id, "transform": transform, "seed": seed, "status": "finished"}
            own |= {"blocks": blocks, "layers": layers, "width": 64, "patch": 4, "scale": "quick"}
            own |= {"data": "mnist-5k", "noise": "uniform", "epochs": EPOCHS, "batch": 128}
            own |= {"lr": 2e-3, "device": "CPU, 2 cores", "threads": 2, "torch": "2.10"}
            own |= {"workers": workers, "parameters": 50_000 * blocks * layers}
            runs.append(own | {"seconds_per_epoch": np.median(taken[1:])} | ends)
            patches.append(pd.DataFrame({"run_id": run_id, "patch": range(TOKENS), "bpd": 1.0}))

    tables = {"patches": pd.concat(patches).assign(row=0, column=0)}
    return complete(Recorded(pd.DataFrame(runs), pd.DataFrame(history), {}, tables))


def untrained(recorded: Recorded) -> Recorded:
    """The same as a study of times leaves it: of one seed, without losses."""
    runs = recorded.runs[recorded.runs["seed"] == 0]
    history = recorded.history[recorded.history["run_id"].isin(runs["run_id"])]
    losses = [name for name in runs if "/" in name]
    kept = [name for name in history if "/" not in name]
    return complete(Recorded(runs.drop(columns=losses), history[kept], {}, {}))
