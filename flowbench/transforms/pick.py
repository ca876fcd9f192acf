"""The K-wide part of a spline: softmaxes, running sums, bin search and selection, fast both ways.

Autograd would keep and traverse a dozen tensors K wide; by hand the raw parameters suffice, and the
gradient of everything after the selection is elementwise. Memory runs along the features, not the
bins, so that the processor's vectors are full.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowbench.kernels.ordinary import gradients, ordinary


class Grid(NamedTuple):
    """How raw parameters make pieces.

    Attributes:
        bins: K.
        axis: 0 looks along the widths, 1 along the heights.
        floor: Least side of a piece, as a part of the whole.
        mix: Part of the widths in the heights.
        reach: Neighbours at either side, 0 or 1.
    """

    bins: int
    axis: int
    floor: float
    mix: float
    reach: int


def pick(planes: Tensor, at: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    """Select, for each of N features, what its piece needs from K widths, heights and K − 1 slopes.

    With p and q the softmaxes of the raw widths and heights, gives the piece's number k; the sums
    of p and of q over the pieces before k; the raw slopes at the piece's two ends (at ±B: of any
    knot); p and q of piece k; and, if asked for, p and q of its left and of its right neighbour (at
    the ends: of k itself).

    Args:
        planes: Raw parameters.
        at: Where to look, in [0, 1].
        grid: How they make pieces.

    Shape:
        planes ``[3K - 1, N]``, at ``[N]`` -> int64 k and six or ten values, each ``[N]``
    """
    if torch.compiler.is_compiling() or ordinary(planes, at):
        return _Pick.apply(planes, at, grid)
    return _pick(planes, at, grid)


def _pick(planes: Tensor, at: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    bins = grid.bins
    widths, heights, slopes = planes.split([bins, bins, bins - 1])
    p, q = widths.softmax(0), heights.softmax(0)
    p_sums, q_sums = _running(p), _running(q)
    corners = p_sums if grid.axis == 0 else q_sums + grid.mix * (p_sums - q_sums)
    floors = grid.floor * torch.arange(bins, dtype=at.dtype, device=at.device)[:, None]
    with torch.no_grad():
        k = (at >= (corners * (1 - bins * grid.floor) + floors)[1:]).sum(0)
    picked = [sums.gather(0, k[None])[0] for sums in (p_sums, q_sums)]
    if bins > 1:
        picked += [slopes.gather(0, i)[0] for i in _ends(k, bins)]
    else:
        picked += [torch.zeros_like(at), torch.zeros_like(at)]
    picked += [s.gather(0, i)[0] for i in _pieces(k, bins, grid.reach) for s in (p, q)]
    return k, *picked


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, planes: Tensor, at: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        k, *picked = _pick(planes, at, grid)
        ctx.save_for_backward(planes, at, k)
        ctx.mark_non_differentiable(k)
        ctx.grid = grid
        return k, *picked

    @staticmethod
    def backward(ctx: Any, _: Tensor, *of_picked: Tensor) -> tuple[Tensor | None, ...]:
        """Spread the gradients over the K planes, through the softmaxes."""
        planes, at, k = ctx.saved_tensors
        bins, reach = ctx.grid.bins, ctx.grid.reach
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():

            def plain(planes: Tensor) -> tuple[Tensor, ...]:
                return _pick(planes, at, ctx.grid)[1:]

            return *gradients(plain, [planes], [True], of_picked), None, None
        p, q = planes[:bins].softmax(0), planes[bins : 2 * bins].softmax(0)
        spread = p.new_zeros(3 * bins - 1, len(k))
        shares = spread.split([bins, bins, bins - 1])
        sums, ends = of_picked[:2], of_picked[2:4]
        own = of_picked[4::2], of_picked[5::2]
        for share, gradient, at_pieces, total in zip((p, q), shares[:2], own, sums, strict=True):
            # A sum over the pieces before k: its gradient goes to all of them.
            gradient.scatter_(0, (k - 1).clamp_min(0)[None], total.where(k > 0, 0.0)[None])
            for j in reversed(range(bins - 1)):
                gradient[j] += gradient[j + 1]
            for i, value in zip(_pieces(k, bins, reach), at_pieces, strict=True):
                gradient.scatter_add_(0, i, value[None])
            gradient.sub_((gradient * share).sum(0)).mul_(share)
        if bins > 1:
            for i, value in zip(_ends(k, bins), ends, strict=True):
                shares[2].scatter_add_(0, i, value[None])
        return spread, None, None


def _running(shares: Tensor) -> Tensor:
    """Sums over the planes before each; a loop, for ``cumsum`` across planes is slow."""
    sums = [torch.zeros_like(shares[0])]
    for share in shares[:-1].unbind():
        sums.append(sums[-1] + share)
    return torch.stack(sums)


def _pieces(k: Tensor, bins: int, reach: int) -> list[Tensor]:
    """Indices of the piece itself, its left and its right neighbour, as ``gather`` wants them."""
    return [k[None], (k - 1).clamp_min(0)[None], (k + 1).clamp_max(bins - 1)[None]][: 1 + 2 * reach]


def _ends(k: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Indices of the inner knots at the piece's left and right end."""
    return (k - 1).clamp_min(0)[None], k.clamp_max(bins - 2)[None]
