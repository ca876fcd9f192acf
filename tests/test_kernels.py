"""The kernels in C against torch's own operations, which are their oracle."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowbench.kernels import rqs as kernel
from flowbench.kernels.linear import AVAILABLE, Linear
from flowbench.transforms.rqs import RationalQuadraticSpline
from flowbench.vit import CausalTransformer

pytestmark = pytest.mark.skipif(not kernel.available(), reason="no C compiler on this machine")


def case(bins: int, scale: float, shape: tuple[int, ...] = (3, 37, 5)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(bins)
    x = 3 * torch.randn(shape, generator=generator)
    return x, scale * torch.randn(*shape, 3 * bins - 1, generator=generator)


def gradients(
    spline: RationalQuadraticSpline, x: Tensor, params: Tensor, plain: bool
) -> tuple[Tensor, ...]:
    x, params = x.clone().requires_grad_(), params.clone().requires_grad_()
    z, log_slope = (spline.plain_forward if plain else spline.forward)(x, params)
    weight = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view(x.shape)
    (weight * z - weight.flip(0) * log_slope).sum().backward()
    assert x.grad is not None
    assert params.grad is not None
    return z.detach(), log_slope.detach(), x.grad, params.grad


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("bins", [1, 2, 3, 8, 32, 128])
def test_kernel_and_plain_operations_agree(bins: int, scale: float) -> None:
    spline = RationalQuadraticSpline(bins)
    x, params = case(bins, scale)
    exact = gradients(spline, x.double(), params.double(), plain=True)
    plain = gradients(spline, x, params, plain=True)
    fused = gradients(spline, x, params, plain=False)
    for exactly, slow, fast in zip(exact, plain, fused, strict=True):
        # Float32 itself is off where a feature lies next to a knot: by as much as the plain path.
        allowed = 1e-5 * (1 + exactly.abs().max()) + 2 * (slow - exactly).abs().max()
        assert (fast - exactly).abs().max() <= allowed
        typical = (slow - exactly).abs().median()
        assert (fast - exactly).abs().median() <= 2 * typical + 1e-7 * (1 + exactly.abs().median())


@pytest.mark.parametrize("bins", [1, 2, 8, 32])
def test_inverse_kernel_undoes_the_forward_kernel(bins: int) -> None:
    spline = RationalQuadraticSpline(bins)
    x, params = case(bins, 1.0)
    z, log_slope = spline.forward(x, params)
    back, negative = spline.inverse(z, params)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(negative, -log_slope, atol=2e-3, rtol=0)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 20_001])
def test_the_number_of_features_and_threads_changes_nothing(count: int) -> None:
    spline = RationalQuadraticSpline(4)
    x, params = case(4, 1.0, (count,))
    first = gradients(spline, x, params, plain=False)
    with threads(3):
        again = gradients(spline, x, params, plain=False)
    one_by_one = spline.forward(x[-1:], params[-1:])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0][-1:], one_by_one[0])


def test_gradients_agree_with_finite_differences() -> None:
    spline = RationalQuadraticSpline(3)
    x, params = case(3, 0.5, (4,))
    numbers = torch.cat([x[:, None], params], 1).double()

    def values(numbers: Tensor) -> Tensor:
        z, log_slope = spline.plain_forward(numbers[:, 0], numbers[:, 1:])
        return (z + 0.5 * log_slope).sum()

    steps = 1e-6 * torch.eye(numbers.numel(), dtype=torch.float64).view(-1, *numbers.shape)
    slopes = torch.stack([(values(numbers + s) - values(numbers - s)) / 2e-6 for s in steps])
    x, params = x.requires_grad_(), params.requires_grad_()
    z, log_slope = spline.forward(x, params)
    (z + 0.5 * log_slope).sum().backward()
    assert x.grad is not None
    assert params.grad is not None
    own = torch.cat([x.grad[:, None], params.grad], 1)
    torch.testing.assert_close(own.double(), slopes.view_as(own), atol=1e-4, rtol=1e-4)


def test_gradients_of_the_inverse_come_from_the_plain_operations() -> None:
    spline = RationalQuadraticSpline(4)
    z, params = case(4, 1.0)
    x, _ = spline.inverse(z, params.requires_grad_())
    x.sum().backward()
    assert params.grad is not None
    assert params.grad.abs().sum() > 0


NETWORK = {"tokens": 9, "features": 5, "width": 64, "layers": 3, "classes": 4}


def network(**changes: Any) -> CausalTransformer:
    """A network whose weights are all awake, and whose head is."""
    torch.manual_seed(0)
    net = CausalTransformer(**{"outputs": 37, "heads": 2, **NETWORK, **changes})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


@torch.no_grad()
def steps(net: CausalTransformer, x: Tensor, native: bool) -> Tensor:
    """All tokens one after the other; x ``[B, T, D]``."""
    y = torch.arange(len(x)) % 4
    embedding = net.pos_embed + net.embed_class(y).to(x)
    cache = net.cache(len(x))
    assert (cache.packed is not None) == (x.dtype == torch.float32)
    cache = cache if native else cache._replace(packed=None)
    parts = [net.step(x[:, t : t + 1], embedding, cache, t) for t in range(x.shape[1])]
    assert all(layer.isfinite().all() for layer in cache.layers)
    return torch.cat(parts, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "gelu-tanh"},
        {"heads": 1},
        {"width": 128, "heads": 8, "features": 48, "outputs": 23 * 48},
        {"expansion": 1, "outputs": 1, "layers": 1},
    ],
    ids=["plain", "tanh", "head-of-64", "wide", "narrow"],
)
@pytest.mark.parametrize("batch", [1, 11, 61, 130])
def test_a_step_in_c_is_a_step_in_torch(batch: int, changes: dict[str, Any]) -> None:
    net = network(**changes)
    x = torch.randn(batch, net.tokens, net.proj_in.in_features)
    slow, fast = steps(net, x, native=False), steps(net, x, native=True)
    exact = steps(copy.deepcopy(net).double(), x.double(), native=False)
    largest = exact.abs().max()
    assert (fast - exact).abs().max() <= 2e-6 * largest + 3 * (slow - exact).abs().max()


def test_threads_and_the_batch_change_no_step() -> None:
    net = network()
    x = torch.randn(70, net.tokens, 5)
    first = steps(net, x, native=True)
    with threads(3):
        assert torch.equal(steps(net, x, native=True), first)
    torch.testing.assert_close(steps(net, x[:4], native=True), first[:4], atol=1e-6, rtol=1e-5)


def test_sizes_that_do_not_fill_vectors_are_left_to_torch() -> None:
    assert network(width=40, heads=1).cache(2).packed is None
    assert network(width=64, heads=8).cache(2).packed is None
    assert network().double().cache(2).packed is None


@pytest.mark.skipif(not AVAILABLE, reason="torch has no oneDNN here")
@pytest.mark.parametrize("shape", [(7, 5, 12), (300, 12), (1, 12)], ids=str)
def test_a_linear_map_and_its_gradients_are_those_of_torch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    own, theirs = Linear(12, 20), nn.Linear(12, 20).double()
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(shape, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    weight = torch.randn(*shape[:-1], 20)
    out, expected = own(x), theirs(exact)
    got = torch.autograd.grad(out, (x, own.weight, own.bias), weight)
    wanted = torch.autograd.grad(expected, (exact, *theirs.parameters()), weight.double())
    for value, right in zip((out, *got), (expected, *wanted), strict=True):
        torch.testing.assert_close(value.double(), right, atol=1e-5, rtol=1e-5)


def test_a_linear_map_obeys_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(12, 20)(torch.randn(3, 12)).dtype == torch.bfloat16
    assert Linear(12, 20).double()(torch.randn(3, 12).double()).dtype == torch.float64


def test_a_machine_without_compiler_runs_plain_operations(tmp_path: Path) -> None:
    code = (
        "import torch; from flowbench.flow import Flow; from flowbench.transforms import parse;"
        "flow = Flow((1, 8, 8), 2, transform='rqs-8', blocks=1, layers=1, width=64);"
        "print(flow.blocks[0].network.cache(1).packed, flow.inverse(torch.ones(1, 4, 16)).mean(),"
        "parse('rqs-8').forward(torch.ones(2), torch.zeros(2, 23))[0])"
    )
    environment = {"CC": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None tensor(1.) tensor([1., 1.])"


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)
