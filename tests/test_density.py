import math
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import torch
from plain_flow import wake
from torch import Tensor

from flowbench.data.images import Images
from flowbench.evaluation.density import Density, density
from flowbench.evaluation.likelihood import (
    Dequantise,
    dequantise_gaussian,
    dequantise_uniform,
)
from flowbench.flow import Flow
from flowbench.seeding import Noise

UNIFORM_BPD = (0.5 * math.log(2 * math.pi) + 1 / 6 + math.log(128)) / math.log(2)
TOLERANCE = {"float32": 1e-5, "rounding": 1e-12, "128,000 samples": 3e-3, "16,000 draws": 2e-3}
TERMS = {"test/loss", "test/prior", "test/logdet", "test/draws", "test/failed"}
SEED = 5

every_noise = pytest.mark.parametrize("noise", ["uniform", "gaussian"])


def gaussian(pixels: Tensor, noise: Noise) -> Tensor:
    return dequantise_gaussian(pixels, 0.1, noise)


def silent(pixels: Tensor, _: Noise) -> Tensor:
    return pixels / 128 - 1


NOISE: dict[str, Dequantise] = {"uniform": dequantise_uniform, "gaussian": gaussian}


def some(count: int, shape: tuple[int, int, int] = (1, 4, 6)) -> Images:
    pixels = torch.randint(256, (count, *shape), dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 3)


def awake(shape: tuple[int, int, int] = (1, 4, 6), scale: float = 0.5, **more: object) -> Flow:
    arguments = {"classes": 3, "transform": "rqs-4", "blocks": 3, "layers": 1, "width": 8}
    return wake(Flow(shape, patch=2, **{**arguments, **more}), scale)


def planted(shifts: list[tuple[float, float]], shape: tuple[int, int, int], patch: int) -> Flow:
    """A flow whose blocks do (x − b)·exp(−a), for these (a, b), to all patches but the first."""
    flow = Flow(shape, transform="affine", blocks=len(shifts), layers=1, width=8, patch=patch)
    for block, (a, b) in zip(flow.blocks, shifts, strict=True):
        bias = torch.tensor([a, b]).repeat_interleave(flow.features)
        block.network.proj_out.bias.data = bias
    return flow


def measure(
    flow: Flow, images: Images, noise: str = "uniform", draws: int = 2, batch: int = 4
) -> Density:
    return density(flow, images, NOISE[noise], noise, draws, SEED, batch)  # type: ignore[arg-type]


@torch.no_grad()
def plain_log_prob(flow: Flow, images: Images, noise: str, draws: int) -> list[list[float]]:
    """Image by image and draw by draw."""
    assert images.labels is not None
    rows = []
    for i, (pixels, y) in enumerate(zip(images.pixels, images.labels, strict=True)):
        own = [Noise(SEED, draw, ids=torch.tensor([i])) for draw in range(draws)]
        noisy = [NOISE[noise](pixels[None], drawn) for drawn in own]
        rows.append([flow.log_prob(x, y[None]).item() for x in noisy])
    return rows


def test_uniform_pixels_under_a_new_flow_have_8566_bits() -> None:
    flow = Flow((1, 8, 8), transform="rqs-4", blocks=2, layers=1, width=8)
    found = measure(flow, some(1000, (1, 8, 8)), batch=500)
    assert found.metrics["test/bpd"] == pytest.approx(UNIFORM_BPD, abs=TOLERANCE["128,000 samples"])
    assert found.metrics["test/prior"] == pytest.approx(1 / 6, abs=TOLERANCE["128,000 samples"])
    assert found.metrics["test/loss"] == found.metrics["test/prior"]
    assert found.metrics["test/logdet"] == 0
    assert not found.positions["logdet"].any()


def test_a_new_flows_nll_is_that_of_torchs_normal_distribution() -> None:
    images = Images(torch.full((300, 1, 8, 8), 51, dtype=torch.uint8), None)
    flow = Flow((1, 8, 8), transform="affine", blocks=1, layers=1, width=8)
    expected = 0.5 * math.log(2 * math.pi) + 0.5 * ((51 / 127.5 - 1) ** 2 + 0.1**2)
    assert measure(flow, images, "gaussian").metrics["test/nll"] == pytest.approx(
        expected, abs=TOLERANCE["128,000 samples"]
    )


