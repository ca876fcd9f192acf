"""Flows that come with flowbench: small files, unchanged since they were shipped, and usable."""

import json
from pathlib import Path

import pytest
import tiny
import torch

from flowbench import pretrained
from flowbench.checkpoint import load
from flowbench.errors import UsageError
from flowbench.experiment import run
from flowbench.pretrained.__main__ import ship
from flowbench.tracking.store import Store


@pytest.fixture
def shipped(tmp_path: Path) -> tuple[Path, str, Store]:
    """A directory with the flow of a tiny run, the run's id, and its store."""
    store = Store(tiny.results(tmp_path / "results"))
    record = run(tiny.experiment(optim__ema=0.5), store)
    ship(record.run_id, "first", store, tmp_path / "flows")
    ship(record.run_id, "second", store, tmp_path / "flows")
    return tmp_path / "flows", record.run_id, store


def test_a_shipped_flow_is_the_runs_own(shipped: tuple[Path, str, Store]) -> None:
    directory, run_id, store = shipped
    theirs = load(store.checkpoint_of(run_id)).state_dict()
    ours = load(pretrained.find("first", directory)).state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


def test_its_line_tells_where_it_is_from(shipped: tuple[Path, str, Store]) -> None:
    directory, run_id, store = shipped
    known = pretrained.flows(directory)
    assert list(known) == ["first", "second"]
    line, metrics = known["first"], store.get(run_id).data.metrics
    assert line["transform"] == tiny.experiment().model.transform
    assert line["test/bpd"] == metrics["test/bpd"]
    assert {"sha256", "noise", "seed", "commit"} <= line.keys()


def test_a_damaged_or_unknown_flow_is_told(shipped: tuple[Path, str, Store]) -> None:
    directory, _, _ = shipped
    with pytest.raises(UsageError, match="no pretrained flow 'third': there are first, second"):
        pretrained.find("third", directory)
    (directory / "first.ckpt").write_bytes(b"another")
    with pytest.raises(UsageError, match=r"first\.ckpt is missing or damaged"):
        pretrained.find("first", directory)


def test_a_flow_that_is_too_large_is_not_shipped(
    shipped: tuple[Path, str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, run_id, store = shipped
    monkeypatch.setattr("flowbench.pretrained.__main__.LARGEST", 1000)
    with pytest.raises(UsageError, match="at most 1000 are shipped"):
        ship(run_id, "third", store, directory)
    assert list(pretrained.flows(directory)) == ["first", "second"]
    assert not (directory / "third.ckpt").exists()


@pytest.mark.parametrize("name", pretrained.flows())
def test_what_comes_with_flowbench_is_whole_and_loads(name: str) -> None:
    path = pretrained.find(name)
    assert path.stat().st_size <= pretrained.LARGEST
    module = load(path)
    assert module.experiment.model.transform == pretrained.flows()[name]["transform"]
    index = json.loads((pretrained.HERE / pretrained.INDEX).read_text())
    assert {path.stem for path in pretrained.HERE.glob("*.ckpt")} == set(index)
