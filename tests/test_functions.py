"""The other monotone functions against oracles of their own: closed forms, scipy, zuko."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_trapezoid
from scipy.interpolate import CubicHermiteSpline
from scipy.optimize import brentq
from scipy.special import expit, logit, softmax
from torch import Tensor

from flowbench.errors import UsageError
from flowbench.transforms import Elementwise, parse
from flowbench.transforms.root import ITERATIONS, counting

B, FLOOR = 4.0, 1e-3
X = np.linspace(-3.999, 3.999, 997)
SEEDS = [0, 1, 2]


def bent(raw: np.ndarray, limit: float) -> np.ndarray:
    return raw / (1 + np.abs(raw) / limit)


def sides(raw: np.ndarray) -> np.ndarray:
    return 2 * B * (FLOOR + (1 - len(raw) * FLOOR) * softmax(raw))


def knots(parts: np.ndarray) -> np.ndarray:
    return np.concatenate([[-B], np.cumsum(parts) - B])


def linear(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    return np.interp(x, np.linspace(-B, B, len(raw) + 1), knots(sides(raw)))


def quadratic(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    bins = (len(raw) + 1) // 2
    at = knots(sides(raw[:bins]))
    inner = np.exp(bent(raw[bins:], math.log(1000)))
    # The area under the straight lines through 1, inner slopes times a number, 1 is linear in it.
    areas = [np.trapezoid(np.concatenate([[1], factor * inner, [1]]), at) for factor in (0.0, 1.0)]
    factor = (2 * B - areas[0]) / (areas[1] - areas[0])
    fine = np.union1d(np.linspace(-B, B, 400_001), at)
    density = np.interp(fine, at, np.concatenate([[1], factor * inner, [1]]))
    return np.interp(x, fine, cumulative_trapezoid(density, fine, initial=0) - B)


def cubic(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    bins = len(raw) // 2 - 1
    w, h = sides(raw[:bins]), sides(raw[bins : 2 * bins])
    s = h / w
    slopes = np.empty(bins + 1)
    for k in range(1, bins):  # Steffen (1990), eqs. 8 and 11
        p = (s[k - 1] * w[k] + s[k] * w[k - 1]) / (w[k - 1] + w[k])
        slopes[k] = (np.sign(s[k - 1]) + np.sign(s[k])) * min(s[k - 1], s[k], p / 2)
    ends = 3 * expit(bent(raw[2 * bins :], math.log(1000)) - math.log(2))
    slopes[0], slopes[-1] = s[0] * ends[0], s[-1] * ends[1]
    return CubicHermiteSpline(knots(w), knots(h), slopes)(x)


def lrs(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Dolatabadi et al., algorithm 1, in the weights and points of the paper."""
    bins = (len(raw) + 1) // 4
    w, h, d, part = np.split(raw, [bins, 2 * bins, 3 * bins - 1])
    x_k, y_k = knots(sides(w)), knots(sides(h))
    d = np.concatenate([[1], np.exp(bent(d, math.log(1000))), [1]])
    part = 0.025 + 0.95 * expit(part)
    k = np.clip(np.searchsorted(x_k, x, side="right") - 1, 0, bins - 1)
    phi, lam = (x - x_k[k]) / (x_k[k + 1] - x_k[k]), part[k]
    slope = (y_k[k + 1] - y_k[k]) / (x_k[k + 1] - x_k[k])
    wa = np.ones_like(x)
    wb = np.sqrt(d[k] / d[k + 1]) * wa
    wc = (lam * wa * d[k] + (1 - lam) * wb * d[k + 1]) / slope
    ya, yb = y_k[k], y_k[k + 1]
    yc = ((1 - lam) * wa * ya + lam * wb * yb) / ((1 - lam) * wa + lam * wb)
    first = (wa * ya * (lam - phi) + wc * yc * phi) / (wa * (lam - phi) + wc * phi)
    second = (wc * yc * (1 - phi) + wb * yb * (phi - lam)) / (wc * (1 - phi) + wb * (phi - lam))
    return np.where(phi <= lam, first, second)


