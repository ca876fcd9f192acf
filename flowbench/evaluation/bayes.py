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
from flowbench.evaluation.likelihood import Dequantise
from flowbench.flow import Flow
from flowbench.seeding import generator

BINS = 15


@dataclass(frozen=True)
class Classification:
    """What a flow's densities say about the classes of images.

    Attributes:
        metrics: ``bayes/accuracy``, ``bayes/ece`` (expected calibration error: the mean distance
            of confidence from accuracy, over bins) and ``bayes/images``. In nats per image:
            ``bayes/log_loss``, the mean of −log p(label | image), and the two parts of it:
            ``bayes/entropy``, the mean entropy of the posterior, which is what the images leave
            open as far as the flow can tell, and ``bayes/excess``, the rest: 0 on average for the
            true densities, so it is the flow's error.
        confusion: A row for each ``label`` and ``predicted`` class: the ``count`` of images.
        calibration: A row for each of 15 equal bins of confidence: mean ``confidence``,
            ``accuracy`` (both NaN where the bin is empty) and ``count``.
    """

    metrics: dict[str, float]
    confusion: pd.DataFrame
    calibration: pd.DataFrame


@torch.no_grad()
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
    weight = next(flow.parameters())
    log_prob = []
    for index in torch.arange(min(count, len(images))).split(max(1, batch // flow.classes)):
        pairs = zip(images.pixels[index], index.tolist(), strict=True)
        x = torch.stack([dequantise(pixels, generator(seed, i)) for pixels, i in pairs])
        y = torch.arange(flow.classes).repeat(len(x))
        of_all = flow.log_prob(x.repeat_interleave(flow.classes, 0).to(weight), y.to(weight.device))
        log_prob.append(of_all.cpu().double().unflatten(0, (len(x), flow.classes)))
    posterior = torch.cat(log_prob).log_softmax(1)
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
