"""Guidance and the order of solving: against full passes without a cache, and in closed form."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from plain_flow import wake
from test_transforms import NAMES
from torch import Tensor

from flowbench.decoding import Decoding, Guidance, solve
from flowbench.errors import UsageError
from flowbench.flow import Flow, patchify

f64 = torch.float64
TOKENS = 16
LABELS = torch.tensor([0, 2, -1])
SEGMENTS = {"one": 1, "seven": 7, "whole": None}
TOLERANCE = 1e-9

every_transform = pytest.mark.parametrize("transform", NAMES)
every_segment = pytest.mark.parametrize("segment", SEGMENTS.values(), ids=SEGMENTS.keys())


def flow_of(transform: str, scale: float = 0.2, **more: Any) -> Flow:
    arguments = {"classes": 3, "blocks": 2, "layers": 1, "width": 16, "heads": 2, "patch": 2}
    return wake(Flow((1, 8, 8), transform=transform, **(arguments | more)), scale).double()


def noise() -> Tensor:
    return torch.randn(3, TOKENS, 4, dtype=f64)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


# Segments


@every_transform
@every_segment
def test_as_many_sweeps_as_patches_are_exact(transform: str, segment: int | None) -> None:
    flow, z = flow_of(transform), noise()
    images = flow.inverse(z, LABELS, decoding=Decoding(segment))
    assert (
        transform in ("rqs-1", "srqs-1", "linear-1", "quadratic-1", "lrs-1")
        or (patchify(images, 2) - z).abs().max() > 0.05
    )
    with torch.no_grad():
        close(flow(images, LABELS)[0], z)


@every_transform
@every_segment
def test_guided_or_not_every_order_solves_the_same(transform: str, segment: int | None) -> None:
    flow, z, guidance = flow_of(transform), noise(), Guidance(0.7, "linear", 1.5)
    expected = flow.inverse(z, LABELS, guidance)
    close(flow.inverse(z, LABELS, guidance, Decoding(segment)), expected)


def test_one_patch_at_a_time_is_one_sweep_each() -> None:
    _, *stages = flow_of("affine").decode(noise(), LABELS)
    for stage in stages:
        assert stage.sweeps == (1,) * (TOKENS - 1)
        assert stage.change == 0


def test_a_segment_never_takes_more_sweeps_than_it_has_patches() -> None:
    _, *stages = flow_of("rqs-8").decode(noise(), LABELS, decoding=Decoding(7))
    for stage in stages:
        assert all(n <= most for n, most in zip(stage.sweeps, (7, 7, 1), strict=True))
        assert stage.change == 0


@pytest.mark.parametrize("transform", ["affine", "rqs-8", "affine+rqs-8"])
@every_segment
def test_a_tolerance_stops_earlier_at_an_error_of_that_order(
    transform: str, segment: int | None
) -> None:
    flow, z = flow_of(transform), noise()
    exact = flow.inverse(z, LABELS)
    errors, sweeps = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        *_, stage = stages = list(flow.decode(z, LABELS, None, Decoding(segment, tolerance)))
        errors.append((stage.x - exact).abs().max().item())
        sweeps.append(sum(sum(each.sweeps) for each in stages))
        assert errors[-1] <= 20 * tolerance
        assert all(each.change <= tolerance for each in stages)
    if segment is None:
        assert sweeps[0] < sweeps[1] < sweeps[2] < 2 * (TOKENS - 1)
        assert errors[0] > errors[1] > errors[2] > 0
        assert any(each.change > 0 for each in stages)


def test_iterations_end_a_segment_whatever_it_has_reached() -> None:
    flow, z = flow_of("affine"), noise()
    _, *stages = flow.decode(z, LABELS, None, Decoding(7, iterations=2))
    assert [stage.sweeps for stage in stages] == [(2, 2, 1)] * 2
    assert all(stage.change > 0 for stage in stages)
    close(flow.inverse(z, LABELS, None, Decoding(7, iterations=7)), flow.inverse(z, LABELS))


@pytest.mark.parametrize("i", [0, 1], ids=["raster", "reversed"])
def test_the_first_sweep_reads_the_parameters_off_the_noise(i: int) -> None:
    block, z = flow_of("affine+rqs-8").blocks[i], noise()
    with torch.no_grad():
        step = block.trace(z, LABELS)
    expected, _ = block.transform.inverse(step.x, step.params)
    decoded = block.inverse(z, LABELS, decoding=Decoding(None, iterations=1))
    close(decoded.x, block.order(expected, 1))
    assert decoded.sweeps == (1,)
    assert decoded.change == pytest.approx((decoded.x - z).abs().max().item())


def test_a_guess_that_overflows_spoils_nothing() -> None:
    # x_{t+1} = 1e10 x_t from x_0 = 0: all zeros, but guesses of 1 exceed float32 in four sweeps,
    # and a sum over all tokens, as in attention, takes 0 times infinity for a number.
    def invert(x: Tensor, _: int) -> Tensor:
        return torch.eye(x.shape[1]) @ (1e10 * x)

    z = torch.ones(1, 12, 1)
    z[:, 0] = 0
    assert torch.equal(solve(invert, z, Decoding(None)).x, torch.zeros(1, 12, 1))


def test_what_is_not_finite_stays_so() -> None:
    def invert(x: Tensor, t: int) -> Tensor:
        return torch.where(torch.arange(t, t + x.shape[1])[:, None] < 5, x, torch.nan)

    for decoding in (Decoding(), Decoding(7), Decoding(None, tolerance=1), Decoding(None, 0, 2)):
        x = solve(invert, torch.ones(1, 12, 1), decoding).x[0, :, 0]
        assert x.isnan().tolist() == [False] * 6 + [True] * 6


def test_a_single_patch_needs_no_sweep() -> None:
    z = torch.randn(2, 1, 3)
    solved = solve(lambda x, _: x, z, Decoding(None))
    assert torch.equal(solved.x, z)
    assert solved[1:] == ((), 0.0)


def test_stages_are_what_the_blocks_leave() -> None:
    flow, z = flow_of("affine+rqs-8", blocks=3), noise()
    stages = [patchify(stage.x, 2) for stage in flow.decode(z, LABELS)]
    assert len(stages) == 4
    assert torch.equal(stages[0], z)
    with torch.no_grad():
        for block, before, after in zip(reversed(flow.blocks), stages, stages[1:], strict=False):
            close(block(after, LABELS)[0], before)
    assert torch.equal(patchify(flow.inverse(z, LABELS), 2), stages[-1])


# Guidance


@every_transform
def test_guidance_of_scale_zero_changes_no_bit(transform: str) -> None:
    flow, z = flow_of(transform), noise()
    plain = flow.inverse(z, LABELS)
    assert torch.equal(flow.inverse(z, LABELS, Guidance(0.0, "linear", 2.0)), plain)


def test_guidance_without_a_difference_changes_nothing() -> None:
    flow, z, guidance = flow_of("affine+rqs-8"), noise(), Guidance(3.0)
    for y in (None, torch.full((3,), -1)):
        close(flow.inverse(z, y, guidance), flow.inverse(z, y))
    flow = flow_of("affine+rqs-8", classes=0)
    close(flow.inverse(z, None, guidance), flow.inverse(z))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_guidance_moves_parameters_away_from_the_classes_mean(blocks: int, schedule: Any) -> None:
    # Without layers and inputs the parameters are the class's alone: a = 0.1 v, b = v.
    flow = Flow((1, 8, 8), 3, "affine", blocks, layers=0, width=2, patch=2).double()
    values = torch.tensor([1.0, 2.0, 6.0], dtype=f64)
    with torch.no_grad():
        for block in flow.blocks:
            network = block.network
            for parameter in network.parameters():
                parameter.zero_()
            network.class_embed[:, 0, 0] = values
            network.proj_out.weight[:4, 0], network.proj_out.weight[4:, 0] = 0.1, 1.0
    y, z, scale = torch.tensor([2, 0, 1]), noise(), 0.5
    t = torch.arange(TOKENS, dtype=f64)
    weight = scale * t / (TOKENS - 1) if schedule == "linear" else torch.full_like(t, scale)
    guided = values[y, None] + weight * (values[y, None] - values.mean())  # [3, T]
    guided[:, 0] = 0  # the first patch of the order passes unchanged
    expected = z
    for i in reversed(range(blocks)):
        b = (guided.flip(1) if i % 2 else guided)[..., None]
        expected = expected * torch.exp(0.1 * b) + b
    close(patchify(flow.inverse(z, y, Guidance(scale, schedule)), 2), expected)


def cooler(flow: Flow, temperature: float) -> Flow:
    """The flow whose attention's logits are divided by the temperature."""
    flow = deepcopy(flow)
    with torch.no_grad():
        for block in flow.blocks:
            for layer in block.network.layers:
                layer.attention.qkv.weight[: block.network.width] /= temperature
                layer.attention.qkv.bias[: block.network.width] /= temperature
    return flow