def sinh(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    a, b = bent(raw, 3)
    return np.arcsinh(np.exp(a) * np.sinh(x) + np.sinh(b))


def crat(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    bump, g, s = math.expm1(bent(raw[0], 2)), bent(raw[1], 8), math.exp(bent(raw[2], 2))
    return x + bump * (x - g) / (1 + ((x - g) / s) ** 2)


def mol(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    pi, mu, s = raw.reshape(3, -1)
    K = len(pi)
    gains = np.array([(-1) ** i * (i + 1) * 2 / (K + 1) for i in range(K)])
    mu, s = bent(gains * mu, 4), np.exp(bent(s, 1))
    return logit((softmax(pi) * expit((x[:, None] - mu) / s)).sum(-1))


def loft(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    y = (x - raw[1]) * np.exp(-raw[0])
    return np.sign(y) * (np.log(np.maximum(np.abs(y) - 100, 0) + 1) + np.minimum(np.abs(y), 100))


ORACLES = {
    "linear-1": linear,
    "linear-8": linear,
    "quadratic-2": quadratic,
    "quadratic-8": quadratic,
    "cubic-1": cubic,
    "cubic-8": cubic,
    "lrs-1": lrs,
    "lrs-8": lrs,
    "sinh": sinh,
    "crat": crat,
    "mol-1": mol,
    "mol-4": mol,
    "loft": loft,
}
every_function = pytest.mark.parametrize("name", ORACLES)
every_seed = pytest.mark.parametrize("seed", SEEDS)


def raws(transform: Elementwise, seed: int) -> np.ndarray:
    scale = (1.0, 2.0, 5.0)[seed]
    return scale * np.random.default_rng(seed).standard_normal(transform.num_params)


def run(transform: Elementwise, x: np.ndarray, raw: np.ndarray, way: str) -> tuple[Tensor, Tensor]:
    return getattr(transform, way)(torch.from_numpy(x), torch.from_numpy(raw).expand(len(x), -1))


@every_function
@every_seed
def test_values_are_those_of_an_independent_formula(name: str, seed: int) -> None:
    transform = parse(name)
    raw = raws(transform, seed)
    x = 60 * X if name == "loft" else X
    z, _ = run(transform, x, raw, "forward")
    tolerance = 1e-6 if "quadratic" in name else 1e-8  # that oracle integrates numerically
    np.testing.assert_allclose(z, ORACLES[name](x, raw), rtol=tolerance, atol=tolerance)


@every_function
@every_seed
def test_log_slopes_are_those_of_autograd(name: str, seed: int) -> None:
    transform = parse(name)
    raw = torch.from_numpy(raws(transform, seed)).expand(len(X), -1)
    x = torch.from_numpy(X).requires_grad_()
    z, log_slope = transform.forward(x, raw)
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=1e-7, atol=1e-7)


@every_function
@every_seed
def test_gradients_of_parameters_are_those_of_differences(name: str, seed: int) -> None:
    transform = parse(name)
    x = torch.linspace(-3.7, 3.3, 5, dtype=torch.float64)
    raw = torch.from_numpy(raws(transform, seed)).expand(5, -1).clone()
    for way in (transform.forward, transform.inverse):
        leaves = x.clone().requires_grad_(), raw.clone().requires_grad_()
        assert torch.autograd.gradcheck(way, leaves, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_cubic_rational_inverse_is_the_real_root_of_its_cubic(seed: int) -> None:
    raw = raws(parse("crat"), seed)
    bump, g, s = math.expm1(bent(raw[0], 2)), bent(raw[1], 8), math.exp(bent(raw[2], 2))
    x, _ = run(parse("crat"), X, raw, "inverse")
    for z, found in zip(X[::100], x[::100].tolist(), strict=True):
        w = (z - g) / s
        roots = np.roots([1, -w, 1 + bump, -w])
        real = roots[np.abs(roots.imag).argmin()].real
        assert found == pytest.approx(g + s * real, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_inverse_of_a_mixture_is_that_of_a_root_finder(seed: int) -> None:
    raw = raws(parse("mol-4"), seed)
    x, _ = run(parse("mol-4"), X, raw, "inverse")
    for z, found in zip(X[::100], x[::100].tolist(), strict=True):
        own = brentq(lambda at, z=z: mol(np.array([at]), raw)[0] - z, -15, 15, xtol=1e-12)
        assert found == pytest.approx(own, abs=1e-8)


@pytest.mark.parametrize("name", ["crat", "mol-4", "cubic-8"])
def test_searched_inverses_are_exact_in_float32(name: str) -> None:
    transform = parse(name)
    generator = torch.Generator().manual_seed(0)
    x = 8 * torch.rand(100_000, generator=generator) - 4
    params = torch.randn(100_000, transform.num_params, generator=generator)
    z, log_slope = transform.forward(x.double(), params.double())
    error = (transform.inverse(z.float(), params)[0] - x).abs()
    # z itself is rounded, and a flat place magnifies that.
    assert (error < 2e-6 * (1 + 4 * torch.exp(-log_slope))).all()


def test_the_components_of_a_mixture_part_from_the_start() -> None:
    params = torch.zeros(100, 12, requires_grad=True)
    z, log_slope = parse("mol-4").forward(torch.linspace(-1, 2, 100), params)
    (0.5 * z.square() - log_slope).sum().backward()
    places = params.grad.sum(0)[4:8]
    assert len({round(value, 4) for value in places.tolist()}) == 4


def test_a_learned_box_is_the_spline_between_two_affine_maps() -> None:
    """The box is placed and sized in x by the first map and in z by the last; tails are affine."""
    transform = parse("affine+rqs-8+affine")
    raw = torch.from_numpy(raws(transform, 0))
    (a, b), spline, (c, d) = raw[:2], raw[2:-2], raw[-2:]
    low, high = (b + sign * B * a.exp() for sign in (-1, 1))
    x = torch.cat([torch.linspace(low, high, 50), torch.stack([low - 7, high + 7])])
    z, log_slope = transform.forward(x, raw.expand(52, -1))
    inner, _ = parse("rqs-8").forward((x - b) * (-a).exp(), spline.expand(52, -1))
    torch.testing.assert_close(z, (inner - d) * (-c).exp())
    torch.testing.assert_close(log_slope[-2:], (-a - c).expand(2))
    torch.testing.assert_close(z[[0, 49]], (torch.tensor([-B, B]).double() - d) * (-c).exp())


@pytest.mark.parametrize("name", ["zuko:affine", "zuko:rqs-8", "zuko:sos-3", "zuko:bernstein-8"])
def test_transforms_of_zuko_are_reached_by_name(name: str) -> None:
    pytest.importorskip("zuko")
    transform = parse(name)
    assert transform.name == name
    raw = torch.from_numpy(raws(transform, 0)).expand(len(X), -1)
    x = torch.from_numpy(X).requires_grad_()
    z, log_slope = transform.forward(x, raw)
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=1e-5, atol=1e-5)
    back, log_slope_back = transform.inverse(z.detach(), raw)
    torch.testing.assert_close(back, x.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_slope_back, -log_slope.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["zuko:", "zuko:rqs", "zuko:rqs-0", "zuko:affine-3", "zuko:nice"])
def test_an_unknown_transform_of_zuko_is_told(name: str) -> None:
    with pytest.raises(UsageError, match="valid are zuko:affine, zuko:rqs-K"):
        parse(name)


def test_without_zuko_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko.transforms", None)
    with pytest.raises(UsageError, match="zuko:rqs-8 needs zuko: pip install zuko"):
        parse("zuko:rqs-8")


@pytest.mark.parametrize("name", ["mol-0", "mol-2000", "mol-4-3", "sinh-2", "quadratic", "lrs-0"])
def test_bad_numbers_are_told(name: str) -> None:
    with pytest.raises(UsageError):
        parse(name)


@pytest.mark.parametrize("name", ["cubic-8", "crat", "mol-4"])
def test_a_search_stops_early_and_its_steps_are_counted(name: str) -> None:
    transform = parse(name)
    torch.manual_seed(0)
    params, z = torch.randn(500, 4, transform.num_params), torch.randn(500, 4)
    with counting() as steps:
        x, _ = transform.inverse(z, params)
    assert steps
    assert 3 < max(steps) < ITERATIONS
    assert torch.allclose(transform.forward(x, params)[0], z, atol=1e-4)
    with counting() as none:
        parse("rqs-8").inverse(z, torch.randn(500, 4, parse("rqs-8").num_params))
    assert none == []
