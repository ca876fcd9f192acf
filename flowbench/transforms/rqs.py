r"""The monotonic rational-quadratic spline on [−B, B], the identity outside."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from flowbench.errors import UsageError
from flowbench.transforms.base import widen

BOUND = 4.0
MIN_WIDTH = 1e-3
MIN_SLOPE = 1 / 8
MAX_LOG_BEND = math.log(4)


@dataclass(frozen=True)
class RationalQuadraticSpline:
    r"""K rational-quadratic pieces through K + 1 knots :math:`(x_k, y_k)` with slopes :math:`δ_k`.

    .. math::
        z = y_k + (y_{k+1} - y_k) \frac{s_k ξ^2 + δ_k ξ(1-ξ)}
                                       {s_k + (δ_k + δ_{k+1} - 2 s_k) ξ(1-ξ)}

    with :math:`ξ = (x - x_k)/(x_{k+1} - x_k)` and :math:`s_k = (y_{k+1}-y_k)/(x_{k+1}-x_k)`
    (eq. 4 of the paper). The inverse is in closed form; the slope at ±B is 1, so the density is
    continuous where the identity tails begin.

    The 3K − 1 raw parameters are K widths, K heights and K − 1 inner slopes. Widths are a softmax
    with a floor of 0.001 of [−B, B], which bounds how steep a piece can be. Heights are the same,
    mixed with an eighth of the widths, so that every :math:`s_k ≥ 1/8`. The inner slopes are
    :math:`δ_k = H_k e^{r}` with :math:`H_k` the harmonic mean of the neighbouring :math:`s` and
    |r| < log 4: left alone (r = 0) the spline is Fritsch and Butland's monotone interpolant. With
    free δ and s, as in the paper, a piece can be steep at its ends and flat to 1e-8 between, and no
    float32 z tells its x any more. Together: :math:`-4 < \log dz/dx < 9`.

    Args:
        bins: Number of pieces K, at least 1 and below 1000.
        bound: B, half the side of the square that the spline maps onto itself.

    Shape:
        x ``[..., D]``, params ``[..., D, 3K - 1]`` -> z, log_slope ``[..., D]``

    Raises:
        UsageError: K pieces of the least width do not fit, or B is not positive.

    Example:
        >>> RationalQuadraticSpline(bins=4).num_params
        11

    References:
        Durkan et al., *Neural Spline Flows* (2019), https://arxiv.org/abs/1906.04032;
        Fritsch and Butland, *A method for constructing local monotone piecewise cubic
        interpolants* (1984)
    """

    bins: int
    bound: float = BOUND

    def __post_init__(self) -> None:
        if not 1 <= self.bins < 1 / MIN_WIDTH:
            raise UsageError(
                f"rqs-{self.bins}: {self.bins} bins do not fit; valid are 1 to "
                f"{math.ceil(1 / MIN_WIDTH) - 1}, each at least {MIN_WIDTH} of the interval wide"
            )
        if not self.bound > 0:
            raise UsageError(f"rqs-{self.bins}-{self.bound:g}: the bound must be above 0")

    @property
    def name(self) -> str:
        """``rqs-K``, with ``-B`` behind it where B is not the default."""
        return f"rqs-{self.bins}" + (f"-{self.bound:g}" if self.bound != BOUND else "")

    @property
    def num_params(self) -> int:
        """K widths, K heights, K − 1 slopes."""
        return 3 * self.bins - 1

    def knots(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Constrain raw parameters to the knots' abscissae, ordinates and slopes.

        Shape:
            params ``[..., D, 3K - 1]`` -> x_k, y_k, δ_k, each ``[..., D, K + 1]``
        """
        K = self.bins
        widths, heights, bends = params.split([K, K, K - 1], dim=-1)
        w = MIN_WIDTH + (1 - K * MIN_WIDTH) * widths.softmax(-1)
        h = MIN_WIDTH + (1 - K * MIN_WIDTH) * heights.softmax(-1)
        h = h + MIN_SLOPE * (w - h)
        x_k, y_k = self._cumulate(w), self._cumulate(h)
        s = y_k.diff(dim=-1) / x_k.diff(dim=-1)
        left, right = s[..., :-1], s[..., 1:]
        r = bends / (1 + bends.abs() / MAX_LOG_BEND)
        inner = 2 * left * right / (left + right) * torch.exp(r)
        return x_k, y_k, pad(inner, (1, 1), value=1.0)

    def _cumulate(self, fractions: Tensor) -> Tensor:
        inner = (2 * self.bound) * fractions[..., :-1].cumsum(-1) - self.bound
        return pad(pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise; see the class."""
        x, params = widen(x, params)
        return rational_quadratic(x, *self.knots(params))

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data; see the class."""
        z, params = widen(z, params)
        return rational_quadratic_inverse(z, *self.knots(params))

    def outside(self, x: Tensor, params: Tensor) -> Tensor:
        """Inputs beyond ±B."""
        return x.abs() > self.bound


def rational_quadratic(
    x: Tensor, x_k: Tensor, y_k: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """Evaluate the spline through the given knots, the identity outside the outer ones.

    Args:
        x: Where to evaluate.
        x_k: Increasing abscissae; the outer ones equal those of ``y_k``.
        y_k: Increasing ordinates.
        slopes: Positive slopes δ_k at the knots.

    Shape:
        x ``[...]``, each of the knots ``[..., K + 1]`` -> z, log dz/dx ``[...]``
    """
    inside = x.clamp(x_k[..., 0], x_k[..., -1])
    k = (inside[..., None] >= x_k[..., 1:-1]).sum(-1, keepdim=True)
    x0, w, y0, h, a0, a1 = _piece(k, x_k, y_k, slopes)
    xi = (inside - x0) / w
    bend = xi * (1 - xi) / _denominator(xi, a0, a1) * ((a0 - 1) * (1 - xi) - (a1 - 1) * xi)
    s = h / w
    # Grouped so that equal knots give back x itself, to the last bit.
    z = s * inside + (y0 - s * x0) + h * bend
    within = x == inside
    return torch.where(within, z, x), torch.where(within, _log_slope(xi, s, a0, a1), 0.0)


def rational_quadratic_inverse(
    z: Tensor, x_k: Tensor, y_k: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve the spline for x; arguments as for ``rational_quadratic``.

    Shape:
        z ``[...]``, each of the knots ``[..., K + 1]`` -> x, log dx/dz ``[...]``
    """
    inside = z.clamp(y_k[..., 0], y_k[..., -1])
    k = (inside[..., None] >= y_k[..., 1:-1]).sum(-1, keepdim=True)
    x0, w, y0, h, a0, a1 = _piece(k, x_k, y_k, slopes)
    rho = (inside - y0) / h
    # eqs. 6-8 divided by s_k; the root is the one that stays stable when the quadratic term
    # vanishes, and rounding must not push the discriminant below zero.
    c = rho * (a0 + a1 - 2)
    b = a0 - c
    discriminant = (b * b + 4 * rho * (1 - a0 + c)).clamp_min(1e-30)
    xi = (2 * rho / (b + discriminant.sqrt())).clamp(0, 1)
    x = inside + ((x0 - y0) + (w * xi - h * rho))
    within = z == inside
    log_slope = _log_slope(xi, h / w, a0, a1)
    return torch.where(within, x, z), torch.where(within, -log_slope, 0.0)


def _piece(k: Tensor, x_k: Tensor, y_k: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
    """Pick piece k: its corner, width and height, and the slopes at its ends relative to s_k."""
    x0, x1 = x_k.gather(-1, k)[..., 0], x_k.gather(-1, k + 1)[..., 0]
    y0, y1 = y_k.gather(-1, k)[..., 0], y_k.gather(-1, k + 1)[..., 0]
    w, h = x1 - x0, y1 - y0
    s = h / w
    a0, a1 = slopes.gather(-1, k)[..., 0] / s, slopes.gather(-1, k + 1)[..., 0] / s
    return x0, w, y0, h, a0, a1


def _denominator(xi: Tensor, a0: Tensor, a1: Tensor) -> Tensor:
    return 1 + (a0 + a1 - 2) * xi * (1 - xi)


def _log_slope(xi: Tensor, s: Tensor, a0: Tensor, a1: Tensor) -> Tensor:
    """Eq. 5; divided by ξ² + 2ξ(1−ξ) + (1−ξ)² = 1 so that equal knots give exactly 0."""
    eta = 1 - xi
    left, middle, right = eta * eta, 2 * xi * eta, xi * xi
    ratio = (a0 * left + middle + a1 * right) / (left + middle + right)
    return torch.log(s * ratio / _denominator(xi, a0, a1) ** 2)
