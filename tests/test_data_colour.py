"""Colour sets: embedded ones, and the official archives, made up small."""

import hashlib
import pickle
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

from flowbench.config import Data
from flowbench.data import load, mnist5k, photos, prepare
from flowbench.errors import UsageError
from flowbench.size import image_shape

PARTS = ("train", "val", "test")


def sizes(splits):
    return [len(getattr(splits, part)) for part in PARTS]


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# --- embedded ------------------------------------------------------------------------------------


def test_digits_on_photos_are_the_digits_of_mnist_5k_and_its_parts():
    blended, digits = load(Data("digits-on-photos")), load(Data("mnist-5k"))
    for number, part in enumerate(PARTS):
        own, plain = getattr(blended, part), getattr(digits, part)
        assert own.labels.equal(plain.labels)
        expected = (photos.crops(number).int() - plain.pixels.int()).abs()
        assert own.pixels.int().equal(expected.expand_as(own.pixels.int()))


def test_crops_of_two_parts_share_no_pixel():
    photo = torch.arange(427 * 640, dtype=torch.int32).view(1, 1, 427, 640)
    seen = []
    for low, high in photos.COLUMNS:
        stripes = [photo[..., n + low : n + high].flatten().tolist() for n in range(0, 640, 160)]
        seen.append({pixel for stripe in stripes for pixel in stripe})
    assert len(set.union(*seen)) == sum(map(len, seen)) == photo.numel()


def test_crops_lie_within_the_columns_of_their_part(monkeypatch):
    columns = torch.arange(640).remainder(160).byte().expand(2, 3, 427, 640)
    monkeypatch.setattr(photos, "photos", lambda: columns)
    for part, (low, high) in enumerate(photos.COLUMNS):
        made = photos.crops(part)
        assert made.shape == (photos.PARTS[part], 3, 28, 28)
        assert int(made.min()) == low
        assert int(made.max()) == high - 1


def test_embedded_colours_are_pinned():
    def total(splits):
        pixels = torch.cat([getattr(splits, part).pixels for part in PARTS])
        return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16]

    assert total(load(Data("digits-on-photos"))) == "d4d7d5fab080dfd4"
    assert total(load(Data("photo-crops"))) == "83cb93b6119e8d7d"


@pytest.mark.parametrize("name", ["mnist-5k", "digits-on-photos", "photo-crops"])
def test_shapes_are_known_before_reading(name):
    assert load(Data(name)).shape == image_shape(Data(name))


def test_no_reader_changes_the_embedded_digits():
    before = mnist5k.digits().pixels.clone()
    load(Data("digits-on-photos"))
    assert mnist5k.digits().pixels.equal(before)


# --- CIFAR and SVHN ------------------------------------------------------------------------------


def md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar(tmp_path, random, monkeypatch):
    """An archive like CIFAR-10's with 20 images a batch, whose checksums are made official."""
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    lists = {"train_list": [], "test_list": []}
    for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        entry = {
            "data": random.integers(0, 256, (20, 3072), np.uint8),
            "labels": [n % 10 for n in range(20)],
        }
        (folder / name).write_bytes(pickle.dumps(entry))
        lists["test_list" if name == "test_batch" else "train_list"].append(
            [name, md5(folder / name)]
        )
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    for name, content in lists.items():
        monkeypatch.setattr(datasets.CIFAR10, name, content)
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    return archive


def test_cifar_is_read_from_its_archive_in_root_and_unpacked_once(cifar, tmp_path):
    data = Data("cifar10", root=str(tmp_path))
    splits = load(data)
    assert sizes(splits) == [90, 10, 20]
    assert splits.shape == image_shape(data) == (3, 32, 32)
    batch = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert splits.test.pixels.flatten(1).numpy().tolist() == batch["data"].tolist()
    assert splits.test.labels.tolist() == batch["labels"]
    cifar.unlink()
    prepare(data)  # all is there: without a network
    assert load(data).test.pixels.equal(splits.test.pixels)


def test_an_archive_that_is_not_the_official_one_is_named(cifar, tmp_path):
    cifar.write_bytes(cifar.read_bytes() + b"more")
    with pytest.raises(UsageError, match=r"cifar-10-python\.tar\.gz: expected the official"):
        load(Data("cifar10", root=str(tmp_path)))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_missing_archives_are_named(name, tmp_path):
    with pytest.raises(UsageError, match=rf"data\.name = '{name}' needs .*no network"):
        load(Data(name, root=str(tmp_path)))


