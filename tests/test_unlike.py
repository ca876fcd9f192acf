"""Telling other images by likelihood: bits by hand, scores by sklearn, flows that must fail."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from tiny import experiment
from torch import Tensor

from flowbench.data.images import Images, Splits
from flowbench.errors import UsageError
from flowbench.evaluation import protocol
from flowbench.evaluation.unlike import auroc, bits, png_bits, unlike
from flowbench.flow import Flow


def middle(pixels: Tensor, _: torch.Generator) -> Tensor:
    """The middle of each level, without noise."""
    return (pixels + 0.5) / 128 - 1


def flow(shape: tuple[int, int, int] = (1, 4, 6), classes: int = 0, scale: float = 0.0) -> Flow:
    torch.manual_seed(0)
    made = Flow(shape, classes, transform="affine", patch=2, blocks=2, layers=1, width=8)
    for parameter in made.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return made


def images(low: int, high: int, count: int = 40, shape: tuple[int, int, int] = (1, 4, 6)) -> Images:
    chosen = torch.Generator().manual_seed(low)
    pixels = torch.randint(low, high, (count, *shape), generator=chosen, dtype=torch.uint8)
    return Images(pixels, None)


def splits(own: Images) -> Splits:
    return Splits(own, own, own, classes=0)


def test_bits_under_a_new_flow_are_those_of_scipys_normal_distribution() -> None:
    own = images(0, 256)
    x = middle(own.pixels, torch.Generator()).numpy()
    expected = -norm.logpdf(x).sum((1, 2, 3)) / math.log(2) + 24 * 7  # levels are 2⁻⁷ wide
    np.testing.assert_allclose(bits(flow(), own.pixels, middle, 7).numpy(), expected, rtol=1e-6)


def test_a_flow_with_classes_is_their_equal_mixture() -> None:
    own, conditional = images(0, 256), flow(classes=3, scale=0.1)
    x = middle(own.pixels, torch.Generator())
    with torch.no_grad():
        of_each = [conditional.log_prob(x, torch.full((40,), y)).double().exp() for y in range(3)]
    expected = -(sum(of_each) / 3).log2() + 24 * 7
    assert not of_each[0].log().allclose(of_each[1].log())
    np.testing.assert_allclose(
        bits(conditional, own.pixels, middle, 10).numpy(), expected.numpy(), rtol=1e-5
    )


def test_auroc_is_that_of_sklearn() -> None:
    random = np.random.default_rng(0)
    own, other = random.normal(0, 1, 300).round(1), random.normal(0.5, 2, 200).round(1)
    labels = np.repeat([0, 1], [300, 200])
    assert auroc(own, other) == pytest.approx(roc_auc_score(labels, np.concatenate([own, other])))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)], ids=["grey", "colour"])
def test_png_bits_are_those_of_files_that_hold_the_images(shape: tuple[int, int, int]) -> None:
    flat = torch.full((1, *shape), 9, dtype=torch.uint8)
    busy = images(0, 256, 1, shape).pixels
    both = png_bits(torch.cat([flat, busy]))
    file = io.BytesIO()
    array = busy[0].permute(1, 2, 0).squeeze(-1).numpy()
    Image.fromarray(array).save(file, "PNG", optimize=True)
    assert both[1] == 8 * len(file.getvalue())
    file.seek(0)
    assert (np.asarray(Image.open(file)) == array).all()
    assert both[0] < both[1]


def test_a_normal_distribution_finds_grey_images_likelier_than_noise_and_typicality_does_not() -> (
    None
):
    own, grey = images(0, 256), images(120, 136)
    found = unlike(flow(), splits(own), {"grey": grey}, middle, 16)
    assert found["auroc_grey"] == 0  # the known failure, whole
    assert found["auroc_typical_grey"] == 1


def test_images_of_the_same_kind_cannot_be_told() -> None:
    own = images(0, 256, 400)
    found = unlike(flow(), splits(own), {"same": images(1, 255, 400)}, middle, 100)
    assert all(abs(value - 0.5) < 0.1 for value in found.values())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"evaluate__other_data": ["photo-crops"]}, r"photo-crops has images \(3, 28, 28\), not"),
        (
            {"evaluate__other_data": ["fashion-mnist"], "data__noise": "gaussian"},
            "needs data.noise = 'uniform'",
        ),
        ({"evaluate__other_data": ["fashion-mnist"], "data__root": "/nowhere"}, "fashion-mnist"),
    ],
    ids=["shape", "noise", "missing"],
)
def test_what_cannot_be_compared_is_said_before_the_training(options: dict, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        protocol.check_possible(experiment(**options))


def test_the_flows_own_set_is_left_out() -> None:
    protocol.check_possible(experiment(evaluate__other_data=["mnist-5k"], data__noise="gaussian"))
