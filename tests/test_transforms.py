"""Every law of the transforms' contract over every transform, precision and size of parameters."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from flowbench.errors import UsageError
from flowbench.transforms import Elementwise, parse
from flowbench.transforms.affine import EXACT
from flowbench.transforms.box import BOUND, MIN_SIDE
from flowbench.transforms.compose import Compose
from flowbench.transforms.cubic import CubicSpline
from flowbench.transforms.linearrational import LinearRationalSpline
from flowbench.transforms.quadratic import QuadraticSpline
from flowbench.transforms.rqs import RationalQuadraticSpline
from flowbench.transforms.spline import Spline
from flowbench.transforms.srqs import MAX_LOG_BEND, MIN_SLOPE, StableSpline

f32, f64 = torch.float32, torch.float64
NAMES = [
    "additive",
    "affine",
    "softaffine",
    "rqs-1",
    "rqs-2",
    "rqs-4",
    "rqs-8",
    "rqs-32",
    "rqs-8-3",
    "srqs-1",
    "srqs-2",
    "srqs-8",
    "srqs-32",
    "srqs-8-3",
    "affine+rqs-8",
    "rqs-8+affine",
    "rqs-4+rqs-8",
    "affine+srqs-4+additive",
    "linear-1",
    "linear-8",
    "linear-8-3",
    "quadratic-1",
    "quadratic-8",
    "quadratic-32",
    "cubic-1",
    "cubic-8",
    "lrs-1",
    "lrs-8",
    "sinh",
    "crat",
    "mol-1",
    "mol-4",
    "mol-5",
    "loft",
    "mol-4+affine",
    "affine+cubic-4",
]
SPLINES = [name for name in NAMES if "rqs" in name and "+" not in name]
COMPOSITIONS = [name for name in NAMES if "+" in name]

# (dtype, scale of the parameters) -> error of a round trip through one transform, x in [-5, 5].
# The stable spline's slope can be as small as 1/33, and z near 4 is known to 2e-7 in float32: 1e-5
# is close to the best that float32 allows. The published one's can be so small that at 30 normal
# float32 determines no x at all.
TOLERANCE = {
    (f32, 0): 0.0,
    (f32, 1): 1e-5,
    (f32, 30): 1e-3,
    (f64, 0): 0.0,
    (f64, 1): 1e-12,
    (f64, 30): 1e-11,
}
PUBLISHED = TOLERANCE | {(f32, 1): 0.05, (f32, 30): math.inf, (f64, 1): 5e-11, (f64, 30): 1e-6}
EPS = {f32: 2.0**-23, f64: 2.0**-52}

every_transform = pytest.mark.parametrize("name", NAMES)
every_spline = pytest.mark.parametrize("name", SPLINES)
every_composition = pytest.mark.parametrize("name", COMPOSITIONS)
every_dtype = pytest.mark.parametrize("dtype", [f32, f64], ids=["float32", "float64"])
every_scale = pytest.mark.parametrize("scale", [0, 1, 30], ids=["zero", "normal", "30 normal"])
both_ways = pytest.mark.parametrize("way", ["forward", "inverse"])


def parts(transform: Elementwise) -> tuple[Elementwise, ...]:
    return transform.parts if isinstance(transform, Compose) else (transform,)


def samples(transform: Elementwise) -> int:
    return min(20_000, 100_000 // transform.num_params)


def draw(transform: Elementwise, scale: float, dtype: torch.dtype, n: int) -> tuple[Tensor, Tensor]:
    """Points all over [−5, 5], each with its own parameters."""
    x = torch.linspace(-5, 5, n, dtype=f64)[torch.randperm(n)]
    params = scale * torch.randn(n, transform.num_params, dtype=f64)
    return x.to(dtype), params.to(dtype)


def is_published(transform: Elementwise) -> bool:
    """Whether a part is a published spline, whose slopes can be steep and flat at will."""
    steep = (RationalQuadraticSpline, QuadraticSpline, CubicSpline, LinearRationalSpline)
    return any(isinstance(part, steep) for part in parts(transform))


def tolerance(transform: Elementwise, dtype: torch.dtype, scale: float) -> float:
    table = PUBLISHED if is_published(transform) else TOLERANCE
    return table[dtype, scale] * (2 if transform.name == "loft" else 1)


def corners(spline: Spline, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Knots x_k, y_k and slopes δ_k, ``[..., K + 1]``, as the class's docstring defines them."""
    K, B = spline.bins, spline.bound
    widths, heights, slopes = params.split([K, K, K - 1], dim=-1)
    p, q = widths.softmax(-1), heights.softmax(-1)
    if isinstance(spline, StableSpline):
        q = q + MIN_SLOPE * (p - q)
    w, h = MIN_SIDE + (1 - K * MIN_SIDE) * p, MIN_SIDE + (1 - K * MIN_SIDE) * q
    if isinstance(spline, StableSpline):
        s = h / w
        harmonic = 2 * s[..., :-1] * s[..., 1:] / (s[..., :-1] + s[..., 1:])
        inner = harmonic * torch.exp(slopes / (1 + slopes.abs() / MAX_LOG_BEND))
    else:
        inner = 1e-3 + softplus(slopes + math.log(math.expm1(1 - 1e-3)))
    x_k, y_k = (2 * B * sides[..., :-1].cumsum(-1) - B for sides in (w, h))
    ends = (pad(pad(knots, (1, 0), value=-B), (0, 1), value=B) for knots in (x_k, y_k))
    return *ends, pad(inner, (1, 1), value=1.0)


