"""From noise and log-determinant to the numbers that papers print; pure torch.

The only place where per-dimension values and bits appear. Noise and its levels are here too, since
they decide what a likelihood means.
"""

import math
from collections.abc import Callable

from torch import Tensor

from flowbench.seeding import Noise

LEVELS = 256
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
Dequantise = Callable[[Tensor, Noise], Tensor]
"""Turns images uint8 ``[B, ...]`` into noisy float32 ones, on the device of both."""


def dequantise_uniform(pixels: Tensor, noise: Noise) -> Tensor:
    """Spread the 256 levels evenly over [−1, 1); uint8 ``[B, ...]`` -> float32 ``[B, ...]``.

    The density of the result bounds the probability of the pixels (Theis et al., 2015,
    https://arxiv.org/abs/1511.01844), so it is the protocol of every bpd.
    """
    within = noise.uniform(*pixels.shape[1:])
    # White pixels and noise just below 1 would round up to the edge.
    return ((pixels + within) * (2 / LEVELS) - 1).clamp_max(1 - 2**-24)


def dequantise_gaussian(pixels: Tensor, noise_std: float, noise: Noise) -> Tensor:
    """Place the levels on [−1, 1] and add Gaussian noise; ``[B, ...]``, uint8 -> float32.

    The protocol of TarFlow's samples; its likelihood is that of noisy images and has no bpd.
    """
    return pixels * (2 / (LEVELS - 1)) - 1 + noise_std * noise.normal(*pixels.shape[1:])


def objective(z: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    r"""The two terms of the loss, each a mean over the batch, in nats per dimension.

    .. math:: prior = ½‖z‖² / dims, \quad logdet = log\_det / dims, \quad loss = prior − logdet

    The constant ½ log 2π of the Gaussian is left out, as in the curves that are reproduced.

    Shape:
        z ``[B, T, D]``, log_det ``[B]`` -> two scalars
    """
    return 0.5 * z.float().square().mean(), log_det.mean() / z[0].numel()


def bits_per_dim(loss: float) -> float:
    """Bits per dimension of a loss under uniform dequantisation, with every constant in it.

    A level of the 256 is 1/128 wide on [−1, 1], which adds log 128.

    Example:
        Uniform pixels under the identity flow have prior E[x²]/2 = 1/6:

        >>> round(bits_per_dim(1 / 6), 3)
        8.566
    """
    return (loss + HALF_LOG_2PI + math.log(LEVELS / 2)) / math.log(2)


def nats_per_dim(loss: float) -> float:
    """Negative log-likelihood in nats per dimension of a loss, with the Gaussian's constant.

    The measure with Gaussian noise, where levels, and so bits, have no meaning.
    """
    return loss + HALF_LOG_2PI
