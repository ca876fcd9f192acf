"""Ship the flow of a finished run: ``python -m flowbench.pretrained RUN NAME``."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from flowbench.atomic import replacing
from flowbench.checkpoint import load
from flowbench.errors import UsageError
from flowbench.pretrained import HERE, INDEX, LARGEST, digest, flows
from flowbench.tracking.store import Store

NUMBERS = ("test/bpd", "test/nll", "fid_digits", "agreement_digits")
"""Measurements that the index lists for a flow, if its run recorded them."""


def ship(run: str, name: str, store: Store, directory: Path = HERE) -> Path:
    """Write a run's flow as a checkpoint without its optimiser, and its line in the index.

    Raises:
        UsageError: The run is not finished, or the file would be larger than allowed.
    """
    record = store.get(run)
    if record.info.status != "FINISHED":
        raise UsageError(f"run {run} is not finished")
    module = load(store.checkpoint_of(run))
    about = {
        "experiment": asdict(module.experiment),
        "shape": tuple(module.flow.shape),
        "classes": module.classes,
    }
    path = directory / f"{name}.ckpt"
    with replacing(path) as file:
        torch.save({"flowbench": about, "state_dict": module.state_dict()}, file)
        if file.tell() > LARGEST:
            raise UsageError(f"{path.name} has {file.tell()} bytes: at most {LARGEST} are shipped")
    tags, metrics = record.data.tags, record.data.metrics
    line = {
        "sha256": digest(path),
        "transform": module.experiment.model.transform,
        "noise": module.experiment.data.noise,
        "study": tags.get("flowbench.study", ""),
        "seed": module.experiment.seed,
        "commit": tags.get("commit", ""),
        **{key: metrics[key] for key in NUMBERS if key in metrics},
    }
    with replacing(directory / INDEX) as file:
        known = {**flows(directory), name: line}
        file.write((json.dumps(known, indent=2) + "\n").encode())
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Ship a run's flow."""
    parser = argparse.ArgumentParser(prog="python -m flowbench.pretrained", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="id of a finished run")
    parser.add_argument("name", metavar="NAME", help="what the flow will be called: mnist-rqs-8")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs are")
    parsed = parser.parse_args(arguments)
    print(ship(parsed.run, parsed.name, Store(parsed.results)))


if __name__ == "__main__":
    main()
