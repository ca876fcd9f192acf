"""Drawing images: TarFlow's way, and flows of several transforms in float32 and bf16."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowbench.bench.flows import device, random_flow
from flowbench.bench.measure import peak_memory, seconds, spread
from flowbench.bench.tarflow import TarFlow
from flowbench.evaluation.sampling import fitting
from flowbench.flow import Flow

BATCHES = (100, 500)
TRANSFORMS = ("affine", "rqs-8")
PRECISIONS = ("float32", "bf16")
BASELINE = "TarFlow's way, float32"
RATIOS = "TarFlow's way's seconds / these; to affine: those of affine at equal precision / these"


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure; a row for each number of images drawn together, transform and precision.

    ``error`` is the largest difference of a pixel, on [-1, 1], from what plainer code makes of the
    same noise: TarFlow's way for affine flows, the same flow in float64 for the others.
    """
    flows = {transform: random_flow(transform) for transform in TRANSFORMS}
    plain = TarFlow.of(flows["affine"])
    for batch in BATCHES:
        z, y = noise(flows["affine"], batch)
        cases: dict[str, Callable[[], Tensor]] = {BASELINE: partial(plain.inverse, z, y)}
        for precision in PRECISIONS:
            for transform, flow in flows.items():
                cases[f"{transform}, {precision}"] = partial(draw, flow, z, y, precision)
        taken = seconds(cases, repeats)
        memory = {name: peak_memory(work) for name, work in cases.items()}
        middle = {name: spread(times)["seconds"] for name, times in taken.items()}
        exact = {t: double(flow, z, y) for t, flow in flows.items() if t != "affine"}
        exact["affine"] = plain.inverse(z, y)
        for name, work in cases.items():
            row = {
                "case": name,
                "setting": f"{batch} images",
                **spread(taken[name]),
                "images_per_second": batch / middle[name],
                "ratio": middle[BASELINE] / middle[name],
                "ratio_of": RATIOS,
                "peak_bytes": memory[name],
            }
            if name != BASELINE:
                transform, precision = name.split(", ")
                row["ratio_to_affine"] = middle[f"affine, {precision}"] / middle[name]
                row["error"] = (work() - exact[transform]).abs().max().item()
            yield row


def noise(flow: Flow, batch: int) -> tuple[Tensor, Tensor]:
    """Draw the noise of so many images, and give them labels in turn."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, flow.tokens, flow.features, generator=generator)
    return z.to(device()), torch.arange(batch, device=device()) % flow.classes


def draw(flow: Flow, z: Tensor, y: Tensor, precision: str) -> Tensor:
    """Map noise to images in a precision, as many at a time as ``flowbench sample`` takes."""
    parts = zip(z.split(fitting(flow)), y.split(fitting(flow)), strict=True)
    with torch.autocast(z.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return torch.cat([flow.inverse(*part) for part in parts])


def double(flow: Flow, z: Tensor, y: Tensor) -> Tensor:
    """Map noise to images in float64."""
    images = flow.double().inverse(z.double(), y)
    flow.float()
    return images
