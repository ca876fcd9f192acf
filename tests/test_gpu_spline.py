"""The splines for GPUs, run by Triton's interpreter, against torch's own operations."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowbench.kernels import rqs
from flowbench.transforms import parse
from flowbench.transforms.spline import MIN_SIDE, Spline

NAMES = ("rqs-1", "rqs-2", "rqs-5-3", "rqs-8", "rqs-33", "srqs-1", "srqs-2", "srqs-8")
LAYOUTS = ("planes", "rows", "bfloat16")
N = 150


CHILD = """
import sys
import torch
from flowbench.kernels import rqs_gpu
cases = torch.load(sys.argv[1])
found = {}
for key, (x, raw, about, g_z, g_l) in cases.items():
    z, log_slope = rqs_gpu.forward(x, raw, about, False)
    back = rqs_gpu.forward(z, raw, about, True)
    found[key] = [z, log_slope, *back, *rqs_gpu.backward(x, raw, about, g_z, g_l)]
torch.save(found, sys.argv[2])
"""
Case = tuple[torch.Tensor, torch.Tensor, list[float], torch.Tensor, torch.Tensor]
Found = Callable[[str, str], tuple[Spline, Case, list[torch.Tensor]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Values, inverses and gradients of every case by kernels that Triton interprets.

    In a process of its own: Triton decides when it is imported whether it interprets.
    """
    pytest.importorskip("triton")
    torch.manual_seed(0)
    cases = {(name, layout): case(name, layout) for name in NAMES for layout in LAYOUTS}
    cases["rqs-8", "empty"] = tuple(  # type: ignore[assignment]
        part if isinstance(part, list) else part[..., :0] for part in cases["rqs-8", "planes"]
    )
    given, results = (tmp_path_factory.mktemp("gpu") / name for name in ("given", "results"))
    torch.save(cases, given)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", CHILD, given, results]
    subprocess.run(command, env=environment, check=True, cwd=Path(__file__).parents[1])
    outputs = torch.load(results)

    def find(name: str, layout: str) -> tuple[Spline, Case, list[torch.Tensor]]:
        spline = parse(name)
        assert isinstance(spline, Spline)
        return spline, cases[name, layout], outputs[name, layout]

    return find


def case(name: str, layout: str) -> Case:
    """Inputs, some at and beyond ±B; raw parameters ``[P, N]`` as they may lie; gradients."""
    spline = parse(name)
    assert isinstance(spline, Spline)
    x = 2.5 * torch.randn(N)
    x[:4] = torch.tensor([spline.bound, -spline.bound, 2 * spline.bound, -torch.inf])
    raw = 0.5 * torch.randn(N, spline.num_params)
    raw = raw.bfloat16() if layout == "bfloat16" else raw
    planes = raw.T.contiguous() if layout == "planes" else raw.T
    about = [spline.bins, spline.bound, MIN_SIDE, *spline.constants]
    return x, planes, about, torch.randn(N), torch.randn(N)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_torchs_operations(name: str, layout: str, found: Found) -> None:
    spline, (x, raw, *_), (z, log_slope, back, log_back, *_) = found(name, layout)
    right = spline.plain_forward(x, raw.T.float())
    torch.testing.assert_close(z, right[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_slope, right[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(log_back, -log_slope, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_torchs_operations(name: str, layout: str, found: Found) -> None:
    spline, (x, raw, _, g_z, g_l), (*_, g_x, g_raw) = found(name, layout)
    x64, raw64 = x.double().requires_grad_(), raw.T.double().requires_grad_()
    outputs = spline.plain_forward(x64, raw64)
    right = torch.autograd.grad(outputs, [x64, raw64], [g_z.double(), g_l.double()])
    assert (g_raw.dtype, g_raw.stride()) == (raw.dtype, raw.stride())
    torch.testing.assert_close(g_x.double(), right[0], rtol=2e-3, atol=2e-3)
    close = 1e-2 if layout == "bfloat16" else 2e-3
    torch.testing.assert_close(g_raw.T.double(), right[1], rtol=close, atol=close)


def test_no_features_are_no_work(found: Found) -> None:
    spline, _, (*values, g_raw) = found("rqs-8", "empty")
    assert {value.shape for value in values} == {(0,)}
    assert g_raw.shape == (spline.num_params, 0)


POINTERS = {"x_at", "raw", "z_at", "l_at", "gz_at", "gl_at", "gx_at", "g_raw"}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["rqs-8", "srqs-32"])
def test_the_kernels_compile_for_gpus_that_are_not_here(name: str, capability: int) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from flowbench.kernels import rqs_gpu

    bins = int(name.partition("-")[2])
    values = {"K": bins, "STABLE": name[0] == "s", "INVERSE": False, "ROWS": bins, "BLOCK": 64}
    for function in (rqs_gpu._forward, rqs_gpu._backward):
        names = function.arg_names
        types = dict.fromkeys(names, "fp32") | dict.fromkeys(("n", "stride", "stride_n"), "i32")
        types |= {key: "*bf16" if "raw" in key else "*fp32" for key in names if key in POINTERS}
        types |= {key: "constexpr" for key in names if key in values}
        constants = {(names.index(key),): values[key] for key in names if key in values}
        source = ASTSource(fn=function, signature=types, constexprs=constants)
        compiled = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options=rqs_gpu.FUSED
        )
        assert "cubin" in compiled.asm


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_a_spline_on_a_gpu_is_that_on_a_cpu(name: str, dtype: torch.dtype) -> None:
    spline = parse(name)
    x, raw, *_ = case(name, "planes")
    assert "cuda" in rqs.available()
    given = torch.randn(N)

    def ends(device: str) -> list[torch.Tensor]:
        at = x.to(device).requires_grad_()
        params = raw.T.to(device, dtype).requires_grad_()
        z, log_slope = spline.forward(at, params)
        of = torch.autograd.grad(z.sum() + (log_slope * given.to(device)).sum(), [at, params])
        back = spline.inverse(z.detach(), params.detach())
        return [each.detach().cpu().float() for each in (z, log_slope, *of, back[0])]

    for here, there in zip(ends("cuda"), ends("cpu"), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-2, atol=1e-2)
