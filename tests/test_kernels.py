"""The kernels in C against torch's own operations, which are their oracle."""

import copy
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowbench.errors import UsageError
from flowbench.flow import Flow
from flowbench.kernels import build
from flowbench.kernels import layer as fused
from flowbench.kernels import rqs as kernel
from flowbench.kernels.build import only
from flowbench.transforms.rqs import RationalQuadraticSpline
from flowbench.transforms.spline import Spline
from flowbench.transforms.srqs import StableSpline
from flowbench.vit import CausalTransformer, Layer

pytestmark = pytest.mark.skipif(
    "cpu" not in kernel.available(), reason="no C compiler on this machine"
)


def case(bins: int, scale: float, shape: tuple[int, ...] = (3, 37, 5)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(bins)
    x = 3 * torch.randn(shape, generator=generator)
    return x, scale * torch.randn(*shape, 3 * bins - 1, generator=generator)


every_spline = pytest.mark.parametrize(
    "kind", [RationalQuadraticSpline, StableSpline], ids=lambda kind: kind.family
)


def gradients(spline: Spline, x: Tensor, params: Tensor, plain: bool) -> tuple[Tensor, ...]:
    x, params = x.clone().requires_grad_(), params.clone().requires_grad_()  # keeps its layout
    z, log_slope = (spline.plain_forward if plain else spline.forward)(x, params)
    weight = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view(x.shape)
    (weight * z - weight.flip(0) * log_slope).sum().backward()
    assert x.grad is not None
    assert params.grad is not None
    return z.detach(), log_slope.detach(), x.grad, params.grad


@every_spline
@pytest.mark.parametrize("layout", ["parameters innermost", "features innermost"])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("bins", [1, 2, 3, 8, 32, 128])
def test_kernel_and_plain_operations_agree(
    kind: type[Spline], bins: int, scale: float, layout: str
) -> None:
    spline = kind(bins)
    x, params = case(bins, scale)
    if layout == "features innermost":
        params = params.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    exact = gradients(spline, x.double(), params.double(), plain=True)
    plain = gradients(spline, x, params, plain=True)
    fused = gradients(spline, x, params, plain=False)
    for exactly, slow, fast in zip(exact, plain, fused, strict=True):
        # Float32 itself is off where a feature lies next to a knot: by as much as the plain path.
        allowed = 1e-5 * (1 + exactly.abs().max()) + 2 * (slow - exactly).abs().max()
        assert (fast - exactly).abs().max() <= allowed
        typical = (slow - exactly).abs().median()
        assert (fast - exactly).abs().median() <= 2 * typical + 1e-7 * (1 + exactly.abs().median())


@every_spline
@pytest.mark.parametrize("bins", [1, 2, 8, 32])
def test_inverse_kernel_undoes_the_forward_kernel(kind: type[Spline], bins: int) -> None:
    spline = kind(bins)
    # Steeper published splines hold no float32 round trip: see their docstring.
    x, params = case(bins, 1.0 if kind is StableSpline else 0.3)
    z, log_slope = spline.forward(x, params)
    back, negative = spline.inverse(z, params)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(negative, -log_slope, atol=2e-3, rtol=0)


@every_spline
@pytest.mark.parametrize("layout", ["parameters innermost", "features innermost"])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 20_001])
def test_the_number_of_features_and_threads_changes_nothing(
    kind: type[Spline], layout: str, count: int
) -> None:
    spline = kind(4)
    x, params = case(4, 1.0, (count,))
    if layout == "features innermost":
        params = params.T.contiguous().T
    first = gradients(spline, x, params, plain=False)
    with threads(3):
        again = gradients(spline, x, params, plain=False)
    one_by_one = spline.forward(x[-1:], params[-1:])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0][-1:], one_by_one[0])


@every_spline
def test_gradients_agree_with_finite_differences(kind: type[Spline]) -> None:
    spline = kind(3)
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