def hard_points(transform: Elementwise, params: Tensor) -> tuple[Tensor, Tensor]:
    """Far out, at ±B, on every knot and one float beside each of them, for each row of params."""
    fixed = params.new_tensor([-1e4, -100, -BOUND, -3, 0, 3, BOUND, 100, 1e4])
    x = [fixed.expand(len(params), -1)]
    own = params.split([part.num_params for part in parts(transform)], dim=-1)
    for i, part in enumerate(parts(transform)):
        if isinstance(part, Spline):
            knots = corners(part, own[i])[0]
            for before, its in zip(reversed(parts(transform)[:i]), reversed(own[:i]), strict=True):
                knots = before.inverse(knots, its[:, None].expand(-1, knots.shape[-1], -1))[0]
            x.append(knots)
    x = torch.cat(x, -1)
    up, down = x.new_tensor(math.inf), x.new_tensor(-math.inf)
    x = torch.cat([x, x.nextafter(up), x.nextafter(down)], -1).detach()
    return x.flatten(), params[:, None].expand(-1, x.shape[-1], -1).flatten(0, 1).clone()


def amplification(transform: Elementwise, x: Tensor, params: Tensor) -> Tensor:
    """How much the inverse of a composition must magnify the rounding of what it is given.

    An affine part may shrink by e^-8 before a spline, and what it shrinks is then rounded to a
    float of the size of B: that information is lost whatever the inverse does. A single transform
    has no such excuse and is held to the tolerance itself.
    """
    result = torch.ones_like(x)
    if isinstance(transform, Compose):
        for part, own in zip(
            transform.parts,
            params.split([part.num_params for part in transform.parts], dim=-1),
            strict=True,
        ):
            x, log_slope = part.forward(x, own)
            result = result * torch.exp(-log_slope).clamp_min(1)
    return result


@every_transform
@every_dtype
@both_ways
def test_leading_dimensions_broadcast(name: str, dtype: torch.dtype, way: str) -> None:
    transform = parse(name)
    x = torch.randn(4, 1, 3, dtype=dtype)
    params = torch.randn(5, 3, transform.num_params, dtype=dtype)
    full = getattr(transform, way)(x.expand(4, 5, 3).clone(), params.expand(4, 5, 3, -1).clone())
    for got, expected in zip(getattr(transform, way)(x, params), full, strict=True):
        assert got.shape == (4, 5, 3)
        torch.testing.assert_close(got, expected)


def assert_finite(transform: Elementwise, way: str, x: Tensor, params: Tensor) -> None:
    """Values, log-slopes and the gradients with respect to both arguments."""
    x.requires_grad_()
    params.requires_grad_()
    value, log_slope = getattr(transform, way)(x, params)
    (value.sum() + log_slope.sum()).backward()
    assert value.isfinite().all()
    assert log_slope.isfinite().all()
    assert x.grad.isfinite().all()
    assert params.grad.isfinite().all()


@every_transform
@every_dtype
@every_scale
@both_ways
def test_values_and_gradients_are_finite_everywhere(
    name: str, dtype: torch.dtype, scale: float, way: str
) -> None:
    transform = parse(name)
    rows = scale * torch.randn(50, transform.num_params, dtype=dtype)
    x, params = hard_points(transform, rows)
    assert_finite(transform, way, x, params)


