import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from flowbench.errors import UsageError
from flowbench.evaluation.patches import EDGE, PatchQuality, noise_amplitude, patch_quality

SIDE, PATCH, TOKENS = 20, 4, 25
COUNT = 400
T_19 = 2.0930240544  # the 97.5 % quantile of Student's t with 19 degrees of freedom
TOLERANCE = {"rounding": 1e-9}


def textures(
    count: int, channels: int = 1, noise: float | Tensor = 0.0, where: str = "all"
) -> Tensor:
    """Grey gradients under grain that differs from image to image; noise on some patches."""
    ramp = torch.linspace(-20, 20, SIDE)
    grain = 2 + 8 * torch.rand(count, 1, 1, 1)
    x = 128 + ramp + torch.randn(count, channels, SIDE, SIDE) * grain
    chosen = torch.full((TOKENS,), where == "interior")
    chosen[EDGE] = where == "edge"
    planted = chosen.view(SIDE // PATCH, -1).repeat_interleave(PATCH, 0)
    planted = planted.repeat_interleave(PATCH, 1) | (where == "all")
    x = x + noise * planted * torch.randn_like(x)
    return x.round().clamp(0, 255).to(torch.uint8)


def quality(noise: float, where: str, count: int = COUNT, channels: int = 1) -> PatchQuality:
    real = [textures(size, channels) for size in (count, 2 * count)]
    return patch_quality(textures(count, channels, noise, where), *real, PATCH)


def interval(found: PatchQuality) -> tuple[float, float, float]:
    assert list(found.metrics) == ["patches/ratio", "patches/ratio_low", "patches/ratio_high"]
    ratio, low, high = found.metrics.values()
    assert low <= ratio <= high
    assert low * high == pytest.approx(ratio**2, rel=TOLERANCE["rounding"])
    return low, ratio, high


@pytest.mark.parametrize("std", [1.0, 5.0, 20.0])
def test_white_noise_has_its_standard_deviation_as_amplitude(std: float) -> None:
    noise = 128 + std * torch.randn(2000, 1, SIDE, SIDE)
    amplitude = noise_amplitude(noise.round().clamp(0, 255).to(torch.uint8), PATCH)
    assert amplitude.shape == (2000, TOKENS)
    rounded = math.sqrt(std**2 + 1 / 12)
    assert amplitude.square().mean().sqrt().item() == pytest.approx(rounded, rel=0.01)
    assert amplitude.mean().item() == pytest.approx(rounded, rel=0.05)


def test_constants_and_gradients_have_no_noise() -> None:
    y, x = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    planes = torch.stack([0 * x + 7, 9 * x, 11 * y, 5 * x + 8 * y, 200 - 5 * x - 8 * y])
    amplitude = noise_amplitude(planes[:, None].to(torch.uint8), 4)
    assert torch.equal(amplitude, torch.zeros(5, 6))


@pytest.mark.parametrize(("channels", "patch"), [(1, 2), (1, 4), (3, 3)])
def test_amplitudes_are_those_of_plain_loops(channels: int, patch: int) -> None:
    pixels = torch.randint(256, (2, channels, 12, 12), dtype=torch.uint8)
    x = pixels.tolist()
    for n in range(2):
        expected = []
        for top in range(0, 12, patch):
            for left in range(0, 12, patch):
                squares = [
                    ((c[i][j] - c[i][j + 1] - c[i + 1][j] + c[i + 1][j + 1]) / 2) ** 2
                    for c in x[n]
                    for i in range(top, top + patch - 1)
                    for j in range(left, left + patch - 1)
                ]
                expected.append(math.sqrt(sum(squares) / len(squares)))
        np.testing.assert_allclose(noise_amplitude(pixels, patch)[n], expected, rtol=1e-5)


def test_many_images_are_measured_as_few_are() -> None:
    pixels = textures(2300)
    apart = torch.cat([noise_amplitude(part, PATCH) for part in pixels.split(700)])
    assert torch.equal(noise_amplitude(pixels, PATCH), apart)


def test_distances_are_scipys() -> None:
    generated, test, train = textures(60, noise=6), textures(90), textures(60)
    found = patch_quality(generated, test, train, PATCH).patches
    h, real, other = (noise_amplitude(x, PATCH).double().T for x in (generated, test, train))
    distance = [wasserstein_distance(*pair) for pair in zip(h, real, strict=True)]
    floor = [wasserstein_distance(*pair) for pair in zip(other, real, strict=True)]
    np.testing.assert_allclose(found["distance"], distance, rtol=TOLERANCE["rounding"])
    np.testing.assert_allclose(found["floor"], floor, rtol=TOLERANCE["rounding"])


def test_the_ratio_is_of_geometric_means_over_edge_and_interior() -> None:
    found = quality(10, "edge")
    table = found.patches
    r = (table["distance"] + 1) / (table["floor"] + 1)
    edge = table["patch"].isin([0, 1, 23, 24])
    expected = math.exp(np.log(r[edge]).mean() - np.log(r[~edge]).mean())
    # Content that is alike everywhere hides as much noise at the edge as in the interior.
    assert interval(found)[1] == pytest.approx(expected, rel=0.05)


def test_the_table_has_a_row_a_patch_in_raster_order() -> None:
    x = torch.zeros(50, 1, 4, 6, dtype=torch.uint8)
    noisy = x.clone()
    noisy[:, 0, 2, 2] = 100  # in row 1, column 1 of patches of 2
    table = patch_quality(noisy, x, x, 2).patches
    assert list(table.columns) == ["patch", "row", "column", "distance", "floor"]
    assert list(table.itertuples(index=False)) == [
        (i, i // 3, i % 3, 50.0 if i == 4 else 0.0, 0.0) for i in range(6)
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_on_the_edge_raises_the_ratio(channels: int) -> None:
    low, ratio, _ = interval(quality(20, "edge", channels=channels))
    assert low > 3
    assert ratio > 5


def test_noise_in_the_interior_lowers_the_ratio() -> None:
    _, ratio, high = interval(quality(20, "interior"))
    assert ratio < 0.2
    assert high < 0.33


def framed(count: int, noise: float = 0.0) -> Tensor:
    """Strong content in the middle, black around it, then noise of one strength all over."""
    x = textures(count).float()
    black = torch.zeros_like(x)
    black[..., 4:-4, 4:-4] = 8 * (x - 128)[..., 4:-4, 4:-4]
    black = black.clamp(0, 255) + noise * torch.randn_like(x)
    return black.round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("noise", [0.0, 3.0, 10.0, 50.0])
def test_even_noise_leaves_the_ratio_at_one_though_content_hides_it(noise: float) -> None:
    found = patch_quality(framed(COUNT, noise), framed(COUNT), framed(COUNT), PATCH)
    r = (found.patches["distance"] + 1) / (found.patches["floor"] + 1)
    edge = r[[0, 1, 23, 24]].mean()
    assert noise == 0 or edge > 1.25 * r.drop([0, 1, 23, 24]).mean()
    low, ratio, high = interval(found)
    assert low < 1 < high
    assert ratio == pytest.approx(1, abs=0.15)


def test_without_noise_the_ratio_is_about_one() -> None:
    low, ratio, high = interval(quality(0, "all"))
    assert low < 1 < high
    assert ratio == pytest.approx(1, abs=0.1)


def test_the_interval_holds_one_for_nearly_all_perfect_samples() -> None:
    intervals = [interval(quality(0, "all", count=100)) for _ in range(60)]
    held = [low <= 1 <= high for low, _, high in intervals]
    assert sum(held) / 60 > 0.9
    assert np.log([ratio for _, ratio, _ in intervals]).mean() == pytest.approx(0, abs=0.03)


def test_the_interval_narrows_with_the_root_of_the_images() -> None:
    widths = []
    for count in (100, 1600):
        low, _, high = interval(quality(10, "edge", count))
        widths.append(math.log(high / low))
    assert 2 < widths[0] / widths[1] < 8  # about 4


def test_equal_images_are_at_distance_zero() -> None:
    x = textures(60)
    found = patch_quality(x, x.flip(0), textures(77), PATCH)
    assert not found.patches["distance"].any()
    assert (found.patches["floor"] > 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_constant_images_have_a_ratio_of_one(channels: int) -> None:
    black = torch.zeros(40, channels, SIDE, SIDE, dtype=torch.uint8)
    found = patch_quality(black, black, black, PATCH)
    assert interval(found) == (1, 1, 1)
    assert not found.patches[["distance", "floor"]].any(axis=None)


def unequal(count: int) -> Tensor:
    """Images of which each has edges of a noise of its own."""
    return textures(count, noise=40 * torch.rand(count, 1, 1, 1), where="edge")


def half_width(found: PatchQuality) -> float:
    _, ratio, high = interval(found)
    return math.log(high / ratio)


@pytest.mark.slow
def test_the_interval_is_as_wide_as_the_ratio_spreads_and_no_more_than_twice() -> None:
    found = [patch_quality(unequal(200), textures(200), textures(200), PATCH) for _ in range(40)]
    spread = np.log([interval(one)[1] for one in found]).std(ddof=1)
    assert 0.8 < np.mean([half_width(one) for one in found]) / (T_19 * spread) < 2


def test_the_interval_of_one_odd_image_in_closed_form() -> None:
    """It is in one of the 20 groups of two; leaving out another group makes it count for more."""
    x = torch.zeros(40, 1, 4, 6, dtype=torch.uint8)
    odd = x.clone()
    odd[17, 0, 2, 2] = 100  # of amplitude 50, in one of the four edge patches
    logs = np.array([0.0] + 19 * [math.log(1 + 50 / 38) / 4])
    log, error = math.log(1 + 50 / 40) / 4, math.sqrt(19 * logs.var())
    expected = np.exp([log - T_19 * error, log, log + T_19 * error])
    assert interval(patch_quality(odd, x, x, 2)) == pytest.approx(expected.tolist())


def test_images_that_are_all_alike_leave_nothing_uncertain() -> None:
    x = torch.zeros(61, 1, 4, 6, dtype=torch.uint8)
    noisy = x[:47].clone()
    noisy[:, 0, 2, 2] = 100  # one of the four edge patches, at distance 50
    expected = 51 ** (1 / 4)
    assert interval(patch_quality(noisy, x[:53], x, 2)) == pytest.approx(3 * [expected])


def test_the_order_of_the_images_changes_only_the_groups() -> None:
    generated, test, train = unequal(COUNT), textures(200), textures(COUNT)
    found = patch_quality(generated, test, train, PATCH)
    # Sorted so that each twentieth image is of one kind: groups have to be alike all the same.
    rising = noise_amplitude(generated, PATCH)[:, EDGE].mean(1).argsort()
    dealt = rising.view(20, -1).t().flatten()
    other = patch_quality(generated[dealt], test.flip(0), train[rising], PATCH)
    pd.testing.assert_frame_equal(found.patches, other.patches, rtol=TOLERANCE["rounding"])
    ratios = [one.metrics["patches/ratio"] for one in (found, other)]
    assert ratios[0] == pytest.approx(ratios[1], rel=TOLERANCE["rounding"])
    assert half_width(other) == pytest.approx(half_width(found), rel=0.6)


@pytest.mark.parametrize(("generated", "train"), [(50, 400), (400, 50)])
def test_distance_and_floor_are_of_equally_many_images(generated: int, train: int) -> None:
    """Or the fewer ones would be further from the test images for no other reason."""
    small = [
        patch_quality(textures(generated), textures(400), textures(train), PATCH).patches
        for _ in range(40)
    ]
    table = pd.concat(small)
    assert table["distance"].mean() == pytest.approx(table["floor"].mean(), rel=0.3)
    same = patch_quality(textures(400), textures(400), textures(400), PATCH).patches
    assert table["distance"].mean() > 1.5 * same["distance"].mean()


@pytest.mark.parametrize("short", [0, 1, 2], ids=["generated", "test", "training"])
def test_fewer_than_40_images_are_refused(short: int) -> None:
    name = ("generated", "test", "training")[short]
    images = [textures(39 if i == short else 40) for i in range(3)]
    with pytest.raises(UsageError, match=f"39 {name} images: valid are at least 40"):
        patch_quality(*images, PATCH)


def test_too_few_or_too_small_patches_are_refused() -> None:
    x = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UsageError, match="images of 4 patches: valid are at least 5"):
        patch_quality(x, x, x, 4)
    with pytest.raises(UsageError, match="patches of 1 pixel: valid are at least 2"):
        patch_quality(x, x, x, 1)
