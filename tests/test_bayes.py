import math

import numpy as np
import pandas as pd
import pytest
import torch
from plain_flow import wake
from scipy.special import entr, expit
from torch import Tensor

from flowbench.data.images import Images
from flowbench.errors import UsageError
from flowbench.evaluation.bayes import BINS, classify
from flowbench.evaluation.likelihood import dequantise_uniform
from flowbench.flow import Flow
from flowbench.seeding import Noise

SHAPE = (1, 4, 4)
TOLERANCE = {"float32": 1e-5, "rounding": 1e-9}
SEED = 3


class Gaussians(Flow):
    """Images of class y are normal around ``means[y]`` in every pixel, with this deviation."""

    def __init__(self, means: list[float], std: float) -> None:
        super().__init__(SHAPE, len(means), "affine", blocks=1, layers=1, width=8)
        self.means, self.std = torch.tensor(means), std

    def log_prob(self, images: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None
        around = self.means[y][:, None, None, None]
        # The offset is that of real log-likelihoods, in which float32 keeps three digits.
        return -5000 - 0.5 * ((images - around) / self.std).square().sum((1, 2, 3))


def silent(pixels: Tensor, _: torch.Generator) -> Tensor:
    return pixels / 128 - 1


def two_classes(count: int = 400) -> Images:
    """Pixels around 1/4 and −1/4, with so much spread that classes overlap."""
    labels = torch.randint(2, (count,))
    x = (0.25 - 0.5 * labels)[:, None, None, None] + 0.6 * torch.randn(count, *SHAPE)
    return Images(((x + 1) * 128).clamp(0, 255).to(torch.uint8), labels)


def posterior_of_class_0(images: Images, std: float) -> np.ndarray:
    """In closed form: p = 1 / (1 + exp(−Σx / 2σ²)) for means ±1/4."""
    return expit(
        silent(images.pixels, torch.Generator()).double().sum((1, 2, 3)).numpy() / 2 / std**2
    )


@pytest.mark.parametrize("std", [0.2, 0.6, 2.0], ids=["too sure", "right", "too modest"])
def test_accuracy_and_calibration_error_of_gaussians_in_closed_form(std: float) -> None:
    images = two_classes()
    assert images.labels is not None
    p, labels = posterior_of_class_0(images, std), images.labels.numpy()
    found = classify(Gaussians([0.25, -0.25], std), images, silent, 1000, SEED, batch=64)

    predicted = np.where(p > 0.5, 0, 1)
    right = predicted == labels
    confidence = np.maximum(p, 1 - p)
    error = 0.0
    for n in range(15):
        low, high = n / 15, (n + 1) / 15 if n < 14 else math.inf
        inside = (confidence >= low) & (confidence < high)
        error += abs(right[inside].sum() - confidence[inside].sum()) / len(p)
    assert found.metrics["bayes/accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    assert found.metrics["bayes/ece"] == pytest.approx(error, abs=1e-3)
    assert found.metrics["bayes/images"] == 400
    for label, guess, count in found.confusion.itertuples(index=False):
        assert count == ((labels == label) & (predicted == guess)).sum()


def test_a_flow_that_is_right_about_its_data_is_calibrated() -> None:
    images = two_classes(4000)
    errors = {
        std: classify(Gaussians([0.25, -0.25], std), images, silent, 4000, SEED, 4000).metrics
        for std in (0.15, 0.6, 4.0)
    }
    assert errors[0.6]["bayes/ece"] < 0.02
    assert min(errors[std]["bayes/ece"] for std in (0.15, 4.0)) > 0.04


@pytest.mark.parametrize("std", [0.05, 0.6, 2.0], ids=["too sure", "right", "too modest"])
def test_the_log_loss_is_split_in_closed_form(std: float) -> None:
    images = two_classes()
    assert images.labels is not None
    found = classify(Gaussians([0.25, -0.25], std), images, silent, 400, SEED, 64).metrics
    logit = silent(images.pixels, torch.Generator()).double().sum((1, 2, 3)) / 2 / std**2
    of_label = torch.where(images.labels == 0, logit, -logit)
    assert found["bayes/log_loss"] == pytest.approx(
        np.logaddexp(0, -of_label.numpy()).mean(), rel=1e-2
    )
    p = posterior_of_class_0(images, std)
    assert found["bayes/entropy"] == pytest.approx((entr(p) + entr(1 - p)).mean(), abs=1e-3)
    assert found["bayes/excess"] == found["bayes/log_loss"] - found["bayes/entropy"]


def test_a_flow_that_is_right_has_no_excess() -> None:
    images = two_classes(4000)
    excess = [
        classify(Gaussians([0.25, -0.25], std), images, silent, 4000, SEED, 4000).metrics[
            "bayes/excess"
        ]
        for std in (0.3, 0.6, 2.0)
    ]
    assert abs(excess[1]) < 0.02  # its standard error is 0.007
    assert excess[0] > 0.1
    assert excess[2] < -0.1  # too modest: it expects to lose more than it does


def test_the_table_adds_up_to_the_calibration_error() -> None:
    found = classify(Gaussians([0.25, -0.25], 0.5), two_classes(), silent, 400, SEED, batch=64)
    table = found.calibration
    assert list(table.columns) == ["confidence", "accuracy", "count"]
    assert len(table) == BINS == 15
    assert table["count"].sum() == 400
    gap = (table["confidence"] - table["accuracy"]).abs() * table["count"] / 400
    assert found.metrics["bayes/ece"] == pytest.approx(gap.sum(), abs=TOLERANCE["float32"])
    filled = table[table["count"] > 0]
    assert len(filled) > 5
    assert np.array_equal(np.floor(filled["confidence"] * 15), filled.index)
    assert table.loc[table["count"] == 0, ["confidence", "accuracy"]].isna().all(axis=None)


def test_the_surest_answers_share_the_last_bin() -> None:
    """Those of confidence exactly 1, here wrong, and those a little less sure, here right."""
    pixels = torch.tensor([255, 255, 133, 133], dtype=torch.uint8)[:, None, None, None]
    images = Images(pixels.expand(4, *SHAPE).clone(), torch.tensor([1, 1, 0, 0]))
    found = classify(Gaussians([0.25, -0.25], 0.3), images, silent, 4, SEED, batch=64)
    confidence = posterior_of_class_0(images, 0.3)
    assert confidence[0] == 1
    assert 14 / 15 < confidence[2] < 0.98
    assert found.calibration["count"].tolist() == 14 * [0] + [4]
    assert found.metrics["bayes/ece"] == pytest.approx(confidence.mean() - 0.5, abs=1e-4)


def test_a_new_flow_knows_nothing_and_says_so() -> None:
    labels = torch.arange(30) % 3
    images = Images(torch.randint(256, (30, *SHAPE), dtype=torch.uint8), labels)
    flow = Flow(SHAPE, 3, "rqs-4", blocks=2, layers=1, width=8)
    found = classify(flow, images, dequantise_uniform, 25, SEED, batch=9)
    assert found.metrics == pytest.approx(
        {
            "bayes/accuracy": 9 / 25,
            "bayes/ece": 9 / 25 - 1 / 3,
            "bayes/images": 25,
            "bayes/log_loss": math.log(3),
            "bayes/entropy": math.log(3),
            "bayes/excess": 0.0,
        },
        abs=1e-6,
    )
    assert found.calibration.loc[5, "count"] == 25  # a confidence of 1/3 begins bin 5
    expected = [(0, 0, 9), (1, 0, 8), (2, 0, 8)]
    shown = found.confusion[found.confusion["count"] > 0]
    assert list(shown.itertuples(index=False)) == expected


def test_each_image_is_judged_by_its_log_prob_under_every_label() -> None:
    flow = wake(Flow(SHAPE, 4, "rqs-4", blocks=2, layers=1, width=16, patch=2), scale=1.0)
    for block in flow.blocks:
        assert block.network.class_embed is not None
        block.network.class_embed.data *= 10
    images = Images(torch.randint(256, (20, *SHAPE), dtype=torch.uint8), torch.arange(20) % 4)
    assert images.labels is not None
    expected = torch.zeros(4, 4, dtype=torch.int64)
    with torch.no_grad():
        for i, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
            x = dequantise_uniform(pixels[None], Noise(SEED, 0, ids=torch.tensor([i])))
            under = [flow.log_prob(x, torch.tensor([y])).item() for y in range(4)]
            expected[label, under.index(max(under))] += 1
    assert (expected.sum(0) > 0).sum() > 1
    found = classify(flow, images, dequantise_uniform, 20, SEED, batch=7)
    table = found.confusion.pivot(index="label", columns="predicted", values="count")
    assert np.array_equal(table, expected)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_size_of_batches_changes_nothing(batch: int) -> None:
    flow, images = Gaussians([0.25, -0.25], 0.6), two_classes(30)
    found, reference = (
        classify(flow, images, dequantise_uniform, 30, SEED, size) for size in (batch, 60)
    )
    assert found.metrics == pytest.approx(reference.metrics, rel=TOLERANCE["float32"])
    pd.testing.assert_frame_equal(found.confusion, reference.confusion)
    pd.testing.assert_frame_equal(found.calibration, reference.calibration)


def test_only_the_first_images_are_classified() -> None:
    flow, images = Gaussians([0.25, -0.25], 0.6), two_classes(50)
    first = images.take(torch.arange(20))
    limited = classify(flow, images, dequantise_uniform, 20, SEED, batch=16)
    assert limited.metrics == classify(flow, first, dequantise_uniform, 99, SEED, 16).metrics
    assert limited.metrics["bayes/images"] == limited.confusion["count"].sum() == 20


def test_what_has_no_classes_is_refused() -> None:
    images = two_classes(5)
    plain = Flow(SHAPE, 0, "affine", blocks=1, layers=1, width=8)
    for flow, given in (
        (plain, images),
        (Gaussians([0.25, -0.25], 0.6), Images(images.pixels, None)),
    ):
        with pytest.raises(UsageError, match="valid are labelled images under a flow with classes"):
            classify(flow, given, silent, 5, SEED, batch=4)


def test_densities_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UsageError, match="5 of 5 log-densities are not finite"):
        classify(Gaussians([0.25, math.nan], 0.6), two_classes(5), silent, 5, SEED, batch=4)
