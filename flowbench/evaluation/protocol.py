"""The whole evaluation of a trained flow, in one call."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from flowbench.config import Data, Evaluate, Experiment
from flowbench.data import Splits, load, prepare
from flowbench.decoding import Guidance
from flowbench.errors import Diverged, UsageError
from flowbench.evaluation import classifier, fidelity, inception, latents
from flowbench.evaluation.bayes import classify
from flowbench.evaluation.density import TEST_NOISE, density, noisy
from flowbench.evaluation.extractor import Extractor
from flowbench.evaluation.likelihood import Dequantise
from flowbench.evaluation.patches import patch_quality
from flowbench.evaluation.sampling import (
    Sampling,
    draw,
    draw_classes,
    roundtrip,
    to_pixels,
    trajectory,
)
from flowbench.evaluation.unlike import unlike
from flowbench.flow import Flow
from flowbench.size import image_shape
from flowbench.terminal import say
from flowbench.transforms.root import counting

ROUND_TRIPS = 100
MOST_BROKEN = 0.01
"""Share of samples that may be left out of FID and its like for not being finite."""


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        metrics: Numbers by the names under which they are recorded.
        tags: Hashes of the extractors; ``skipped`` says what was not measured and why.
        tables: ``patches positions confusion calibration agreement latents probe``, where measured.
        images: uint8 arrays: ``samples`` and, where they apply, ``guided`` and
            ``denoised``, ``[rows, classes, H, W, C]``; ``trajectory``, from noise to image,
            ``[blocks + 1, classes, H, W, C]``.
        faults: The traceback of every measurement that failed unexpectedly.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    images: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def evaluate(
    flow: Flow, dequantise: Dequantise, experiment: Experiment, splits: Splits, cache: Path
) -> Evaluation:
    """Measure a flow on the test images by the experiment's protocol.

    A measurement that fails, for whatever reason, is skipped with a message and a record, so that
    it never costs the others, nor the training before them.

    Args:
        flow: A trained flow in float32, on any device.
        dequantise: Adds the noise of the experiment.
        experiment: Its ``evaluate`` sets the amounts.
        splits: The data set.
        cache: Directory of results that several runs share: extractors, features of real images.
    """
    found = Evaluation()
    settings, batch = experiment.evaluate, experiment.data.batch
    with _optional(found):
        _density(found, flow, dequantise, experiment, splits)
    if settings.bayes and flow.classes:
        with _optional(found):
            judged = classify(flow, splits.test, dequantise, settings.bayes, TEST_NOISE, batch)
            found.metrics.update(judged.metrics)
            found.tables.update(confusion=judged.confusion, calibration=judged.calibration)
    if settings.latents:
        with _optional(found):
            known = latents.maps(flow, splits, dequantise, settings.latents, batch)
            found.tables.update(latents=latents.gaussian(known), probe=latents.probed(known))
    if others := _other_data(experiment):
        with _optional(found):
            images = {str(other.name): load(other).test for other in others}
            found.metrics.update(unlike(flow, splits, images, dequantise, batch))
    with _optional(found):
        found.images.update(pictures(flow, experiment, splits.classes))
    if settings.samples:
        with _optional(found):
            began = time.monotonic()
            pixels, asked, broken = generate(flow, experiment, splits, settings.samples)
            rate = settings.samples / (time.monotonic() - began)
            found.metrics.update({"samples/nonfinite": broken, "samples/per_second": rate})
            _check_broken(broken)
            with _optional(found):
                _patches(found, pixels, splits, flow.patch)
            for extractor in _extractors(settings, splits, experiment.data.name, cache):
                with _optional(found):
                    _fidelity(found, extractor(), pixels, asked, splits, cache)
    return found


def check_possible(experiment: Experiment) -> None:
    """Check what an evaluation will need, before the training that precedes it.

    Raises:
        UsageError: The file of weights is missing, damaged or of another network; another data set
            is unknown, cannot be had, or has images of another shape.
    """
    settings, data = experiment.evaluate, experiment.data
    for other in _other_data(experiment):
        if data.noise != "uniform":
            raise UsageError("evaluate.other_data needs data.noise = 'uniform', or to be empty")
        if image_shape(other) != image_shape(data):
            raise UsageError(
                f"evaluate.other_data: {other.name} has images {image_shape(other)}, not "
                f"{image_shape(data)} as data.name = {data.name!r}"
            )
        prepare(other)
    if settings.inception_weights and settings.samples:
        inception.check_weights(Path(settings.inception_weights))


def _other_data(experiment: Experiment) -> list[Data]:
    own = experiment.data
    names = dict.fromkeys(experiment.evaluate.other_data)
    return [replace(own, name=name) for name in names if name != own.name]


def check(flow: Flow, experiment: Experiment, splits: Splits, cache: Path) -> dict[str, float]:
    """Measure the FID of a few samples against the validation images, in the middle of training."""
    found = Evaluation()
    with _optional(found):
        extractor = classifier.extractor(splits, experiment.data.name, cache)
        amount = experiment.evaluate.fidelity_samples
        pixels, _, broken = generate(flow, experiment, splits, amount)
        _check_broken(broken)
        sides = extractor.features(pixels), extractor.features(splits.val.pixels)
        named = "generated images (evaluate.fidelity_samples)", "validation images"
        fid = fidelity.fidelity(*sides, extractor.suffix, named)["fid"]
        found.metrics[f"val/fid_{extractor.suffix}"] = fid
    return found.metrics


def sketch(flow: Flow, experiment: Experiment, classes: int) -> np.ndarray[Any, Any] | None:
    """Draw an image of each class, in the middle of training; None where they are not finite."""
    drawn = Evaluation()
    with _optional(drawn):
        drawn.images["sketch"] = draw_classes(flow, classes, 1, Sampling(experiment.seed))
    return drawn.images.get("sketch")


def generate(
    flow: Flow, experiment: Experiment, splits: Splits, count: int
) -> tuple[Tensor, Tensor, float]:
    """Draw images of the classes of the test images, repeated as often as needed.

    Samples of a flow trained with Gaussian noise are denoised, because its images are noisy.

    Returns:
        The images that are finite, the class that each was asked for (−1: none), and the share of
        all that are not finite.

    Shape:
        -> uint8 ``[≤count, C, H, W]``, int64 ``[≤count]``
    """
    labels = splits.test.labels if flow.classes else None
    y = torch.full((count,), -1) if labels is None else labels[torch.arange(count) % len(labels)]
    sampling = Sampling(experiment.seed, denoise_std=noise_std(experiment))
    images = draw(flow, y, sampling, broken="keep")
    finite = images.isfinite().flatten(1).all(1)
    pixels = torch.from_numpy(to_pixels(images[finite])).permute(0, 3, 1, 2).contiguous()
    return pixels, y[finite], 1 - finite.double().mean().item()


def _check_broken(share: float) -> None:
    if share > MOST_BROKEN:
        raise Diverged(
            f"{share:.1%} of the samples are not finite; they are scored where at most "
            f"{MOST_BROKEN:.0%} are"
        )


def pictures(flow: Flow, experiment: Experiment, classes: int) -> dict[str, np.ndarray[Any, Any]]:
    """Draw the images to look at, from the same noise: plain, guided, denoised, block by block."""
    settings, plain = experiment.evaluate, Sampling(experiment.seed)
    ways = {"samples": plain}
    if experiment.optim.label_dropout and settings.guidance:
        ways["guided"] = replace(plain, guidance=Guidance(settings.guidance))
    if std := noise_std(experiment):
        ways["denoised"] = replace(plain, denoise_std=std)
    drawn = {
        name: draw_classes(flow, classes, settings.samples_per_class, way)
        for name, way in ways.items()
    }
    y = torch.arange(flow.classes) if flow.classes else torch.full((10,), -1)
    stages = trajectory(flow, y, plain)
    drawn["trajectory"] = to_pixels(stages.flatten(0, 1)).reshape(
        *stages.shape[:2], *stages.shape[3:], -1
    )
    return drawn


def noise_std(experiment: Experiment) -> float:
    """Return the standard deviation of the noise in a flow's images; 0: none."""
    return experiment.data.noise_std if experiment.data.noise == "gaussian" else 0.0


