r"""How well a flow's likelihood tells images of another data set from those of its own.

Flows and other likelihoods often find simple images of another kind more likely than their own
(Nalisnick et al., 2019, https://arxiv.org/abs/1810.09136). Two remedies are measured too. One
takes off the length of the image as PNG, which stands for its complexity (Serrà et al., 2020,
https://arxiv.org/abs/1909.11480). The other takes the distance from the mean of training images.
"""

import io
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from flowbench.data.images import Images, Splits
from flowbench.evaluation.bayes import log_prob_of_classes
from flowbench.evaluation.density import TEST_NOISE
from flowbench.evaluation.likelihood import LEVELS, Dequantise
from flowbench.flow import Flow

MOST = 2000
"""Images of each set that are compared: the first of its test images."""


def unlike(
    flow: Flow, splits: Splits, others: Mapping[str, Images], dequantise: Dequantise, batch: int
) -> dict[str, float]:
    """Measure the area under the ROC curve of three scores, for each other set.

    0.5: the score cannot tell the sets apart; 1: it is larger for every other image than for every
    own one; below 0.5: the other images look less unusual than the flow's own.

    Args:
        flow: A flow trained on ``splits``, on any device.
        splits: Its data set; typical is the mean of the first training images.
        others: Test images of other sets, of the same shape, by name.
        dequantise: Adds uniform noise.
        batch: Images in a batch.

    Returns:
        ``auroc_<name>``, of the negative log-likelihood; ``auroc_png_<name>``, of it less the bits
        of the PNG; ``auroc_typical_<name>``, of its distance from the typical one.
    """
    typical = bits(flow, splits.train.pixels[:MOST], dequantise, batch).mean()
    sets = {"": splits.test, **others}
    scores = {}
    for name, images in sets.items():
        pixels = images.pixels[:MOST]
        unlikely = bits(flow, pixels, dequantise, batch).numpy()
        scores[name] = (unlikely, unlikely - png_bits(pixels), abs(unlikely - typical.item()))
    return {
        f"{metric}_{name}": auroc(own, other)
        for name in others
        for metric, own, other in zip(
            ("auroc", "auroc_png", "auroc_typical"), scores[""], scores[name], strict=True
        )
    }


def bits(flow: Flow, pixels: Tensor, dequantise: Dequantise, batch: int) -> Tensor:
    """Negative log-likelihood of each image in bits, with one draw of the noise.

    Under a flow with classes it is that of their equal mixture: the label of another set's image
    means nothing to the flow.

    Shape:
        uint8 ``[N, C, H, W]`` -> float64 ``[N]``
    """
    log_prob = log_prob_of_classes(flow, pixels, dequantise, TEST_NOISE, batch)
    nats = math.log(log_prob.shape[1]) - log_prob.logsumexp(1)
    return (nats + flow.dims * math.log(LEVELS / 2)) / math.log(2)  # a level is 2 / 256 wide


def png_bits(pixels: Tensor) -> NDArray[np.float64]:
    """Length of each image as an optimised PNG.

    Shape:
        uint8 ``[N, C, H, W]`` -> ``[N]``
    """
    lengths = []
    for image in pixels.permute(0, 2, 3, 1).squeeze(-1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", optimize=True)
        lengths.append(8.0 * file.tell())
    return np.array(lengths)


def auroc(own: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Share of pairs in which the other value is larger; equal ones count half.

    Example:
        >>> auroc(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
        0.875
    """
    ranks = rankdata(np.concatenate([own, other]))[len(own) :]
    above = ranks.sum() - len(other) * (len(other) + 1) / 2
    return float(above / (len(own) * len(other)))