def test_threads_and_the_batch_change_a_step_by_rounding_only() -> None:
    net = network()
    x = torch.randn(70, net.tokens, 5)
    first = steps(net, x, native=True)
    # Tiles of another height: some processors' compilers fuse multiplication and addition there.
    rounding = {"atol": 1e-5, "rtol": 1e-5}
    with threads(3):
        torch.testing.assert_close(steps(net, x, native=True), first, **rounding)
    torch.testing.assert_close(steps(net, x[:4], native=True), first[:4], atol=1e-6, rtol=1e-5)


def test_sizes_that_do_not_fill_vectors_are_left_to_torch() -> None:
    assert network(width=40, heads=1).cache(2).packed is None
    assert network(width=64, heads=8).cache(2).packed is None
    assert network().double().cache(2).packed is None


LAYER = {"width": 64, "heads": 1, "expansion": 4, "activation": "gelu"}


def layer(**changes: Any) -> Layer:
    """A layer whose norms and biases are no ones and zeros."""
    torch.manual_seed(0)
    made = Layer(**{**LAYER, **changes})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def layer_gradients(
    layer: Layer, x: Tensor, half: bool = False, native: bool = True
) -> list[Tensor]:
    """What comes out of a layer, and the gradients of a weighted sum of it."""
    x = x.detach().requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert layer.has_kernel(x) == (x.dtype == torch.float32)
        out = layer(x) if native else layer.plain(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], weight)]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 16), (5, 37), (16, 49), (2, 130)], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "gelu-tanh"},
        {"width": 48, "heads": 3, "expansion": 1},
        {"width": 128, "heads": 2},
    ],
    ids=["plain", "tanh", "heads-of-16", "wide"],
)
def test_a_layer_in_c_is_a_layer_in_torch(
    changes: dict[str, Any], shape: tuple[int, int], half: bool
) -> None:
    own = layer(**changes)
    x = 2 * torch.randn(*shape, own.attention.proj.in_features) + 1
    exact = layer_gradients(copy.deepcopy(own).double(), x.double())
    fast = layer_gradients(own, x, half)
    slow = layer_gradients(own, x, half, native=False)
    for right, here, there in zip(exact, fast, slow, strict=True):
        assert here.dtype == torch.float32
        near = (2e-2 if half else 1e-5) * right.abs().max()
        assert (here - right).abs().max() <= near + 3 * (there - right).abs().max()


def test_a_token_is_not_changed_by_a_later_one() -> None:
    own, x = layer(), torch.randn(4, 20, 64)
    later = x.clone()
    later[:, 13:] += 1
    assert torch.equal(own(x)[:, :13], own(later)[:, :13])


def test_a_layer_needs_no_gradients() -> None:
    own, x = layer(), torch.randn(4, 20, 64)
    expected = own(x)
    with torch.no_grad():
        assert torch.equal(own(x), expected)
    with torch.inference_mode():
        assert torch.equal(own(x), expected)


def test_a_frozen_layer_passes_gradients_on() -> None:
    own, x = layer().requires_grad_(False), torch.randn(4, 20, 64, requires_grad=True)
    own(x).sum().backward()
    (expected,) = torch.autograd.grad(own.plain(x).sum(), x)
    torch.testing.assert_close(x.grad, expected)


def test_tokens_may_lie_in_any_order_in_memory() -> None:
    own, x = layer(), torch.randn(20, 4, 64).transpose(0, 1)
    for here, there in zip(
        layer_gradients(own, x), layer_gradients(own, x.contiguous()), strict=True
    ):
        assert torch.equal(here, there)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
def test_a_token_that_is_no_number_is_seen_behind_a_layer(half: bool) -> None:
    own, x = layer(), torch.randn(4, 20, 64)
    x[1, 7, 3] = float("nan")
    out, g_x, *_ = layer_gradients(own, x, half)
    lost = out.isnan().any(-1)
    assert lost[1, 7:].all()
    assert not lost[[0, 2, 3]].any()
    assert g_x[1].isnan().any()
    assert not g_x[[0, 2, 3]].isnan().any()


