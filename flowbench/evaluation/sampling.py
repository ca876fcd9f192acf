"""Images drawn from a flow: the same for a seed, whatever the batch and the device."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flowbench.capture import Replayed
from flowbench.decoding import SEQUENTIAL, Decoding, Guidance
from flowbench.errors import Diverged, UsageError
from flowbench.flow import Flow
from flowbench.seeding import Noise
from flowbench.terminal import tracked
from flowbench.transforms.root import counting

UNLABELLED_COLUMNS = 10
CPU_BATCH = 128
GPU_BATCH = 2048
DENOISED_TOGETHER = 64
MANY = 8
"""Batches of one size from which on a GPU replays the first one's kernels as a graph, whose making
takes as long as several batches."""
Decode = Callable[[Tensor, Tensor], list[Tensor]]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sampling:
    """How images are drawn; with the flow and the labels it says which.

    Args:
        seed: Seed of the noise, in [0, 2⁶²).
        temperature: Scales the noise; below 1 images vary less and are more typical.
        truncation: t, where the noise is a standard normal given that it is in [−t, t]; None: all.
        guidance: Towards the labels; None: none.
        decoding: The order of solving a block's tokens.
        denoise_std: σ of the Gaussian noise that the flow was trained with, to be taken off its
            images by their score, x + σ²∇ log p(x); 0 leaves them as they come.
        bf16: Let the networks compute in bfloat16, as flows trained in it do; transforms stay in
            float32. Pays on GPUs.

    Raises:
        UsageError: An argument is out of its range.

    References:
        Score denoising of a flow's samples: Zhai et al., *Normalizing Flows are Capable Generative
        Models* (2024), https://arxiv.org/abs/2412.06329
    """

    seed: int
    temperature: float = 1.0
    truncation: float | None = None
    guidance: Guidance | None = None
    decoding: Decoding = SEQUENTIAL
    denoise_std: float = 0.0
    bf16: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**62:
            raise UsageError(f"seed = {self.seed} is not valid: an integer in [0, 2^62)")
        for name in ("temperature", "denoise_std"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UsageError(f"{name} = {value} is not valid: a number of at least 0")
        if self.truncation is not None and not 0 < self.truncation < math.inf:
            raise UsageError(f"truncation = {self.truncation} is not valid: a number above 0")


def noise(flow: Flow, count: int, sampling: Sampling, first: int = 0) -> Tensor:
    """Draw the noise of images ``first``, ``first + 1`` and so on.

    That of an image follows from the seed and its number alone. Truncation moves the noise that
    there would be without it to the same quantile of the truncated normal.

    Shape:
        float32 ``[count, T, D]``, on the flow's device
    """
    device = flow.blocks[0].network.pos_embed.device
    index = torch.arange(first, first + count, device=device)
    z = Noise(sampling.seed, ids=index).normal(flow.tokens, flow.features)
    if t := sampling.truncation:
        below, above = torch.special.ndtr(torch.tensor([-t, t], dtype=torch.float64, device=device))
        quantile = below + (above - below) * torch.special.ndtr(z.double())
        z = torch.special.ndtri(quantile).clamp(-t, t).float()
    return sampling.temperature * z


def draw(
    flow: Flow,
    y: Tensor,
    sampling: Sampling,
    batch: int | None = None,
    broken: Literal["raise", "keep"] = "raise",
) -> Tensor:
    """Draw an image for every label; a bar on a terminal shows how far it is.

    Args:
        flow: A flow, on any device.
        y: Labels; −1 is none.
        sampling: How.
        batch: Images at a time; None takes as many as pay off and fit into the memory.
        broken: What to do with images that are not finite; none is drawn in their place. keep:
            return them as NaN, to be counted.

    Shape:
        y ``[N]`` -> float32 ``[N, C, H, W]`` on the CPU, in [−1, 1] up to the flow's errors

    Raises:
        Diverged: Some images are not finite, and ``broken`` is raise.
        UsageError: The flow cannot be guided in this way.
    """
    return torch.cat([stages[-1] for stages in _batches(flow, y, sampling, batch, broken)])


def trajectory(flow: Flow, y: Tensor, sampling: Sampling, batch: int | None = None) -> Tensor:
    """Draw images and keep them on their way: the noise, then what every block leaves.

    Arguments and errors are those of ``draw``.

    Shape:
        y ``[N]`` -> float32 ``[blocks + 1, N, C, H, W]`` on the CPU
    """
    return torch.cat(list(_batches(flow, y, sampling, batch)), 1)


@torch.no_grad()
def roundtrip(flow: Flow, images: Tensor, y: Tensor) -> float:
    """Map images to noise and back and return the largest error; inf where one is not finite.

    Args:
        flow: A flow, on any device.
        images: Noisy images, in [−1, 1].
        y: Labels; −1 is none.

    Shape:
        images ``[N, C, H, W]``, y ``[N]`` -> in units of the images
    """
    weight = flow.blocks[0].network.pos_embed
    x, y = images.to(weight), y.to(weight.device)
    back = flow.inverse(flow(x, y)[0], y)
    return float((back - x).abs().nan_to_num(nan=math.inf, posinf=math.inf).max())


def draw_classes(flow: Flow, classes: int, rows: int, sampling: Sampling) -> Array:
    """Draw so many images of every class, as pixels in rows; errors are those of ``draw``.

    Args:
        flow: A flow, on any device.
        classes: Number of classes; 0 makes columns without one.
        rows: Images of each class.
        sampling: How.

    Shape:
        uint8 ``[rows, classes, H, W, C]``
    """
    columns = torch.arange(classes) if classes else torch.full((UNLABELLED_COLUMNS,), -1)
    pixels = to_pixels(draw(flow, columns.repeat(rows), sampling))
    return pixels.reshape(rows, len(columns), *pixels.shape[1:])


def to_pixels(images: Tensor) -> Array:
    """Round images in [−1, 1] to 256 levels; ``[N, C, H, W]`` -> uint8 ``[N, H, W, C]``."""
    levels = ((images + 1) * 128).floor().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).numpy()


def grid(images: Array, margin: int = 2) -> Array:
    """Lay rows and columns of images out as one, a white margin between.

    Shape:
        uint8 ``[rows, columns, H, W, C]`` -> uint8 ``[height, width, C]``
    """
    around = ((0, 0), (0, 0), (margin, 0), (margin, 0), (0, 0))
    tiles = np.pad(images, around, constant_values=255)
    rows, columns, height, width, channels = tiles.shape
    whole = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    return np.pad(whole, ((0, margin), (0, margin), (0, 0)), constant_values=255)


def _batches(
    flow: Flow,
    y: Tensor,
    sampling: Sampling,
    batch: int | None,
    broken: Literal["raise", "keep"] = "raise",
) -> Iterator[Tensor]:
    """Draw images batch by batch with their stages, ``[blocks + 1, ≤batch, C, H, W]``."""
    guidance, weight = sampling.guidance, flow.blocks[0].network.pos_embed
    if guidance and guidance.scale and guidance.temperature == 1 and not flow.classes:
        raise UsageError(
            "guidance of a flow without classes needs an attention temperature other than 1"
        )
    parts = y.split(batch or fitting(flow))
    plain: Decode = partial(_decode, flow, sampling)
    replayed, size = None, len(parts[0])
    many = sum(len(part) == size for part in parts) >= MANY and _replayable(flow, sampling)
    first = 0
    for part in tracked(parts, "samples"):
        z, labels = noise(flow, len(part), sampling, first).to(weight), part.to(weight.device)
        first += len(part)
        if many and not replayed:
            replayed = Replayed(plain, z, labels)
        stages = (replayed if replayed and len(part) == size else plain)(z, labels)
        with _precision(flow, sampling):
            finished = _finished(flow, stages, labels, sampling, broken)
        yield finished.float().cpu()


def _replayable(flow: Flow, sampling: Sampling) -> bool:
    """Whether a GPU can draw images without asking the host on the way."""
    guided = sampling.guidance is not None and sampling.guidance.scale > 0
    block = flow.blocks[0]
    if block.network.pos_embed.device.type != "cuda" or guided or sampling.decoding.segment != 1:
        return False
    with counting() as searches:
        block.transform.inverse(torch.zeros(1), torch.zeros(1, block.transform.num_params))
    return not searches


def _precision(flow: Flow, sampling: Sampling) -> AbstractContextManager[object]:
    device = flow.blocks[0].network.pos_embed.device.type
    return torch.autocast(device, torch.bfloat16, enabled=sampling.bf16)


def _decode(flow: Flow, sampling: Sampling, z: Tensor, y: Tensor) -> list[Tensor]:
    """Turn noise into images, and keep what every block leaves; each ``[B, C, H, W]``."""
    with _precision(flow, sampling):
        return [stage.x for stage in flow.decode(z, y, sampling.guidance, sampling.decoding)]


def fitting(flow: Flow) -> int:
    """Images at a time: few enough for a processor's cache, or for a quarter of a GPU's memory."""
    network = flow.blocks[0].network
    device = network.pos_embed.device
    if device.type != "cuda":
        return CPU_BATCH
    # For every token, guided and not: keys and values, a layer's activations, the parameters.
    numbers = network.width * (2 * len(network.layers) + 16) + 16 * network.proj_out.out_features
    image = 2 * flow.tokens * numbers * network.pos_embed.itemsize
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(GPU_BATCH, free // 4 // image))


def _finished(
    flow: Flow,
    decoded: list[Tensor],
    y: Tensor,
    sampling: Sampling,
    broken: Literal["raise", "keep"],
) -> Tensor:
    """Denoise images if that is asked for, and make sure that they are; ``[blocks + 1, B, …]``."""
    blocks, stages = len(flow.blocks), list(decoded)
    numbered = (f"block {i} of {blocks} (numbered from the data)" for i in reversed(range(blocks)))
    places = ["the noise", *numbered]
    if sampling.denoise_std:
        stages.append(_denoise(flow, stages[-1], y, sampling.denoise_std))
        places.append("denoising")
    lost = ~torch.stack([stage.isfinite().flatten(1).all(1) for stage in stages])
    if broken == "keep":
        stages[-1] = stages[-1].masked_fill(lost.any(0)[:, None, None, None], math.nan)
    elif lost.any():
        place = places[int(lost.any(1).nonzero()[0])]
        count = int(lost.any(0).sum())
        raise Diverged(f"{count} of {len(y)} samples are not finite, first in {place}")
    return torch.stack([*stages[:blocks], stages[-1]])


def _denoise(flow: Flow, images: Tensor, y: Tensor, std: float) -> Tensor:
    """The mean of the images without noise that these noisy ones may come from (Tweedie)."""
    parts = []
    for noisy, labels in zip(
        images.split(DENOISED_TOGETHER), y.split(DENOISED_TOGETHER), strict=True
    ):
        with torch.enable_grad():
            x = noisy.detach().requires_grad_()
            (score,) = torch.autograd.grad(flow.log_prob(x, labels).sum(), x)
        parts.append(noisy + std**2 * score)
    return torch.cat(parts)
