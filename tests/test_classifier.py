"""The classifier that FID and KID rest on: what it learns, that it repeats, where it is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_fidelity import calculate_metrics

from flowbench.config import Data
from flowbench.data import Images, Splits, load
from flowbench.errors import Unavailable, UsageError
from flowbench.evaluation import classifier
from flowbench.evaluation.cache import digest
from flowbench.evaluation.classifier import RECIPE, Recipe, extractor, train
from flowbench.evaluation.fidelity import fidelity

QUICK = Recipe(steps=25, epochs=0, batch=32)


def stripes(count, shape=(1, 8, 8), classes=3, seed=0):
    """Noise with one bright row, whose number is the class."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(100, (count, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (count,), generator=generator)
    pixels[torch.arange(count), :, labels * 2 + 1] += 155
    return Images(pixels, labels)


def data(shape=(1, 8, 8), classes=3, train=256):
    parts = (stripes(n, shape, classes, n) for n in (train, 40, 80))
    return Splits(*parts, classes=classes)


def weights(network):
    return digest(network.state_dict())


@pytest.fixture(scope="module")
def splits():
    return data()


@pytest.fixture(scope="module")
def trained(splits, tmp_path_factory):
    return extractor(splits, "kmnist", tmp_path_factory.mktemp("cache"), QUICK)


# --- what it learns ------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_reads_95_percent_of_the_digits_of_mnist_5k(tmp_path):
    made = extractor(load(Data("mnist-5k")), "mnist-5k", tmp_path)
    assert made.accuracy >= 0.95
    assert made.suffix == "digits"


@pytest.mark.parametrize(
    ("shape", "classes"),
    [((1, 8, 8), 3), ((3, 12, 20), 5), ((3, 64, 64), 2), ((1, 28, 28), 10)],
    ids=str,
)
def test_it_learns_classes_of_any_number_in_images_of_any_shape(shape, classes, tmp_path):
    splits = data(shape, classes)
    made = extractor(splits, "folder", tmp_path, replace(QUICK, steps=60))
    assert made.accuracy > 0.9
    right = made.labels(splits.test.pixels) == splits.test.labels
    assert made.accuracy == right.double().mean().item()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5)], ids=str)
def test_the_smallest_images_have_features_too(shape):
    pixels = torch.randint(256, (20, *shape), dtype=torch.uint8)
    network = train(Images(pixels, torch.arange(20) % 2), 2, replace(QUICK, steps=3))
    assert not network.training
    features, logits = network(pixels)
    assert features.shape == (20, 32)
    assert logits.shape == (20, 2)


def test_features_are_finite_and_of_unit_scale_over_the_training_images(trained, splits):
    features = trained.features(splits.train.pixels)
    assert features.shape == (256, 32)
    assert features.dtype == torch.float64
    assert features.isfinite().all()
    assert features.mean(0).abs().max() < 0.5
    assert features.std(0).min() > 0.5
    assert features.std(0).max() < 2


def test_an_image_has_the_same_features_in_any_company(trained, splits):
    pixels = splits.test.pixels
    alone = torch.cat([trained.features(pixels[:1]), trained.features(pixels[1:3])])
    torch.testing.assert_close(alone, trained.features(pixels)[:3], rtol=1e-5, atol=1e-5)