@every_transform
@every_dtype
@both_ways
def test_extreme_parameters_give_finite_values_and_gradients(
    name: str, dtype: torch.dtype, way: str
) -> None:
    transform = parse(name)
    levels = torch.tensor([-1e3, -30.0, -1.0, 0.0, 1.0, 30.0, 1e3], dtype=dtype)
    rows = levels[torch.randint(len(levels), (60, transform.num_params))]
    x, params = hard_points(transform, rows)
    assert_finite(transform, way, x, params)


@every_transform
@every_dtype
@both_ways
def test_zero_parameters_are_the_identity_to_the_last_bit(
    name: str, dtype: torch.dtype, way: str
) -> None:
    transform = parse(name)
    rows = torch.zeros(1, transform.num_params, dtype=dtype)
    hard, _ = hard_points(transform, rows)
    x = torch.cat([hard, draw(transform, 0, dtype, 10_001)[0], 1e-20 * torch.randn(9, dtype=dtype)])
    value, log_slope = getattr(transform, way)(x, rows.expand(len(x), -1))
    if name == "loft":  # beyond, it is the identity's logarithm
        x, value, log_slope = (each[x.abs() <= 100] for each in (x, value, log_slope))
    assert torch.equal(value, x)
    assert torch.equal(log_slope, torch.zeros_like(x))


@every_transform
@every_dtype
@every_scale
def test_strictly_increasing(name: str, dtype: torch.dtype, scale: float) -> None:
    transform = parse(name)
    if tolerance(transform, dtype, scale) == math.inf and "affine" in name:
        pytest.skip("affine stretches the rounding at a steep knot as much as it likes")
    n = 2001
    x = torch.linspace(-5, 5, n, dtype=dtype)
    params = scale * torch.randn(20, 1, transform.num_params, dtype=dtype)
    x, params = x.expand(20, n), params.expand(-1, n, -1)
    z, log_slope = transform.forward(x, params)
    # Neighbours that z cannot tell apart may come out equal or, rounded, in the wrong order; a knot
    # of slope δ that lies between them turns its rounding into δ times as much of z.
    rounding = 8 * EPS[dtype] * z.abs().clamp_min(BOUND)[:, 1:] if dtype == f32 else 0.0
    if is_published(transform):
        rounding = rounding * (1 + params.amax(-1).clamp_min(0))[:, 1:]
    assert (z.diff() > -rounding).all()
    assert (z[:, -1] > z[:, 0]).all()
    assert log_slope.isfinite().all()


def log_slope_bounds(transform: Elementwise, params: Tensor) -> tuple[float, float]:
    """What the classes document; parts of a composition add up."""
    largest = params.max().item() if params.numel() else 0.0
    documented = {
        "additive": (0.0, 0.0),
        "affine": (-9.0, 9.0),
        "softaffine": (-4.0, 4.0),
        "rqs": (-math.log(1e6 * (1 + largest)), math.log(max(2e3, 1 + largest))),
        "srqs": (-4.0, 9.0),
        "linear": (-math.log(1000), math.log(1000)),
        "quadratic": (-math.log(1e6), math.log(1e6)),
        "cubic": (-13.5, 8.1),
        "lrs": (-25.0, 25.0),
        "sinh": (-6.0, 6.0),
        "crat": (-2.0, 2.0),
        "mol": (-13.0, 1.0),
        "loft": (-29.0, 9.0),
    }
    bounds = [documented[part.name.split("-")[0]] for part in parts(transform)]
    return sum(low for low, _ in bounds), sum(high for _, high in bounds)


@every_transform
@every_dtype
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e3])
def test_log_slope_keeps_its_documented_bound(name: str, dtype: torch.dtype, scale: float) -> None:
    transform = parse(name)
    x, params = draw(transform, scale, dtype, samples(transform))
    hard_x, hard_params = hard_points(transform, params[:100])
    low, high = log_slope_bounds(transform, params)
    for log_slope in (
        transform.forward(x, params)[1],
        transform.forward(hard_x, hard_params)[1],
        -transform.inverse(x, params)[1],
    ):
        assert low <= log_slope.min()
        assert log_slope.max() <= high


