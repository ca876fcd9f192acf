"""Whatever goes in, a command ends well or with one line that says what would be valid.

Random input by hypothesis, the same at every run; FLOWBENCH_EXAMPLES=10 tries ten times as much.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import reports
import studies
import tiny
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowbench import config, pretrained
from flowbench.__main__ import main
from flowbench.checkpoint import load
from flowbench.errors import UsageError
from flowbench.experiment import Record
from flowbench.report import files
from flowbench.sweep import parent
from flowbench.sweep.storage import Storage
from flowbench.trainer import make_trainer

pytestmark = tiny.LIBRARIES
OPTIONS = config.options()
TRAINER = ["max_epochs", "max_steps", "precision", "devices", "strategy", "limit_val_batches"]


MANY = int(os.environ.get("FLOWBENCH_EXAMPLES", "1"))
"""Times the usual number of examples."""


def tried(examples: int) -> Callable[[Any], Any]:
    """Try so many examples, always the same ones."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples * MANY,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=quiet,
    )


texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["", " ", "..", "a/b", "o'neil", "nan", "1e999"]
)
scalars = st.none() | st.booleans() | st.integers() | st.integers(-2, 40) | st.floats() | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
options = st.dictionaries(
    st.sampled_from([*OPTIONS, *(f"trainer.{key}" for key in TRAINER)]) | texts, values, max_size=3
)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Nest dotted keys; a group that has a value already keeps it."""
    out: dict[str, Any] = {}
    for name, value in flat.items():
        group, _, key = name.partition(".")
        inner = out.setdefault(group, {}) if key else out
        if isinstance(inner, dict):
            inner[key or group] = value
    return out


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def checked(experiment: config.Experiment, *_: Any, **__: Any) -> Record:
        make_trainer(experiment)
        return Record("", {}, None, 0.0)  # type: ignore[arg-type]

    monkeypatch.setattr("flowbench.experiment.run", checked)
    monkeypatch.setattr(parent, "_run", lambda *_: None)
    return


def ends(capsys: pytest.CaptureFixture[str], *arguments: object) -> int:
    """Run a command; it ends well, or with status 2 and one line."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    told = capsys.readouterr().err
    assert status in (0, 2), told
    assert "Traceback" not in told
    errors = [line for line in told.splitlines() if line.startswith("flowbench: error: ")]
    assert len(errors) == (status == 2), told
    return status


def works_or_names(path: Path, action: Callable[[], Any]) -> None:
    """Do something with a file; it works, or an error on one line names the file."""
    error = None
    try:
        action()
    except UsageError as told:
        error = str(told)
    assert error is None or (path.name in error and "\n" not in error)


def trained_with(capsys: pytest.CaptureFixture[str], results: Path, text: bytes) -> None:
    path = results.parent / "config.yaml"
    path.write_bytes(text)
    before = sorted(results.rglob("*.ckpt"))
    ends(capsys, "train", "--config", path, "--results", results)
    assert sorted(results.rglob("*.ckpt")) == before


@tried(25)
@given(content=options)
def test_any_configuration(
    content: dict[str, Any], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_with(capsys, results, yaml.safe_dump(nested(content)).encode())


@tried(20)
@given(text=st.binary(max_size=60) | texts.map(str.encode))
def test_any_file_as_a_configuration(
    text: bytes, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_with(capsys, results, text)


@tried(25)
@given(content=options)
def test_any_options(
    content: dict[str, Any], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given_ = [f"--{key}={value}" for key, value in content.items()]
    hidden = ("-h", "--help")
    if not any(argument.split("=")[0] in hidden for argument in given_):
        ends(capsys, "train", "--results", results, *given_)


@tried(25)
@given(name=texts)
def test_any_name(name: str, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "\0" in name:
        return  # no system passes it
    parts = name.split("/")
    valid = all(config.NAME.fullmatch(part) for part in parts)
    status = ends(capsys, "train", "--results", results, f"--name={name}")
    assert status == 2 or valid
    ends(capsys, "report", name, "--results", results)
    ends(capsys, "sample", name, "--results", results)
    ends(capsys, "sweep", name, "--results", results)


def study_content(directory: Path) -> dict[str, Any]:
    return yaml.safe_load(studies.study(directory / "valid").path.read_text())


KEYS = ["question", "cost", "base", "space", "scales", "seeds", "sampler", "pruner", "objectives"]
changes = st.dictionaries(
    st.sampled_from([*KEYS, "trials", "failures", "mode"]) | texts, values, min_size=1, max_size=2
)
spaces = st.dictionaries(st.sampled_from(OPTIONS) | texts, values, max_size=3)


@tried(25)
@given(changed=changes | spaces.map(lambda space: {"space": space}))
def test_any_study_file(
    changed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**study_content(tmp_path), **changed}), encoding="utf-8")
    ends(capsys, "sweep", path, "--dry-run", "--results", tmp_path / "results")


LINES = st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" ")) | values.map(
    lambda value: json.dumps(value, default=str).encode()
)


@tried(20)
@given(line=LINES, place=st.integers(0, 20), replaced=st.booleans())
def test_any_line_in_a_journal(line: bytes, place: int, replaced: bool, tmp_path: Path) -> None:
    """A study opens and goes on with it, or is refused by the journal's name."""
    which = studies.study(tmp_path / "study")
    whole, path = tmp_path / "whole.log", tmp_path / "damaged.log"
    if not whole.exists():
        studies.planned(which, Storage(str(whole))).prepare(dict)
    lines = whole.read_bytes().splitlines()
    lines[place : place + replaced] = [line]
    path.write_bytes(b"\n".join(lines) + b"\n")

    def open_it() -> None:
        storage = Storage(str(path))
        with storage.errors():
            studies.planned(which, storage).prepare(dict)

    works_or_names(path, open_it)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("written")
    files.write(reports.tables(), directory)
    reports.STUDY.write(directory)
    return directory


@tried(40)
@given(data=st.data())
def test_any_damage_to_the_files_of_a_report(
    data: st.DataObject, written: Path, tmp_path: Path
) -> None:
    """They are read as tables that have what a report needs, or refused by name."""
    directory = tmp_path / "report"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(written, directory)
    path = data.draw(st.sampled_from(sorted(directory.iterdir())))
    damage(data, path)
    works_or_names(path, lambda: (files.load(directory), files.Study.load(directory)))


def damage(data: st.DataObject, path: Path) -> None:
    """Change a cell of a table, or some bytes of any file, or its length."""
    whole = path.read_bytes()
    rows = [line.split(b",") for line in whole.split(b"\n")]
    if path.suffix == ".csv" and data.draw(st.booleans()):
        row = rows[data.draw(st.integers(0, len(rows) - 2))]
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(texts).encode(errors="replace")
        path.write_bytes(b"\n".join(b",".join(row) for row in rows))
    elif data.draw(st.booleans()):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:place] + data.draw(st.binary(max_size=4)) + whole[place + 4 :])


@tried(25)
@given(data=st.data())
def test_any_damage_to_a_checkpoint(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    shutil.copy(pretrained.find("mnist-affine"), path)
    damage(data, path)
    works_or_names(path, lambda: load(path))