def test_images_without_classes_are_told_on_one_line(tmp_path):
    parts = (Images(part.pixels, None) for part in (stripes(20), stripes(10), stripes(10)))
    with pytest.raises(Unavailable, match="folder have no classes") as error:
        extractor(Splits(*parts, classes=0), "folder", tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# --- that it repeats -----------------------------------------------------------------------------


def test_training_repeats_to_the_last_bit_whatever_the_threads(splits):
    once = train(splits.train, 3, QUICK)
    torch.set_num_threads(2)
    torch.manual_seed(123)
    assert weights(train(splits.train, 3, QUICK)) == weights(once)
    assert torch.get_num_threads() == 2
    assert weights(train(splits.train, 3, replace(QUICK, seed=1))) != weights(once)


def test_the_global_random_state_is_left_alone(splits, tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for _ in range(2):
        extractor(splits, "folder", tmp_path, QUICK)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_small_data_sets_are_trained_on_for_steps_large_ones_for_epochs(splits, monkeypatch):
    steps = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: (steps.append(1), step(*a, **k)))
    train(splits.train, 3, Recipe(steps=5, epochs=2, batch=128))
    assert len(steps) == 5
    train(splits.train, 3, Recipe(steps=5, epochs=2, batch=32))
    assert len(steps) == 5 + 2 * 8


def test_every_epoch_shows_all_images_in_an_order_of_its_own(monkeypatch):
    shown = []
    loss = classifier.cross_entropy

    def seen(logits, labels):
        shown.append(labels)
        return loss(logits, labels)

    monkeypatch.setattr(classifier, "cross_entropy", seen)
    images = Images(stripes(64).pixels, torch.arange(64))
    train(images, 64, Recipe(steps=4, epochs=0, batch=32))
    first, second = torch.cat(shown[:2]), torch.cat(shown[2:])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


# --- where it is kept ----------------------------------------------------------------------------


@pytest.fixture
def trainings(monkeypatch):
    done = []

    def counted(images, classes, recipe):
        done.append(len(images))
        return train(images, classes, recipe)

    monkeypatch.setattr(classifier, "train", counted)
    return done


def test_it_is_trained_at_the_first_use_and_told(splits, tmp_path, trainings, capsys):
    first = extractor(splits, "folder", tmp_path, QUICK)
    said = capsys.readouterr().err
    assert "training the classifier that FID and KID rest on" in said
    assert "256 training images of folder" in said
    second = extractor(splits, "folder", tmp_path, QUICK)
    assert capsys.readouterr().err == ""
    assert trainings == [256]
    assert (first.weights, first.accuracy) == (second.weights, second.accuracy)
    assert torch.equal(first.features(splits.val.pixels), second.features(splits.val.pixels))


def test_other_images_labels_or_recipes_are_trained_anew(splits, tmp_path, trainings):
    extractor(splits, "folder", tmp_path, QUICK)
    pixels, labels = splits.train.pixels.clone(), splits.train.labels.clone()
    pixels[17, 0, 3, 3] ^= 1
    labels[17] = (labels[17] + 1) % 3
    for images in (Images(pixels, splits.train.labels), Images(splits.train.pixels, labels)):
        extractor(replace(splits, train=images), "folder", tmp_path, QUICK)
    extractor(splits, "folder", tmp_path, replace(QUICK, steps=26))
    assert len(trainings) == 4
    extractor(replace(splits, test=stripes(30, seed=5)), "folder", tmp_path, QUICK)
    assert len(trainings) == 4


def test_a_damaged_file_is_trained_anew_and_told(splits, tmp_path, trainings, capsys):
    first = extractor(splits, "folder", tmp_path, QUICK)
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(path.read_bytes()[:5000])
    capsys.readouterr()
    assert extractor(splits, "folder", tmp_path, QUICK).weights == first.weights
    assert f"{path} cannot be read: it is cut short" in capsys.readouterr().err
    assert len(trainings) == 2


def test_an_interrupted_training_leaves_nothing(splits, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extractor(splits, "folder", tmp_path, QUICK)
    assert not list(tmp_path.glob("*.pt*"))
    assert torch.get_num_threads() == 1


def test_a_cache_that_cannot_be_written_is_told(splits, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        extractor(splits, "folder", tmp_path / "cache", QUICK)


# --- to torch-fidelity ---------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.pixels[index]


def test_torch_fidelity_comes_to_the_same_through_its_own_door(splits, tmp_path):
    made = extractor(splits, "folder", tmp_path, QUICK)
    (path,) = tmp_path.glob("*.pt")
    generated, real = splits.train.pixels[:60], splits.test.pixels
    theirs = calculate_metrics(
        input1=Rows(generated),
        input2=Rows(real),
        feature_extractor=made.network.get_name(),
        feature_extractor_weights_path=str(path),
        fid=True,
        prc=True,
        cuda=False,
        verbose=False,
        save_cpu_ram=True,
    )
    ours = fidelity(made.features(generated), made.features(real), "folder")
    # Its means and covariances are in single precision.
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["precision"] == theirs["precision"]
    assert ours["recall"] == theirs["recall"]


def test_the_name_it_is_registered_by_has_the_hash_of_its_weights(trained):
    name = trained.network.get_name()
    assert name == f"flowbench-kmnist-{trained.weights}"
    assert len(trained.weights) == 16
    assert trained.weights == digest(trained.network.network.state_dict())[:16]


def test_the_recipe_that_is_used_has_few_features():
    assert RECIPE.features <= 64
