import math

import pytest
import torch
from scipy import stats

from flowbench.seeding import Noise, _mix

WRAP = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(state: int) -> int:
    """One output of SplitMix64 in Python's own integers."""
    z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % WRAP
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WRAP
    return z ^ z >> 31


def signed(number: int) -> int:
    return number - WRAP if number >= WRAP // 2 else number


def test_numbers_are_mixed_as_the_published_generator_does() -> None:
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # seed 0
    counter = [signed(i * GOLDEN % WRAP) for i in (1, 2, 3)]
    assert _mix(torch.tensor(counter)).tolist() == [signed(number) for number in published]
    assert [splitmix(i * GOLDEN % WRAP) for i in (1, 2, 3)] == published


def test_numbers_of_images_are_those_of_plain_integers() -> None:
    noise = Noise(3, 1, ids=torch.tensor([0, 41]))
    uniform, normal = noise.uniform(2, 2), noise.normal(2, 2)
    for row, image in enumerate(noise._images.tolist()):
        words = [splitmix((image + i * GOLDEN) % WRAP) for i in (1, 2)]
        halves = [half for word in words for half in (word % 2**32, word >> 32)]
        assert uniform[row].flatten().tolist() == [(half >> 8) / 2**24 for half in halves]
        radius = [math.sqrt(-2 * math.log(((word >> 32) + 0.5) / 2**32)) for word in words]
        angle = [2 * math.pi * (word % 2**32) / 2**32 for word in words]
        expected = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
        expected += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
        assert normal[row].flatten().tolist() == pytest.approx(expected, abs=2e-6)


def test_a_place_is_mixed_number_by_number() -> None:
    key = 0
    for number in (2, 7, 2**40):  # how many there are comes first
        key = splitmix((key + (number + 1) * GOLDEN) % WRAP)
    image = splitmix((key + 4 * GOLDEN) % WRAP)
    assert Noise(7, 2**40, ids=torch.tensor([3]))._images.tolist() == [signed(image)]


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 785])
def test_an_image_has_its_numbers_in_any_batch(kind: str, size: int) -> None:
    def drawn(*images: int) -> torch.Tensor:
        return getattr(Noise(5, 2, ids=torch.tensor(images)), kind)(size)

    whole = drawn(*range(40))
    assert whole.shape == (40, size)
    for parts in ([range(40)], [range(17), range(17, 40)], [[i] for i in range(40)]):
        assert torch.cat([drawn(*part) for part in parts]).equal(whole)
    assert drawn(39, 3, 3).equal(whole[[39, 3, 3]])


def test_other_places_and_images_share_nothing() -> None:
    places = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 2), (0, 2, 1), (2**32, 1)]
    images = torch.tensor([0, 1, 2, 3, 50_000])
    drawn = torch.cat([Noise(*place, ids=images).uniform(5000) for place in places])
    correlation = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert correlation.abs().max() < 5 / math.sqrt(5000)
    shifted = torch.corrcoef(torch.cat([drawn[:, :-1], drawn[:, 1:]]))
    assert (shifted[: len(drawn), len(drawn) :]).abs().max() < 5 / math.sqrt(5000)


@pytest.mark.parametrize(("kind", "cdf"), [("uniform", "uniform"), ("normal", "norm")])
def test_numbers_are_distributed_as_they_should_be(kind: str, cdf: str) -> None:
    drawn = getattr(Noise(7, ids=torch.arange(1000)), kind)(28, 28)
    assert drawn.dtype == torch.float32
    assert stats.kstest(drawn.flatten().numpy(), cdf).pvalue > 0.01
    assert stats.kstest(drawn[:, 3, 5].numpy(), cdf).pvalue > 0.01  # a pixel of every image
    assert stats.kstest(drawn[6].flatten().numpy(), cdf).pvalue > 0.01  # all pixels of an image
    pairs = drawn.flatten(1)
    half = (pairs.shape[1] + 1) // 2  # both normal numbers of a pair have one radius
    moments = [(pairs[:, :-half].double() ** k * pairs[:, half:] ** k).mean() for k in (1, 2)]
    expected = {"uniform": [1 / 4, 1 / 9], "normal": [0, 1]}[kind]
    assert [float(moment) for moment in moments] == pytest.approx(expected, abs=0.015)


def test_uniform_numbers_are_below_one_and_normal_ones_finite() -> None:
    noise = Noise(0, ids=torch.arange(20_000))
    uniform, normal = noise.uniform(1000), noise.normal(1000)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert normal.isfinite().all()
    assert 5 < normal.abs().max() < 6.8


def test_the_rarest_words_give_numbers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [0, -1, 1, 2**32 - 1, 2**32, -(2**32), 2**63 - 1, -(2**63), 2**31, -(2**31)]
    monkeypatch.setattr(Noise, "_words", lambda *_: torch.tensor([ends]))
    noise = Noise(0, ids=torch.tensor([0]))
    uniform, normal = noise.uniform(20), noise.normal(20)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert normal.isfinite().all()
    assert normal.abs().max() < 6.8


@pytest.mark.gpu
def test_a_gpu_makes_the_same_numbers() -> None:
    here, there = (Noise(1, 2, ids=torch.arange(300, device=place)) for place in ("cpu", "cuda"))
    assert there.uniform(784).cpu().equal(here.uniform(784))
    torch.testing.assert_close(there.normal(784).cpu(), here.normal(784), rtol=1e-4, atol=1e-3)
