"""Whatever option runs differ in, the report keeps its values apart and says what varies."""

from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reports import STUDY, among, tables

from flowbench import config, schema
from flowbench.bench import planted
from flowbench.config import Experiment
from flowbench.report import build
from flowbench.report.analysis import Analysis, analyses
from flowbench.report.files import Recorded, complete
from flowbench.report.tables import summary

OPTIONS = [name for name in config.options() if name != "trainer"]
TRAINER = ["trainer.max_epochs", "trainer.precision", "trainer.accumulate_grad_batches"]
SETTINGS = [name for name in [*OPTIONS, *TRAINER] if schema.is_setting(name)]
OTHERS = [name for name in OPTIONS if not schema.is_setting(name)]
SHIFT = 1.0
"""How far the losses of runs with the other value are from those with the first."""


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return planted.evaluated(tables())


def varying(recorded: Recorded, option: str) -> Recorded:
    """The runs again with another value of an option, which changes the loss by SHIFT."""
    runs = recorded.runs
    first = runs[option] if option in runs else pd.Series(np.nan, runs.index)
    other = first.astype(object).map(lambda value: 7 if isinstance(value, float | int) else "other")
    again = runs.assign(run_id="x" + runs["run_id"], **{option: other})
    again = again.assign(**{name: runs[name] + SHIFT for name in ("val/bpd", "val/loss")})
    epochs = recorded.history.assign(run_id="x" + recorded.history["run_id"])
    both = pd.concat([runs, again], ignore_index=True)
    history = pd.concat([recorded.history, epochs], ignore_index=True)
    return complete(Recorded(both, history, recorded.samples, recorded.evaluation))


def found(recorded: Recorded) -> list[Analysis]:
    return analyses(STUDY, recorded)


def test_every_option_of_an_experiment_is_a_setting_or_known_not_to_be() -> None:
    assert set(OTHERS) == {
        *("name", "seed", "data.root"),
        *(name for name in OPTIONS if name.startswith("evaluate.")),
    }
    nested = {entry.name for entry in fields(Experiment) if is_dataclass(entry.type)}
    assert nested == {name.partition(".")[0] for name in OPTIONS if "." in name}
    assert not {*SETTINGS} & {*schema.COLUMNS}


@pytest.mark.parametrize("option", [name for name in SETTINGS if name != schema.TRANSFORM])
def test_runs_that_differ_in_an_option_are_never_pooled(option: str, recorded: Recorded) -> None:
    both = varying(recorded, option)
    parts = found(both)
    for one in parts:
        assert all(part.runs[option].nunique(dropna=False) == 1 for part in one.configurations)
        assert all(part.runs["seed"].is_unique for part in one.configurations)
        rows = summary(one).rows
        assert {row[1] for row in rows} == {"3"}
        assert len({row[0] for row in rows}) == len(rows)
        # No loss is averaged over both values: then its deviation would be about half the shift.
        for part in one.configurations:
            assert part.runs["val/bpd"].std() < SHIFT / 10
        assert set(one.best[option].map(str)) <= set(one.runs[option].map(str))
        assert one.best.groupby(schema.TRANSFORM)[option].nunique(dropna=False).max() == 1
    assert sum(len(one.configurations) for one in parts) == 6
    # A pair agrees in the option, so the shift cancels, whichever value a configuration has.
    gaps = [gap for one in parts for gap in one.differences["val/bpd"].values()]
    assert len(gaps) == 4
    assert all(gap.n == 3 and abs(gap.high - gap.low) < SHIFT / 10 for gap in gaps)


@pytest.mark.parametrize("option", [name for name in SETTINGS if name != schema.TRANSFORM])
def test_the_report_says_what_varies(option: str, recorded: Recorded) -> None:
    parts = found(varying(recorded, option))
    label = schema.find(option).label
    if len(parts) > 1:
        assert all(label in one.protocol for one in parts)
    else:
        names = [one.name for one in parts[0].configurations]
        word = label.split()[0] if option not in (schema.BLOCKS, schema.LAYERS) else ""
        assert all((word or option.rpartition(".")[2][:-1]) in name for name in names)


def test_an_option_that_varies_is_in_the_tables_of_the_page(
    recorded: Recorded, tmp_path: Path
) -> None:
    bare = varying(recorded, "optim.ema")._replace(samples={}, evaluation={})
    build(STUDY, bare, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "affine, ema 7" in text
    assert "Besides transform and seed the runs differ in: ema: 0 (9 runs), 7 (9 runs)." in text
    assert "optim.ema" in pd.read_csv(tmp_path / "report" / "runs.csv").columns


@pytest.mark.parametrize("fact", schema.MACHINE)
def test_times_of_several_machines_have_no_mean(fact: str, recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs[fact] = runs[fact].astype(object).mask(runs["seed"] == 0, "other")
    (one,) = found(recorded._replace(runs=runs))
    place = summary(one).header.index("s/epoch")
    assert {row[place] for row in summary(one).rows} == {"– (several machines)"}
    assert len(one.timed_configurations) == 6
    assert len(one.configurations) == 3


def test_noises_are_reported_each_by_itself(recorded: Recorded, tmp_path: Path) -> None:
    gaussian = planted.evaluated(tables(), noise="gaussian")
    ids = gaussian.runs["run_id"]
    runs = pd.concat([recorded.runs, gaussian.runs.assign(run_id="g" + ids)], ignore_index=True)
    history = gaussian.history.assign(run_id="g" + gaussian.history["run_id"])
    both = recorded._replace(runs=runs, history=pd.concat([recorded.history, history]))
    samples = {
        f"{name}|{noise}": recorded.samples[name]
        for name in ("affine", "rqs-8")
        for noise in ("uniform", "gaussian")
    }
    first, second = found(both._replace(samples=samples))
    assert (first.protocol, second.protocol) == ("noise uniform", "noise gaussian")
    assert (first.quality.metric, second.quality.metric) == ("val/bpd", "val/loss")
    assert set(first.runs["data.noise"]) == {"uniform"}
    assert set(second.recorded.samples) == {"affine", "rqs-8"}
    written = build(STUDY, both._replace(samples=samples, evaluation={}), tmp_path / "report")
    assert {"losses.png", "losses-2.png"} <= {path.name for path in written}
    text = (tmp_path / "report" / "report.md").read_text()
    assert "**Answer (noise uniform).**" in text
    assert "**Answer (noise gaussian).**" in text


def test_an_unlisted_trainer_option_is_a_setting(recorded: Recorded) -> None:
    precision = recorded.runs["run_id"].map(lambda _: None).mask(among(recorded, "affine"), "bf16")
    runs = recorded.runs.assign(**{"trainer.precision": precision})
    (one,) = found(recorded._replace(runs=runs))
    assert one.differences["val/bpd"]["RQS K=8, precision default"].n == 0