@every_transform
@every_dtype
@every_scale
def test_inverse_undoes_forward(name: str, dtype: torch.dtype, scale: float) -> None:
    transform = parse(name)
    x, params = draw(transform, scale, dtype, samples(transform))
    z, _ = transform.forward(x, params)
    back, _ = transform.inverse(z, params)
    error = (back - x).abs() / amplification(transform, x, params)
    assert not back.isnan().any()
    assert error.max() <= tolerance(transform, dtype, scale)


@pytest.mark.parametrize("name", SPLINES)
@every_dtype
@every_scale
def test_the_inverse_of_a_spline_is_as_close_as_its_type_allows(
    name: str, dtype: torch.dtype, scale: float
) -> None:
    transform = parse(name)
    z, params = draw(transform, scale, dtype, samples(transform))
    x, _ = transform.inverse(z, params)
    # Between the images of x's neighbours a few roundings away, whatever the slope is there.
    moved = 16 * EPS[dtype] * (x.abs() + BOUND).double()
    rounding = 16 * EPS[dtype] * (z.abs() + BOUND).double()
    if scale == 0:
        moved, rounding = 0 * moved, 0 * rounding
    below = transform.forward(x.double() - moved, params.double())[0] - rounding
    above = transform.forward(x.double() + moved, params.double())[0] + rounding
    assert (below <= z).all()
    assert (z <= above).all()


@pytest.mark.parametrize("name", ["affine", "rqs-8", "srqs-2", "srqs-8", "srqs-32"])
@pytest.mark.parametrize("scale", [1, 30], ids=["normal", "30 normal"])
def test_inverse_undoes_forward_for_many_samples_in_float32(name: str, scale: float) -> None:
    transform = parse(name)
    worst = 0.0
    for _ in range(4):  # 200,000 samples, in pieces that fit the processor's cache better
        x, params = draw(transform, scale, f32, 50_000)
        back, _ = transform.inverse(transform.forward(x, params)[0], params)
        worst = max(worst, (back - x).abs().max().item())
        assert not back.isnan().any()
    assert worst <= tolerance(transform, f32, scale)


@every_transform
@every_dtype
@every_scale
def test_log_slopes_of_both_directions_cancel(name: str, dtype: torch.dtype, scale: float) -> None:
    transform = parse(name)
    x, params = draw(transform, scale, dtype, samples(transform))
    z, log_slope = transform.forward(x, params)
    _, log_slope_back = transform.inverse(z, params)
    if tolerance(transform, dtype, scale) == math.inf:
        pytest.skip("no float32 determines x here")
    # The inverse speaks of the point that it found: where a spline bends sharply, log dz/dx
    # changes by as much as it does between that point and x, however exact both slopes are.
    moved = tolerance(transform, dtype, scale) * amplification(transform, x, params)
    exact = params.double()
    here = transform.forward(x.double(), exact)[1]
    above = transform.forward(x.double() + moved, exact)[1] - here
    below = transform.forward(x.double() - moved, exact)[1] - here
    slack = torch.maximum(above.abs(), below.abs()) + (1e-3 if dtype == f32 else 1e-9)
    error = (log_slope + log_slope_back).abs()
    assert (error <= (slack if scale else 0.0)).all()


@every_transform
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@both_ways
def test_low_precision_is_computed_in_float32(name: str, low: torch.dtype, way: str) -> None:
    transform = parse(name)
    x, params = (v.to(low) for v in draw(transform, 1, f32, 200))
    got = getattr(transform, way)(x, params)
    expected = getattr(transform, way)(x.float(), params.float())
    assert got[0].dtype == got[1].dtype == f32
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@every_transform
@both_ways
@pytest.mark.parametrize("which", ["x", "params", "both"])
def test_float64_is_kept(name: str, way: str, which: str) -> None:
    transform = parse(name)
    x, params = draw(transform, 1, f32, 20)
    x = x if which == "params" else x.double()
    params = params if which == "x" else params.double()
    value, log_slope = getattr(transform, way)(x, params)
    assert value.dtype == log_slope.dtype == f64


@every_transform
@both_ways
@pytest.mark.parametrize("given", [torch.bfloat16, f32], ids=["bfloat16", "float32"])
def test_autocast_changes_nothing(name: str, way: str, given: torch.dtype) -> None:
    transform = parse(name)
    x, params = (v.to(given) for v in draw(transform, 1, f32, 200))
    expected = getattr(transform, way)(x, params)
    with torch.autocast("cpu", torch.bfloat16):
        got = getattr(transform, way)(x, params)
    assert got[0].dtype == got[1].dtype == f32
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@every_transform
@both_ways
def test_arguments_are_left_alone(name: str, way: str) -> None:
    transform = parse(name)
    x, params = draw(transform, 1, f32, 100)
    before = x.clone(), params.clone()
    getattr(transform, way)(x, params)
    transform.outside(x, params)
    assert torch.equal(x, before[0])
    assert torch.equal(params, before[1])