@every_noise
def test_metrics_are_those_of_plain_loops_over_log_prob(noise: str) -> None:
    flow, images = awake(), some(7)
    rows = plain_log_prob(flow, images, noise, draws=3)
    found = measure(flow, images, noise, draws=3).metrics
    if noise == "uniform":
        name, scale, constant = "bpd", flow.dims * math.log(2), 7.0
        weighted = [math.log(sum(math.exp(p - max(r)) for p in r) / 3) + max(r) for r in rows]
        bound = constant - sum(weighted) / len(rows) / scale
        assert found["test/bpd_iw"] == pytest.approx(bound, rel=TOLERANCE["float32"])
    else:
        name, scale, constant = "nll", flow.dims, 0.0
    draws = [constant - sum(column) / len(rows) / scale for column in zip(*rows, strict=True)]
    assert found[f"test/{name}"] == pytest.approx(sum(draws) / 3, rel=TOLERANCE["float32"])
    error = np.std(draws, ddof=1) / math.sqrt(3)
    assert found[f"test/{name}_se"] == pytest.approx(error, rel=1e-3)
    loss = -sum(map(sum, rows)) / 21 / flow.dims - 0.5 * math.log(2 * math.pi)
    assert found["test/loss"] == pytest.approx(loss, rel=TOLERANCE["float32"])
    assert found["test/prior"] - found["test/logdet"] == pytest.approx(found["test/loss"])
    assert abs(found["test/logdet"]) > 1e-3


@pytest.mark.parametrize(
    ("noise", "draws", "expected"),
    [
        ("uniform", 1, {"test/bpd", "test/bpd_iw", "test/bpd_median"}),
        ("uniform", 2, {"test/bpd", "test/bpd_iw", "test/bpd_median", "test/bpd_se"}),
        ("gaussian", 1, {"test/nll", "test/nll_median"}),
        ("gaussian", 2, {"test/nll", "test/nll_median", "test/nll_se"}),
    ],
)
def test_only_what_has_a_meaning_is_measured(noise: str, draws: int, expected: set[str]) -> None:
    found = measure(awake(), some(3), noise, draws)
    assert found.metrics.keys() == TERMS | expected
    assert found.metrics["test/draws"] == draws
    assert list(found.patches.columns)[3:] == ["bpd" if noise == "uniform" else "nll"]


def test_images_worse_than_under_the_identity_are_counted() -> None:
    images, identity = some(40), planted([(0.0, 0.0)], (1, 4, 6), 2)
    assert measure(identity, images).metrics["test/failed"] == 0
    # Stretching by e gains the same for every image and costs those with large x more.
    flow = planted([(-1.0, 0.0)], (1, 4, 6), 2)
    rows = torch.tensor(plain_log_prob(flow, images, "uniform", 2))
    of_identity = torch.tensor(
        plain_log_prob(planted([(0.0, 0.0)], (1, 4, 6), 2), images, "uniform", 2)
    )
    share = (rows < of_identity).double().mean().item()
    assert 0 < share < 1
    assert measure(flow, images).metrics["test/failed"] == pytest.approx(share)


def test_a_single_image_moves_the_mean_and_not_the_median() -> None:
    images = some(201)
    flow = planted([(-3.0, 0.0)], (1, 4, 6), 2)
    before = measure(flow, images, draws=1).metrics
    images.pixels[4] = 255
    after = measure(flow, images, draws=1).metrics
    assert after["test/bpd"] > before["test/bpd"] + 0.5
    assert after["test/bpd_median"] == pytest.approx(before["test/bpd_median"], abs=0.2)


def test_the_importance_bound_is_the_mean_bound_with_one_draw_and_tighter_with_more() -> None:
    flow, images = awake(scale=1.0), some(8)
    one, four = (measure(flow, images, draws=draws).metrics for draws in (1, 4))
    assert one["test/bpd_iw"] == pytest.approx(one["test/bpd"], rel=TOLERANCE["rounding"])
    assert four["test/bpd_iw"] < four["test/bpd"] - 1e-6


@pytest.mark.slow
def test_the_importance_bound_closes_on_the_pixels_exact_probability() -> None:
    a, b = -5.0, 0.5
    flow, images = planted([(a, b)], (1, 1, 2), patch=1), some(5, (1, 1, 2))
    near_b = torch.arange(190, 195, dtype=torch.uint8)  # elsewhere all would be 0
    images.pixels[:] = near_b[:, None, None, None]
    x = images.pixels.flatten(1).double() / 128 - 1
    edges = torch.stack([x, x + 1 / 128])
    edges[:, :, 1] = (edges[:, :, 1] - b) * math.exp(-a)  # the first patch is left as it is
    low, high = torch.special.ndtr(edges)
    exact = -(high - low).log2().mean().item()
    found = measure(flow, images, draws=16_000, batch=5).metrics
    assert found["test/bpd_iw"] == pytest.approx(exact, abs=TOLERANCE["16,000 draws"])
    assert found["test/bpd"] > exact + 2 * TOLERANCE["16,000 draws"]


