"""Which tables each subject of ``flowbench bench`` has."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flowbench.bench import (
    ablation,
    decoding,
    precision,
    reporting,
    sampling,
    starting,
    sweeping,
    training,
    transform,
)
from flowbench.checkpoint import load
from flowbench.tracking.store import Store

Rows = Iterable[dict[str, Any]]
MEASURED = {
    "transform": transform.rows,
    "train": training.rows,
    "sample": sampling.rows,
    "sweep": sweeping.rows,
    "report": reporting.rows,
    "start": starting.rows,
}


def tables(
    subject: str, runs: Sequence[str], repeats: int, results: Path
) -> Iterator[tuple[str, Rows]]:
    """Give the names of a subject's tables and their rows, measured as they are read.

    Args:
        subject: What to measure.
        runs: For decoding: runs or checkpoints.
        repeats: Rounds that count.
        results: Where runs are recorded.
    """
    if subject == "decoding":
        store = Store(results)
        modules = [load(store.checkpoint_of(run)) for run in runs]
        named = [(module.experiment.model.transform, module.flow) for module in modules]
        yield subject, decoding.rows(named, repeats)
        return
    yield subject, MEASURED[subject](repeats)
    if subject == "train":
        yield "train-kernels", ablation.training(repeats)
        yield "train-quality", precision.rows()
    if subject == "sample":
        yield "sample-kernels", ablation.sampling(repeats)