# One of every kind, and the spline without inner knots: a number of bins changes no code.
@pytest.mark.parametrize("name", ["additive", "affine", "rqs-1", "rqs-8", "srqs-8", "affine+rqs-8"])
@both_ways
def test_compiles_without_a_graph_break(name: str, way: str) -> None:
    torch.compiler.reset()
    transform = parse(name)
    x, params = draw(transform, 1, f32, 100)
    function = getattr(transform, way)
    compiled = torch.compile(lambda x, params: function(x, params), fullgraph=True, backend="eager")
    for got, expected in zip(compiled(x, params), function(x, params), strict=True):
        torch.testing.assert_close(got, expected)


@every_transform
@every_scale
@both_ways
def test_log_slope_is_that_of_autograd(name: str, scale: float, way: str) -> None:
    transform = parse(name)
    x, params = draw(transform, scale, f64, 20_000)
    x.requires_grad_()
    value, log_slope = getattr(transform, way)(x, params)
    (slope,) = torch.autograd.grad(value.sum(), x)
    # At slopes of e^20 a spline's bend within a rounding of x shows.
    tolerance = 1e-6 if "lrs" in name else 1e-7
    torch.testing.assert_close(slope.log(), log_slope, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["additive", "affine", "softaffine", *SPLINES])
@pytest.mark.parametrize("scale", [0, 1], ids=["zero", "normal"])
def test_float32_agrees_with_float64(name: str, scale: float) -> None:
    transform = parse(name)
    x, params = draw(transform, scale, f32, 20_000)
    z, log_slope = transform.forward(x, params)
    exact_z, exact_log_slope = transform.forward(x.double(), params.double())
    # Rounding in x and in the knots, seen through the slope.
    torch.testing.assert_close(z.double(), exact_z, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(log_slope.double(), exact_log_slope, rtol=0, atol=5e-3)


@every_transform
@both_ways
def test_gradients_are_those_of_finite_differences(name: str, way: str) -> None:
    transform = parse(name)
    n = max(2, 60 // transform.num_params)
    x = 2 * torch.randn(n, dtype=f64, requires_grad=True)
    params = torch.randn(n, transform.num_params, dtype=f64, requires_grad=True)
    assert torch.autograd.gradcheck(getattr(transform, way), (x, params))


@pytest.mark.parametrize("name", ["affine", "softaffine", "additive"])
def test_nothing_is_outside_a_transform_that_acts_everywhere(name: str) -> None:
    transform = parse(name)
    x, params = draw(transform, 1, f32, 100)
    outside = transform.outside(100 * x, params)
    assert outside.dtype == torch.bool
    assert outside.shape == x.shape
    assert not outside.any()


@every_spline
@every_dtype
def test_a_spline_is_the_identity_outside(name: str, dtype: torch.dtype) -> None:
    transform = parse(name)
    x, params = hard_points(transform, torch.randn(50, transform.num_params, dtype=dtype))
    outside = transform.outside(x, params)
    assert torch.equal(outside, x.abs() > transform.bound)
    assert outside.any()
    assert not outside.all()
    for value, log_slope in (transform.forward(x, params), transform.inverse(x, params)):
        assert torch.equal(value[outside], x[outside])
        assert (log_slope[outside] == 0).all()


@every_spline
@every_dtype
def test_a_spline_joins_its_tails_with_slope_one(name: str, dtype: torch.dtype) -> None:
    transform = parse(name)
    params = torch.randn(50, transform.num_params, dtype=dtype)
    for x in (transform.bound, -transform.bound):
        value, log_slope = transform.forward(torch.full((50,), x, dtype=dtype), params)
        torch.testing.assert_close(value, torch.full_like(value, x))
        torch.testing.assert_close(log_slope, torch.zeros_like(value))


@every_spline
def test_the_slope_at_the_ends_is_one_however_rounding_falls(name: str) -> None:
    """2B / B is not 2 to the last bit for every B: a knot may come to lie just beside ±B."""
    transform = parse("-".join([*name.split("-")[:2], "3"]))
    params = torch.randn(500, transform.num_params)
    for x in (transform.bound, -transform.bound):
        for way in ("forward", "inverse", "plain_forward", "plain_inverse"):
            at = torch.full((500,), float(x), requires_grad=True)
            (slope,) = torch.autograd.grad(getattr(transform, way)(at, params)[0].sum(), at)
            torch.testing.assert_close(slope, torch.ones(500), rtol=1e-3, atol=1e-3)


def test_outside_a_composition_is_where_any_part_meets_its_tails() -> None:
    params = torch.randn(1000, parse("affine+rqs-8-3+additive+rqs-4").num_params)
    x = 3 * torch.randn(1000)
    first, _ = parse("affine").forward(x, params[:, :2])
    second, _ = parse("rqs-8-3+additive").forward(first, params[:, 2:26])
    expected = (first.abs() > 3) | (second.abs() > 4)
    got = parse("affine+rqs-8-3+additive+rqs-4").outside(x, params)
    assert torch.equal(got, expected)
    assert not torch.equal(expected, first.abs() > 3)
    assert not expected.all()


@every_composition
@every_dtype
def test_a_composition_is_its_parts_one_after_another(name: str, dtype: torch.dtype) -> None:
    transform = parse(name)
    members = [parse(part) for part in name.split("+")]
    x, params = draw(transform, 1, dtype, 500)
    own = params.split([member.num_params for member in members], dim=-1)
    z, log_slope = x, torch.zeros_like(x)
    for member, its in zip(members, own, strict=True):
        z, more = member.forward(z, its)
        log_slope = log_slope + more
    torch.testing.assert_close(transform.forward(x, params), (z, log_slope))
    back, log_slope = z, torch.zeros_like(x)
    for member, its in zip(reversed(members), reversed(own), strict=True):
        back, more = member.inverse(back, its)
        log_slope = log_slope + more
    torch.testing.assert_close(transform.inverse(z, params), (back, log_slope))


def test_additive_subtracts_b() -> None:
    x, params = torch.randn(100), torch.randn(100, 1)
    assert torch.equal(parse("additive").forward(x, params)[0], x - params[:, 0])


@every_dtype
def test_affine_is_exactly_tarflows_up_to_a_scale_of_e8(dtype: torch.dtype) -> None:
    x, b = torch.randn(2, 1601, dtype=dtype)
    a = torch.linspace(-EXACT, EXACT, 1601, dtype=dtype)
    z, log_slope = parse("affine").forward(x, torch.stack([a, b], -1))
    assert torch.equal(z, (x - b) * torch.exp(-a))
    assert torch.equal(log_slope, -a)


@every_dtype
def test_softaffine_is_affine_with_both_parameters_clipped(dtype: torch.dtype) -> None:
    x, params = torch.randn(1000, dtype=dtype), 10 * torch.randn(1000, 2, dtype=dtype)
    clipped = 4 * torch.tanh(params / 4)
    got = parse("softaffine").forward(x, params)
    torch.testing.assert_close(got, parse("affine").forward(x, clipped), rtol=0, atol=0)
    z, _ = parse("softaffine").forward(torch.zeros(1, dtype=dtype), torch.tensor([[0.0, 1e6]]))
    assert z.item() == -4


def test_affine_bends_a_larger_scale_below_nine() -> None:
    a = torch.linspace(-50, 50, 10_001, dtype=f64)
    _, log_slope = parse("affine").forward(torch.zeros_like(a), torch.stack([a, a], -1))
    assert log_slope.abs().max() <= 9
    assert (log_slope.diff() <= 0).all()
    assert log_slope[a.abs() > 8.1].abs().min() > 8


@every_spline
@every_dtype
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e3])
def test_knots_keep_their_constraints(name: str, dtype: torch.dtype, scale: float) -> None:
    transform = parse(name)
    params = scale * torch.randn(1000, transform.num_params, dtype=dtype)
    x_k, y_k, slopes = corners(transform, params)
    assert x_k.shape == y_k.shape == slopes.shape == (1000, transform.bins + 1)
    side = 2 * transform.bound
    rounding = 8 * EPS[dtype] * side
    assert (x_k.diff() >= MIN_SIDE * side - rounding).all()
    assert (y_k.diff() >= MIN_SIDE * side - rounding).all()
    assert (slopes >= 1e-3 - EPS[dtype]).all()
    for knots in (x_k, y_k):
        assert (knots[:, 0] == -transform.bound).all()
        assert (knots[:, -1] == transform.bound).all()
    assert (slopes[:, [0, -1]] == 1).all()
    if isinstance(transform, RationalQuadraticSpline):
        return
    assert (y_k.diff() >= MIN_SLOPE * x_k.diff() - rounding).all()
    s = y_k.diff() / x_k.diff()
    harmonic = 2 / (1 / s[:, 1:] + 1 / s[:, :-1])
    assert ((slopes[:, 1:-1] / harmonic).log().abs() <= MAX_LOG_BEND + 1e-3).all()


