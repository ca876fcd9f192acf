"""Runs that were trained without a store, brought into one: ``flowbench import``."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from flowbench import schema
from flowbench.checkpoint import load, read
from flowbench.errors import UsageError
from flowbench.recording import facts, start
from flowbench.terminal import say
from flowbench.tracking.store import Store

IMPORTED = "flowbench.imported"
"""Tag that names an imported checkpoint: by its experiment, its images and when it began."""


def bring(places: list[Path], store: Store) -> Iterator[str]:
    """Record the runs of checkpoints that hold their own history, each once.

    Args:
        places: Checkpoints, or directories of them, such as ``results/gpu``.
        store: Where to.

    Yields:
        The id of each run, also of one that was imported before.

    Raises:
        UsageError: A place has no checkpoint, or one that holds no history.
    """
    for place in places:
        paths = sorted(place.glob("*.ckpt")) if place.is_dir() else [place]
        if not paths:
            raise UsageError(f"{place} has no checkpoints (*.ckpt)")
        for path in paths:
            yield _one(path, store)


def _one(path: Path, store: Store) -> str:
    about = read(path)["flowbench"]
    if "history" not in about:
        raise UsageError(
            f"checkpoint {path} has no history: valid are those that make gpu-check writes; a run "
            f"of flowbench train is in its store already"
        )
    module = load(path)
    experiment, tags = module.experiment, about["tags"]
    own = f"{experiment.digest()}-{tags[schema.IMAGES]}-{tags['began']}"
    if known := store.search(f"tags.`{IMPORTED}` = '{own}'"):
        say(f"{path} is recorded already")
        return str(known[0].info.run_id)
    run_id = start(store, experiment, {**tags, IMPORTED: own})
    with store.closing(run_id):
        store.describe(
            run_id, experiment, facts(module.flow, experiment, torch.device("cpu")) | about["facts"]
        )
        for epoch in about["history"]:
            values = {key: value for key, value in epoch.items() if key != "epoch"}
            store.log(run_id, values, int(epoch["epoch"]))
        measured = {key: v for key, v in about["measured"].items() if key.startswith("test/")}
        store.log(run_id, measured, int(about["history"][-1]["epoch"]))
        store.tag(
            run_id, tags
        )  # versions and machine are those of the training, not of this process
        kept = store.checkpoint(run_id)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kept)
    return run_id
