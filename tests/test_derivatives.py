"""Derivatives beyond a backward pass: second ones, forward mode, ``torch.func``, tracing.

A hand-written kernel sees memory only, so each of these must either go round it or through its
plain path. The oracle is autograd in float64 without kernels.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from flowbench.flow import Flow
from flowbench.kernels.build import KERNELS, call, only
from flowbench.kernels.ordinary import ordinary
from flowbench.transforms import parse

NAMES = ["affine", "softaffine", "additive", "rqs-2", "rqs-4", "srqs-4", "affine+rqs-3"]
WAYS = ["forward", "inverse"]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


def seeded(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def given(name: str, dtype: torch.dtype, n: int = 6) -> tuple[Tensor, Tensor]:
    """Inputs inside and outside the box, away from the knots, and parameters."""
    x = torch.linspace(-4.7, 4.6, n, dtype=dtype)
    params = seeded(n, parse(name).num_params).to(dtype)
    return x, params


def total(name: str, way: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A scalar function of inputs and parameters in which every output counts differently."""
    transform = parse(name)

    def function(x: Tensor, params: Tensor) -> Tensor:
        z, log_slope = getattr(transform, way)(x, params)
        return (z * z).sum() + (2 * log_slope).sin().sum()

    return function


def oracle(name: str, way: str) -> tuple[Tensor, ...]:
    """Gradients and the product of the Hessian with ones, in float64 without kernels."""
    with only():
        return second(name, way, torch.float64)


