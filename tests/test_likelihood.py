import math

import pytest
import torch
from plain_flow import wake

from flowbench.evaluation.likelihood import (
    HALF_LOG_2PI,
    bits_per_dim,
    dequantise_gaussian,
    dequantise_uniform,
    objective,
)
from flowbench.flow import Flow
from flowbench.seeding import Noise

SHAPE = (1, 8, 8)
UNIFORM_BPD = (0.5 * math.log(2 * math.pi) + 1 / 6 + math.log(128)) / math.log(2)
TOLERANCE = {"closed form": 1e-12, "float32": 1e-5, "262,144 samples": 3e-3}


def noise(images: int, seed: int = 0) -> Noise:
    return Noise(seed, ids=torch.arange(images))


def pixels(count: int) -> torch.Tensor:
    return torch.randint(256, (count, *SHAPE), dtype=torch.uint8)


def test_uniform_pixels_have_8566_bits_in_closed_form() -> None:
    assert bits_per_dim(1 / 6) == pytest.approx(UNIFORM_BPD, abs=TOLERANCE["closed form"])
    assert pytest.approx(8.566, abs=5e-4) == UNIFORM_BPD


def test_uniform_pixels_under_the_identity_flow_have_8566_bits() -> None:
    flow = Flow(SHAPE, transform="affine", blocks=1, layers=1, width=8)
    x = dequantise_uniform(pixels(4096), noise(4096))
    with torch.no_grad():
        prior, logdet = objective(*flow(x))
    assert logdet == 0
    bpd = bits_per_dim((prior - logdet).item())
    assert bpd == pytest.approx(UNIFORM_BPD, abs=TOLERANCE["262,144 samples"])


@pytest.mark.parametrize("std", [0.01, 0.3, 1.0])
def test_bits_of_a_gaussian_are_its_entropy_and_seven_more(std: float) -> None:
    z = torch.randn(64, 4, 16, dtype=torch.float64)
    z = (z - z.mean()) / z.std(correction=0)
    prior, logdet = objective(z, torch.full((64,), -64 * math.log(std)))
    # 128 levels to the unit: 7 bits.
    expected = math.log2(std * math.sqrt(2 * math.pi * math.e)) + 7
    assert bits_per_dim((prior - logdet).item()) == pytest.approx(
        expected, abs=TOLERANCE["float32"]
    )


def test_bits_are_those_of_torchs_normal_distribution() -> None:
    mean, std = torch.randn(4, 16), 0.1 + torch.rand(4, 16)
    x = mean + std * torch.randn(64, 4, 16)
    log_prob = torch.distributions.Normal(mean, std).log_prob(x).sum((1, 2))
    expected = (math.log(128) - log_prob.mean() / 64) / math.log(2)
    prior, logdet = objective((x - mean) / std, -std.log().sum().expand(64))
    assert bits_per_dim((prior - logdet).item()) == pytest.approx(
        expected.item(), abs=TOLERANCE["float32"]
    )


@pytest.mark.parametrize("transform", ["affine", "rqs-4", "affine+rqs-8"])
def test_loss_and_constant_are_the_mean_log_prob(transform: str) -> None:
    flow = wake(Flow(SHAPE, transform=transform, blocks=2, layers=1, width=16))
    x = dequantise_uniform(pixels(5), noise(5))
    with torch.no_grad():
        log_prob = flow.log_prob(x)
        prior, logdet = objective(*flow(x))
    expected = -flow.dims * (prior - logdet + HALF_LOG_2PI)
    assert logdet.abs() > 1e-4
    torch.testing.assert_close(log_prob.mean(), expected, rtol=TOLERANCE["float32"], atol=0)


def test_objective_is_in_nats_per_dimension() -> None:
    z, log_det = torch.full((2, 3, 4), 2.0), torch.tensor([12.0, 36.0])
    prior, logdet = objective(z, log_det)
    assert prior.item() == 2
    assert logdet.item() == 2


def test_objective_of_bfloat16_noise_is_float32() -> None:
    prior, _ = objective(torch.randn(2, 3, 4).bfloat16(), torch.zeros(2))
    assert prior.dtype == torch.float32


def test_uniform_noise_stays_within_its_level() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(4000, 1)
    x = dequantise_uniform(levels, noise(4000))
    assert x.dtype == torch.float32
    # To float32's rounding at 256, 1.5e-5 of a level.
    within = (x.double() + 1) * 128 - levels
    assert within.min() >= 0
    assert within.max() <= 1
    torch.testing.assert_close(within.mean(0), torch.full((256,), 0.5).double(), rtol=0, atol=0.04)
    assert within.var() == pytest.approx(1 / 12, rel=0.01)


def test_uniform_noise_never_reaches_one() -> None:
    x = dequantise_uniform(torch.full((2_000_000,), 255, dtype=torch.uint8), noise(2_000_000))
    assert x.min() >= 1 - 2 / 256
    assert x.max() < 1


def test_gaussian_noise_is_around_levels_from_minus_one_to_one() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    x = dequantise_gaussian(levels, 0.0, noise(256))
    torch.testing.assert_close(x, torch.linspace(-1, 1, 256))


@pytest.mark.parametrize("std", [0.05, 0.1])
def test_gaussian_noise_has_the_given_std(std: float) -> None:
    levels = torch.full((100_000,), 51, dtype=torch.uint8)
    x = dequantise_gaussian(levels, std, noise(100_000))
    assert x.dtype == torch.float32
    assert x.mean().item() == pytest.approx(51 / 127.5 - 1, abs=5 * std / 316)
    assert x.std().item() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("std", [None, 0.1], ids=["uniform", "gaussian"])
def test_noise_follows_its_seed_and_leaves_the_pixels(std: float | None) -> None:
    levels = pixels(3)
    before = levels.clone()

    def noisy(seed: int) -> torch.Tensor:
        if std is None:
            return dequantise_uniform(levels, noise(3, seed))
        return dequantise_gaussian(levels, std, noise(3, seed))

    assert torch.equal(noisy(1), noisy(1))
    assert not torch.equal(noisy(1), noisy(2))
    assert torch.equal(levels, before)
