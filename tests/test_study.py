"""Study files: the grid in order, overrides by scale, and every shipped one can be built."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flowbench.errors import UsageError
from flowbench.module import build_flow
from flowbench.study import read

SHIPPED = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))
CONTENT: dict[str, Any] = {
    "question": "Which?",
    "expected": "This one.\n",
    "cost": {"quick": "a minute", "full": "a day"},
    "base": {"model": {"blocks": 2, "width": 32}, "trainer": {"max_epochs": 3}},
    "grid": {"model.transform": ["affine", "rqs-4"], "seed": [0, 1]},
    "scales": {"quick": {"model": {"width": 16}}, "full": {"grid": {"seed": [5]}}},
}


def write(directory: Path, **changes: Any) -> Path:
    file = directory / "which.yaml"
    file.write_text(yaml.safe_dump({**CONTENT, **changes}))
    return file


@pytest.mark.parametrize("scale", ["quick", "full"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_study_can_be_built(path: Path, scale: str) -> None:
    study = read(path, scale)
    assert len({point.experiment.digest() for point in study.points}) == len(study.points) > 1
    assert study.question
    assert study.expected
    assert str(len(study.points)) in study.cost
    with torch.device("meta"):
        for point in study.points:
            assert build_flow(point.experiment, (1, 28, 28), 10).dims == 784


def test_the_comparison_is_that_of_the_original() -> None:
    (path,) = (path for path in SHIPPED if path.stem == "compare-affine-rqs")
    points = read(path, "full").points
    assert {p.experiment.model.transform for p in points} == {"affine", "rqs-4", "rqs-8"}
    assert {(p.experiment.model.blocks, p.experiment.model.patch) for p in points} == {(8, 4)}
    assert {p.experiment.data.name for p in points} == {"mnist"}
    assert {p.experiment.trainer["max_epochs"] for p in points} == {100}


def test_points_follow_the_grid_and_the_scale_overrides(tmp_path: Path) -> None:
    study = read(write(tmp_path))
    assert study.name == "which"
    assert study.cost == "a minute"
    named = [(p.experiment.model.transform, p.experiment.seed) for p in study.points]
    assert named == [("affine", 0), ("affine", 1), ("rqs-4", 0), ("rqs-4", 1)]
    for point in study.points:
        assert (point.experiment.model.blocks, point.experiment.model.width) == (2, 16)
        assert point.experiment.trainer == {"max_epochs": 3}
        assert point.experiment.name == "which"

    full = read(tmp_path / "which.yaml", "full")
    assert full.name == "which-full"
    assert [point.values["seed"] for point in full.points] == [5, 5]
    assert full.points[0].experiment.model.width == 32


def test_what_decides_the_results_decides_the_digest(tmp_path: Path) -> None:
    digest = read(write(tmp_path)).digest()
    assert read(write(tmp_path, question="Which one?")).digest() == digest
    assert read(write(tmp_path, base={"model": {"blocks": 3}})).digest() != digest
    assert read(write(tmp_path, grid={"seed": [0]})).digest() != digest


WRONG: dict[str, dict[str, Any]] = {
    "unknown key gird: valid are question, expected, cost": {"gird": {}},
    "which.yaml: unknown key model.widht": {"base": {"model": {"widht": 3}}},
    "which.yaml: unknown key model.transfrom": {"grid": {"model.transfrom": ["affine"]}},
    "which.yaml: model.blocks = 0 is not valid": {"grid": {"model.blocks": [0]}},
    r"grid.seed = \[0, 0\] is not valid: a list of different values": {"grid": {"seed": [0, 0]}},
    "grid.seed = 3 is not valid": {"grid": {"seed": 3}},
    r"grid.seed = \[\] is not valid": {"grid": {"seed": []}},
    "base = None is not valid: a mapping": {"base": None},
    "question = 3 is not valid: text": {"question": 3},
    "no scale 'quick': valid are full": {"scales": {"full": {}}},
    "scales.quick = 3 is not valid: a mapping": {"scales": {"quick": 3}},
}


@pytest.mark.parametrize("told", WRONG)
def test_a_wrong_study_is_named_with_what_is_valid(told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        read(write(tmp_path, **WRONG[told]))


def test_a_missing_study_is_told_with_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweeps").mkdir()
    write(tmp_path / "sweeps")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no study file wich.yaml; here are: sweeps/which.yaml"):
        read(Path("wich.yaml"))


def test_a_study_that_is_no_yaml_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("base: [1,")
    with pytest.raises(UsageError, match=r"study file .*bad.yaml cannot be read"):
        read(tmp_path / "bad.yaml")
