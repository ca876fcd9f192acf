"""What a flow's likelihood is, and where in image and blocks it comes from."""

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from flowbench.data.images import Images
from flowbench.evaluation.likelihood import (
    Dequantise,
    bits_per_dim,
    nats_per_dim,
)
from flowbench.evaluation.patches import patch_table
from flowbench.flow import Flow, patchify
from flowbench.seeding import Noise

TEST_NOISE = 6329
"""Seed of the noise of test images."""


def noisy(
    pixels: Tensor, index: Tensor, dequantise: Dequantise, seed: int, draw: int = 0
) -> Tensor:
    """Add noise to some of many images; that of image i follows from seed, draw and i alone.

    Shape:
        uint8 ``[N, C, H, W]``, int64 ``[n]`` -> float32 ``[n, C, H, W]``
    """
    return dequantise(pixels[index], Noise(seed, draw, ids=index))


@dataclass(frozen=True)
class Density:
    """The likelihood of images under a flow.

    Attributes:
        metrics: Means over images and draws of the noise: ``test/loss``, ``test/prior`` and
            ``test/logdet`` (nats/dim, without ½ log 2π) and ``test/draws``. Under uniform noise
            ``test/bpd`` and the tighter bound ``test/bpd_iw``, in bits/dim; under Gaussian noise
            ``test/nll``, in nats/dim. With several draws ``test/bpd_se`` or ``test/nll_se``, the
            standard error over them: of the noise alone, not of the choice of images. What a few
            images cannot hide: ``test/bpd_median`` or ``test/nll_median``, over images and draws,
            and ``test/failed``, the share of noisy images that the flow finds less likely than the
            identity flow, a standard normal, does.
        patches: A row a patch: ``patch`` (raster order), ``row``, ``column`` and its ``bpd`` or
            ``nll``, per dimension of the patch. Their mean is that of the whole image.
        positions: A row for each ``block`` (0 is nearest the data) and ``position`` in the block's
            own order: ``logdet``, the mean log-slope per dimension.
    """

    metrics: dict[str, float]
    patches: pd.DataFrame
    positions: pd.DataFrame


@torch.no_grad()
def density(
    flow: Flow,
    images: Images,
    dequantise: Dequantise,
    noise: Literal["uniform", "gaussian"],
    draws: int,
    seed: int,
    batch: int,
) -> Density:
    r"""Measure the density of noisy images.

    Uniform noise bounds the probability of the pixels from below, on average of its draws. With S
    draws, importance weighting (Burda et al., 2015, https://arxiv.org/abs/1509.00519) bounds it
    more tightly, from below still:

    .. math:: \log P(x) \ge E \log \tfrac1S \sum_s p(x + u_s) \ge E \log p(x + u)

    Args:
        flow: A flow, on any device.
        images: Images to measure, with or without labels.
        dequantise: Adds the noise, on the CPU.
        noise: Which noise that is; decides what the likelihood means.
        draws: Draws of the noise, at least 1.
        seed: Decides the noise: draw s of image i follows from it, s and i alone.
        batch: Images in a batch.
    """
    weight = next(flow.parameters())
    prior = torch.zeros(draws, len(images), dtype=torch.float64)  # summed over dimensions
    log_det, of_identity = torch.zeros_like(prior), torch.zeros_like(prior)
    of_patches = torch.zeros(flow.tokens, dtype=torch.float64)
    of_positions = torch.zeros(len(flow.blocks), flow.tokens, dtype=torch.float64)
    for index in torch.arange(len(images)).split(batch):
        y = None if images.labels is None else images.labels[index].to(weight.device)
        for draw in range(draws):
            x = noisy(images.pixels, index, dequantise, seed, draw)
            priors, slopes, own = (part.cpu().double() for part in _parts(flow, x.to(weight), y))
            prior[draw, index] = priors.sum(1)
            log_det[draw, index] = slopes.sum(1)
            of_identity[draw, index] = _half_squares(patchify(x, flow.patch)).double().sum(1)
            of_patches += (priors - slopes).sum(0)
            of_positions += own

    loss = (prior - log_det) / flow.dims
    per_dim, name = (bits_per_dim, "bpd") if noise == "uniform" else (nats_per_dim, "nll")
    metrics = {
        "test/loss": loss.mean().item(),
        "test/prior": prior.mean().item() / flow.dims,
        "test/logdet": log_det.mean().item() / flow.dims,
        "test/draws": draws,
        "test/failed": (prior - log_det > of_identity).double().mean().item(),
        f"test/{name}": per_dim(loss.mean().item()),
        f"test/{name}_median": per_dim(loss.median().item()),
    }
    if draws > 1:
        of_draws = torch.tensor(
            [per_dim(mean) for mean in loss.mean(1).tolist()], dtype=torch.float64
        )
        metrics[f"test/{name}_se"] = of_draws.std().item() / math.sqrt(draws)
    if noise == "uniform":
        weighted = (-flow.dims * loss).logsumexp(0) - math.log(draws)
        metrics["test/bpd_iw"] = bits_per_dim(-weighted.mean().item() / flow.dims)

    values = of_patches / (loss.numel() * flow.features)
    rows = flow.shape[1] // flow.patch
    patches = patch_table(rows, {name: [per_dim(value) for value in values.tolist()]})
    logdet = pd.DataFrame((of_positions / (loss.numel() * flow.features)).numpy())
    positions = logdet.rename_axis(index="block", columns="position").stack().rename("logdet")
    return Density(metrics, patches, positions.reset_index())


def _parts(flow: Flow, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Where a batch's density comes from: ½z² and log-slopes of each token, in image order.

    Shape:
        -> ``[B, T]`` both, summed over features, and log-slopes of each block's own order, summed
        over images too, ``[blocks, T]``
    """
    z, placed, own = x, torch.zeros((), device=x.device), []
    for block, step in zip(flow.blocks, flow.trace(x, y), strict=True):
        slopes = step.log_slope.sum(-1)
        own.append(slopes.sum(0))
        placed = placed + block.order.undo(slopes, 1)
        z = block.order.undo(step.z, 1)
    return _half_squares(z), placed, torch.stack(own)


def _half_squares(z: Tensor) -> Tensor:
    return 0.5 * z.square().sum(-1)
