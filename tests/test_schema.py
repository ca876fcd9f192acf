"""The schema of a run: every column has one description, and settings follow the configuration."""

import pytest

from flowbench import config, schema
from flowbench.config import Experiment


def test_settings_are_all_options_but_the_known_exceptions() -> None:
    others = {name for name in config.options() if not schema.is_setting(name)}
    evaluated = {name for name in config.options() if name.startswith("evaluate.")}
    assert others == {"name", "seed", "data.root", "trainer", *evaluated}
    assert all(schema.is_setting(f"trainer.{name}") for name in Experiment().trainer)


def test_no_option_has_the_name_of_another_column() -> None:
    assert set(config.options()) & set(schema.COLUMNS) == {"name", "seed"}


@pytest.mark.parametrize("name", [*schema.NAMES, *filter(schema.is_setting, config.options())])
def test_every_column_describes_itself(name: str) -> None:
    column = schema.find(name)
    assert column.name == name
    assert column.label
    assert schema.is_known(name)
    assert "{" not in column.label + column.axis


@pytest.mark.parametrize(
    ("name", "label", "direction"),
    [
        ("fid_digits", "FID (digits)", "minimize"),
        ("fid_digits_floor", "floor of FID (digits)", ""),
        ("recall_kmnist", "recall (kmnist)", "maximize"),
        ("extractor_digits", "extractor of digits", ""),
        ("extractor_digits/accuracy", "accuracy of the digits extractor", ""),
        ("val/fid_digits", "validation FID (digits)", "minimize"),
        ("outside/block_3", "share of inputs in the tails, block_3", ""),
    ],
)
def test_names_with_a_suffix_are_described_by_their_pattern(
    name: str, label: str, direction: str
) -> None:
    column = schema.find(name)
    assert (column.label, column.direction) == (label, direction)


def test_labels_of_settings_are_unique() -> None:
    labels = [schema.find(name).label for name in config.options() if schema.is_setting(name)]
    assert len(labels) == len(set(labels))


def test_only_metrics_with_a_direction_are_objectives() -> None:
    good = ["val/loss", "test/bpd", "seconds_per_epoch", "images_per_second", "fid_digits"]
    good += ["val/fid_digits", "bayes/accuracy", "agreement_digits", "test/nll", "train/logdet"]
    bad = ["loss", "fid", "fid_*", "fid_digits_floor", "test/draws", "optim.lr", "lr", "anything"]
    assert [name for name in [*good, *bad] if schema.is_objective(name)] == good