@every_noise
@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 6, 4)], ids=["wide", "colour"])
def test_the_mean_of_the_map_is_the_likelihood(noise: str, shape: tuple[int, int, int]) -> None:
    found = measure(awake(shape), some(5, shape), noise)
    name = "bpd" if noise == "uniform" else "nll"
    expected = found.metrics[f"test/{name}"]
    assert found.patches[name].mean() == pytest.approx(expected, rel=TOLERANCE["rounding"])
    rows, columns = shape[1] // 2, shape[2] // 2
    places = [(i, i // columns, i % columns) for i in range(rows * columns)]
    assert list(found.patches[["patch", "row", "column"]].itertuples(index=False)) == places


def test_map_and_positions_of_a_planted_flow() -> None:
    (a, b), (c, d) = (-0.5, 0.25), (0.75, -1.0)
    flow, images = planted([(a, b), (c, d)], (1, 2, 3), patch=1), some(4, (1, 2, 3))
    found = density(flow, images, silent, "gaussian", 1, SEED, batch=3)

    z = images.pixels.flatten(1).double() / 128 - 1
    slopes = torch.zeros(6, dtype=torch.float64)
    z[:, 1:] = (z[:, 1:] - b) * math.exp(-a)  # all but the first patch
    slopes[1:] -= a
    z[:, :-1] = (z[:, :-1] - d) * math.exp(-c)  # all but the last, with which the order begins
    slopes[:-1] -= c
    expected = 0.5 * math.log(2 * math.pi) + (0.5 * z.square() - slopes).mean(0)
    np.testing.assert_allclose(found.patches["nll"], expected, rtol=TOLERANCE["float32"])

    places = [(block, t) for block in range(2) for t in range(6)]
    assert list(found.positions[["block", "position"]].itertuples(index=False)) == places
    np.testing.assert_allclose(found.positions["logdet"], [0] + 5 * [-a] + [0] + 5 * [-c])


def test_positions_are_mean_log_slopes_in_each_blocks_own_order() -> None:
    flow, images = awake(), some(7)
    found = density(flow, images, silent, "gaussian", 2, SEED, batch=3)
    with torch.no_grad():
        steps = list(flow.trace(silent(images.pixels, torch.Generator()), images.labels))
    expected = torch.cat([step.log_slope.mean((0, 2)) for step in steps])
    assert expected.abs().max() > 1e-2
    np.testing.assert_allclose(found.positions["logdet"], expected, atol=TOLERANCE["float32"])


@every_noise
def test_the_size_of_batches_changes_nothing(noise: str) -> None:
    flow, images = awake(), some(7)
    found = [measure(flow, images, noise, batch=batch) for batch in (1, 3, 64)]
    for other in found[1:]:
        assert other.metrics == pytest.approx(found[0].metrics, rel=1e-4, abs=1e-6)
        for name in ("patches", "positions"):
            tables = getattr(other, name), getattr(found[0], name)
            pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=TOLERANCE["float32"])


@every_noise
def test_noise_follows_from_seed_image_and_draw_alone(noise: str) -> None:
    images = some(5)
    images.pixels[:] = torch.arange(5, dtype=torch.uint8)[:, None, None, None]

    def drawn(draws: int, batch: int, seed: int = SEED) -> list[Tensor]:
        """The noisy images of every image, ``[draws, C, H, W]``."""
        noisy = defaultdict(list)

        def record(pixels: Tensor, own: Noise) -> Tensor:
            made = NOISE[noise](pixels, own)
            for image, x in zip(pixels[:, 0, 0, 0].tolist(), made, strict=True):
                noisy[image].append(x)
            return made

        density(awake(), images, record, noise, draws, seed, batch)  # type: ignore[arg-type]
        return [torch.stack(noisy[i]) for i in range(5)]

    three = drawn(3, batch=5)
    for i, again in enumerate(drawn(2, batch=2)):
        assert torch.equal(again, three[i][:2])
    assert all(not torch.equal(x[0], x[1]) for x in three)
    assert not torch.equal(three[0][0] - three[0][0].mean(), three[1][0] - three[1][0].mean())
    assert not torch.equal(three[0], drawn(3, batch=5, seed=6)[0])


def test_labels_count_and_images_without_any_are_of_no_class() -> None:
    flow, images = awake(), some(5)
    unlabelled = measure(flow, Images(images.pixels, None)).metrics
    none = measure(flow, Images(images.pixels, torch.full((5,), -1))).metrics
    assert unlabelled == none
    assert abs(unlabelled["test/bpd"] - measure(flow, images).metrics["test/bpd"]) > 1e-4
    plain = awake(classes=0)
    assert measure(plain, images).metrics == measure(plain, Images(images.pixels, None)).metrics