def second(name: str, way: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    inputs = tuple(each.requires_grad_() for each in given(name, dtype))
    first = torch.autograd.grad(total(name, way)(*inputs), inputs, create_graph=True)
    return *first, *torch.autograd.grad(sum(each.sum() for each in first), inputs)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name: str, way: str) -> None:
    inputs = tuple(each.requires_grad_() for each in given(name, torch.float64))
    function = total(name, way)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_with_kernels(name: str, way: str) -> None:
    for found, right in zip(second(name, way, torch.float32), oracle(name, way), strict=True):
        torch.testing.assert_close(
            found.double(), right, rtol=1e-3, atol=1e-3 * right.abs().max().item()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernels", [KERNELS, ()])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_slope_where_a_clamp_begins(
    name: str, way: str, kernels: tuple[str, ...], dtype: torch.dtype
) -> None:
    # ±4 is the box of a spline, 0 (with raw zeros) one of its knots, ±8 the clip of affine's scale.
    for raw in (0.0, 8.0, -8.0):
        with only(*kernels):
            transform = parse(name)
            x = torch.tensor([-4.0, 0.0, 4.0, 8.0], dtype=dtype, requires_grad=True)
            params = torch.full((len(x), transform.num_params), raw, dtype=dtype)
            z, log_slope = getattr(transform, way)(x, params)
            (slope,) = torch.autograd.grad(z.sum(), x)
        torch.testing.assert_close(slope, log_slope.exp(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_torch_func(name: str, way: str, dtype: torch.dtype) -> None:
    x, params = given(name, dtype)
    function = total(name, way)
    of_x, of_params, hessian_x, hessian_params = oracle(name, way)

    def close(found: Tensor, right: Tensor) -> None:
        tolerance = 1e-3 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(
            found.double(), right, rtol=tolerance, atol=tolerance * right.abs().max().item()
        )

    one_by_one = torch.func.vmap(torch.func.grad(function, (0, 1)))(x[:, None], params[:, None])
    close(one_by_one[0][:, 0], of_x)
    close(one_by_one[1][:, 0], of_params)
    close(torch.func.jacrev(function)(x, params), of_x)
    close(torch.func.jacfwd(function, 1)(x, params), of_params)
    ones = torch.ones_like(x), torch.ones_like(params)
    _, along = torch.func.jvp(function, (x, params), ones)
    close(along, of_x.sum() + of_params.sum())
    _, (twice_x, twice_params) = torch.func.jvp(
        torch.func.grad(function, (0, 1)), (x, params), ones
    )
    close(twice_x, hessian_x)
    close(twice_params, hessian_params)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_forward_mode(name: str, way: str) -> None:
    x, params = given(name, torch.float32)
    with forward_ad.dual_level():
        out = total(name, way)(forward_ad.make_dual(x, torch.ones_like(x)), params)
        along = forward_ad.unpack_dual(out).tangent
    assert along is not None
    torch.testing.assert_close(along.double(), oracle(name, way)[0].sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_traced(name: str, way: str) -> None:
    x, params = given(name, torch.float32)
    function = total(name, way)
    right = function(x + 0.1, params)
    traced = make_fx(function)(x, params)
    torch.testing.assert_close(traced(x + 0.1, params), right, rtol=1e-4, atol=1e-4)
    scripted = torch.jit.trace(function, (x, params), check_trace=False)
    torch.testing.assert_close(scripted(x + 0.1, params), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_exported(name: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, params: Tensor) -> Tensor:
            return function(x, params)

    function = total(name, "forward")
    x, params = given(name, torch.float32)
    program = torch.export.export(Module(), (x, params))
    assert "flowbench" not in str(program.graph), "the program would need flowbench to run"
    right = function(x, params)
    torch.testing.assert_close(program.module()(x, params), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_compiled_in_one_graph(name: str, way: str) -> None:
    torch._dynamo.reset()
    function = total(name, way)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = tuple(each.requires_grad_() for each in given(name, torch.float32))
    found = torch.autograd.grad(compiled(*inputs), inputs)
    right = torch.autograd.grad(function(*inputs), inputs)
    for ours, others in zip(found, right, strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-3, atol=1e-3)


def flow(name: str = "rqs-4") -> Flow:
    """A small flow that is not the identity, with a width that the layer's kernel takes."""
    torch.manual_seed(0)
    made = Flow((1, 8, 8), classes=3, transform=name, blocks=2, layers=1, width=32, heads=2)
    for i, each in enumerate(made.parameters()):
        each.data += 0.05 * seeded(*each.shape, seed=i)
    return made


def energy(z: Tensor, log_det: Tensor) -> Tensor:
    return z.square().sum() / 2 - log_det.sum()


def losses(kernels: tuple[str, ...], dtype: torch.dtype) -> list[Tensor]:
    """Loss, a gradient and a product with the Hessian of a flow."""
    with only(*kernels):
        made = flow().to(dtype)
        x, y = seeded(4, 1, 8, 8).to(dtype), torch.tensor([0, 1, 2, 0])
        weights = [each for each in made.parameters() if each.requires_grad]
        loss = energy(*made(x, y)) / len(x)
        first = torch.autograd.grad(loss, weights, create_graph=True)
        along = sum((each * each.detach()).sum() for each in first)
        return [loss, *first, *torch.autograd.grad(along, weights)]


@pytest.mark.parametrize("kernels", [KERNELS, ("layer",), ("rqs",), ()])
def test_second_derivatives_of_a_flow(kernels: tuple[str, ...]) -> None:
    for found, right in zip(losses(kernels, torch.float32), losses((), torch.float64), strict=True):
        scale = right.abs().max().item()
        torch.testing.assert_close(found.double(), right, rtol=2e-3, atol=2e-3 * scale)


def test_a_flow_in_torch_func() -> None:
    made, x, y = flow(), seeded(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    weights = dict(made.named_parameters())

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        own = torch.func.functional_call(made, weights, (image[None], label[None]))
        return energy(*own)

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, x, y)
    for i in range(len(x)):
        value = energy(*made(x[i : i + 1], y[i : i + 1]))
        alone = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, alone, strict=True):
            right = torch.zeros_like(weights[name]) if gradient is None else gradient
            scale = right.abs().max().item()
            torch.testing.assert_close(each[name][i], right, rtol=1e-3, atol=1e-3 * scale + 1e-5)


def test_kernels_read_ordinary_tensors_only() -> None:
    x = torch.randn(4, dtype=torch.complex64).conj().imag
    assert x.is_neg(), "the memory holds the negatives"
    assert not ordinary(x)
    with pytest.raises(TypeError, match="cannot read"):
        call("rqs", "rqs_forward", x)
    params = seeded(4, 11)
    with only():
        right, _ = parse("rqs-4").forward(x.resolve_neg(), params)
    torch.testing.assert_close(parse("rqs-4").forward(x, params)[0], right)
