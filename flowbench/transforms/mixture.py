"""The distribution function of a mixture of logistics, seen through the logit."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowbench.errors import UsageError
from flowbench.transforms.base import bounded, widen
from flowbench.transforms.root import root

PLACE = 4.0
LIMIT = 1.0


@dataclass(frozen=True)
class MixtureOfLogistics:
    r"""K logistic distributions, mixed.

    .. math:: z = \operatorname{logit} \sum_i π_i \, σ((x - μ_i) / s_i)

    The 3K raw parameters are the logits of π; the places :math:`μ_i`, in (−4, 4); and
    :math:`\log s_i`, in (−1, 1). The raw places are multiplied by gains that differ: equal
    components have equal gradients and would stay equal for ever. :math:`dz/dx < e`, and above
    about :math:`e^{-13}` where two narrow components are as far apart as can be. Its tails scale by
    no more than e: join it with ``affine``. The inverse is searched between the components'.

    Shape:
        x ``[..., D]``, params ``[..., D, 3K]`` -> z, log_slope ``[..., D]``

    References:
        Ho et al., *Flow++* (2019), https://arxiv.org/abs/1902.00275
    """

    bins: int

    def __post_init__(self) -> None:
        if not 1 <= self.bins < 1000:
            raise UsageError(f"mol-{self.bins}: valid are 1 to 999 components")

    @property
    def name(self) -> str:
        """Family and K."""
        return f"mol-{self.bins}"

    @property
    def num_params(self) -> int:
        """K logits, K places, K scales."""
        return 3 * self.bins

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise; see the class."""
        x, params = widen(x, params)
        return _evaluate(x, *self.constrain(params))

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data; see the class."""
        z, params = widen(z, params)
        log_pi, mu, log_s = self.constrain(params)
        each = mu + z[..., None] * log_s.exp()
        z = z.expand(each.shape[:-1])
        return root(lambda x: _evaluate(x, log_pi, mu, log_s), z, each.amin(-1), each.amax(-1))

    def constrain(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log π, μ and log s, each ``[..., D, K]``, of raw ``[..., D, 3K]``."""
        logits, places, scales = params.unflatten(-1, (3, self.bins)).unbind(-2)
        i = torch.arange(self.bins, dtype=params.dtype, device=params.device)
        gains = (1 - 2 * (i % 2)) * (i + 1) * (2 / (self.bins + 1))
        return logits.log_softmax(-1), bounded(gains * places, PLACE), bounded(scales, LIMIT)

    def outside(self, x: Tensor, params: Tensor) -> Tensor:
        """Nothing: its tails shift and scale."""
        return torch.zeros_like(x, dtype=torch.bool)


def _evaluate(x: Tensor, log_pi: Tensor, mu: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor]:
    # All relative to a single logistic at 0, so that it is nothing but rounding-free zeros where
    # every component is that one.
    x = x[..., None]
    at = (x - mu) * torch.exp(-log_s)
    below = logsigmoid(at) - logsigmoid(x)
    above = logsigmoid(-at) - logsigmoid(-x)
    low, high = (log_pi + below).logsumexp(-1), (log_pi + above).logsumexp(-1)
    density = (log_pi - log_s + (below + above)).logsumexp(-1)
    return x.squeeze(-1) + (low - high), (density - low) - high + log_pi.logsumexp(-1)
