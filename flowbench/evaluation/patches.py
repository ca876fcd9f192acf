"""Patch quality: where in the image a flow's samples are noisier than the data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import Tensor

from flowbench.errors import Unavailable
from flowbench.flow import patchify

EDGE = [0, 1, -2, -1]
"""The patches that were reported to be noisier: the first two and the last two in raster order."""
GROUPS = 20
"""Groups of images that the jackknife leaves out in turn."""
STRENGTHS = [2 ** (i / 2) for i in range(-2, 15)]
"""Standard deviations of the even noise that samples are compared with, in grey levels."""
CHUNK = 1000


@dataclass(frozen=True)
class PatchQuality:
    """How far the noise in generated patches is from that in real ones.

    Attributes:
        metrics: ``patches/ratio``, above 1 where the edge patches are worse than the interior, and
            the ends of its 95 % interval, ``patches/ratio_low`` and ``patches/ratio_high``.
        patches: A row a patch: ``patch`` (raster order), ``row``, ``column``, and in grey levels
            ``distance`` (generated to test images) and ``floor`` (training to test images).
    """

    metrics: dict[str, float]
    patches: pd.DataFrame


def patch_quality(generated: Tensor, test: Tensor, train: Tensor, patch: int) -> PatchQuality:
    r"""Compare the noise amplitudes of generated patches with those of real ones, place by place.

    At place p, ``distance`` is the Wasserstein-1 distance between the amplitudes of generated and
    of test patches, ``floor`` that between training and test patches, with as many images on either
    side: where one of generated and training images are fewer, as many of the other are drawn.

    .. math:: r_p = (distance_p + 1) / (floor_p + 1), \quad
        \log ratio = mean_{edge} \log r_p - e(mean_{interior} \log r_p)

    The grey level added to both lets patches without any content (black corners) count as equal,
    and keeps differences that nobody can see from counting at all. Logarithms, because a mean of
    the r_p themselves is above 1, most where content varies most, even for perfect samples.

    Noise shows less where patches have content of their own: noise of one strength all over an
    image has a larger r in black corners. The function e corrects this. It adds even noise to
    training images until their interior has the mean log r of the samples' interior, and returns
    the mean log r of their edge. So the ratio is 1 for even noise of any strength, and above 1
    where there is more noise at the edge.

    The interval is a t interval of log ratio by the jackknife, images of all three kinds left out
    in random twentieths. It errs on the wide side: it holds 1 for 99 % of perfect samples.

    Args:
        generated: Samples of the flow.
        test: Images that they are compared with.
        train: Other images, for the floor.
        patch: Side of the patches in pixels.

    Shape:
        each uint8 ``[N, C, H, W]``, with an N of its own

    Raises:
        Unavailable: There are too few images or patches, or the patches are single pixels.
    """
    _check(generated, test, train, patch)
    count = min(len(generated), len(train))
    left, right, real = (
        noise_amplitude(images[_shuffled(len(images))[:size]], patch)
        for images, size in ((generated, count), (train, count), (test, len(test)))
    )
    distance, floor = _distances(left, real), _distances(right, real)  # each [1 + GROUPS, T]
    edge, interior = _edge_and_interior(distance, floor)
    even = _evenly_noisy(train[_shuffled(len(train))[:count]], real, floor, patch)
    # Below 0 is chance, as likely at the edge as in the interior.
    log_ratio = edge - torch.from_numpy(np.interp(interior, *even)) - interior.clamp_max(0)
    left_out = log_ratio[1:]
    variance = (left_out - left_out.mean()).square().sum() * (GROUPS - 1) / GROUPS
    half = float(stdtrit(GROUPS - 1, 0.975)) * math.sqrt(variance)
    log = float(log_ratio[0])
    metrics = {
        "patches/ratio": math.exp(log),
        "patches/ratio_low": math.exp(log - half),
        "patches/ratio_high": math.exp(log + half),
    }
    rows = test.shape[2] // patch
    maps = {"distance": distance[0], "floor": floor[0]}
    return PatchQuality(metrics, patch_table(rows, {k: v.tolist() for k, v in maps.items()}))


def noise_amplitude(pixels: Tensor, patch: int) -> Tensor:
    r"""Measure each patch's amplitude of high frequencies, in grey levels.

    .. math:: h = \sqrt{mean\, ((a - b - c + d) / 2)^2}

    over all 2×2 neighbourhoods a b / c d within the patch, and over channels. Constants and linear
    gradients have none of it, and white noise of standard deviation s gives h ≈ s: the amplitude
    of the noise that one sees.

    Shape:
        pixels uint8 ``[N, C, H, W]`` -> float32 ``[N, T]``

    Example:
        >>> stripes = torch.tensor([0, 255, 0, 255], dtype=torch.uint8).expand(1, 1, 4, 4)
        >>> checks = torch.eye(2, dtype=torch.uint8).mul(10).expand(1, 1, 2, 2)
        >>> noise_amplitude(stripes, 2), noise_amplitude(checks, 2)
        (tensor([[0., 0., 0., 0.]]), tensor([[10.]]))
    """
    channels = pixels.shape[1]
    amplitudes = []
    for images in pixels.split(CHUNK):
        x = patchify(images.float(), patch).unflatten(2, (channels, patch, patch))
        across = x[..., :-1] - x[..., 1:]
        mixed = (across[..., :-1, :] - across[..., 1:, :]) / 2
        amplitudes.append(mixed.square().mean((2, 3, 4)).sqrt())
    return torch.cat(amplitudes)


def patch_table(rows: int, values: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """A row a patch in raster order: ``patch``, ``row``, ``column`` and these columns, each of T.

    Example:
        >>> patch_table(2, {"bpd": [0.5, 0.25]})
           patch  row  column   bpd
        0      0    0       0  0.50
        1      1    1       0  0.25
    """
    tokens = len(next(iter(values.values())))
    patch = np.arange(tokens)
    row, column = np.divmod(patch, tokens // rows)
    return pd.DataFrame({"patch": patch, "row": row, "column": column, **values})


def _distances(left: Tensor, right: Tensor) -> Tensor:
    """Wasserstein-1 distances of every patch: from all images, then without each group of them.

    All at once from one sorting: scipy's function would sort a thousand times.

    Shape:
        left ``[n, T]``, right ``[m, T]`` -> float64 ``[1 + GROUPS, T]``
    """
    kept = torch.cat([_kept(len(left)), _kept(len(right))], 1)
    of_left = torch.arange(kept.shape[1]) < len(left)
    n, m = kept[:, of_left].sum(1, keepdim=True), kept[:, ~of_left].sum(1, keepdim=True)
    # In units of 1/(n·m) the steps of both distribution functions are whole, so that those of equal
    # samples differ by exactly 0.
    steps = (kept * torch.where(of_left, m, -n)).double()
    values, order = torch.cat([left, right]).double().sort(0)
    areas = [
        steps[:, at].cumsum(1)[:, :-1].abs() @ gaps
        for at, gaps in zip(order.unbind(1), values.diff(dim=0).unbind(1), strict=True)
    ]
    return torch.stack(areas, 1) / (n * m)


def _edge_and_interior(distance: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Mean log r of the edge patches and of the others; ``[n, T]`` both -> ``[n]`` both."""
    log_quality = ((distance + 1) / (floor + 1)).log()
    edge = torch.zeros(log_quality.shape[1], dtype=torch.bool)
    edge[EDGE] = True
    return log_quality[:, edge].mean(1), log_quality[:, ~edge].mean(1)


