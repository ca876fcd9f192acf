"""Ways to solve a block's inverse, on a flow that has been trained: sweeps, error, time."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from flowbench.bench.measure import seconds, spread
from flowbench.decoding import SEQUENTIAL, Decoding
from flowbench.flow import Flow

BATCHES = (1, 100)
WAYS = {
    "sequential": SEQUENTIAL,
    "segments of 7, to 1e-3": Decoding(segment=7, tolerance=1e-3),
    "whole sequence, exact": Decoding(segment=None),
    "whole sequence, to 1e-3": Decoding(segment=None, tolerance=1e-3),
    "whole sequence, to 1e-2": Decoding(segment=None, tolerance=1e-2),
}


def rows(flows: Sequence[tuple[str, Flow]], repeats: int) -> Iterator[dict[str, Any]]:
    """Measure; a row for each named flow, number of images drawn together, and way."""
    for (name, flow), batch in product(flows, BATCHES):
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(batch, flow.tokens, flow.features, generator=generator)
        y = torch.arange(batch) % max(1, flow.classes) if flow.classes else None
        cases = {way: partial(flow.inverse, z, y, decoding=how) for way, how in WAYS.items()}
        taken = seconds(cases, repeats)
        exact = flow.inverse(z, y)
        base = spread(taken["sequential"])["seconds"]
        for way, how in WAYS.items():
            times = spread(taken[way])
            yield {
                "case": way,
                "setting": f"{name}, batch {batch}",
                **times,
                "images_per_second": batch / times["seconds"],
                "ratio": base / times["seconds"],
                "ratio_of": "the sequential loop's seconds / these",
                **_sweeps(flow, z, y, how, exact),
            }


def _sweeps(
    flow: Flow, z: Tensor, y: Tensor | None, how: Decoding, exact: Tensor
) -> dict[str, float]:
    stages = list(flow.decode(z, y, decoding=how))
    sweeps = [sum(stage.sweeps) for stage in stages[1:]]
    error = (stages[-1].x - exact).abs().max().item()
    return {"sweeps_per_block": sum(sweeps) / len(sweeps), "error": error}
