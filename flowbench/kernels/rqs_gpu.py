"""Rational-quadratic splines and their gradients on NVIDIA GPUs, in Triton; ``rqs.c`` is for CPUs.

A program holds all K widths and heights of some features in registers, so that each raw parameter
is read once and each of its gradients written once; the backward pass computes the forward pass's
values again, which costs less than reading them back. Names and formulas are those of ``rqs.c``.
Triton's language has no other types than tensors, so nothing in here is annotated.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048
"""Raw widths (and as many heights) that a program holds."""
FUSED = {"enable_fp_fusion": True}
"""A product and a sum may be rounded once, as on a CPU; versions differ in what is usual."""


@triton.jit
def _softmax(raw, first, stride, at, stride_n, j, inside, K: tl.constexpr):
    """Turn K rows of raw parameters, from ``first``, into shares of each column."""
    mask = (j < K)[:, None] & inside[None, :]
    r = tl.load(raw + (first + j)[:, None] * stride + at[None, :] * stride_n, mask=mask, other=0.0)
    r = tl.where((j < K)[:, None], r.to(tl.float32), float("-inf"))
    e = tl.exp(r - tl.max(r, 0)[None, :])
    return e / tl.sum(e, 0)[None, :]


@triton.jit
def _pick(shares, j, k):
    """Select row k of each column."""
    return tl.sum(tl.where(j[:, None] == k[None, :], shares, 0.0), 0)


@triton.jit
def _raw_slope(raw, i, stride, at, stride_n, inside, K: tl.constexpr):
    """Read the raw slope of the inner knot i, or of the nearest; 0 where there is none."""
    if K > 1:
        row = 2 * K + tl.minimum(tl.maximum(i, 0), K - 2)
        r = tl.load(raw + row * stride + at * stride_n, mask=inside, other=0.0).to(tl.float32)
    else:
        r = tl.zeros_like(i).to(tl.float32)
    return r


@triton.jit
def _knot_slope(r, sigma):
    """Compute 0.001 + softplus(r + c), and its gradient."""
    up = r > 0
    e = tl.exp(-tl.abs(r))
    more = tl.where(up, 1 - sigma, sigma) * (e - 1)
    return 1 + tl.where(up, r, 0.0) + tl.log(1 + more), sigma * tl.where(up, 1.0, e) / (1 + more)


@triton.jit
def _find(raw, stride, at, stride_n, j, inside, u, K: tl.constexpr, m, mix, AXIS: tl.constexpr):
    """Find each feature's piece along x (axis 0) or z (axis 1), at u in [0, 1]."""
    p = _softmax(raw, 0, stride, at, stride_n, j, inside, K)
    q = _softmax(raw, K, stride, at, stride_n, j, inside, K)
    p_sums, q_sums = tl.cumsum(p, 0) - p, tl.cumsum(q, 0) - q
    along = p_sums
    if AXIS:
        along = q_sums + mix * (p_sums - q_sums)
    corners = along * (1 - K * m) + (j * m)[:, None]
    past = (u[None, :] >= corners) & ((j > 0) & (j < K))[:, None]
    k = tl.sum(past.to(tl.int32), 0)
    return p, q, _pick(p_sums, j, k), _pick(q_sums, j, k), k


@triton.jit
def _side(
    p, q, p_sum, q_sum, k, r_l, r_r, j, m, mix, sigma, bend, K: tl.constexpr, STABLE: tl.constexpr
):
    """Compute a piece on the unit square: corner, sides, and slopes at the ends over the chord's.

    Also what those slopes were made of: of the left and right neighbours if stable, else the
    gradients of the knots' slopes.
    """
    scale = 1 - K * m
    p_k, q_k = _pick(p, j, k), _pick(q, j, k)
    first, last = k == 0, k == K - 1
    x0 = k * m + scale * p_sum
    y0 = k * m + scale * (q_sum + mix * (p_sum - q_sum))
    w = tl.where(last, 1 - x0, m + scale * p_k)
    h = tl.where(last, 1 - y0, m + scale * (q_k + mix * (p_k - q_k)))
    s = h / w
    if STABLE:
        left, right = tl.maximum(k - 1, 0), tl.minimum(k + 1, K - 1)
        p_l, q_l, p_r, q_r = (
            _pick(p, j, left),
            _pick(q, j, left),
            _pick(p, j, right),
            _pick(q, j, right),
        )
        w_l, w_r = m + scale * p_l, m + scale * p_r
        s_l = (m + scale * (q_l + mix * (p_l - q_l))) / w_l
        s_r = (m + scale * (q_r + mix * (p_r - q_r))) / w_r
        a0 = 2 * s_l / (s_l + s) * tl.exp(r_l / (1 + tl.abs(r_l) / bend))
        a1 = 2 * s_r / (s_r + s) * tl.exp(r_r / (1 + tl.abs(r_r) / bend))
    else:
        d_l, w_l = _knot_slope(r_l, sigma)
        d_r, w_r = _knot_slope(r_r, sigma)
        a0, a1, s_l, s_r = d_l / s, d_r / s, s, s
    return (
        x0,
        y0,
        w,
        h,
        s,
        tl.where(first, 1 / s, a0),
        tl.where(last, 1 / s, a1),
        w_l,
        w_r,
        s_l,
        s_r,
    )


