"""Runs of a machine without a store, brought into one."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from flowbench.bench import gpu
from flowbench.checkpoint import load, read
from flowbench.errors import UsageError
from flowbench.evaluation.sampling import Sampling, draw
from flowbench.importing import bring
from flowbench.measure import evaluate
from flowbench.tracking import tables
from flowbench.tracking.store import Store

pytestmark = [
    *tiny.LIBRARIES,
    pytest.mark.skipif(torch.cuda.is_available(), reason="trains the original's flow on a GPU"),
]


EXPERIMENT = replace(gpu.experiment("affine"), seconds=60.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "affine.ckpt"
    gpu.train(EXPERIMENT, path)
    return path


def test_a_run_is_recorded_once_as_it_was_trained(trained: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    (run_id,) = bring([trained], store)
    assert list(bring([trained.parent], store)) == [run_id]
    about = read(trained)["flowbench"]
    run = store.get(run_id)
    assert run.info.status == "FINISHED"
    assert store.experiment(run_id) == EXPERIMENT
    assert run.data.params["device"] == about["facts"]["device"]
    assert run.data.tags["data_hash"] == about["tags"]["data_hash"]
    table, history = tables.read(store, [run])
    assert len(history) == len(about["history"])
    for name in ("train/loss", "val/loss", "grad_norm"):
        assert history[name].tolist() == [epoch[name] for epoch in about["history"]]
    assert table["test/bpd"].item() == pytest.approx(about["measured"]["test/bpd"])


def test_it_can_be_sampled_and_evaluated_like_any_other(trained: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    (run_id,) = bring([trained], store)
    here, there = load(trained).flow, load(store.checkpoint_of(run_id)).flow
    y = torch.tensor([1, 2])
    assert draw(here, y, Sampling(0)).equal(draw(there, y, Sampling(0)))
    found = evaluate(run_id, store, {"draws": 2, "bayes": 0, "samples": 0})
    assert found["test/draws"] == 2
    assert store.get(run_id).data.metrics["test/bpd"] == found["test/bpd"]


def test_time_that_runs_out_is_no_end(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "CUDA", True)
    rows = gpu.protocol(trained.parent, gpu.ROOT, deadline=0.0)
    assert next(rows)["case"] == "affine"  # its checkpoint is there
    with pytest.raises(RuntimeError, match="no time is left for rqs-4"):
        next(rows)


def test_what_holds_no_history_is_named(trained: Path, tmp_path: Path) -> None:
    content = read(trained)
    del content["flowbench"]["history"]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UsageError, match=r"other\.ckpt has no history: valid are those that"):
        list(bring([tmp_path / "other.ckpt"], Store(tmp_path / "results")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty has no checkpoints"):
        list(bring([tmp_path / "empty"], Store(tmp_path / "results")))
