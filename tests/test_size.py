"""The size of a flow, from its configuration alone."""

import math
import re
from pathlib import Path

import pytest
import tiny
import torch

from flowbench import size
from flowbench.config import Data, Experiment, Model
from flowbench.data import load
from flowbench.errors import UsageError
from flowbench.module import build_flow

SHAPE = (1, 28, 28)
MODELS = [
    {"model__transform": "rqs-8"},
    {"model__transform": "affine+rqs-4", "model__heads": 4, "model__expansion": 2},
    {"model__transform": "srqs-3", "model__layers": 3, "model__patch": 4},
    {"model__transform": "additive", "model__conditional": False, "model__blocks": 5},
    {"model__transform": "lrs-4", "model__start": "token", "model__qk_norm": True},
    {"model__transform": "crat", "model__start": "learned", "model__final_norm": True},
    {"model__transform": "loft", "model__blocks": 2, "model__layers": [1, 3]},
    {"model__transform": "mol-2", "model__conditional": False, "model__start": "learned"},
]


@pytest.mark.parametrize("options", MODELS, ids=lambda options: options["model__transform"])
def test_parameters_are_counted_without_making_them(options: dict[str, object]) -> None:
    experiment = tiny.experiment(**options)
    flow = build_flow(experiment, SHAPE, 10)
    made = sum(parameter.numel() for parameter in flow.parameters())
    assert size.parameters(experiment.model, SHAPE, 10) == made


@pytest.mark.parametrize(
    "options",
    [
        {"model__blocks": 10**20},
        {"model__layers": 10**12},
        {"model__width": 10**8},
        {"model__patch": 10**8},
        {"data__batch": 10**10},
        {"evaluate__samples": 10**13},
    ],
    ids=str,
)
def test_what_fits_no_memory_is_refused_before_it_is_made(options: dict[str, int]) -> None:
    ((key, value),) = options.items()
    with pytest.raises(UsageError, match=f"{key.replace('__', '.')} = {value}") as told:
        size.check_fits(tiny.experiment(**options), SHAPE, 10, torch.device("cpu"))
    assert "memory" in str(told.value) or "GiB" in str(told.value)
    size.check_fits(tiny.experiment(), SHAPE, 10, torch.device("cpu"))


def test_memory_grows_with_what_is_kept() -> None:
    def memory(**options: object) -> int:
        return size.memory(tiny.experiment(**options), SHAPE, 10)

    weights = 4 * size.FLOAT * size.parameters(tiny.experiment().model, SHAPE, 10)
    activations = memory(data__batch=100) - weights
    assert memory(data__batch=200) - weights == 2 * activations
    assert math.isclose(memory(optim__ema=0.9) - memory(), weights / 4)
    deep = {"model__blocks": 8, "data__batch": 400}
    assert memory(**deep, recompute=True) < memory(**deep) / 3


def test_the_flops_of_a_training_are_known_before_the_data_are_read() -> None:
    options = {"data__name": "mnist-5k", "trainer__max_epochs": 3}
    experiment = tiny.experiment(**options)
    of_image = 6 * size.parameters(experiment.model, SHAPE, 10) * 16  # patches of 7 by 7 pixels
    assert size.training_flops(experiment) == of_image * 4000 * 3
    fewer = tiny.experiment(**options, data__train_images=100)
    assert size.training_flops(fewer) == of_image * 100 * 3
    assert size.training_flops(tiny.experiment(**options, flops=1e9)) == 1e9
    for unknown in (
        {"seconds": 5.0},
        {"trainer__max_steps": 10},
        {"trainer__max_epochs": -1, "seconds": 5.0},
        {"data__name": "folder"},
    ):
        assert size.training_flops(tiny.experiment(**{**options, **unknown})) is None


@pytest.mark.parametrize("name", ["mnist-5k", "digits-on-photos", "photo-crops"])
def test_as_many_training_images_are_counted_as_there_are(name: str) -> None:
    assert size.TRAINING_IMAGES[name] == len(load(Data(name)).train)


README = Path(__file__).parents[1] / "README.md"
ROW = re.compile(r"^\| (\d+) × (\d+) × (\d+) \| ([\d.]+) million \|(.*)\|$", re.MULTILINE)


def test_the_readmes_table_of_memory_is_what_is_estimated() -> None:
    rows = ROW.findall(README.read_text(encoding="utf-8"))
    assert len(rows) == 4
    for blocks, layers, width, millions, cells in rows:
        model = Model("rqs-8", int(blocks), int(layers), int(width))
        assert f"{size.parameters(model, SHAPE, 10) / 1e6:.1f}" == millions
        expected = [
            size.memory(Experiment(model=model, data=data, recompute=again), SHAPE, 10) / 2**30
            for data in (Data("mnist", batch=256), Data("mnist", batch=2048))
            for again in (False, True)
        ]
        assert [cell.split()[0] for cell in cells.split("|")] == [f"{gib:.1f}" for gib in expected]
