"""What each hand-written kernel brings: steps with all of them against steps without some."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from flowbench.bench.flows import MODEL, SHAPE, device, random_flow
from flowbench.bench.measure import seconds, spread
from flowbench.bench.sampling import draw, noise
from flowbench.bench.training import Case, digits, step
from flowbench.kernels import memory
from flowbench.kernels.build import KERNELS, only

QUICK: dict[str, Any] = {"blocks": 8, "layers": 1, "width": 64, "patch": 4}
"""The model of the quick studies."""
SIZES: dict[str, tuple[Mapping[str, Any], int]] = {"quick": (QUICK, 128), "large": (MODEL, 256)}
"""Model and batch of each training step."""
WITHOUT = {
    "all kernels": (),
    "without layer": ("layer",),
    "without rqs": ("rqs",),
    "without layer, rqs": ("layer", "rqs"),
}
RATIO = "these seconds / those with all kernels, of the same setting"


def training(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure a training step in float32 with and without the kernels; a row per case.

    Args:
        repeats: Rounds that count; all cases of a setting take turns in each.
    """
    memory.keep()
    for name, (model, images) in SIZES.items():
        batch = digits(images)
        for transform in ("affine", "rqs-8"):
            cases = {
                case: _within(off, partial(step, Case(transform), batch, model))
                for case, off in WITHOUT.items()
                if transform != "affine" or "rqs" not in off
            }
            yield from _rows(f"{transform}, {name}: batch {images}", cases, repeats)


def sampling(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure drawing images in float32 with and without the kernel of a token; a row per case."""
    for images in (100, 500):
        for transform in ("affine", "rqs-8"):
            flow = random_flow(transform)
            work = partial(draw, flow, *noise(flow, images), "float32")
            cases = {
                case: _within(off, partial(_given, work))
                for case, off in {"all kernels": (), "without step": ("step",)}.items()
            }
            yield from _rows(f"{transform}, {images} images", cases, repeats)


def _given(work: Callable[[], object]) -> Callable[[], object]:
    return work


def _within(off: tuple[str, ...], make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """Make some work without these kernels, and do it so every time."""

    def kernels() -> AbstractContextManager[None]:
        return only(*(name for name in KERNELS if name not in off))

    with kernels():
        work = make()

    def run() -> object:
        with kernels():
            return work()

    return run


def _rows(
    setting: str, cases: Mapping[str, Callable[[], object]], repeats: int
) -> Iterator[dict[str, Any]]:
    taken = seconds(cases, repeats, warmup=2)
    middle = {name: spread(times)["seconds"] for name, times in taken.items()}
    for name, times in taken.items():
        yield {
            "case": name,
            "setting": f"{setting}, {SHAPE[1]}×{SHAPE[2]}, {device()}",
            **spread(times),
            "ratio": middle[name] / middle["all kernels"],
            "ratio_of": RATIO,
        }
