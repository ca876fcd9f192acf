"""Drawing: a seed's images are the same however they are drawn, and what is told when they fail."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from plain_flow import wake
from scipy import stats
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from flowbench.decoding import Decoding, Guidance
from flowbench.errors import Diverged, UsageError
from flowbench.evaluation import sampling as module
from flowbench.evaluation.pictures import save
from flowbench.evaluation.sampling import (
    Sampling,
    draw,
    draw_classes,
    grid,
    noise,
    to_pixels,
    trajectory,
)
from flowbench.flow import Flow, patchify

SHAPE = (1, 4, 6)
PLAIN = Sampling(seed=3)
GUIDED = Guidance(0.5, "linear", 0.7)


def flow_of(transform: str = "affine+rqs-4", **more: Any) -> Flow:
    arguments = {"classes": 3, "blocks": 3, "layers": 1, "width": 16, "heads": 2, "patch": 2}
    return wake(Flow(SHAPE, transform=transform, **(arguments | more)))


def identity() -> Flow:
    return Flow(SHAPE, classes=3, blocks=2, layers=1, width=16, patch=2)


# Noise


def test_noise_of_an_image_follows_from_the_seed_and_its_number() -> None:
    flow = flow_of()
    z = noise(flow, 5, PLAIN)
    assert z.shape == (5, 6, 4)
    assert torch.equal(noise(flow, 2, PLAIN, first=3), z[3:])
    assert torch.equal(noise(flow, 2, PLAIN), z[:2])
    assert not torch.equal(noise(flow, 5, Sampling(seed=4)), z)
    before = torch.get_rng_state()
    noise(flow, 1, PLAIN)
    assert torch.equal(torch.get_rng_state(), before)


def test_bf16_is_that_of_the_networks() -> None:
    flow = flow_of("affine")
    y = torch.tensor([0, 1, 2])
    exact, rough = draw(flow, y, PLAIN), draw(flow, y, replace(PLAIN, bf16=True))
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_noise_of_images_and_seeds_is_independent_and_normal() -> None:
    z = torch.cat([noise(flow_of(), 500, Sampling(seed)) for seed in (0, 1)]).flatten(1)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    assert (torch.corrcoef(z.T) - torch.eye(24)).abs().max() < 6 / math.sqrt(1000)
    assert (torch.corrcoef(z)[:500, 500:]).abs().max() < 6 / math.sqrt(24)
    assert len({tuple(row.tolist()) for row in z}) == 1000


def test_temperature_scales_the_noise() -> None:
    flow = flow_of()
    assert torch.equal(noise(flow, 3, replace(PLAIN, temperature=0.5)), noise(flow, 3, PLAIN) / 2)


@pytest.mark.parametrize("t", [0.1, 1.0, 2.5])
def test_truncated_noise_is_a_truncated_normal(t: float) -> None:
    z = noise(flow_of(), 500, replace(PLAIN, truncation=t)).flatten()
    assert z.abs().max() <= t * (1 + 1e-6)
    assert z.abs().max() > 0.99 * t
    assert len(z.unique()) > 0.99 * len(z)  # not clipped
    assert stats.kstest(z.numpy(), stats.truncnorm(-t, t).cdf).pvalue > 0.01


def test_truncation_keeps_the_order_of_the_noise_and_far_out_changes_nothing() -> None:
    plain = noise(flow_of(), 50, PLAIN)
    near = noise(flow_of(), 50, replace(PLAIN, truncation=0.5))
    assert torch.equal(near.flatten().argsort(), plain.flatten().argsort())
    far = noise(flow_of(), 50, replace(PLAIN, truncation=12.0))
    torch.testing.assert_close(far, plain, rtol=0, atol=1e-5)


# Images


WAYS = {
    "plain": PLAIN,
    "guided": replace(PLAIN, guidance=GUIDED),
    "segments": replace(PLAIN, decoding=Decoding(2)),
    "whole": replace(PLAIN, decoding=Decoding(None)),
    "denoised": replace(PLAIN, denoise_std=0.1),
    "truncated": replace(PLAIN, truncation=1.0, temperature=0.9),
}


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS.keys())
def test_a_seed_means_the_same_images_whatever_the_batch(how: Sampling) -> None:
    flow, y = flow_of(), torch.arange(10) % 4 - 1
    one, three, all_ = (draw(flow, y, how, batch) for batch in (1, 3, 64))
    assert one.dtype == torch.float32
    assert one.shape == (10, *SHAPE)
    torch.testing.assert_close(one, all_, rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(three, all_, rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(draw(flow, y, how), all_, rtol=1e-5, atol=5e-5)
    difference = to_pixels(one).astype(int) - to_pixels(all_)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS.keys())
def test_a_seed_means_the_same_images_on_a_gpu(how: Sampling) -> None:
    flow, y = flow_of(), torch.arange(10) % 4 - 1
    expected = draw(flow, y, how)
    for batch in (None, 1):  # one of ten, or ten that replay the first
        found = draw(flow.cuda(), y, how, batch)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


class Standin:
    """Calls a function with inputs that stay the same tensors, and fills the same outputs."""

    made: ClassVar[list["Standin"]] = []

    def __init__(self, function: Callable[..., list[Tensor]], *inputs: Tensor) -> None:
        self.function, self.inputs = function, [own.clone() for own in inputs]
        self.outputs = [own.clone() for own in function(*self.inputs)]
        self.calls = 0
        self.made.append(self)

    def __call__(self, *given: Tensor) -> list[Tensor]:
        self.calls += 1
        for own, new in zip(self.inputs, given, strict=True):
            assert own.shape == new.shape
            own.copy_(new)
        for own, new in zip(self.outputs, self.function(*self.inputs), strict=True):
            own.copy_(new)
        return self.outputs


@pytest.mark.parametrize(("images", "replays"), [(17, 8), (16, 8), (15, 0)])
def test_many_batches_of_one_size_replay_the_first(
    images: int, replays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, y = flow_of(), torch.arange(images) % 4 - 1
    expected = draw(flow, y, PLAIN, 2), trajectory(flow, y, PLAIN, 2)
    monkeypatch.setattr(module, "_replayable", lambda *_: True)
    monkeypatch.setattr(module, "Replayed", Standin)
    monkeypatch.setattr(Standin, "made", [])
    found = draw(flow, y, PLAIN, 2), trajectory(flow, y, PLAIN, 2)
    assert [own.calls for own in Standin.made] == ([replays] * 2 if replays else [])
    assert all(own.equal(known) for own, known in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("transform", "how", "replayable"),
    [
        ("rqs-4", PLAIN, True),
        ("affine", replace(PLAIN, guidance=Guidance(0.0)), True),
        ("affine", replace(PLAIN, guidance=GUIDED), False),
        ("affine", replace(PLAIN, decoding=Decoding(2)), False),
        ("mol-4", PLAIN, False),  # its inverse searches as long as it has to
    ],
)
def test_what_asks_the_host_on_the_way_is_not_replayed(
    transform: str, how: Sampling, replayable: bool
) -> None:
    flow = Flow((1, 4, 4), 4, transform=transform, blocks=1, layers=1, width=8)
    mode = FakeTensorMode()
    assert not module._replayable(flow, how)
    with mode:
        flow._apply(lambda weight: mode.from_tensor(weight).to("cuda"))
    assert module._replayable(flow, how) == replayable


def test_drawing_is_inverting_the_noise() -> None:
    flow, y = flow_of(), torch.tensor([0, 2, -1])
    early = Decoding(3, iterations=1)
    how = Sampling(5, temperature=0.8, guidance=GUIDED, decoding=early)
    expected = flow.inverse(noise(flow, 3, how), y, GUIDED, early)
    torch.testing.assert_close(draw(flow, y, how), expected)


@pytest.mark.parametrize("std", [0.1, 0.5])
def test_denoising_by_a_standard_normal_shrinks(std: float) -> None:
    # The score of a standard normal is -x, so x + s² score = (1 - s²) x.
    y = torch.tensor([0, 1, 2])
    plain = draw(identity(), y, PLAIN)
    denoised = draw(identity(), y, replace(PLAIN, denoise_std=std))
    torch.testing.assert_close(denoised, (1 - std**2) * plain)


def test_denoising_follows_the_gradient_of_the_density_of_the_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DENOISED_TOGETHER", 2)
    flow, y, std = flow_of("affine").double(), torch.tensor([0, 1, -1]), 0.3
    plain = draw(flow, y, PLAIN).double()
    denoised = draw(flow, y, replace(PLAIN, denoise_std=std))
    step = torch.randn_like(plain)  # a directional derivative by differences
    with torch.no_grad():
        up, down = (flow.log_prob(plain + sign * 0.01 * step, y) for sign in (1, -1))
    slope = (up - down) / 0.02
    moved = ((denoised - plain) / std**2 * step).sum((1, 2, 3))
    torch.testing.assert_close(moved, slope, rtol=2e-3, atol=2e-3)
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_a_trajectory_leads_from_the_noise_to_the_image() -> None:
    flow, y = flow_of(), torch.tensor([0, 1, 2, -1])
    stages = trajectory(flow, y, PLAIN, batch=3)
    assert stages.shape == (4, 4, *SHAPE)
    assert torch.equal(patchify(stages[0], 2), noise(flow, 4, PLAIN))
    torch.testing.assert_close(stages[-1], draw(flow, y, PLAIN))
    assert all((stages[i] - stages[i + 1]).abs().max() > 0.01 for i in range(3))
    denoised = replace(PLAIN, denoise_std=0.2)
    torch.testing.assert_close(trajectory(flow, y, denoised)[-1], draw(flow, y, denoised))


@pytest.mark.parametrize(("classes", "columns"), [(3, 3), (0, 10)])
def test_rows_of_every_class_are_drawn_row_by_row(classes: int, columns: int) -> None:
    flow = flow_of(classes=classes)
    y = torch.arange(3).repeat(2) if classes else torch.full((20,), -1)
    images = draw_classes(flow, classes, 2, PLAIN)
    assert images.shape == (2, columns, 4, 6, 1)
    assert images.dtype == np.uint8
    assert np.array_equal(images.reshape(-1, 4, 6, 1), to_pixels(draw(flow, y, PLAIN)))
    assert np.array_equal(draw_classes(flow, classes, 1, PLAIN), images[:1])


# Failures


def broken_at(i: int, flow: Flow, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Let block i spoil the images 1 and 4 of every batch."""
    block = flow.blocks[i]
    whole = block.inverse

    def inverse(*arguments: Any) -> Any:
        decoded = whole(*arguments)
        x = decoded.x.clone()
        x[1:5:3, 0, 0] = value
        return decoded._replace(x=x)

    monkeypatch.setattr(block, "inverse", inverse)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_samples_that_are_not_finite_are_told_with_their_block(
    i: int, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = flow_of("affine")
    broken_at(i, flow, monkeypatch, value)
    with pytest.raises(Diverged) as told:
        draw(flow, torch.full((7,), -1), PLAIN)
    where = f"first in block {i} of 3 (numbered from the data)"
    assert str(told.value) == f"2 of 7 samples are not finite, {where}"


def test_weights_that_are_not_finite_are_told_with_their_block() -> None:
    flow = flow_of("affine")
    with torch.no_grad():
        flow.blocks[1].network.proj_out.bias[0] = math.nan
    for decoding in (Decoding(), Decoding(None), Decoding(2, tolerance=1.0)):
        with pytest.raises(Diverged, match=r"^4 of 4 samples .* in block 1 of 3 "):
            draw(flow, torch.full((4,), -1), replace(PLAIN, decoding=decoding))


def test_a_denoising_that_overflows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = identity()
    monkeypatch.setattr(flow, "log_prob", lambda x, _: x.sum((1, 2, 3)) * math.inf)
    with pytest.raises(Diverged, match="2 of 2 samples are not finite, first in denoising"):
        draw(flow, torch.tensor([0, 1]), replace(PLAIN, denoise_std=0.1))


def test_guidance_of_a_flow_without_classes_needs_a_temperature() -> None:
    flow, y = flow_of(classes=0), torch.full((2,), -1)
    with pytest.raises(UsageError, match="without classes needs an attention temperature other"):
        draw(flow, y, replace(PLAIN, guidance=Guidance(1.0)))
    plain = draw(flow, y, replace(PLAIN, guidance=Guidance(0.0)))
    assert torch.equal(plain, draw(flow, y, PLAIN))
    assert not torch.equal(plain, draw(flow, y, replace(PLAIN, guidance=GUIDED)))


WRONG: dict[str, dict[str, Any]] = {
    r"seed = -1 is not valid: an integer in \[0, 2\^62\)": {"seed": -1},
    "temperature = -1 is not valid: a number of at least 0": {"temperature": -1},
    "temperature = nan is not valid": {"temperature": math.nan},
    "truncation = 0 is not valid: a number above 0": {"truncation": 0},
    "denoise_std = -0.1 is not valid: a number of at least 0": {"denoise_std": -0.1},
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_argument_is_told(words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Sampling(**({"seed": 0} | WRONG[words]))


# Pixels and files


def test_every_level_comes_back_from_its_middle() -> None:
    levels = torch.arange(256.0).view(1, 1, 16, 16)
    pixels = to_pixels((levels + 0.5) / 128 - 1)
    assert np.array_equal(pixels.flatten(), np.arange(256))
    assert to_pixels(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1)).flatten().tolist() == [0, 255]


def pictures(channels: int) -> Any:
    return np.random.default_rng(0).integers(0, 255, (2, 3, 4, 6, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_the_images(channels: int, tmp_path: Path) -> None:
    images, labels = pictures(channels), [0, 7, 3]
    whole = tmp_path / "new" / "grid.png"
    save(images, labels, whole)
    assert np.array_equal(np.asarray(Image.open(whole)), grid(images).squeeze())
    save(images, labels, tmp_path / "array.npy")
    assert np.array_equal(np.load(tmp_path / "array.npy"), images.reshape(6, 4, 6, channels))
    save(images, labels, f"{tmp_path}/each/")
    names = [f"class{label}-{row:04d}.png" for row in range(2) for label in labels]
    assert sorted(path.name for path in (tmp_path / "each").iterdir()) == sorted(names)
    one = np.asarray(Image.open(tmp_path / "each" / "class7-0001.png"))
    assert np.array_equal(one, images[1, 1].squeeze())


def test_images_of_no_class_are_numbered(tmp_path: Path) -> None:
    save(pictures(1), [-1] * 3, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"sample-{i:04d}.png" for i in range(6)]


@pytest.mark.parametrize("out", ["images.jpg", "images"])
def test_a_file_of_another_kind_is_told(out: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a .png, a .npy, or a directory, which ends in /"):
        save(pictures(1), [0, 1, 2], tmp_path / out)


def test_a_grid_has_margins_of_white() -> None:
    whole = grid(np.zeros((2, 3, 4, 6, 1), dtype=np.uint8), margin=1)
    assert whole.shape == (2 * 5 + 1, 3 * 7 + 1, 1)
    assert (whole[::5] == 255).all()
    assert (whole[:, ::7] == 255).all()
    assert (whole == 0).sum() == 2 * 3 * 4 * 6


def test_a_batch_by_default_is_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def recorded(flow: Flow, _: Sampling, z: Tensor, __: Tensor) -> list[Tensor]:
        sizes.append(len(z))
        return [z.view(-1, *SHAPE)] * (len(flow.blocks) + 1)

    monkeypatch.setattr(module, "_decode", recorded)
    draw(flow_of(), torch.zeros(module.CPU_BATCH + 5, dtype=torch.int64), PLAIN)
    assert sizes == [module.CPU_BATCH, 5]