def test_a_number_of_threads_changes_a_layer_by_rounding_alone() -> None:
    own, x = layer(), torch.randn(16, 49, 64)
    first = layer_gradients(own, x)
    with threads(3):
        again, once_more = layer_gradients(own, x), layer_gradients(own, x)
    for here, there, same in zip(first, again, once_more, strict=True):
        torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-5)
        assert torch.equal(there, same)


def test_layers_that_the_kernel_cannot_run_are_left_to_torch() -> None:
    x = torch.randn(2, 5, 64)
    assert layer().has_kernel(x)
    assert not layer(heads=8).has_kernel(x)
    assert not layer().has_kernel(x.double())
    assert not layer().has_kernel(x[:0])
    assert not layer().has_kernel(x.to("meta"))
    with torch.autocast("cpu", torch.float16):
        assert not layer().has_kernel(x)


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


# Which kernels run


FLOW: dict[str, Any] = {"shape": (1, 8, 8), "blocks": 1, "layers": 1, "width": 64}


def test_a_flow_names_the_kernels_of_its_training_step() -> None:
    assert Flow(**FLOW, transform="affine").kernels() == "layer"
    assert Flow(**FLOW, transform="affine+rqs-8").kernels() == "layer rqs"
    assert Flow(**FLOW, transform="rqs-8").kernels(compiled=True) == "rqs"
    assert Flow(**FLOW, transform="rqs-8").double().kernels() == "none"
    assert Flow(**FLOW, transform="rqs-8", heads=8).kernels() == "rqs"
    assert Flow(**FLOW, transform="rqs-200").kernels() == "layer"


@pytest.mark.parametrize("names", [(), ("layer",), ("rqs",), ("layer", "rqs"), ("step",)])
def test_kernels_can_be_switched_off_one_by_one(names: tuple[str, ...]) -> None:
    with only(*names):
        flow = Flow(**FLOW, transform="rqs-8")
        used = [name for name in names if name != "step"]
        assert flow.kernels() == (" ".join(used) or "none")
        packed = flow.blocks[0].network.cache(1).packed
        assert (packed is not None) == ("step" in names)
    assert Flow(**FLOW, transform="rqs-8").kernels() == "layer rqs"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment that is read anew, as at the start of a process."""
    build._from_environment.cache_clear()
    yield monkeypatch
    build._from_environment.cache_clear()


@pytest.mark.parametrize(
    ("value", "kernels"),
    [("0", "none"), ("rqs", "rqs"), ("rqs, layer", "layer rqs"), ("step", "none")],
)
def test_the_environment_selects_kernels(
    value: str, kernels: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("FLOWBENCH_NATIVE", value)
    assert Flow((1, 8, 8), transform="rqs-8").kernels() == kernels


def test_an_unknown_kernel_is_an_error_that_lists_the_valid(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("FLOWBENCH_NATIVE", "layer,spline")
    with pytest.raises(UsageError, match="FLOWBENCH_NATIVE = 'layer,spline' is not valid: 0 for"):
        build.selected()


def test_the_private_operator_of_torch_is_where_it_was() -> None:
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        pytest.skip("oneDNN is used on x86 only")
    message = "this torch has no torch.ops.mkldnn._linear_pointwise: layers train more slowly"
    assert fused.ONEDNN, message
    x, weight, bias = torch.randn(3, 5, 16), torch.randn(8, 16), torch.randn(8)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(fused._product(x, weight, bias), expected)


def test_the_step_kernel_uses_the_eps_of_the_network() -> None:
    outputs = []
    for eps in (1e-5, 1.0):
        torch.manual_seed(0)
        network = CausalTransformer(tokens=4, features=2, outputs=3, width=32, layers=2)
        torch.nn.init.normal_(network.proj_out.weight)
        for module in network.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = eps
        x, embedding = torch.ones(2, 1, 2), network.pos_embed.expand(2, -1, -1)
        with torch.no_grad():
            kernel_out = network.step(x, embedding, network.cache(2), 0)
            with only():
                plain_out = network.step(x, embedding, network.cache(2), 0)
        torch.testing.assert_close(kernel_out, plain_out, atol=1e-5, rtol=1e-5)
        outputs.append(kernel_out)
    assert not torch.allclose(*outputs)
