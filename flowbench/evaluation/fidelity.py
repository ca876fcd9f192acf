"""How near generated images are to real ones: FID, KID, precision and recall by torch-fidelity."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

from flowbench.data import Splits
from flowbench.errors import Unavailable, UsageError
from flowbench.evaluation.cache import cached, digest
from flowbench.evaluation.extractor import Extractor

KID_SUBSETS = 50
KID_SUBSET = 1000
NEIGHBOURS = 3
PRC: dict[str, Any] = {
    "prc_neighborhood": NEIGHBOURS,
    "prc_batch_size": 1000,
    "save_cpu_ram": True,
    "verbose": False,
}


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Scores of generated images in the features of one extractor.

    Args:
        metrics: ``fid kid precision recall`` with the extractor's suffix, and of real images the
            same with ``_floor``; of a classifier ``agreement`` and its accuracy; how many images.
        tags: Hash of the extractor's weights.
        agreement: By class, how many images were ``asked`` for and how many of them the classifier
            assigns to that class, ``read_as_asked``; None without classes or without a classifier.
    """

    metrics: dict[str, float]
    tags: dict[str, str]
    agreement: pd.DataFrame | None


def measure(
    extractor: Extractor, pixels: Tensor, asked: Tensor, splits: Splits, cache: Path
) -> Fidelity:
    """Compare generated images with all test images.

    The floor is the same metric of training images in place of generated ones, equally many (or
    all training images, where there are fewer). A perfect flow would get about this value, since
    both contain the same sampling error.

    Args:
        extractor: What the images are compared in.
        pixels: Generated images, uint8 ``[N, C, H, W]``.
        asked: The class that each was drawn for, int64 ``[N]``; -1: none.
        splits: The data set.
        cache: Directory where the real images' features and floor are kept.

    Raises:
        Unavailable: There are too few images on a side.
        UsageError: Features are not finite, or the cache cannot be written.
    """
    suffix, real, train = extractor.suffix, splits.test, splits.train.pixels[: len(pixels)]
    counts = {
        "generated images (evaluate.samples)": len(pixels),
        "training images": len(train),
        "test images": len(real),
    }
    # Before all the others are looked at, which can take hours.
    check_counts(suffix, extractor.features(real.pixels[:1]).shape[1], counts)
    outputs = extractor.outputs(pixels)
    test = _test_features(extractor, real.pixels, cache)
    found = fidelity(outputs[extractor.layer], test, suffix)
    floor = _floor(extractor, train, test, cache)
    metrics = {
        **{f"{key}_{suffix}": value for key, value in found.items()},
        **{f"{key}_{suffix}_floor": value for key, value in floor.items()},
        "fidelity/samples": float(len(pixels)),
        "fidelity/real": float(len(real)),
        "fidelity/kid_subset": float(kid_subset(len(pixels), len(real))),
    }
    table = None
    if extractor.accuracy is not None:
        metrics[f"extractor_{suffix}/accuracy"] = extractor.accuracy
        if (asked >= 0).any():
            table = agreement(outputs["logits"].argmax(1), asked, splits.classes)
            share = table["read_as_asked"].sum() / table["asked"].sum()
            metrics[f"agreement_{suffix}"] = float(share)
    return Fidelity(metrics, {f"extractor_{suffix}": extractor.weights}, table)


