r"""A conditional flow as a classifier, by Bayes' rule: :math:`p(y|x) \propto p(x|y)`."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from flowbench.data.images import Images
from flowbench.errors import Diverged, UsageError
from flowbench.evaluation.density import noisy
from flowbench.evaluation.likelihood import Dequantise
from flowbench.flow import Flow

BINS = 15


@dataclass(frozen=True)
class Classification:
    """What a flow's densities say about the classes of images.

    Attributes:
        metrics: ``bayes/accuracy``, ``bayes/ece`` (expected calibration error: the mean distance
            of confidence from accuracy, over bins) and ``bayes/images``. In nats per image:
            ``bayes/log_loss``, the mean of −log p(label | image), and the two parts of it:
            ``bayes/entropy``, the mean entropy of the posterior, and ``bayes/excess``, the rest.
            The entropy is how unsure the flow is. The excess is its error: with the true
            densities it would be 0 on average.
        confusion: A row for each ``label`` and ``predicted`` class: the ``count`` of images.
        calibration: A row for each of 15 equal bins of confidence: mean ``confidence``,
            ``accuracy`` (both NaN where the bin is empty) and ``count``.
    """

    metrics: dict[str, float]
    confusion: pd.DataFrame
    calibration: pd.DataFrame


@torch.no_grad()
def log_prob_of_classes(
    flow: Flow, pixels: Tensor, dequantise: Dequantise, seed: int, batch: int
) -> Tensor:
    """Log-density of noisy images under every label, in nats; without classes under none.

    Args:
        flow: A flow, on any device.
        pixels: Images.
        dequantise: Adds the noise, on the CPU; the same noise under every label.
        seed: Decides the noise: that of image i follows from it and i alone.
        batch: Images in a batch, in which each one is once for every class.

    Shape:
        uint8 ``[N, C, H, W]`` -> float64 ``[N, classes]``, or ``[N, 1]`` without classes
    """
    weight, classes = next(flow.parameters()), max(1, flow.classes)
    found = []
    for index in torch.arange(len(pixels)).split(max(1, batch // classes)):
        x = noisy(pixels, index, dequantise, seed).repeat_interleave(classes, 0)
        y = torch.arange(classes).repeat(len(index)).to(weight.device) if flow.classes else None
        of_all = flow.log_prob(x.to(weight), y).cpu().double()
        found.append(of_all.unflatten(0, (len(index), classes)))
    return torch.cat(found)


def classify(
    flow: Flow, images: Images, dequantise: Dequantise, count: int, seed: int, batch: int
) -> Classification:
    r"""Classify noisy images by their density under every label, with equal prior probabilities.

    It takes classes × images passes, which is why their number is limited.

    Args:
        flow: A flow with classes, on any device.
        images: Labelled images.
        dequantise: Adds the noise, on the CPU; the same noise under every label.
        count: Images to classify at most: the first of them.
        seed: Decides the noise: that of image i follows from it and i alone.
        batch: Images in a batch, in which each one is once for every class.

    Raises:
        UsageError: The flow or the images have no classes.
        Diverged: No density of an image is finite.
    """
    if not flow.classes or images.labels is None:
        raise UsageError(
            "classification by Bayes' rule: valid are labelled images under a flow with classes"
        )
    log_prob = log_prob_of_classes(flow, images.pixels[:count], dequantise, seed, batch)
    posterior = log_prob.log_softmax(1)
    if broken := int(posterior.isnan().any(1).sum()):
        raise Diverged(
            f"classification by Bayes' rule: {broken} of {len(posterior)} log-densities are not "
            f"finite; valid are finite ones under every label"
        )
    return _judge(posterior, images.labels[: len(posterior)])


def _judge(log_posterior: Tensor, labels: Tensor) -> Classification:
    """Compare logarithms of posterior probabilities ``[N, classes]`` with labels ``[N]``."""
    classes, posterior = log_posterior.shape[1], log_posterior.exp()
    # torchmetrics would put a confidence of exactly 1 into a bin of its own.
    posterior = posterior.clamp_max(1 - 2**-24)
    metrics = {
        "bayes/accuracy": multiclass_accuracy(posterior, labels, classes, average="micro").item(),
        "bayes/ece": multiclass_calibration_error(posterior, labels, classes, BINS).item(),
        "bayes/images": len(labels),
        **_split(log_posterior, labels),
    }
    matrix = pd.DataFrame(multiclass_confusion_matrix(posterior, labels, classes).numpy())
    confusion = matrix.rename_axis(index="label", columns="predicted").stack().rename("count")

    confidence, predicted = posterior.max(1)
    table = pd.DataFrame(
        {"confidence": confidence.numpy(), "accuracy": (predicted == labels).numpy()}
    )
    bins = np.floor(table["confidence"] * BINS).astype(int).rename("bin")
    means = table.groupby(bins).mean().reindex(range(BINS))
    counts = bins.value_counts().reindex(range(BINS), fill_value=0).rename("count")
    calibration = means.join(counts).reset_index(drop=True)
    return Classification(metrics, confusion.reset_index(), calibration)


def _split(log_posterior: Tensor, labels: Tensor) -> dict[str, float]:
    """Split the log loss of a posterior ``[N, classes]`` into entropy and excess."""
    loss = -log_posterior[torch.arange(len(labels)), labels].mean().item()
    entropy = torch.special.entr(log_posterior.exp()).sum(1).mean().item()
    return {"bayes/log_loss": loss, "bayes/entropy": entropy, "bayes/excess": loss - entropy}