@every_spline
@pytest.mark.parametrize("scale", [0.3, 1, 10])
def test_spline_is_that_of_zuko(name: str, scale: float) -> None:
    zuko = pytest.importorskip("zuko")
    transform = parse(name)
    n, bins = 2000, transform.bins
    x = (torch.rand(n, dtype=f64) * 10 - 5).requires_grad_()
    params = scale * torch.randn(n, transform.num_params, dtype=f64)
    oracle = zuko.transforms.MonotonicRQSTransform(
        torch.zeros(n, bins), torch.zeros(n, bins), torch.zeros(n, bins - 1)
    )
    oracle.horizontal, oracle.vertical, oracle.derivatives = corners(transform, params)

    z, log_slope = transform.forward(x, params)
    expected_z, expected_log_slope = oracle.call_and_ladj(x)
    torch.testing.assert_close(z, expected_z, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_slope, expected_log_slope, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        torch.autograd.grad((z + log_slope).sum(), x),
        torch.autograd.grad((expected_z + expected_log_slope).sum(), x),
        rtol=1e-6,
        atol=1e-6,
    )
    back, _ = transform.inverse(z, params)
    theirs = oracle.inv(z.detach())
    if isinstance(transform, StableSpline):
        torch.testing.assert_close(back, theirs, rtol=0, atol=1e-9)
    # zuko's root loses digits in the published spline's steep pieces: x itself is the oracle there.
    assert ((back - x).abs() <= (theirs - x).abs() + 1e-8).all()