def _density(
    found: Evaluation, flow: Flow, dequantise: Dequantise, experiment: Experiment, splits: Splits
) -> None:
    data, draws = experiment.data, experiment.evaluate.draws
    measured = density(flow, splits.test, dequantise, data.noise, draws, TEST_NOISE, data.batch)
    found.metrics.update(measured.metrics)
    found.tables.update(patches=measured.patches, positions=measured.positions)
    of_val = density(flow, splits.val, dequantise, data.noise, 1, TEST_NOISE, data.batch)
    found.metrics["val/failed"] = of_val.metrics["test/failed"]
    index = torch.arange(min(ROUND_TRIPS, len(splits.test)))
    x = noisy(splits.test.pixels, index, dequantise, TEST_NOISE)
    y = torch.full_like(index, -1) if splits.test.labels is None else splits.test.labels[index]
    with counting() as steps:
        found.metrics["roundtrip/max"] = roundtrip(flow, x, y)
    if steps:
        found.metrics["roundtrip/steps"] = max(steps)


def _patches(found: Evaluation, pixels: Tensor, splits: Splits, patch: int) -> None:
    quality = patch_quality(pixels, splits.test.pixels, splits.train.pixels, patch)
    found.metrics.update(quality.metrics)
    if "patches" in found.tables:  # else the densities of the patches could not be measured
        places = ["patch", "row", "column"]
        found.tables["patches"] = found.tables["patches"].merge(quality.patches, on=places)


def _extractors(
    settings: Evaluate, splits: Splits, name: str, cache: Path
) -> Iterator[Callable[[], Extractor]]:
    yield lambda: classifier.extractor(splits, name, cache)
    weights = settings.inception_weights
    yield lambda: inception.extractor(Path(weights) if weights else None)


def _fidelity(
    found: Evaluation,
    extractor: Extractor,
    pixels: Tensor,
    asked: Tensor,
    splits: Splits,
    cache: Path,
) -> None:
    measured = fidelity.measure(extractor, pixels, asked, splits, cache)
    found.metrics.update(measured.metrics)
    found.tags.update(measured.tags)
    if measured.agreement is not None:
        found.tables["agreement"] = measured.agreement


@contextmanager
def _optional(found: Evaluation) -> Iterator[None]:
    """Skip a measurement that is not possible, and record why."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, UsageError | OSError):
            found.faults.append(traceback.format_exc())
            reason = f"{type(error).__name__} ({reason}), a fault of flowbench or of this machine"
        say(f"not measured: {reason}")
        earlier = [found.tags["skipped"]] if "skipped" in found.tags else []
        found.tags["skipped"] = "; ".join([*earlier, reason])