def fidelity(
    generated: Tensor,
    real: Tensor,
    suffix: str,
    sides: tuple[str, str] = ("generated images", "test images"),
) -> dict[str, float]:
    """FID, mean KID over subsets, precision and recall of features; the same at every call.

    FID is biased upwards by how few images there are, KID is not and may be a little below 0.
    Precision is the share of generated images among real ones, recall that of real ones among
    generated ones: a flow that repeats one good image has all of the first and none of the second.

    Args:
        generated: Features, float64 ``[N, D]``.
        real: Features, float64 ``[M, D]``.
        suffix: What the errors call the features.
        sides: What they call the images that are compared.

    Raises:
        Unavailable: There are too few images on a side.
        UsageError: Features are not finite.

    References:
        Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium* (2017), https://arxiv.org/abs/1706.08500; Bińkowski et al., *Demystifying MMD
        GANs* (2018), https://arxiv.org/abs/1801.01401; Kynkäänniemi et al., *Improved Precision and
        Recall Metric for Assessing Generative Models* (2019), https://arxiv.org/abs/1904.06991
    """
    named = dict(zip(sides, (generated, real), strict=True))
    check_counts(suffix, generated.shape[1], {side: len(each) for side, each in named.items()})
    for side, features in named.items():
        # Precision and recall of NaN would look plausible.
        if broken := int((~features.isfinite().all(1)).sum()):
            of = f"{broken} of {len(features)} {side}"
            raise UsageError(
                f"fid_{suffix} cannot be computed: the features of {of} are not finite"
            )
    statistics = map(fid_features_to_statistics, (generated, real))
    fid = fid_statistics_to_metric(*statistics, verbose=False)
    kid = kid_features_to_metric(
        generated,
        real,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=kid_subset(len(generated), len(real)),
        rng_seed=0,
        verbose=False,
    )
    prc = prc_features_to_metric(generated, real, **PRC)
    return {
        "fid": fid[KEY_METRIC_FID],
        "kid": kid[KEY_METRIC_KID_MEAN],
        "precision": prc[KEY_METRIC_PRECISION],
        "recall": prc[KEY_METRIC_RECALL],
    }


def check_counts(suffix: str, dims: int, counts: dict[str, int]) -> None:
    """Make sure that there are images enough for features of so many dimensions.

    Raises:
        Unavailable: A covariance of them would not have full rank, or an image has no neighbours.
    """
    least = max(dims, NEIGHBOURS) + 1
    for side, number in counts.items():
        if number < least:
            needed = f"its {dims} features need at least {least}"
            raise Unavailable(f"{number} {side} are too few for fid_{suffix}: {needed}")


def kid_subset(generated: int, real: int) -> int:
    """Images of each side in the subsets that KID is a mean over."""
    return min(KID_SUBSET, generated, real)


def agreement(read: Tensor, asked: Tensor, classes: int) -> pd.DataFrame:
    """Count by class how many images were asked for, and how many of them the classifier reads so.

    Args:
        read: Class that a classifier reads in each image, int64 ``[N]``.
        asked: Class it was drawn for, int64 ``[N]``; images of -1 are left out.
        classes: Number of classes.

    Returns:
        A row for each class: ``class asked read_as_asked``.
    """
    counts = [asked[kept].bincount(minlength=classes) for kept in (asked >= 0, read == asked)]
    table = {"class": range(classes), "asked": counts[0], "read_as_asked": counts[1]}
    return pd.DataFrame(table)


def _test_features(extractor: Extractor, pixels: Tensor, cache: Path) -> Tensor:
    key = digest({"pixels": pixels, **_identity(extractor)})[:16]
    path = cache / f"features-{extractor.suffix}-{key}.pt"
    features: Tensor = cached(path, lambda: {"test": extractor.features(pixels)})["test"]
    return features


def _floor(extractor: Extractor, train: Tensor, test: Tensor, cache: Path) -> dict[str, float]:
    """Compare training images, uint8 pixels, with the features of the test images."""
    settings = {**PRC, "kid_subsets": KID_SUBSETS, "kid_subset": KID_SUBSET}
    key = digest({"train": train, "test": test, **_identity(extractor), **settings})[:16]

    def make() -> dict[str, float]:
        sides = "training images", "test images"
        return fidelity(extractor.features(train), test, extractor.suffix, sides)

    return cached(cache / f"floor-{extractor.suffix}-{key}.pt", make)


def _identity(extractor: Extractor) -> dict[str, str]:
    """What features follow from, besides the images."""
    return {
        "network": extractor.network.get_name(),
        "weights": extractor.weights,
        "layer": extractor.layer,
    }