@pytest.mark.parametrize("name", [*NAMES, "rqs-999", "rqs-4-0.5", "rqs-8-10", "rqs-3-2.5+affine"])
def test_a_name_is_read_back_as_the_same_transform(name: str) -> None:
    transform = parse(name)
    assert transform.name == name
    assert parse(transform.name) == transform


@pytest.mark.parametrize(
    ("name", "num_params"),
    [
        ("additive", 1),
        ("affine", 2),
        ("softaffine", 2),
        ("rqs-1", 2),
        ("rqs-8", 23),
        ("srqs-8", 23),
        ("affine+rqs-8", 25),
    ],
    ids=str,
)
def test_number_of_parameters(name: str, num_params: int) -> None:
    assert parse(name).num_params == num_params


@pytest.mark.parametrize(
    ("name", "offending", "valid"),
    [
        ("afine", "'afine'", "affine"),
        ("Affine", "'Affine'", "affine"),
        ("rqs", "'rqs'", "rqs-K"),
        ("rqs-x", "'rqs-x'", "rqs-K"),
        ("rqs-1.5", "rqs-1.5", "valid are"),
        ("rqs--8", "'rqs--8'", "rqs-K"),
        ("rqs-8-3-1", "'rqs-8-3-1'", "rqs-K"),
        ("rqs-08", "'rqs-08'", "rqs-K"),
        ("affine-3", "'affine-3'", "affine"),
        ("", "''", "affine"),
        ("affine+", "''", "affine"),
        ("affine+spline", "'spline' in 'affine+spline'", "rqs-K"),
        ("rqs-0", "rqs-0", "1 to 999"),
        ("rqs-1000", "rqs-1000", "1 to 999"),
        ("rqs-8-0", "rqs-8-0", "bound"),
        ("rqs-8-inf", "rqs-8-inf", "bound"),
        ("rqs-8-nan", "rqs-8-nan", "bound"),
        ("srqs-0", "srqs-0", "1 to 999"),
        ("srqs-8-0", "srqs-8-0", "bound"),
    ],
    ids=lambda value: value or "empty",
)
def test_a_wrong_name_is_told_with_what_is_valid(name: str, offending: str, valid: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(name)
    assert offending in str(caught.value)
    assert valid in str(caught.value)
