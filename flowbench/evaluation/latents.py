"""What latents mean: where classes are in them, how Gaussian they are, what each one changes."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from flowbench.data.images import Images, Splits
from flowbench.errors import UsageError
from flowbench.evaluation.density import TEST_NOISE, noisy
from flowbench.evaluation.likelihood import Dequantise
from flowbench.evaluation.patches import patch_table
from flowbench.evaluation.sampling import Sampling, draw, fitting, to_pixels
from flowbench.flow import Flow, patchify, unpatchify
from flowbench.seeding import Noise
from flowbench.terminal import say

Array = np.ndarray[Any, Any]
STEPS = 9
"""Images of an interpolation, with both ends."""
REDRAWN = 8
"""Images in which each latent patch is redrawn in turn."""


@dataclass(frozen=True)
class Latents:
    """What was found of a flow's latents.

    Attributes:
        probe: A row for the image (``block`` 0) and for what each block gives: ``accuracy`` of a
            linear classifier of it, on images that it was not fitted to; empty without classes.
        gaussian: A row for each ``set`` (train, test) and patch: ``patch row column``, and over
            its latents ``mean``, ``std``, ``skewness``, excess ``kurtosis``, ``ks`` (distance of
            Kolmogorov and Smirnov from a standard normal) and ``correlation`` (root mean square,
            with the latents of all other patches; independent ones have ``1 / √images``).
        reach: ``[T, T]``: row t has the root mean square change of each patch of the image where
            latent patch t is drawn anew, in units of pixels on [−1, 1].
        nearest: A row for each sample and each of as many test images (``set``): ``distance`` to
            the nearest training image, root mean square per pixel on [0, 255], and its ``index``.
        images: uint8 grids ``[rows, columns, H, W, C]``: ``blocks`` (test images, then what each
            block gives), ``classes`` (test images, then the same noise for every class),
            ``interpolation`` (between two test images, by way of the noise), ``nearest`` (samples
            above their nearest training images).
    """

    probe: pd.DataFrame
    gaussian: pd.DataFrame
    reach: Array
    nearest: pd.DataFrame
    images: dict[str, Array]


def explore(
    flow: Flow, splits: Splits, dequantise: Dequantise, count: int, batch: int, sampling: Sampling
) -> Latents:
    """Measure and draw everything.

    A flow with classes gets each image's own label. For that reason alone its latents may show the
    class, or lack it.

    Args:
        flow: A trained flow in float32, on any device.
        splits: Its data set.
        dequantise: Adds the noise of its training.
        count: Images of each part that are measured, at least 10.
        batch: Images in a batch.
        sampling: How images are drawn from it.
    """
    if count < 10:
        raise UsageError(f"--images {count} is not valid: at least 10")
    measured = maps(flow, splits, dequantise, count, batch)
    known = measured.stages["test"]
    say("drawing images")
    y = _labels(flow, measured.images["test"])
    near, pairs = nearest(flow, splits, sampling, count)
    return Latents(
        probed(measured),
        gaussian(measured),
        reach(flow, known[-1][:REDRAWN], y[:REDRAWN]),
        near,
        {
            "blocks": _grid(flow, known[:, :10].transpose(0, 1)),
            **({"classes": exchanged(flow, known[:, :10])} if flow.classes else {}),
            "interpolation": interpolated(flow, known[-1][:10], y[:10]),
            "nearest": pairs,
        },
    )


@dataclass(frozen=True)
class Maps:
    """Images of each part of a data set, by its name, and what each block of a flow gives of them.

    Attributes:
        images: Training and test images: ``train`` and ``test``.
        stages: Of each, ``[blocks + 1, N, T, D]``: the noisy images, then what each block gives.
        rows: Rows of patches of an image.
    """

    images: dict[str, Images]
    stages: dict[str, Tensor]
    rows: int


def maps(flow: Flow, splits: Splits, dequantise: Dequantise, count: int, batch: int) -> Maps:
    """Map the first images of each part to noise, and keep what is on the way; see ``explore``."""
    say(f"mapping {2 * count} images to noise")
    whole = {"train": splits.train, "test": splits.test}
    images = {name: own.take(torch.arange(min(count, len(own)))) for name, own in whole.items()}
    found = {name: stages(flow, own, dequantise, batch) for name, own in images.items()}
    return Maps(images, found, flow.shape[1] // flow.patch)


def gaussian(known: Maps) -> pd.DataFrame:
    """Compare the noise of each part with a standard normal: ``Latents.gaussian``."""
    parts = [gaussianity(z[-1], known.rows).assign(set=name) for name, z in known.stages.items()]
    return pd.concat(parts, ignore_index=True)


def probed(known: Maps) -> pd.DataFrame:
    """Fit linear classifiers to training images, and try them on test images: ``Latents.probe``."""
    fitted, tried = known.images["train"].labels, known.images["test"].labels
    if fitted is None or tried is None:
        return pd.DataFrame(columns=["block", "accuracy"])
    say("fitting linear classifiers")
    return probe(known.stages["train"], fitted, known.stages["test"], tried)


@torch.no_grad()
def stages(flow: Flow, images: Images, dequantise: Dequantise, batch: int) -> Tensor:
    """Keep the noisy images and what each block gives, the noise last, in the image's order.

    Shape:
        -> float32 ``[blocks + 1, N, T, D]`` on the CPU
    """
    weight, parts = next(flow.parameters()), []
    labels = _labels(flow, images)
    for index in torch.arange(len(images)).split(batch):
        x = noisy(images.pixels, index, dequantise, TEST_NOISE)
        found = [patchify(x, flow.patch)]
        steps = flow.trace(x.to(weight), labels[index].to(weight.device))
        for block, step in zip(flow.blocks, steps, strict=True):
            found.append(block.order.undo(step.z, 1).cpu())
        parts.append(torch.stack(found))
    return torch.cat(parts, 1)


def probe(known: Tensor, labels: Tensor, test: Tensor, answers: Tensor) -> pd.DataFrame:
    """Fit a linear classifier to each stage of some images and try it on others.

    Multinomial logistic regression on standardised latents, by scikit-learn.

    Shape:
        stages ``[blocks + 1, N, T, D]``, labels ``[N]``
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    accuracies = []
    for fitted, tried in zip(known, test, strict=True):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        model.fit(fitted.flatten(1).numpy(), labels)
        accuracies.append(model.score(tried.flatten(1).numpy(), answers))
    return pd.DataFrame({"block": range(len(accuracies)), "accuracy": accuracies})


