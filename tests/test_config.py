"""The configuration: what goes in comes out, and what is wrong is named with what is valid."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flowbench.config import Experiment, Model, flat, to_yaml
from flowbench.errors import UsageError
from flowbench.parsing import build, experiment_parser, parse


def parsed(*arguments: str) -> Experiment:
    return parse(experiment_parser("flowbench train"), arguments)[0]


def test_yaml_reads_back_what_was_written(tmp_path: Path) -> None:
    options = ("--model.transform=rqs-4", "--seed=7", "--optim.betas=[0.8,0.9]", "--optim.ema=0.9")
    experiment = parsed(*options, "--trainer.precision=bf16-mixed", "--data.noise=gaussian")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(experiment))
    assert parsed("--config", str(file)) == experiment
    assert build(yaml.safe_load(to_yaml(experiment))) == experiment
    assert experiment.trainer == {"max_epochs": 10, "precision": "bf16-mixed"}


@pytest.mark.parametrize("order", [1, -1])
def test_options_win_over_the_file_wherever_they_stand(order: int, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: {width: 32, layers: 2}\ntrainer: {max_epochs: 3}\n")
    options = [f"--config={file}", "--model.width=48", "--trainer.precision=bf16-mixed"]
    experiment = parsed(*options[::order])
    assert experiment.model == Model(width=48, layers=2)
    assert experiment.trainer == {"max_epochs": 3, "precision": "bf16-mixed"}


def test_numbers_in_scientific_notation_are_numbers() -> None:
    values = yaml.safe_load("optim: {lr: 1e-3, min_lr: 1e-9}")
    assert build(values).optim.lr == parsed("--optim.lr=1e-3").optim.lr == 0.001


def test_equal_experiments_have_equal_digests() -> None:
    assert build({"seed": 1}).digest() == parsed("--seed=1").digest()
    assert build({"seed": 1}).digest() != build({"seed": 2}).digest()
    assert build({"trainer": {"max_epochs": 10}}).digest() == Experiment().digest()


WRONG_OPTIONS = {
    "--model.widht=3": r"unknown option model.widht \(did you mean model.width\?\): valid",
    "--widht=3": r"unknown option widht: valid are name, seed, trainer, seconds, flops, compi",
    "nonsense": "unknown option nonsense",
    "--model.width=abc": "^model.width = 'abc' is not valid: an integer$",
    "--model.heads=x": "^model.heads = 'x' is not valid: an integer or null$",
    "--model.layers=0": "model.layers = 0 is not valid: an integer of at least 1, or a list of 8",
    "--model.layers=[1,2]": r"model.layers = \[1, 2\] is not valid: .* a list of 8, one for each",
    "--model.start=none": "model.start = 'none' is not valid: one of 'identity', 'learned'",
    "--model.clip=0": "model.clip = 0.0 is not valid: a number above 0, or null",
    "--optim.norm_penalty=-1": "optim.norm_penalty = -1.0 is not valid: at least 0",
    "--model.width=0": "model.width = 0 is not valid: an integer of at least 1",
    "--model.heads=7": "model.heads = 7 is not valid: an integer that divides model.width = 128",
    "--data.name=cifar": "data.name = 'cifar' is not valid: one of 'mnist-5k', 'digits-on-photos'",
    "--data.noise_std=0": "data.noise_std = 0.0 is not valid: a number above 0",
    "--optim.lr=nan": "optim.lr = 'nan' is not valid: a number",
    "--optim.lr=-1": "optim.lr = -1.0 is not valid: a number above 0",
    "--optim.lr=x": "optim.lr = 'x' is not valid: a number",
    "--optim.min_lr=1": "optim.min_lr = 1.0 is not valid: a number from 0 to optim.lr = 0.002",
    "--optim.betas=[0.9,1]": "optim.betas .* is not valid: two numbers in",
    "--optim.ema=1": "optim.ema = 1.0 is not valid: a number in",
    "--model.conditional=maybe": "model.conditional = 'maybe' is not valid: true or false",
    "--seed=-1": "seed = -1 is not valid: an integer in",
    "--seconds=0": "seconds = 0.0 is not valid: a number above 0, or null",
    "--seconds=soon": "seconds = 'soon' is not valid: a number or null",
    "--trainer=3": "trainer = '3' is not valid: a mapping",
    "--config=nowhere.yaml": "configuration file nowhere.yaml cannot be read: .*No such file",
    "--config": "--config needs a YAML file",
}


@pytest.mark.parametrize("option", WRONG_OPTIONS)
def test_a_wrong_option_is_named_with_what_is_valid(option: str) -> None:
    with pytest.raises(UsageError, match=WRONG_OPTIONS[option]):
        parsed(option)


WRONG_FILES = {
    "model: {widht: 3}": "unknown key model.widht .*valid are model.transform, model.blocks",
    "modle: {width: 3}": "unknown key modle: valid are name, seed",
    "model: {width: abc}": "model.width = 'abc' is not valid: an integer",
    "model: 3": "model = 3 is not valid: a mapping of transform, blocks",
    "- 1": "is not a mapping",
    "model: [1,": "configuration file .* cannot be read",
    "seed: 1\nname: a\nseed: 2": "seed stands twice, the second time in line 3",
    "model: {width: 32, width: 64}": "width stands twice, the second time in line 1",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_a_wrong_file_is_named_with_what_is_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=WRONG_FILES[text]):
        parsed("--config", str(file))


@pytest.mark.parametrize(
    "values", [{"model": {"widht": 3}}, {"model": None}, {"seed": [1]}, {"data": {"batch": 0}}]
)
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(flat(values)))):
        build(values)