def test_svhn_has_zero_for_ten_and_needs_both_parts(tmp_path, random, monkeypatch):
    own = tmp_path / "svhn"
    own.mkdir()
    made = {}
    for part, count in (("train", 40), ("test", 12)):
        path = own / f"{part}_32x32.mat"
        pixels = random.integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = np.arange(count)[:, None] % 10 + 1
        scipy.io.savemat(path, {"X": pixels, "y": labels.astype(np.uint8)})
        made[part] = ["http://localhost", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", made)
    splits = load(Data("svhn", root=str(tmp_path)))
    assert sizes(splits) == [36, 4, 12]
    assert splits.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    (own / "test_32x32.mat").unlink()
    with pytest.raises(UsageError, match=r"needs train_32x32\.mat, test_32x32\.mat"):
        load(Data("svhn", root=str(tmp_path)))


# --- CelebA and ImageNet -------------------------------------------------------------------------


def picture(path, size, random):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_celeba_has_its_official_parts(tmp_path, random):
    root = tmp_path / "celeba"
    lines = []
    for number in range(12):
        picture(root / "img_align_celeba" / f"{number:06}.jpg", (178, 218), random)
        lines.append(f"{number:06}.jpg {number % 3}")
    (root / "list_eval_partition.txt").write_text("\n".join(lines))
    data = Data("celeba", root=str(tmp_path), size=16)
    splits = load(data)
    assert sizes(splits) == [4, 4, 4]
    assert splits.shape == image_shape(data) == (3, 16, 16)
    assert splits.classes == 0
    (root / "list_eval_partition.txt").write_text("\n".join(lines[:1]))
    with pytest.raises(UsageError, match="images of each of the parts"):
        load(data)
    (root / "list_eval_partition.txt").unlink()
    with pytest.raises(UsageError, match=r"needs img_align_celeba/ .* and list_eval_partition"):
        load(data)


def test_the_old_imagenet_is_read_from_its_folders(tmp_path, random):
    root = tmp_path / "imagenet-old-32"
    for number in range(200):
        picture(root / "train_32x32" / f"{number:07}.png", (32, 32), random)
    last = picture(root / "valid_32x32" / "50000.png", (32, 32), random)
    data = Data("imagenet-old-32", root=str(tmp_path))
    splits = load(data)
    assert sizes(splits) == [198, 2, 1]
    assert splits.shape == image_shape(data) == (3, 32, 32)
    assert splits.test.pixels[0].permute(1, 2, 0).numpy().tolist() == last.tolist()


@pytest.fixture
def imagenet(tmp_path, random):
    root = tmp_path / "imagenet-new-64"
    root.mkdir()
    for name in [f"train_data_batch_{n}" for n in range(1, 11)] + ["val_data"]:
        data = random.integers(0, 256, (20, 3 * 64 * 64), np.uint8)
        np.savez(root / f"{name}.npz", data=data, labels=random.integers(1, 1001, 20))
    return root


def test_the_new_imagenet_is_read_once_from_its_arrays(imagenet, tmp_path):
    data = Data("imagenet-new-64", root=str(tmp_path))
    for _ in range(2):  # from the arrays, then from the file that is kept
        splits = load(data)
        assert sizes(splits) == [198, 2, 20]
        assert splits.shape == image_shape(data) == (3, 64, 64)
        with np.load(imagenet / "train_data_batch_10.npz") as last:
            expected = last["data"][-2:].reshape(2, 3, 64, 64)
            assert splits.val.pixels.numpy().tolist() == expected.tolist()
            assert splits.val.labels.tolist() == (last["labels"][-2:] - 1).tolist()
    assert len(list(imagenet.glob(".flowbench-*.npy"))) == 2


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"data": np.zeros((3, 48), np.uint8), "labels": [1, 2, 3]}, r"\[n, 12288\]"),
        ({"data": np.zeros((3, 12288), np.uint8), "labels": [0, 1, 2]}, "labels from 1 to 1000"),
        ({"data": np.zeros((3, 12288), np.uint8)}, "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=["other size", "labels", "no labels", "no archive"],
)
def test_broken_arrays_are_named(imagenet, tmp_path, content, complaint):
    path = imagenet / "train_data_batch_3.npz"
    if content is None:
        path.write_bytes(b"no archive")
    else:
        np.savez(path, **content)
    with pytest.raises(UsageError, match=rf"train_data_batch_3\.npz: .*{complaint}"):
        load(Data("imagenet-new-64", root=str(tmp_path)))


def test_missing_arrays_are_named(imagenet, tmp_path):
    (imagenet / "val_data.npz").unlink()
    with pytest.raises(UsageError, match=r"needs val_data\.npz in .*imagenet-new-64"):
        load(Data("imagenet-new-64", root=str(tmp_path)))