def gaussianity(z: Tensor, rows: int) -> pd.DataFrame:
    """Compare the latents of each patch with a standard normal; the columns are Latents' own.

    Shape:
        z ``[N, T, D]``
    """
    values = z.double().numpy()
    count, tokens, features = values.shape
    distance = np.array(
        [
            [stats.kstest(values[:, t, d], "norm").statistic for d in range(features)]
            for t in range(tokens)
        ]
    )
    flat = values.reshape(count, -1)
    flat = (flat - flat.mean(0)) / flat.std(0).clip(1e-12)
    squares = np.square(flat.T @ flat / count).reshape(tokens, features, tokens, features)
    others = squares.sum((1, 2, 3)) - squares[np.arange(tokens), :, np.arange(tokens)].sum((1, 2))
    of_features = {
        "mean": values.mean(0),
        "std": values.std(0),
        "skewness": stats.skew(values),
        "kurtosis": stats.kurtosis(values),
        "ks": distance,
    }
    columns = {name: value.mean(1).tolist() for name, value in of_features.items()}
    pairs = max(1, (tokens - 1) * features**2)
    columns["correlation"] = np.sqrt(others / pairs).tolist()
    return patch_table(rows, columns)


@torch.no_grad()
def reach(flow: Flow, z: Tensor, y: Tensor) -> Array:
    """Draw each latent patch anew in turn and measure what changes in the image.

    Shape:
        z ``[N, T, D]``, y ``[N]`` -> ``[T, T]``, by latent patch and patch of the image
    """
    decode = partial(_decode, flow)
    before = patchify(decode(z, y), flow.patch)
    found = []
    for token in range(flow.tokens):
        other = z.clone()
        other[:, token] = Noise(token, ids=torch.arange(len(z))).normal(flow.features)
        change = patchify(decode(other, y), flow.patch) - before
        found.append(change.square().mean((0, 2)).sqrt())
    return torch.stack(found).numpy()


def exchanged(flow: Flow, known: Tensor) -> Array:
    """Show images, then their noise decoded with every class in place of their own.

    Shape:
        stages ``[blocks + 1, N, T, D]`` -> uint8 ``[N, 1 + classes, H, W, C]``
    """
    z = known[-1].repeat_interleave(flow.classes, 0)
    classes = torch.arange(flow.classes).repeat(known.shape[1])
    decoded = to_pixels(_decode(flow, z, classes))
    own = _grid(flow, known[:1].transpose(0, 1))
    return np.concatenate([own, decoded.reshape(len(own), flow.classes, *own.shape[2:])], 1)


