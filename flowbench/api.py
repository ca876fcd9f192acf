"""Running and loading from Python, with the names of directories where modules want objects."""

from pathlib import Path

from flowbench import experiment as runner
from flowbench.checkpoint import load as load_checkpoint
from flowbench.config import Experiment
from flowbench.experiment import Record
from flowbench.module import FlowModule
from flowbench.tracking.store import Store


def run(
    experiment: Experiment, results: str | Path = "results", resume: str | None = None
) -> Record:
    """Train, test and record an experiment, as ``flowbench train`` does.

    Args:
        experiment: The whole configuration.
        results: Directory of the recorded runs.
        resume: Id of a stopped run of the same experiment to continue.

    Returns:
        Id, metrics and flow of the finished run.

    Raises:
        UsageError: The configuration or its files are wrong; nothing has been recorded then.
        Diverged: A loss was not finite; the run is marked failed.
        Interrupted: A signal stopped it; the run is marked killed and can be resumed.
    """
    return runner.run(experiment, Store(Path(results)), resume=resume)


def load(
    name: str | Path, results: str | Path = "results", device: str | None = "cpu"
) -> FlowModule:
    """Load a trained flow, ready to evaluate: ``.flow``, which ``.experiment`` describes.

    Args:
        name: A pretrained flow such as ``mnist-rqs-8``, the path of a checkpoint, also of one that
            your own Trainer wrote, or the id of a recorded run.
        results: Directory of the recorded runs.
        device: Device of the flow; None for a GPU if there is one.

    Raises:
        UsageError: There is no such flow or device, or the file is damaged.
    """
    return load_checkpoint(Store(Path(results)).checkpoint_of(str(name)), device)