def _evenly_noisy(
    train: Tensor, real: Tensor, floor: Tensor, patch: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Interior, increasing, and edge of training images under even noise of growing strength.

    Args:
        train: Training images, uint8 ``[N, C, H, W]``.
        real: Amplitudes of the test images, ``[M, T]``.
        floor: Distances of the training images as they are, ``[1 + GROUPS, T]``.
        patch: Side of the patches.
    """
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(train.shape, generator=generator)
    edges, interiors = [0.0], [0.0]
    for strength in STRENGTHS:
        noisy = (train + strength * white).round_().clamp_(0, 255).to(torch.uint8)
        distance = _distances(noise_amplitude(noisy, patch), real)[:1]
        edge, interior = (part.item() for part in _edge_and_interior(distance, floor[:1]))
        if interior > interiors[-1]:
            edges.append(edge)
            interiors.append(interior)
    return np.array(interiors), np.array(edges)


def _kept(count: int) -> Tensor:
    """Which images each replicate of the jackknife is made from; bool ``[1 + GROUPS, count]``."""
    return torch.arange(count) % GROUPS != torch.arange(-1, GROUPS)[:, None]


def _shuffled(count: int) -> Tensor:
    """A fixed random order: samples may be sorted by class, but groups must not be."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _check(generated: Tensor, test: Tensor, train: Tensor, patch: int) -> None:
    if patch < 2:
        raise Unavailable("patch quality with patches of 1 pixel: valid are at least 2 pixels")
    tokens = (test.shape[2] // patch) * (test.shape[3] // patch)
    if tokens <= len(EDGE):
        raise Unavailable(
            f"patch quality of images of {tokens} patches: valid are at least {len(EDGE) + 1}"
        )
    for name, images in (("generated", generated), ("test", test), ("training", train)):
        if len(images) < 2 * GROUPS:
            raise Unavailable(
                f"patch quality from {len(images)} {name} images: valid are at least {2 * GROUPS}"
            )