def interpolated(flow: Flow, z: Tensor, y: Tensor) -> Array:
    """Go from the noise of one image to that of the next on a sphere, each with its own class.

    The class changes in the middle.

    Shape:
        z ``[N, T, D]``, y ``[N]`` -> uint8 ``[N // 2, 9, H, W, C]``
    """
    pairs = len(z) // 2
    start, end = z[: 2 * pairs : 2], z[1 : 2 * pairs : 2]
    place = torch.linspace(0, 1, STEPS)
    between = torch.stack([slerp(start, end, float(share)) for share in place], 1).flatten(0, 1)
    classes = torch.stack([y[:-1:2] if share < 0.5 else y[1::2] for share in place], 1).flatten()
    pixels = to_pixels(_decode(flow, between, classes))
    return pixels.reshape(pairs, STEPS, *pixels.shape[1:])


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Go a share of the arc between two points on a sphere, and of the way between their norms.

    Shape:
        ``[N, T, D]`` both -> ``[N, T, D]``

    Example:
        >>> start, end = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])
        >>> round(slerp(start, end, 0.5).norm().item(), 4)
        4.0
    """
    flat = [side.flatten(1).double() for side in (start, end)]
    norms = [side.norm(dim=1, keepdim=True) for side in flat]
    a, b = (side / norm for side, norm in zip(flat, norms, strict=True))
    angle = (a * b).sum(1, keepdim=True).clamp(-1, 1).arccos().clamp_min(1e-6)
    direction = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()
    norm = (1 - share) * norms[0] + share * norms[1]
    return (direction * norm).view_as(start).float()


def nearest(
    flow: Flow, splits: Splits, sampling: Sampling, count: int
) -> tuple[pd.DataFrame, Array]:
    """Find the nearest training image of samples, and of test images for comparison.

    Shape:
        -> the table ``Latents.nearest``, and uint8 ``[2, 10, H, W, C]``
    """
    test = splits.test.pixels[:count]
    y = _labels(flow, splits.test)[: len(test)]
    samples = to_pixels(draw(flow, y, sampling))
    drawn = torch.from_numpy(samples).permute(0, 3, 1, 2)
    tables = []
    for name, pixels in (("samples", drawn), ("test", test)):
        distance, index = _nearest(pixels, splits.train.pixels)
        tables.append(pd.DataFrame({"set": name, "distance": distance, "index": index}))
    order = tables[0]["distance"].argsort()[:10].to_numpy()
    found = splits.train.pixels[tables[0]["index"].to_numpy()[order]].permute(0, 2, 3, 1).numpy()
    return pd.concat(tables, ignore_index=True), np.stack([samples[order], found])


def _nearest(pixels: Tensor, among: Tensor) -> tuple[Array, Array]:
    """Distance of each image to the nearest of others, and that one's index."""
    wanted = pixels.flatten(1).float()
    best, place = torch.full((len(pixels),), torch.inf), torch.zeros(len(pixels), dtype=torch.int64)
    for first in range(0, len(among), 2000):
        part = among[first : first + 2000].flatten(1).float()
        distance, index = torch.cdist(wanted, part).min(1)
        place = torch.where(distance < best, index + first, place)
        best = torch.minimum(best, distance)
    return (best / wanted.shape[1] ** 0.5).numpy(), place.numpy()


@torch.no_grad()
def _decode(flow: Flow, z: Tensor, y: Tensor) -> Tensor:
    """Invert the flow, so many images at a time; ``[N, T, D]`` -> ``[N, C, H, W]`` on the CPU."""
    weight, together = next(flow.parameters()), fitting(flow)
    return torch.cat(
        [
            flow.inverse(part.to(weight), labels.to(weight.device)).cpu()
            for part, labels in zip(z.split(together), y[: len(z)].split(together), strict=True)
        ]
    )


def _grid(flow: Flow, x: Tensor) -> Array:
    """Pixels of patches ``[rows, columns, T, D]``; uint8 ``[rows, columns, H, W, C]``."""
    pixels = to_pixels(unpatchify(x.flatten(0, 1), flow.shape, flow.patch))
    return pixels.reshape(*x.shape[:2], *pixels.shape[1:])


def _labels(flow: Flow, images: Images) -> Tensor:
    """The labels that a flow is given; −1 where it has no classes."""
    if images.labels is None or not flow.classes:
        return torch.full((len(images),), -1)
    return images.labels
