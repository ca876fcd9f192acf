r"""What rational-quadratic splines share: their pieces, and their kernels."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from flowbench.kernels import rqs as kernel
from flowbench.kernels.ordinary import ordinary
from flowbench.transforms.base import fit
from flowbench.transforms.box import MIN_SIDE, Piecewise
from flowbench.transforms.pick import Grid, pick


@dataclass(frozen=True)
class Spline(Piecewise):
    r"""K rational-quadratic pieces through K + 1 knots :math:`(x_k, y_k)` with slopes :math:`δ_k`.

    .. math::
        z = y_k + (y_{k+1} - y_k) \frac{s_k ξ^2 + δ_k ξ(1-ξ)}
                                       {s_k + (δ_k + δ_{k+1} - 2 s_k) ξ(1-ξ)}

    with :math:`ξ = (x - x_k)/(x_{k+1} - x_k)` and :math:`s_k = (y_{k+1}-y_k)/(x_{k+1}-x_k)`
    (eq. 4 of *Neural Spline Flows*). The inverse is in closed form; the slope at ±B is 1, so the
    density is continuous where the identity tails begin. The 3K − 1 raw parameters are K widths, K
    heights and K − 1 inner slopes; a subclass says what they mean.

    Parameters may lie in memory with the leading dimensions innermost, as a flow's network leaves
    them, or with their own dimension innermost, as is usual elsewhere: neither is copied.

    Args:
        bins: Number of pieces K, at least 1 and below 1000.
        bound: B, half the side of the square that the spline maps onto itself.

    Raises:
        UsageError: K pieces of the least width do not fit, or B is not positive.
    """

    native: tuple[str, ...] = field(init=False, repr=False, compare=False)

    constants: ClassVar[list[float]]
    """The least slope, the largest bend and whether neighbours shape a piece, for the kernel."""
    mix: ClassVar[float] = 0.0
    """Part of the widths in the heights."""
    reach: ClassVar[int] = 0
    """Pieces at either side that shape a piece."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Known before anything is compiled, which could not look for it.
        fits = self.bins <= kernel.MAX_BINS
        object.__setattr__(self, "native", kernel.available() if fits else ())

    @property
    def num_params(self) -> int:
        """K widths, K heights, K − 1 slopes."""
        return 3 * self.bins - 1

    def _end_slopes(
        self, s: Tensor, s_left: Tensor, s_right: Tensor, r_left: Tensor, r_right: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Slopes at a piece's two ends, relative to its chord's, as at inner knots.

        Args:
            s: Slope of the piece's chord.
            s_left: Slope of its left neighbour's chord; without neighbours, its own.
            s_right: Slope of its right neighbour's chord; without neighbours, its own.
            r_left: Raw slope at the left end.
            r_right: Raw slope at the right end.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise; see the class."""
        if self._has_kernel(x, params):
            return self._kernel(x, params, inverse=False)
        return super().forward(x, params)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data; see the class."""
        if self._has_kernel(z, params) and not _has_gradients(z, params):
            return self._kernel(z, params, inverse=True)
        return super().inverse(z, params)

    def _forward(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return _evaluate(inside, *self._piece(inside, params, 0))

    def _inverse(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return _solve(inside, *self._piece(inside, params, 1))

    def kernels(self, x: Tensor) -> tuple[str, ...]:
        """Name the hand-written kernels that run on a tensor of this device and type."""
        return ("rqs",) if self._has_kernel(x) else ()

    def _has_kernel(self, x: Tensor, *params: Tensor) -> bool:
        known = x.device.type in self.native and all(
            each.dtype != torch.float64 for each in (x, *params)
        )
        return known and _followed_by_autograd(x, *params)

    def _kernel(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Run the kernel over x ``[..., D]`` and params ``[..., D, 3K - 1]``, as they lie."""
        operator = torch.compiler.is_compiling() or _has_gradients(x, params)
        run = kernel.rqs if operator else kernel.evaluate
        about = [self.bins, self.bound, MIN_SIDE, *self.constants]
        x = x.float()  # whatever the autocast; the kernel for GPUs widens parameters itself
        params = params if params.is_cuda else params.float()
        x, params = _broadcast(x, params)
        if params.is_contiguous():
            out, log_slope = run(x.flatten(), params.flatten(0, -2).T, about, inverse)
            return out.view(x.shape), log_slope.view(x.shape)
        x, planes = x.movedim(-1, 0), _planes(params)
        out, log_slope = run(x.flatten(), planes, about, inverse)
        return out.view(x.shape).movedim(0, -1), log_slope.view(x.shape).movedim(0, -1)

    def _share(self, p: Tensor, floors: Tensor | float = 1.0) -> Tensor:
        return MIN_SIDE * floors + (1 - self.bins * MIN_SIDE) * p

    def _sides(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Widths and heights of pieces over 2B from their shares p and q in the softmaxes."""
        return self._share(p), self._share(q + self.mix * (p - q))

    def _piece(self, inside: Tensor, params: Tensor, axis: int) -> tuple[Tensor, ...]:
        """Find the piece of every feature: its corner, width, height and relative end slopes.

        Not all K + 1 knots are computed: ``pick`` reduces the K columns to the chosen one, the
        rest is elementwise.

        Args:
            inside: Values in [−B, B]: x for axis 0, z for axis 1.
            params: Raw parameters.
            axis: Whether pieces are looked up along x (0) or z (1).
        """
        at, params = _broadcast((inside + self.bound) / (2 * self.bound), params)
        at = at.movedim(-1, 0)
        grid = Grid(self.bins, axis, MIN_SIDE, self.mix, self.reach)
        picked = pick(_planes(params), at.detach().flatten(), grid)
        k, p_sum, q_sum, r_left, r_right, *shares = (
            value.view(at.shape).movedim(0, -1) for value in picked
        )
        p, q = shares[0], shares[1]
        before = k.to(p.dtype)
        x0 = self._share(p_sum, before)
        y0 = self._share(q_sum + self.mix * (p_sum - q_sum), before)
        w, h = self._sides(p, q)
        last = k == self.bins - 1  # its far corner is B itself, not up to a sum's rounding
        w, h = torch.where(last, 1 - x0, w), torch.where(last, 1 - y0, h)
        s = s_left = s_right = h / w
        if self.reach:
            (w_left, h_left), (w_right, h_right) = (self._sides(*shares[i : i + 2]) for i in (2, 4))
            s_left, s_right = h_left / w_left, h_right / w_right
        a0, a1 = self._end_slopes(s, s_left, s_right, r_left, r_right)
        a0 = torch.where(k == 0, 1 / s, a0)
        a1 = torch.where(last, 1 / s, a1)
        side = 2 * self.bound
        return side * x0 - self.bound, side * w, side * y0 - self.bound, side * h, a0, a1


def _broadcast(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Expand x ``[..., D]`` and params ``[..., D, P]`` to equal leading dimensions."""
    x = fit(x, params)
    return x, params.expand(*x.shape, -1)


def _planes(params: Tensor) -> Tensor:
    """Lay out as a flow's network leaves its outputs: the leading dims innermost.

    Shape:
        params ``[..., D, P]`` -> ``[P, D · ...]``
    """
    return params.movedim((-1, -2), (0, 1)).flatten(1)


def _evaluate(
    x: Tensor, x0: Tensor, w: Tensor, y0: Tensor, h: Tensor, a0: Tensor, a1: Tensor
) -> tuple[Tensor, Tensor]:
    """Eqs. 4 and 5 on a piece; a0 and a1 are the slopes at its ends relative to s_k."""
    xi = _rounded((x - x0) / w)
    s, eta = h / w, 1 - xi
    # The chord from corner to corner, grouped so that rounding neither grows with s nor moves x at
    # all where the corners and slopes are the identity's.
    chord = torch.where(s > 1, x + ((y0 - x0) + (s - 1) * (x - x0)), s * x + (y0 - s * x0))
    bend = xi * eta * ((a0 - 1) * eta - (a1 - 1) * xi) / _denominator(xi, eta, a0, a1)
    return chord + h * bend, _log_slope(xi, s, a0, a1)


def _solve(
    z: Tensor, x0: Tensor, w: Tensor, y0: Tensor, h: Tensor, a0: Tensor, a1: Tensor
) -> tuple[Tensor, Tensor]:
    """Eqs. 6 to 8 on a piece, divided by s_k; arguments as for ``_evaluate``.

    They are (1 − b)ξ² + bξ = ρ. Its discriminant is a sum of two positive terms in either form, and
    of the two forms of its root each is free of cancellation on one side of b = 0.
    """
    rho = _rounded((z - y0) / h)
    b = a0 * (1 - rho) + rho * (2 - a1)
    above = (b - 2).square() + 4 * (1 - rho) * (b - 1)
    discriminant = torch.where(b > 1, above, b * b + 4 * rho * (1 - b))
    root = discriminant.clamp_min(1e-30).sqrt()
    xi = torch.where(b < 0, root - b, 2 * rho) / torch.where(b < 0, 2 * (1 - b), b + root)
    xi = _rounded(xi)
    return z + ((x0 - y0) + (w * xi - h * rho)), -_log_slope(xi, h / w, a0, a1)


def _rounded(part: Tensor) -> Tensor:
    """Take back what rounding has put outside [0, 1]; the gradient is 1 there too."""
    return part + (part.clamp(0, 1) - part).detach()


def _denominator(xi: Tensor, eta: Tensor, a0: Tensor, a1: Tensor) -> Tensor:
    return 1 + (a0 + a1 - 2) * xi * eta


def _log_slope(xi: Tensor, s: Tensor, a0: Tensor, a1: Tensor) -> Tensor:
    """Eq. 5; divided by ξ² + 2ξ(1−ξ) + (1−ξ)² = 1 so that equal knots give exactly 0."""
    eta = 1 - xi
    left, middle, right = eta * eta, 2 * xi * eta, xi * xi
    ratio = (a0 * left + middle + a1 * right) / (left + middle + right)
    return torch.log(s * ratio / _denominator(xi, eta, a0, a1).square())


def _followed_by_autograd(*tensors: Tensor) -> bool:
    """Whether nothing but autograd, or the compiler, follows what is done with these."""
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    return ordinary(*tensors)


def _has_gradients(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _plainly(x: Tensor, raw: Tensor, about: list[float], inverse: bool) -> tuple[Tensor, Tensor]:
    bins, bound, _, *constants = about
    kind = next(each for each in Spline.__subclasses__() if each.constants == constants)
    spline = kind(int(bins), bound)
    return (spline.plain_inverse if inverse else spline.plain_forward)(x, raw.T)


kernel.register_gradients(_plainly)
