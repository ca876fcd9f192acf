"""Latents of flows whose answers are known: the identity, shifts and scales by class."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

from flowbench.__main__ import main
from flowbench.data.images import Images, Splits
from flowbench.errors import UsageError
from flowbench.evaluation import latents
from flowbench.evaluation.latents import explore, gaussianity, probe, reach, slerp, stages
from flowbench.evaluation.sampling import Sampling
from flowbench.flow import Flow, patchify
from flowbench.report.latents import write

SHAPE = (1, 4, 6)


def middle(pixels: Tensor, _: object) -> Tensor:
    """The middle of each level, without noise."""
    return (pixels + 0.5) / 128 - 1


def new(classes: int = 0, blocks: int = 2, **more: object) -> Flow:
    """A flow as it begins: the identity."""
    return Flow(
        SHAPE, classes, transform="affine", patch=2, blocks=blocks, layers=1, width=8, **more
    )


def splits(count: int = 40, classes: int = 2) -> Splits:
    """Images whose class is how bright their right half is."""
    random = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(3):
        pixels = torch.randint(0, 100, (count, *SHAPE), generator=random, dtype=torch.uint8)
        labels = torch.arange(count) % max(1, classes)
        pixels[..., 3:] += (60 * labels[:, None, None, None]).to(torch.uint8)
        parts.append(Images(pixels, labels if classes else None))
    return Splits(*parts, classes=classes)


def test_every_stage_of_a_new_flow_is_the_image() -> None:
    images = splits().test
    found = stages(new(blocks=3, classes=2), images, middle, 7)
    patches = patchify(middle(images.pixels, torch.Generator()), 2)
    assert found.shape == (4, 40, 6, 4)
    assert all(torch.allclose(stage, patches, atol=1e-6) for stage in found)


@torch.no_grad()
def test_the_last_stage_is_what_the_flow_gives() -> None:
    torch.manual_seed(0)
    flow, images = new(classes=2, blocks=3, order="snake"), splits().test
    for parameter in flow.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    z, _ = flow(middle(images.pixels, torch.Generator()), images.labels)
    assert torch.allclose(stages(flow, images, middle, 7)[-1], z, atol=1e-5)


def test_moments_are_those_of_scipy() -> None:
    random = torch.Generator().manual_seed(0)
    z = torch.randn(3000, 6, 4, generator=random)
    z[:, 1] = 2 * z[:, 1] + 3
    z[:, 2] = z[:, 5]
    found = gaussianity(z, rows=2)
    assert found["row"].tolist() == [0, 0, 0, 1, 1, 1]
    normal = found.drop(index=[1, 2, 5])
    assert (normal["ks"] < 0.03).all()
    assert (normal[["mean", "skewness", "kurtosis"]].abs() < 0.1).all(axis=None)
    assert found.loc[1, "mean"] == pytest.approx(3, abs=0.1)
    assert found.loc[1, "std"] == pytest.approx(2, abs=0.1)
    expected = np.mean([stats.kstest(z[:, 1, d].numpy(), "norm").statistic for d in range(4)])
    assert found.loc[1, "ks"] == pytest.approx(expected)
    # Of 20 · 4 pairs, 4 are equal; the others are independent.
    assert found.loc[2, "correlation"] == pytest.approx((4 / 80 + 1 / 3000) ** 0.5, rel=0.05)
    assert found.loc[0, "correlation"] == pytest.approx(3000**-0.5, rel=0.3)


def test_a_latent_of_a_new_flow_reaches_its_own_patch_alone() -> None:
    z = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(0))
    found = reach(new(), z, torch.full((8,), -1))
    assert (np.diag(found) > 0.5).all()
    assert np.abs(found - np.diag(np.diag(found))).max() < 1e-6


def test_reach_follows_the_order_of_a_block() -> None:
    torch.manual_seed(0)
    flow = new(blocks=1)
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    found = reach(flow, torch.randn(4, 6, 4), torch.full((4,), -1))
    assert np.abs(np.tril(found, -1)).max() < 1e-6  # later patches change nothing before them
    assert np.abs(np.triu(found, 1)).max() > 1e-3


def planted(shift: float, log_scale: float) -> Flow:
    """An affine flow of two blocks, each of which maps every patch but its first alike."""
    flow = new(classes=0, blocks=2)
    for block in flow.blocks:
        bias = block.network.proj_out.bias.data.view(2, -1)
        bias[0], bias[1] = shift, log_scale
    return flow


def test_the_noise_of_a_planted_linear_flow_has_the_moments_that_follow() -> None:
    """Both blocks act on the patches in the middle, one on the first and one on the last."""
    images = splits(count=60)
    known = latents.maps(planted(0.3, 0.5), images, middle, 60, 25)
    x = patchify(middle(images.test.pixels, torch.Generator()), 2)
    transform = planted(0.3, 0.5).blocks[0].transform
    params = torch.tensor([0.3, 0.5]).expand(*x.shape, 2)
    once, _ = transform.forward(x, params)
    twice, _ = transform.forward(once, params)
    expected = torch.cat([once[:, :1], twice[:, 1:-1], once[:, -1:]], 1)
    torch.testing.assert_close(known.stages["test"][-1], expected)
    torch.testing.assert_close(known.stages["test"][0], x)
    table = latents.gaussian(known)
    test = table[table["set"] == "test"]
    np.testing.assert_allclose(test["mean"], expected.mean((0, 2)), rtol=1e-4)
    spread = expected.std(0, unbiased=False).mean(1)
    np.testing.assert_allclose(test["std"], spread, rtol=1e-4)
    of_images = gaussianity(x, 2)
    np.testing.assert_allclose(test["correlation"], of_images["correlation"], rtol=1e-3)
    accuracy = latents.probed(known)["accuracy"]  # a linear map of each number moves no class
    assert accuracy.nunique() == 1


def test_latents_of_a_planted_linear_flow_reach_as_far_as_its_slopes_let_them() -> None:
    z = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(0))
    y = torch.full((8,), -1)
    plain, scaled = reach(new(), z, y), reach(planted(0.3, 0.5), z, y)
    slopes = (planted(0.3, 0.5).blocks[0].transform.forward(
        torch.zeros(1), torch.tensor([[0.3, 0.5]])
    ))[1].exp().item() ** np.array([1, 2, 2, 2, 2, 1])  # fmt: skip
    np.testing.assert_allclose(np.diag(scaled), np.diag(plain) / slopes, rtol=1e-4)


def test_a_linear_classifier_finds_a_class_that_is_there() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    noise = torch.randn(2, 200, 6, 4, generator=random)
    noise[0, :, 2] += 3.0 * labels[:, None]
    found = probe(noise, labels, noise.flip(2), labels)
    assert found["block"].tolist() == [0, 1]
    planted = probe(noise[:, :100], labels[:100], noise[:, 100:], labels[100:])["accuracy"]
    assert planted[0] > 0.95
    assert planted[1] < 0.65


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_arc_keeps_angle_and_norm(share: float) -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 6, 4, generator=random)
    found = slerp(a, b, share).flatten(1).double()
    start, end = a.flatten(1).double(), b.flatten(1).double()
    whole = torch.cosine_similarity(start, end).arccos()
    np.testing.assert_allclose(
        torch.cosine_similarity(start, found).clamp(-1, 1).arccos(), share * whole, atol=1e-3
    )
    np.testing.assert_allclose(
        found.norm(dim=1), (1 - share) * start.norm(dim=1) + share * end.norm(dim=1), rtol=1e-6
    )


@pytest.fixture(params=[2, 0], ids=["classes", "none"])
def explored(request: pytest.FixtureRequest) -> tuple[latents.Latents, Splits]:
    images = splits(classes=request.param)
    flow = new(classes=request.param)
    return explore(flow, images, middle, 40, 16, Sampling(0)), images


def test_pictures_begin_and_end_at_test_images(explored: tuple[latents.Latents, Splits]) -> None:
    found, images = explored
    own = images.test.pixels[:10].permute(0, 2, 3, 1).numpy()
    for stage in range(3):
        assert (found.images["blocks"][:, stage] == own).all()
    line = found.images["interpolation"]
    assert line.shape == (5, 9, 4, 6, 1)
    for end, first in ((0, 0), (-1, 1)):
        assert np.abs(line[:, end].astype(int) - own[first::2]).max() <= 1
    assert ("classes" in found.images) == bool(images.classes)
    if images.classes:
        assert (found.images["classes"][:, 1:] == own[:, None]).all()  # a new flow ignores them


def test_training_images_that_are_drawn_again_have_no_distance() -> None:
    images = splits(classes=0)
    same = Splits(images.train, images.val, images.train, classes=0)
    found = explore(new(), same, middle, 40, 16, Sampling(0)).nearest
    test = found[found["set"] == "test"]
    assert (test["distance"] == 0).all()
    assert test["index"].tolist() == list(range(40))
    assert (found[found["set"] == "samples"]["distance"] > 10).all()


def test_the_page_has_every_part(explored: tuple[latents.Latents, Splits], tmp_path) -> None:
    found, images = explored
    page = write(found, "mine", tmp_path / "a" / "b").read_text()
    pictures = {path.name for path in (tmp_path / "a" / "b").glob("*.png")}
    assert all(f"({name})" in page for name in pictures)
    assert ("classes.png" in pictures) == bool(images.classes)
    assert len(pd.read_csv(tmp_path / "a" / "b" / "gaussian.csv")) == 12
    assert "data:image/png" in (tmp_path / "a" / "b" / "latents.html").read_text()


def test_too_few_images_are_rejected() -> None:
    with pytest.raises(UsageError, match="--images 5 is not valid: at least 10"):
        explore(new(), splits(), middle, 5, 16, Sampling(0))


def test_the_command_names_a_run_that_is_missing(tmp_path, capsys) -> None:
    assert main(["latents", "nothing", f"--results={tmp_path}"]) == 2
    assert "nothing" in capsys.readouterr().err