@torch.no_grad()
def guided_without_cache(flow: Flow, z: Tensor, y: Tensor, guidance: Guidance) -> Tensor:
    """Full passes of two flows for every patch."""
    other = cooler(flow, guidance.temperature)
    for block, worse in zip(reversed(flow.blocks), reversed(other.blocks), strict=True):
        x = torch.zeros_like(z)
        order = list(range(TOKENS))[:: 1 if block is flow.blocks[0] else -1]
        x[:, order[0]] = z[:, order[0]]
        for t, place in enumerate(order[1:], 1):
            c = block.trace(x, y).params[:, t]
            u = worse.trace(x, torch.full_like(y, -1)).params[:, t]
            share = t / (TOKENS - 1) if guidance.schedule == "linear" else 1
            params = c + guidance.scale * share * (c - u)
            x[:, place] = block.transform.inverse(z[:, place], params)[0]
        z = x
    return z


@pytest.mark.parametrize("transform", ["affine", "rqs-8", "affine+rqs-4+additive"])
@pytest.mark.parametrize("classes", [0, 3], ids=["unconditional", "conditional"])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_guidance_is_that_of_two_full_passes(transform: str, classes: int, schedule: Any) -> None:
    flow, z, guidance = flow_of(transform, classes=classes), noise(), Guidance(1.5, schedule, 0.5)
    got = patchify(flow.inverse(z, LABELS, guidance), 2)
    close(got, guided_without_cache(flow, z, LABELS, guidance))
    assert (got - patchify(flow.inverse(z, LABELS), 2)).abs().max() > 1e-3


# Arguments


WRONG: dict[str, tuple[Any, dict[str, Any]]] = {
    "guidance = -1 is not valid: a number of at least 0": (Guidance, {"scale": -1}),
    "guidance = nan is not valid": (Guidance, {"scale": float("nan")}),
    "guidance schedule 'cosine' is not valid: constant or linear": (
        Guidance,
        {"scale": 1, "schedule": "cosine"},
    ),
    "attention temperature = 0 is not valid: a number above 0": (
        Guidance,
        {"scale": 1, "temperature": 0},
    ),
    "segment = 0 is not valid: an integer of at least 1": (Decoding, {"segment": 0}),
    "iterations = 0 is not valid: an integer of at least 1": (Decoding, {"iterations": 0}),
    "tolerance = -1 is not valid: a number of at least 0": (Decoding, {"tolerance": -1}),
    "tolerance = inf is not valid": (Decoding, {"tolerance": float("inf")}),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_argument_is_told(words: str) -> None:
    made, arguments = WRONG[words]
    with pytest.raises(UsageError, match=words):
        made(**arguments)