@triton.jit
def _clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def _forward(
    x_at, raw, z_at, l_at, n, stride, stride_n, B, m, mix, sigma, bend, K: tl.constexpr,
    STABLE: tl.constexpr, INVERSE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    j, inside = tl.arange(0, ROWS), at < n
    x = tl.load(x_at + at, mask=inside, other=0.0)
    v = _clamp(x, -B, B)
    u = (v + B) / (2 * B)
    p, q, p_sum, q_sum, k = _find(raw, stride, at, stride_n, j, inside, u, K, m, mix, INVERSE)
    r_l = _raw_slope(raw, k - 1, stride, at, stride_n, inside, K)
    r_r = _raw_slope(raw, k, stride, at, stride_n, inside, K)
    x0, y0, w, h, s, a0, a1, _, _, _, _ = _side(
        p, q, p_sum, q_sum, k, r_l, r_r, j, m, mix, sigma, bend, K, STABLE
    )
    x0, y0, w, h = 2 * B * x0 - B, 2 * B * y0 - B, 2 * B * w, 2 * B * h
    if INVERSE:
        rho = _clamp((v - y0) / h, 0.0, 1.0)
        b = a0 * (1 - rho) + rho * (2 - a1)
        above = (b - 2) * (b - 2) + 4 * (1 - rho) * (b - 1)
        root = tl.sqrt(tl.maximum(tl.where(b > 1, above, b * b + 4 * rho * (1 - b)), 1e-30))
        xi = tl.where(b < 0, root - b, 2 * rho) / tl.where(b < 0, 2 * (1 - b), b + root)
        xi = _clamp(xi, 0.0, 1.0)
        result = v + ((x0 - y0) + (w * xi - h * rho))
    else:
        xi = _clamp((v - x0) / w, 0.0, 1.0)
        chord = tl.where(s > 1, v + ((y0 - x0) + (s - 1) * (v - x0)), s * v + (y0 - s * x0))
        bent = xi * (1 - xi) * ((a0 - 1) * (1 - xi) - (a1 - 1) * xi)
        result = chord + h * (bent / (1 + (a0 + a1 - 2) * xi * (1 - xi)))
    eta = 1 - xi
    den = 1 + (a0 + a1 - 2) * xi * eta
    left, middle, right = eta * eta, 2 * xi * eta, xi * xi
    ratio = (a0 * left + middle + a1 * right) / (left + middle + right)
    log_slope = tl.log(s * ratio / (den * den))
    if INVERSE:
        log_slope = -log_slope
    within = (x >= -B) & (x <= B)
    tl.store(z_at + at, tl.where(within, result, x), mask=inside)
    tl.store(l_at + at, tl.where(within, log_slope, 0.0), mask=inside)


@triton.jit
def _backward(
    x_at, raw, gz_at, gl_at, gx_at, g_raw, n, stride, stride_n, B, m, mix, sigma, bend,
    K: tl.constexpr, STABLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    j, inside = tl.arange(0, ROWS), at < n
    x = tl.load(x_at + at, mask=inside, other=0.0)
    given_z = tl.load(gz_at + at, mask=inside, other=0.0)
    u = (_clamp(x, -B, B) + B) / (2 * B)
    p, q, p_sum, q_sum, k = _find(raw, stride, at, stride_n, j, inside, u, K, m, mix, 0)
    r_l = _raw_slope(raw, k - 1, stride, at, stride_n, inside, K)
    r_r = _raw_slope(raw, k, stride, at, stride_n, inside, K)
    x0, _, w, h, s, a0, a1, w_l, w_r, s_l, s_r = _side(
        p, q, p_sum, q_sum, k, r_l, r_r, j, m, mix, sigma, bend, K, STABLE
    )
    first, last, scale = k == 0, k == K - 1, 1 - K * m
    within = (x >= -B) & (x <= B)
    gz = tl.where(within, given_z * 2 * B, 0.0)  # of the unit square's z
    gl = tl.where(within, tl.load(gl_at + at, mask=inside, other=0.0), 0.0)
    xi = _clamp((u - x0) / w, 0.0, 1.0)
    eta = 1 - xi
    both, bent = xi * eta, a0 + a1 - 2
    den = 1 / (1 + bent * both)
    ratio = a0 * eta * eta + 2 * both + a1 * xi * xi
    value = (xi * xi + a0 * both) * den  # (z - y0) / h
    curve = ((a1 - 1) * xi - (a0 - 1) * eta) / ratio - bent * (eta - xi) * den
    g_xi = gz * h * ratio * den * den + 2 * gl * curve
    g_a0 = gz * h * both * (1 - value) * den + gl * (eta * eta / ratio - 2 * both * den)
    g_a1 = -gz * h * both * value * den + gl * (xi * xi / ratio - 2 * both * den)
    g_x0, g_y0 = -g_xi / w, gz
    # a0 and a1 have 1 / s as a factor; if stable and not at an end, 1 / (s_l + s) instead.
    sum_l, sum_r = 1 / s, 1 / s
    if STABLE:
        sum_l = tl.where(first, sum_l, 1 / (s_l + s))
        sum_r = tl.where(last, sum_r, 1 / (s_r + s))
    g_s = -g_a0 * a0 * sum_l - g_a1 * a1 * sum_r
    g_w = (-g_xi * xi - gl - g_s * s) / w
    g_h = gz * value + gl / h + g_s / w
    tl.store(gx_at + at, tl.where(within, g_xi / (w * 2 * B), given_z), mask=inside)
    g_x0 -= tl.where(last, g_w, 0.0)
    g_y0 -= tl.where(last, g_h, 0.0)
    g_w, g_h = tl.where(last, 0.0, g_w), tl.where(last, 0.0, g_h)

    here, of = j[:, None], k[None, :]
    before, own = here < of, here == of
    gp_sum, gq_sum = scale * (g_x0 + mix * g_y0), scale * (1 - mix) * g_y0
    gp, gq = scale * (g_w + mix * g_h), scale * (1 - mix) * g_h
    gp_all = tl.where(before, gp_sum[None, :], 0.0) + tl.where(own, gp[None, :], 0.0)
    gq_all = tl.where(before, gq_sum[None, :], 0.0) + tl.where(own, gq[None, :], 0.0)
    if STABLE:
        c_l, c_r = 1 + tl.abs(r_l) / bend, 1 + tl.abs(r_r) / bend
        t_l, t_r = tl.where(first, 0.0, g_a0 * a0), tl.where(last, 0.0, g_a1 * a1)
        gr_l, gr_r = t_l / (c_l * c_l), t_r / (c_r * c_r)
        # Of the neighbours' heights; of their widths it is -s times that.
        gs_l, gs_r = t_l * s * sum_l / (s_l * w_l), t_r * s * sum_r / (s_r * w_r)
        to_left, to_right = here == of - 1, here == of + 1
        gp_all += tl.where(to_left, (scale * (mix - s_l) * gs_l)[None, :], 0.0)
        gp_all += tl.where(to_right, (scale * (mix - s_r) * gs_r)[None, :], 0.0)
        gq_all += tl.where(to_left, (scale * (1 - mix) * gs_l)[None, :], 0.0)
        gq_all += tl.where(to_right, (scale * (1 - mix) * gs_r)[None, :], 0.0)
    else:
        gr_l, gr_r = tl.where(first, 0.0, g_a0 * w_l / s), tl.where(last, 0.0, g_a1 * w_r / s)
    gp_all = p * (gp_all - tl.sum(gp_all * p, 0)[None, :])
    gq_all = q * (gq_all - tl.sum(gq_all * q, 0)[None, :])
    gr_all = tl.where(own, gr_r[None, :], tl.where(here == of - 1, gr_l[None, :], 0.0))
    to = g_raw + j[:, None] * stride + at[None, :] * stride_n
    mask = (j < K)[:, None] & inside[None, :]
    tl.store(to, gp_all, mask=mask)
    tl.store(to + K * stride, gq_all, mask=mask)
    tl.store(to + 2 * K * stride, gr_all, mask=(j < K - 1)[:, None] & inside[None, :])


def forward(x: Tensor, raw: Tensor, spline: list[float], inverse: bool) -> tuple[Tensor, Tensor]:
    """Evaluate, or invert, a spline for each of n features; arguments as for ``rqs.evaluate``.

    Raw parameters may have any floating type and any strides.
    """
    x = x.contiguous()
    out, log_slope = torch.empty_like(x), torch.empty_like(x)
    grid, rows, numbers = _layout(len(x), raw, spline)
    stable = spline[-1] != 0
    if len(x):
        _forward[grid](x, raw, out, log_slope, *numbers, stable, inverse, *rows, **FUSED)
    return out, log_slope


def backward(
    x: Tensor, raw: Tensor, spline: list[float], g_z: Tensor, g_log_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of x and raw; arguments as for ``rqs.rqs_backward``."""
    x = x.contiguous()
    g_x, g_raw = torch.empty_like(x), torch.empty_like(raw)
    raw = raw if raw.stride() == g_raw.stride() else torch.empty_like(g_raw).copy_(raw)
    grid, rows, numbers = _layout(len(x), raw, spline)
    if len(x):
        given = g_z.contiguous(), g_log_slope.contiguous()
        _backward[grid](x, raw, *given, g_x, g_raw, *numbers, spline[-1] != 0, *rows, **FUSED)
    return g_x, g_raw


def _layout(
    n: int, raw: Tensor, spline: list[float]
) -> tuple[tuple[int], tuple[int, int], tuple[float, ...]]:
    """Return the programs, a program's rows and features, and the numbers that a kernel takes."""
    bins, bound, min_side, min_slope, bend, stable = spline
    rows = triton.next_power_of_2(int(bins))
    block = max(16, TILE // rows)
    mix = min_slope if stable else 0.0
    sigma = 1 - math.exp(min_slope - 1)
    numbers = (n, *raw.stride(), bound, min_side, mix, sigma, bend, int(bins))
    return (triton.cdiv(n, block),), (rows, block), numbers
