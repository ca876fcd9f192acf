"""FID, KID, precision and recall against closed forms, and what is kept of the real images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torchmetrics.image.fid import FrechetInceptionDistance

from flowbench.data import Images, Splits
from flowbench.errors import Unavailable, UsageError
from flowbench.evaluation import fidelity as module
from flowbench.evaluation.extractor import Extractor, create
from flowbench.evaluation.fidelity import agreement, check_counts, fidelity, kid_subset, measure

TOLERANCE = {"closed form": 1e-8, "order of sums": 1e-9, "torchmetrics": 1e-5}
SHAPE = (1, 2, 3)
CLASSES = 4


class Flat(FeatureExtractorBase):
    """An extractor of one's own: the pixels times a scale, and as class the first pixel's."""

    def __init__(self, name, features_list, scale=1.0, **_):
        super().__init__(name, features_list)
        self.scale = torch.nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.seen = []

    def forward(self, pixels):
        self.seen.append(len(pixels))
        values = pixels.flatten(1).double()
        logits = torch.nn.functional.one_hot(pixels[:, 0, 0, 0].long() % CLASSES, CLASSES)
        layers = {"flat": self.scale * values, "logits": logits}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "flat", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(_):
        return "flat"


register_feature_extractor("flowbench-test-flat", Flat)


def flat(scale=1.0, layers=()):
    return create("flowbench-test-flat", "toy", layers, scale=scale)


def noise(count, dims=6, seed=0):
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed)).double()


def white(count, dims=6, seed=0):
    """Features of mean 0 and covariance 1, to rounding."""
    q, _ = torch.linalg.qr(torch.cat([torch.ones(count, 1).double(), noise(count, dims, seed)], 1))
    return q[:, 1:] * (count - 1) ** 0.5


def pictures(count, seed=0, high=200):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, (count, *SHAPE), generator=generator, dtype=torch.uint8)


@pytest.fixture
def splits():
    sizes = {"train": 90, "val": 20, "test": 60}
    parts = {
        name: Images(pictures(size, size), torch.arange(size) % CLASSES)
        for name, size in sizes.items()
    }
    return Splits(**parts, classes=CLASSES)


# --- FID -----------------------------------------------------------------------------------------


def test_fid_of_a_pure_shift_is_its_squared_length_through_an_extractor_of_ones_own():
    extractor, base = flat(scale=0.5), pictures(50)
    shift = torch.tensor([1, 2, 3, 4, 5, 6], dtype=torch.uint8).reshape(SHAPE)
    found = fidelity(extractor.features(base + shift), extractor.features(base), "toy")
    assert found["fid"] == pytest.approx(0.25 * 91, rel=TOLERANCE["closed form"])


@pytest.mark.parametrize("scales", [[2, 2, 2, 2, 2, 2], [0.1, 1, 2, 3, 0.5, 1]], ids=str)
def test_fid_of_gaussians_with_other_covariances_is_in_closed_form(scales):
    # Of covariances 1 and A^2 it is |A - 1|^2, A symmetric and positive.
    rotation, _ = torch.linalg.qr(noise(6, seed=2))
    root = rotation @ torch.diag(torch.tensor(scales).double()) @ rotation.T
    shift = noise(1, seed=3)
    found = fidelity(white(80, seed=1) @ root + shift, white(70), "toy")
    expected = (root - torch.eye(6)).square().sum() + shift.square().sum()
    assert found["fid"] == pytest.approx(expected.item(), rel=TOLERANCE["closed form"])


def test_equal_images_have_distance_zero_and_are_all_covered():
    found = fidelity(noise(100), noise(100), "toy")
    assert found["fid"] == pytest.approx(0, abs=TOLERANCE["closed form"])
    assert found["kid"] < 0  # unbiased, so that an image's nearness to itself does not count
    assert (found["precision"], found["recall"]) == (1, 1)


@pytest.mark.parametrize("side", [0, 1], ids=["generated", "real"])
def test_the_order_of_the_images_changes_nothing(side):
    sets = [noise(80), 1.5 * noise(80, seed=1)]
    before = fidelity(*sets, "toy")
    sets[side] = sets[side][torch.randperm(80)]
    assert fidelity(*sets, "toy") == pytest.approx(before, rel=TOLERANCE["order of sums"])


def test_fid_is_that_of_torchmetrics():
    class Identity(torch.nn.Module):
        num_features = 6

        def forward(self, x):
            return x

    generated, real = noise(200).mul(2).add(10), noise(150, seed=1).add(9)
    metric = FrechetInceptionDistance(feature=Identity())
    metric.set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    ours = fidelity(generated, real, "toy")["fid"]
    assert ours == pytest.approx(metric.compute().item(), rel=TOLERANCE["torchmetrics"])


# --- KID, precision, recall ----------------------------------------------------------------------


def test_kid_of_whole_sets_is_the_unbiased_estimate_written_out():
    generated, real = noise(40), noise(40, seed=1) + 1

    def kernel(a, b):
        return (a @ b / 6 + 1) ** 3

    def within(points):
        values = [
            kernel(a, b) for i, a in enumerate(points) for b in (*points[:i], *points[i + 1 :])
        ]
        return sum(values) / len(values)

    across = sum(kernel(a, b) for a in generated for b in real) / 1600
    expected = within(generated) + within(real) - 2 * across
    found = fidelity(generated, real, "toy")["kid"]
    assert found == pytest.approx(expected.item(), rel=TOLERANCE["closed form"])


def test_kid_over_subsets_repeats_whatever_the_random_state(monkeypatch):
    monkeypatch.setattr(module, "KID_SUBSET", 50)
    generated, real = noise(150), noise(120, seed=1)
    first = fidelity(generated, real, "toy")
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    assert fidelity(generated, real, "toy") == first


@pytest.mark.parametrize(
    ("generated", "real", "subset"), [(5000, 10000, 1000), (400, 500, 400), (2000, 500, 500)]
)
def test_kid_subsets_are_of_a_thousand_or_of_all_there_are(generated, real, subset):
    assert kid_subset(generated, real) == subset


def test_sets_far_apart_have_no_precision_and_no_recall():
    found = fidelity(noise(50), noise(50, seed=1) + 100, "toy")
    assert (found["precision"], found["recall"]) == (0, 0)


def test_one_image_over_and_over_has_finite_distance_and_low_recall():
    real = noise(100)
    found = fidelity(real[:1].expand(100, -1), real, "toy")
    assert found["fid"] > 1
    assert np.isfinite(found["kid"])
    assert found["precision"] == 1
    assert found["recall"] < 0.1


def test_the_global_random_state_is_left_alone(splits, tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    measure(flat(), pictures(50), torch.full((50,), -1), splits, tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "name"), [(0, "generated"), (1, "test")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(side, name, value):
    sets = [noise(40), noise(50)]
    sets[side][3, 2] = sets[side][7] = value
    with pytest.raises(UsageError, match=f"2 of {len(sets[side])} {name} images are not finite"):
        fidelity(*sets, "toy")


def test_too_few_images_are_told_with_how_many_are_needed():
    with pytest.raises(
        Unavailable, match=r"10 drawn are too few for fid_digits: its 32 .* at least 33"
    ):
        check_counts("digits", 32, {"drawn": 10, "real": 500})
    with pytest.raises(Unavailable, match="32 real are too few for fid_digits"):
        check_counts("digits", 32, {"drawn": 33, "real": 32})
    check_counts("digits", 32, {"drawn": 33, "real": 33})
    with pytest.raises(Unavailable, match="6 generated images are too few for fid_toy"):
        fidelity(noise(6), noise(50), "toy")


def test_an_image_needs_neighbours_however_few_its_features():
    with pytest.raises(Unavailable, match="its 2 features need at least 4"):
        fidelity(noise(3, dims=2), noise(50, dims=2), "toy")
    assert fidelity(noise(4, dims=2), noise(50, dims=2), "toy")["precision"] <= 1


def test_an_extractor_that_is_not_registered_is_told():
    with pytest.raises(
        UsageError, match=r"'absent' is registered: valid are .*inception-v3-compat"
    ):
        create("absent", "toy")


# --- what a run records --------------------------------------------------------------------------


def test_metrics_are_named_by_the_extractor(splits, tmp_path):
    extractor = replace(flat(layers=("flat", "logits")), accuracy=0.75)
    found = measure(extractor, pictures(50), torch.arange(50) % CLASSES, splits, tmp_path)
    of_each = [f"{key}_toy" for key in ("fid", "kid", "precision", "recall")]
    counts = {"fidelity/samples": 50, "fidelity/real": 60, "fidelity/kid_subset": 50}
    assert found.metrics.keys() == {
        *of_each,
        *(f"{key}_floor" for key in of_each),
        *counts,
        "agreement_toy",
        "extractor_toy/accuracy",
    }
    assert found.metrics.items() >= counts.items()
    assert found.metrics["extractor_toy/accuracy"] == 0.75
    assert found.tags == {"extractor_toy": extractor.weights}
    assert all(type(value) is float for value in found.metrics.values())


@pytest.mark.parametrize("count", [50, 90, 200], ids=["fewer", "equal", "more"])
def test_the_floor_is_of_as_many_training_images_as_generated_ones(splits, tmp_path, count):
    found = measure(flat(), pictures(count), torch.full((count,), -1), splits, tmp_path).metrics
    train = splits.train.pixels[:count].flatten(1).double()
    expected = fidelity(train, splits.test.pixels.flatten(1).double(), "toy")
    floor = {key.removesuffix("_toy_floor"): v for key, v in found.items() if "floor" in key}
    assert floor == pytest.approx(expected, rel=TOLERANCE["order of sums"])


@pytest.mark.parametrize("part", ["train", "test", "generated"])
def test_too_few_images_are_told_before_all_are_looked_at(splits, tmp_path, part):
    names = {"train": "training images", "test": "test images"}
    name = names.get(part, r"generated images \(evaluate\.samples\)")
    if part in names:
        few = Images(getattr(splits, part).pixels[:5], getattr(splits, part).labels[:5])
        splits = replace(splits, **{part: few})
    extractor, count = flat(), 5 if part == "generated" else 50
    with pytest.raises(Unavailable, match=f"5 {name} are too few for fid_toy: its 6 .* at least 7"):
        measure(extractor, pictures(count), torch.zeros(count), splits, tmp_path)
    assert sum(extractor.network.seen) == 1
    assert not list(tmp_path.iterdir())


def images_seen(extractor, splits, cache, count=50):
    """Images that the extractor has to look at, besides the generated ones and one to size it."""
    before = sum(extractor.network.seen)
    measure(extractor, pictures(count), torch.full((count,), -1), splits, cache)
    return sum(extractor.network.seen) - before - count - 1


def test_real_images_are_looked_at_once(splits, tmp_path):
    assert images_seen(flat(), splits, tmp_path) == 60 + 50
    assert images_seen(flat(), splits, tmp_path) == 0
    assert images_seen(flat(), splits, tmp_path, count=40) == 40  # another floor


@pytest.mark.parametrize(
    ("part", "image", "seen"),
    [("test", 59, 60 + 50), ("train", 49, 50), ("train", 50, 0), ("val", 0, 0)],
    ids=["test", "training", "training beyond the floor's", "validation"],
)
def test_other_images_are_looked_at_anew(splits, tmp_path, part, image, seen):
    images_seen(flat(), splits, tmp_path)
    pixels = getattr(splits, part).pixels.clone()
    pixels[image, 0, 1, 2] ^= 1
    changed = replace(splits, **{part: Images(pixels, getattr(splits, part).labels)})
    assert images_seen(flat(), changed, tmp_path) == seen


def test_other_weights_look_anew(splits, tmp_path):
    images_seen(flat(), splits, tmp_path)
    assert images_seen(flat(scale=1.5), splits, tmp_path) == 60 + 50


def test_a_damaged_cache_is_made_anew_with_the_same_numbers(splits, tmp_path, capsys):
    def measured():
        return measure(flat(), pictures(50), torch.full((50,), -1), splits, tmp_path).metrics

    before = measured()
    paths = list(tmp_path.glob("*.pt"))
    assert len(paths) == 2
    for path in paths:
        path.write_bytes(path.read_bytes()[:-200])
    assert measured() == before
    assert capsys.readouterr().err.count("it is computed again") == 2


# --- agreement -----------------------------------------------------------------------------------


def test_agreement_counts_by_class_what_is_read_as_asked():
    asked = torch.tensor([0, 0, 0, 2, 2, 3, -1, -1])
    read = torch.tensor([0, 0, 1, 2, 3, 3, 0, 1])
    table = agreement(read, asked, CLASSES)
    assert table.to_dict("list") == {
        "class": [0, 1, 2, 3],
        "asked": [3, 0, 2, 1],
        "read_as_asked": [2, 0, 1, 1],
    }


def test_agreement_of_a_run_is_the_share_over_all_images_with_a_class(splits, tmp_path):
    pixels = pictures(50)
    pixels[:, 0, 0, 0] = torch.arange(50) % 3  # of the four classes, one is never there
    asked = torch.arange(50) % 3
    asked[:5] = (asked[:5] + 1) % CLASSES
    asked[40:] = -1
    extractor = replace(flat(layers=("flat", "logits")), accuracy=1.0)
    found = measure(extractor, pixels, asked, splits, tmp_path)
    assert found.metrics["agreement_toy"] == 35 / 40
    assert found.agreement["asked"].sum() == 40
    assert len(found.agreement) == CLASSES


@pytest.mark.parametrize(
    ("accuracy", "asked"), [(None, 0), (1.0, -1)], ids=["no classifier", "no class asked for"]
)
def test_no_agreement_without_a_class_on_both_sides(splits, tmp_path, accuracy, asked):
    extractor: Extractor = replace(flat(layers=("flat", "logits")), accuracy=accuracy)
    found = measure(extractor, pictures(50), torch.full((50,), asked), splits, tmp_path)
    assert found.agreement is None
    assert "agreement_toy" not in found.metrics
