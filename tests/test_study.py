"""Study files: what varies and in which order, what is refused, and every shipped one is whole."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
import yaml

from flowbench.config import Experiment, flat
from flowbench.errors import UsageError
from flowbench.experiment import run
from flowbench.module import build_flow
from flowbench.size import image_shape
from flowbench.space import put
from flowbench.study import Choice, Range, StudyFile, read
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES

RESULTS = Path(__file__).parents[1] / "results"
SHIPPED = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))
BLOCKS = {"low": 1, "high": 4}
RATE = {"low": "1e-4", "high": 1e-2, "log": True}  # YAML reads 1e-4 as text
CONTENT: dict[str, Any] = {
    "question": "Which?",
    "expected": "This one.\n",
    "cost": {"quick": "a minute", "full": "a day"},
    "base": {"model": {"blocks": 2, "width": 32}, "trainer": {"max_epochs": 3}},
    "space": {"model.transform": ["affine", "rqs-4"]},
    "seeds": [0, 1],
    "scales": {"quick": {"model": {"width": 16}}, "full": {"seeds": [5]}},
}


def write(directory: Path, **changes: Any) -> Path:
    content = {key: value for key, value in {**CONTENT, **changes}.items() if value is not ...}
    file = directory / "which.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def shipped(name: str, scale: str = "quick") -> StudyFile:
    (path,) = (path for path in SHIPPED if path.stem == name)
    return read(path, scale)


def ends(study: StudyFile) -> list[Experiment]:
    """The points of a grid; of a search, its corner of all first values, and that of the last."""
    seed = study.seeds[0]
    if study.points:
        return [point.experiment for point in study.points if point.seed == seed]
    corners = [{key: d.ends[end] for key, d in study.space.items()} for end in (0, -1)]
    return [study.experiment(values, seed) for values in corners]


# What is shipped


FULL = {"colour": {"mnist", "cifar10"}, "ood": {"mnist", "fashion-mnist", "kmnist"}}
"""The data of the full scale, where it is not MNIST alone."""


@pytest.mark.parametrize("scale", ["quick", "full"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_study_can_be_built(path: Path, scale: str) -> None:
    study = read(path, scale)
    digests = {point.experiment.digest() for point in study.points}
    assert len(digests) == len(study.points) or study.sampler != "grid"
    assert study.trials > 1
    assert str(len(study.points) or study.trials) in study.cost
    assert study.question
    assert study.expected
    head = path.read_text().split("\nquestion:")[0]
    assert [word in head for word in ("# Question:", "# Expected:", "# Cost:")] == [True] * 3
    experiments = ends(study)
    epochs = {e.trainer["max_epochs"] for e in experiments}
    if "trainer" in study.base:
        assert epochs == {study.base["trainer"]["max_epochs"]}
    if scale == "full" and study.mode == "train":
        expected = FULL.get(path.stem, {"mnist"})
        assert {e.data.name for e in experiments} == expected
        expected_epochs = {"learning-rate": 20, "scaling": -1}  # a budget of FLOPs ends the latter
        assert epochs == {expected_epochs.get(path.stem, 100)}
    with torch.device("meta"):
        for experiment in {str((e.model, e.data)): e for e in experiments}.values():
            shape = image_shape(experiment.data)
            assert build_flow(experiment, shape, 10).dims == math.prod(shape)


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_trial_of_every_shipped_study_runs(path: Path, tmp_path: Path) -> None:
    study = read(path)
    first = {key: dimension.ends[0] for key, dimension in study.space.items()}
    study = replace(study, base=put(study.base, tiny.OPTIONS))
    store = Store(tiny.results(tmp_path / "results"))
    record = run(study.experiment(first, study.seeds[0]), store)
    assert store.get(record.run_id).info.status == "FINISHED"
    assert set(study.objectives) <= record.metrics.keys()


def test_the_comparison_is_that_of_the_original() -> None:
    points = shipped("compare-affine-rqs", "full").points
    transforms = {"affine", "softaffine", "rqs-4", "rqs-8"}
    assert {p.experiment.model.transform for p in points} == transforms
    assert {p.experiment.data.noise for p in points} == {"uniform", "gaussian"}
    assert {(p.experiment.model.blocks, p.experiment.model.patch) for p in points} == {(8, 4)}
    assert {p.experiment.data.name for p in points} == {"mnist"}
    assert {p.experiment.trainer["max_epochs"] for p in points} == {100}
    assert {p.seed for p in points} == {0, 1, 2}


@pytest.mark.parametrize(
    ("name", "scale", "shared"),
    [
        ("bins", "medium", 3),
        ("bins", "full", 3),
        ("blocks", "full", 2),
    ],
)
def test_studies_of_one_variable_have_points_of_the_comparison(
    name: str, scale: str, shared: int
) -> None:
    """Their results connect: the same flows, data and epochs."""

    def trained(study: StudyFile) -> set[str]:
        points = [point.experiment for point in study.points if point.seed == 0]
        return {repr((one.model, one.data, one.trainer)) for one in points}

    both = trained(shipped("compare-affine-rqs", scale)) & trained(shipped(name, scale))
    assert len(both) == shared


def test_the_comparison_trains_each_transform_at_its_own_best_learning_rate() -> None:
    runs = pd.read_csv(RESULTS / "learning-rate" / "quick" / "runs.csv")
    best = runs.loc[runs.groupby(["model.transform", "data.noise"])["val/loss"].idxmin()]
    rates = best.set_index(["model.transform", "data.noise"])["optim.lr"].to_dict()
    for scale in ("quick", "medium"):
        for point in shipped("compare-affine-rqs", scale).points:
            one = point.experiment
            assert one.optim.lr == rates[one.model.transform, one.data.noise]


def test_matched_blocks_share_equally_many_layers() -> None:
    for scale, layers, blocks in (("quick", 4, {1, 2, 4}), ("full", 8, {1, 2, 4, 8})):
        models = [point.experiment.model for point in shipped("blocks-matched", scale).points]
        assert {model.blocks * model.layers for model in models} == {layers}
        assert {model.blocks for model in models} == blocks


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_the_timing_study_times_what_the_others_train(scale: str) -> None:
    def models(name: str) -> list[Any]:
        return [p.experiment.model for p in shipped(name, scale).points if p.seed == 0]

    timed, trained = models("timing"), models("bins") + models("blocks")
    more = {"quick": {"softaffine"}, "full": set()}[scale]
    assert {model.transform for model in set(timed) - set(trained)} == more
    assert set(trained) <= set(timed)
    assert len(timed) == len(set(timed))


# What a file says


def test_points_take_turns_and_the_scale_overrides(tmp_path: Path) -> None:
    study = read(write(tmp_path))
    assert study.name == "which/quick"
    assert study.cost == "a minute"
    assert (study.sampler, study.pruner, study.mode) == ("grid", "none", "train")
    assert (study.objectives, study.failures) == ({"val/loss": "minimize"}, 0.5)
    named = [(p.experiment.model.transform, p.experiment.seed) for p in study.points]
    assert named == [("affine", 0), ("rqs-4", 0), ("affine", 1), ("rqs-4", 1)]
    assert study.trials == 4
    for point in study.points:
        assert (point.experiment.model.blocks, point.experiment.model.width) == (2, 16)
        assert point.experiment.trainer == {"max_epochs": 3}
        assert point.experiment.name == "which/quick"
        assert point.experiment == study.experiment(point.values, point.seed)
        assert point.seed == point.experiment.seed

    full = read(tmp_path / "which.yaml", "full")
    assert full.name == "which/full"
    assert [point.seed for point in full.points] == [5, 5]
    assert full.points[0].experiment.model.width == 32


def test_coupled_keys_vary_together(tmp_path: Path) -> None:
    coupled = {"model.blocks,model.layers": [[1, 8], [8, 1]], "data.batch": [10, 20]}
    study = read(write(tmp_path, base={}, space=coupled, seeds=[3]))
    made = [point.experiment for point in study.points]
    named = [(e.model.blocks, e.model.layers, e.data.batch) for e in made]
    assert named == [(1, 8, 10), (1, 8, 20), (8, 1, 10), (8, 1, 20)]
    assert study.points[0].values == {"model.blocks, model.layers": [1, 8], "data.batch": 10}


def test_a_search_has_a_space_and_no_points(tmp_path: Path) -> None:
    objectives = {"val/bpd": "minimize", "seconds_per_epoch": "minimize"}
    varied = {"optim.lr": RATE, "model.blocks": BLOCKS, "model.layers": {**BLOCKS, "step": 3}}
    search = {"sampler": "tpe", "objectives": objectives, "trials": 7, "failures": 0}
    scales = {"quick": {"space": {"model.transform": ["affine"]}}, "full": {"trials": 70}}
    study = read(write(tmp_path, base={}, space=varied, scales=scales, **search))
    assert study.points == ()
    assert study.space == {
        "optim.lr": Range(1e-4, 1e-2, None, True),
        "model.blocks": Range(1, 4),
        "model.layers": Range(1, 4, 3),
        "model.transform": Choice(("affine",)),
    }
    assert (study.trials, study.failures, study.objectives) == (7, 0, objectives)
    assert [type(end) for end in study.space["model.blocks"].ends] == [int, int]
    made = study.experiment({"optim.lr": 2e-3, "model.blocks": 3}, 4)
    assert (made.optim.lr, made.model.blocks, made.seed) == (2e-3, 3, 4)
    full = read(tmp_path / "which.yaml", "full")
    assert full.trials == 70
    assert "model.transform" not in full.space


def test_what_decides_the_results_decides_the_digest(tmp_path: Path) -> None:
    def digest(**changes: Any) -> str:
        return read(write(tmp_path, **changes)).digest()

    search = {"sampler": "tpe", "trials": 3}
    same = [{}, {"question": "Which one?"}, {"cost": {}}, {"failures": 1}, {"mode": "train"}]
    same += [{"base": {**CONTENT["base"], "optim": {"clip": 1.0}}}]  # the default
    assert len({digest(**changes) for changes in same}) == 1
    assert digest(**search) == digest(**{**search, "trials": 30})
    others = [{"base": {"model": {"blocks": 3}}}, {"seeds": [0]}, search]
    others += [{"space": {"model.transform": ["affine"]}}, {"objectives": {"val/bpd": "minimize"}}]
    assert len({digest(**changes) for changes in [{}, *others]}) == 1 + len(others)


def test_the_definition_names_what_differs(tmp_path: Path) -> None:
    before = read(write(tmp_path)).definition()
    base = {"model": {"blocks": 3, "width": 32}, "trainer": {"max_epochs": 3}}
    after = read(write(tmp_path, base=base, seeds=[0, 1, 2])).definition()
    differing = {key for key in before | after if before.get(key) != after.get(key)}
    assert differing == {"model.blocks", "seeds"}
    assert "model.transform" not in before
    assert before == flat(before) == yaml.safe_load(yaml.safe_dump(before))  # flat, plain values


# What is refused

SEARCH = {"sampler": "tpe", "trials": 3}


def ranged(**changes: Any) -> dict[str, Any]:
    return {**SEARCH, "space": {"optim.lr": {**RATE, **changes}}}


def coupled(*values: Any) -> dict[str, Any]:
    return {"space": {"model.blocks, model.layers": list(values)}}


TWO = {"val/loss": "minimize", "val/bpd": "minimize"}
LIST = "a list of different values"
WRONG: dict[str, dict[str, Any]] = {
    "unknown key gird: valid are question, expected, cost, base, space, scales, seeds": {"gird": 1},
    "unknown key model.widht": {"base": {"model": {"widht": 3}}},
    "unknown key model.transfrom": {"space": {"model.transfrom": ["affine"]}},
    "model.blocks stands in space and has a value besides": {"space": {"model.blocks": [1, 2]}},
    "model.width stands in space and has a value besides": {
        "base": {},
        "space": {"model.width": [16, 32]},
    },
    "data.batch stands twice in space": {
        "space": {"data.batch": [1, 2], "data.batch, model.layers": [[3, 4]]},
    },
    "unknown key model.layres": {"space": {"model.blocks, model.layres": [[1, 2]]}},
    "model.blocks = 0 is not valid": {"space": {"model.blocks": [1, 0]}},
    "model = 3 is not valid: a mapping of": {"space": {"model": [3]}},
    "base is missing": {"base": None},
    "space is missing": {"space": ...},
    "question = '3' is not valid: text": {"question": 3},
    "no scale 'quick': valid are full": {"scales": {"full": {}}},
    "scales = '3' is not valid: a mapping": {"scales": {"quick": 3}},
    "space = '4' is not valid: a mapping": {"scales": {"quick": {"space": 4}}},
    "sampler cannot stand in base, space or a scale": {"scales": {"quick": {"sampler": "tpe"}}},
    # what varies
    rf"space.model.layers = \[2, 2\] is not valid: {LIST}": {"space": {"model.layers": [2, 2]}},
    "space.model.layers = 3 is not valid: a list": {"space": {"model.layers": 3}},
    r"space.model.layers = \[\] is not valid: a list": {"space": {"model.layers": []}},
    r"= \[1\] is not valid: a list of 2 values, one for each key": coupled([1, 8], [1]),
    "model.layers = 8 is not valid: a list of 2 values, one": coupled(8),
    rf"model.layers = \[\[1, 8\], \[1, 8\]\] is not valid: {LIST}$": coupled([1, 8], [1, 8]),
    rf"model.layers = \{{'low': 1, 'high': 4\}} is not valid: {LIST}$": {
        "space": {"model.blocks, model.layers": BLOCKS}
    },
    "model.blocks stands twice in space": {
        "space": {"model.blocks": [1], "model.blocks, model.layers": [[1, 2]]}
    },
    "space.optim.lr = .* is not valid: .* with sampler grid; low and high with one of random": {
        "space": {"optim.lr": RATE}
    },
    # ranges
    "unknown key space.optim.lr.hihg: valid are low, high, step, log": ranged(hihg=1),
    "space.optim.lr.low = 0.1 is not valid: a number below high = 0.01": ranged(low=0.1),
    "space.optim.lr.low = None is not valid: a number$": ranged(low=None),
    "space.optim.lr.high = True is not valid: a number$": ranged(high=True),
    "space.optim.lr.high = inf is not valid: a number$": ranged(high=float("inf")),
    "space.optim.lr.low = 0 is not valid: a number above 0 where log": ranged(low=0),
    "space.optim.lr.log = 'yes' is not valid: true or false": ranged(log="yes"),
    "space.optim.lr.step = 0.001 is not valid: none where log is true": ranged(step=0.001),
    "space.optim.lr.step = 0.004 is not valid: .* divides": ranged(step=0.004, log=False),
    "space.optim.lr.step = 0.0 is not valid: a number above 0": ranged(step=0.0, log=False),
    "space.model.blocks.step = 1.5 is not valid: an integer": {
        **SEARCH,
        "space": {"model.blocks": {**BLOCKS, "step": 1.5}},
    },
    "model.blocks = 0 is not valid: an integer of at": {
        **SEARCH,
        "space": {"model.blocks": {"low": 0, "high": 4}},
    },
    "model.width = 'abc' is not valid": {**SEARCH, "space": {"model.width": [16, "abc"]}},
    "optim.lr = '?-?[0-9.]+'? is not valid": ranged(low=-1.0, log=False),
    # seeds
    rf"seeds = \[0, 0\] is not valid: {LIST}, all integers": {"seeds": [0, 0]},
    "seeds = '3' is not valid: a list": {"seeds": 3},
    r"seeds = \[\] is not valid": {"seeds": []},
    "seeds = 'True' is not valid: an integer": {"seeds": [True]},
    "seed = -1 is not valid: an integer in": {"seeds": [0, -1]},
    "seed cannot stand in base, space or a scale: seeds": {"space": {"seed": [0, 1]}},
    "seed cannot stand in base": {"base": {"seed": 3}},
    "name cannot stand in base": {"scales": {"quick": {"name": "other"}}},
    # how it is searched
    "sampler = 'gird' is not valid: one of 'grid', 'random', 'tpe', 'nsga2'": {"sampler": "gird"},
    "pruner is empty: give it a value or leave it out": {"pruner": None},
    "mode = 'time' is not valid: one of 'train', 'timing'": {"mode": "time"},
    "objectives = .* is not valid: a mapping": {"objectives": ["val/loss"]},
    "objectives = {} is not valid": {"objectives": {}},
    "unknown objective val/los: valid is a metric": {"objectives": {"val/los": "minimize"}},
    "objective fid_digits needs evaluate.samples above 0": {
        "objectives": {"fid_digits": "minimize"},
        "base": {"evaluate": {"samples": 0}},
    },
    "objective bayes/accuracy needs evaluate.bayes above 0 and model.conditional": {
        "objectives": {"bayes/accuracy": "maximize"},
        "base": {"model": {"conditional": False}},
    },
    "objective val/fid_digits needs evaluate.fidelity_every": {
        "objectives": {"val/fid_digits": "minimize"}
    },
    "objective test/bpd needs data.noise = uniform": {
        "objectives": {"test/bpd": "minimize"},
        "base": {"data": {"noise": "gaussian"}},
    },
    "objective test/nll needs data.noise = gaussian": {"objectives": {"test/nll": "minimize"}},
    "objectives = 'min' is not valid: one of 'minimize', 'maximize'": {
        "objectives": {"val/loss": "min"}
    },
    r"objectives = \['val/loss', 'val/bpd'\] is not valid: a single one, .* with pruner median": {
        "pruner": "median",
        "objectives": TWO,
    },
    r"objectives = \['test/bpd'\] is not valid: .* of train/\* or val/\*": {
        "pruner": "hyperband",
        "objectives": {"test/bpd": "minimize"},
    },
    "trials = None is not valid: an integer of at least 1, which sampler nsga2 needs": {
        "sampler": "nsga2"
    },
    "trials = 0 is not valid": {**SEARCH, "trials": 0},
    "trials = 3 is not valid: left out, since a grid runs all": {"trials": 3},
    "failures = 1.5 is not valid: a number in": {"failures": 1.5},
    "failures = 'half' is not valid: a number": {"failures": "half"},
    # timing
    "sampler = 'tpe' is not valid: grid in mode timing": {**SEARCH, "mode": "timing"},
    "pruner = 'median' is not valid: none in mode timing": {"mode": "timing", "pruner": "median"},
    "seconds = 5.0 is not valid: null in mode timing": {
        "mode": "timing",
        "base": {**CONTENT["base"], "seconds": 5},
    },
    "trainer.max_epochs = 1 is not valid: .* at least 2": {
        "mode": "timing",
        "base": {"trainer": {"max_epochs": 1}},
    },
    "trainer.max_epochs = 3 is not valid: the same integer": {
        "mode": "timing",
        "space": {"trainer.max_epochs": [2, 3]},
    },
}


@pytest.mark.parametrize("told", WRONG)
def test_a_wrong_study_is_named_with_what_is_valid(told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told) as error:
        read(write(tmp_path, **WRONG[told]))
    assert str(error.value).startswith(f"{tmp_path / 'which.yaml'}: ")
    assert "\n" not in str(error.value)


def test_a_missing_study_is_told_with_those_that_are_there() -> None:
    with pytest.raises(UsageError, match=r"study file wich.yaml; with flowbench come bins, block"):
        read(Path("wich.yaml"))


def test_a_shipped_study_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read(Path("bins")).name == "bins/quick"


def test_a_study_that_is_no_yaml_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("base: [1,")
    with pytest.raises(UsageError, match=r"study file .*bad.yaml cannot be read"):
        read(tmp_path / "bad.yaml")
