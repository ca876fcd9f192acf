"""A small classifier of the data set's own classes, whose features FID and KID compare."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from flowbench.data import Batch, Batches, Images, Splits
from flowbench.errors import Unavailable
from flowbench.evaluation.cache import cached, digest, read
from flowbench.evaluation.extractor import Extractor, create
from flowbench.terminal import duration, say, tracked


@dataclass(frozen=True)
class Recipe:
    """All that decides the classifier besides the images it learns."""

    features: int = 32
    """Dimensions that images are compared in: the floor of FID grows fast with them."""
    epochs: int = 2
    steps: int = 300
    """Least number of steps, for small data sets."""
    batch: int = 128
    lr: float = 5e-3
    weight_decay: float = 0.01
    seed: int = 0
    version: int = 1
    """To be raised with every change of the network or its training below."""


class Classifier(nn.Module):
    """Convolutions on a coarser grid, a few features, and classes linear in their positive parts.

    The features are linear in what the convolutions see and standardised over the training images:
    each has mean 0 and variance 1, whatever the data set.

    Args:
        shape: Channels, height and width of the images.
        classes: Number of classes.
        features: F.

    Shape:
        uint8 ``[N, C, H, W]`` -> features ``[N, F]``, logits ``[N, classes]``
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, features: int) -> None:
        super().__init__()
        channels, *size = shape
        stride = max(2, math.ceil(max(size) / 16))  # so that large images do not take longer
        self.features = nn.Sequential(
            *_convolution(channels, 16, kernel=2 * stride + 1, stride=stride),
            *_convolution(16, 32, kernel=3, stride=2),
            *_convolution(32, 64, kernel=3, stride=1),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, features, bias=False),
            nn.BatchNorm1d(features, affine=False),
        )
        self.classes = nn.Linear(features, classes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits."""
        features = self.features(pixels / 127.5 - 1)
        return features, self.classes(features.relu())


class ClassifierFeatures(FeatureExtractorBase):  # type: ignore[misc]
    """A trained classifier as torch-fidelity wants it, read from its file in the cache."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        content = read(Path(feature_extractor_weights_path))
        self.network = Classifier(tuple(content["shape"]), content["classes"], content["features"])
        self.network.load_state_dict(content["state"])

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The layers that were asked for, in that order."""
        with _one_thread():
            layers = dict(zip(self.get_provided_features_list(), self.network(pixels), strict=True))
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """List the layers."""
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(_: str) -> str:
        """Compare images in the features, whatever the metric."""
        return "features"


RECIPE = Recipe()


def extractor(splits: Splits, name: str, cache: Path, recipe: Recipe = RECIPE) -> Extractor:
    """A classifier of the training images, trained at the first use and read from the cache later.

    Always on the CPU, where training takes no minute and gives the same weights on equal machines.

    Args:
        splits: The data set; its test images only measure the accuracy.
        name: Its name, ``data.name``.
        cache: Directory of the cache.
        recipe: How it is trained.

    Raises:
        Unavailable: The images have no classes.
        UsageError: The cache cannot be written.
    """
    if splits.train.labels is None or splits.test.labels is None:
        raise Unavailable(
            f"FID and KID rest on a classifier, and the images of {name} have no classes to train "
            f"one on"
        )
    suffix = "digits" if name in ("mnist", "mnist-5k") else name.replace("-", "_")
    given = {"pixels": splits.train.pixels, "labels": splits.train.labels}
    key = digest({**given, "classes": splits.classes, **asdict(recipe)})[:16]
    path = cache / f"classifier-{suffix}-{key}.pt"
    content = cached(path, lambda: _content(splits, name, recipe))
    # torch-fidelity's own cache uses the extractor's name alone, so the name includes the hash.
    weights = digest(content["state"])[:16]
    registered = f"flowbench-{suffix}-{weights}"
    if registered not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(registered, ClassifierFeatures)
    layers = ClassifierFeatures.get_provided_features_list()
    made = create(registered, suffix, layers, feature_extractor_weights_path=str(path))
    right = made.labels(splits.test.pixels) == splits.test.labels
    return replace(made, weights=weights, accuracy=right.double().mean().item())


def train(images: Images, classes: int, recipe: Recipe) -> Classifier:
    """Train a classifier on the CPU; the global random state is left alone.

    Returns:
        The same classifier to the last bit for the same images and recipe, on equal machines.
    """
    steps = max(recipe.steps, recipe.epochs * len(images) // recipe.batch)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        network = Classifier(images.shape, classes, recipe.features)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=steps)
    batches = islice(_endless(Batches(images, recipe.batch, recipe.seed, shuffle=True)), steps)
    with _one_thread():
        for pixels, labels, _ in tracked(batches, "training", steps, keep=True):
            optimiser.zero_grad()
            cross_entropy(network(pixels)[1], labels).backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def _content(splits: Splits, name: str, recipe: Recipe) -> dict[str, Any]:
    """What the cache keeps of a new classifier."""
    images = f"the {len(splits.train):,} training images of {name}"
    say(f"training the classifier that FID and KID rest on, once, on {images}")
    began = time.monotonic()
    network = train(splits.train, splits.classes, recipe)
    say(f"trained the classifier in {duration(time.monotonic() - began)}")
    about = {"shape": splits.shape, "classes": splits.classes, "features": recipe.features}
    return {**about, "state": dict(network.state_dict())}


def _convolution(channels: int, out: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out), nn.ReLU()]


def _endless(batches: Batches) -> Iterator[Batch]:
    for epoch in count():
        batches.sampler.set_epoch(epoch)
        yield from batches


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sum in one order, and do not let so small layers wait for threads of a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
