import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
from plain_flow import PlainFlow, wake

from flowbench.__main__ import BENCHES, main
from flowbench.bench import (
    ablation,
    decoding,
    flows,
    machine,
    precision,
    reporting,
    sampling,
    starting,
    subjects,
    sweeping,
    training,
    transform,
)
from flowbench.bench.measure import peak_memory, seconds, spread
from flowbench.bench.record import record
from flowbench.bench.tarflow import TarFlow
from flowbench.config import Data
from flowbench.data import load
from flowbench.flow import Flow

MIB = 2**20
MODEL = {"blocks": 3, "layers": 2, "width": 16, "patch": 7}
TIMES = {"case", "setting", "seconds", "seconds_low", "seconds_high", "seconds_least", "repeats"}
RATES = {"matmul_float32": 2e9, "matmul_bf16": 4e9, "copy": 1e9}


def taken(
    cases: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """The nth case takes n seconds; each is run once."""
    assert warmup
    for work in cases.values():
        work()
    return {name: [float(n)] * repeats for n, name in zip(count(1), cases, strict=False)}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small flows, planted times, and a machine of known rates."""
    monkeypatch.setattr(training, "BATCH", 8)
    monkeypatch.setattr(training, "MODEL", MODEL)
    monkeypatch.setattr(flows, "MODEL", MODEL)
    for module in (training, sampling):
        monkeypatch.setattr(module, "seconds", taken)
        monkeypatch.setattr(module, "peak_memory", lambda _: 7.0)
    slower, faster = ({name: share * rate for name, rate in RATES.items()} for share in (0.5, 1))
    measured = iter((slower, faster))
    monkeypatch.setattr(training, "limits", lambda: next(measured))


def test_cases_take_turns_and_warm_up_uncounted() -> None:
    order: list[str] = []
    taken = seconds({name: lambda n=name: order.append(n) for name in "ab"}, repeats=3, warmup=2)
    assert order == ["a", "b"] * 5
    assert {name: len(values) for name, values in taken.items()} == {"a": 3, "b": 3}


def test_the_spread_is_of_quartiles() -> None:
    found = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found["seconds"], found["seconds_least"], found["repeats"]) == (3.0, 1.0, 5)
    assert found["seconds_low"] < 3.0 < found["seconds_high"]
    assert spread([2.0])["seconds_high"] == 2.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="the work below is the CPU's")
def test_peak_memory_is_what_is_held_at_once() -> None:
    found = peak_memory(lambda: torch.ones(64 * MIB // 4).sum() and torch.ones(32 * MIB // 4).sum())
    if math.isnan(found):
        pytest.skip("this system does not tell")
    assert 60 * MIB < found < 80 * MIB


@pytest.mark.skipif(torch.cuda.is_available(), reason="the work below is the CPU's")
def test_peak_memory_counts_what_the_allocator_had_kept() -> None:
    found = peak_memory(lambda: len([torch.ones(MIB // 4) for _ in range(64)]))
    if math.isnan(found):
        pytest.skip("this system does not tell")
    assert 60 * MIB < found < 80 * MIB


def test_splines_are_compared_on_equal_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform, "SCALARS", 100_000)
    monkeypatch.setattr(transform, "BINS", (4,))
    table = pd.DataFrame(transform.rows(repeats=2))
    assert {"flowbench", "flowbench, plain", "flowbench, stable", "zuko"} <= set(table["spline"])
    assert set(table["setting"]) == {"K=4, [N]", "K=4, [N, 16]"}
    for _, own in table.groupby("setting"):
        best = own[own["better"]].set_index("spline")["seconds"]
        assert best.equals(own.groupby("spline", sort=False)["seconds"].min())
        assert own["ratio"].tolist() == pytest.approx((best["zuko"] / own["seconds"]).tolist())


@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 5, 3)])
def test_an_order_in_memory_changes_no_number(shape: tuple[int, ...]) -> None:
    params = torch.randn(*shape, 4)
    for layout in transform.LAYOUTS:
        assert torch.equal(transform._laid_out(params, layout), params)
    first = transform._laid_out(params, "features innermost")
    planes = first.movedim((-1, -2), (0, 1)) if len(shape) > 1 else first.T
    assert planes.is_contiguous()


def test_ways_of_decoding_are_compared_with_the_sequential_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding, "BATCHES", (2,))
    torch.manual_seed(0)
    flow = wake(Flow((1, 8, 8), 3, "rqs-4", blocks=2, layers=1, width=16, patch=2))
    table = pd.DataFrame(decoding.rows([("rqs-4", flow)], repeats=2)).set_index("case")
    assert table.loc["sequential", "sweeps_per_block"] == 15  # tokens that have one before
    assert table.loc["sequential", "error"] == 0
    assert table.loc["whole sequence, exact", "error"] < 1e-4
    assert table.loc["whole sequence, to 1e-2", "sweeps_per_block"] <= 15
    assert table.loc["sequential", "ratio"] == 1


def test_a_record_is_a_table_and_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"case": name, "setting": "s", **spread([0.001, 0.002])} for name in ("x", "y")]
    csv, png = record("transform", iter(rows), tmp_path)
    table = pd.read_csv(csv)
    assert table["case"].tolist() == ["x", "y"]
    assert {"device", "threads", "torch", "commit", "matmul_float32"} <= set(table.columns)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "GFLOP/s" in capsys.readouterr().out


def test_decoding_needs_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decoding"]) == 2
    assert "bench decoding takes runs or checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize("width", [16, 128])
def test_tarflows_way_computes_what_a_flow_does(width: int) -> None:
    torch.manual_seed(0)
    flow = wake(Flow((1, 8, 8), 3, "affine", blocks=3, layers=2, width=width, patch=2), 0.05)
    images, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 2, 1, 1])
    theirs = TarFlow.of(flow)
    z, log_det = theirs(images, y)
    own, own_log_det = flow(images, y)
    torch.testing.assert_close(z, own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det * flow.dims, own_log_det, rtol=1e-5, atol=1e-4)
    noise = torch.randn(4, flow.tokens, flow.features)
    kept = noise.clone()
    torch.testing.assert_close(
        theirs.inverse(noise, y), flow.inverse(noise, y), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(noise, kept)


def test_tarflows_way_computes_what_the_paper_says() -> None:
    torch.manual_seed(0)
    flow = wake(Flow((1, 8, 8), 3, "affine", blocks=3, layers=2, width=128, patch=2), 0.05)
    images, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 2, 1, 1])
    plain, theirs = PlainFlow(flow.state_dict(), patch=2), TarFlow.of(flow)
    z, log_det = theirs(images, y)
    expected, expected_log_det = plain.forward(images, y)
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det * flow.dims, expected_log_det, rtol=1e-5, atol=1e-4)
    noise = torch.randn(4, flow.tokens, flow.features)
    samples = plain.inverse(noise, y, (8, 8))
    torch.testing.assert_close(theirs.inverse(noise, y), samples, rtol=1e-5, atol=1e-5)


def test_the_rates_of_a_machine_are_its_best() -> None:
    found = machine.fastest({"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 4.0})
    assert found == {"a": 2.0, "b": 5.0}


def test_the_products_of_a_step_are_all_counted() -> None:
    B, T, D, C, blocks, layers = 2, 16, 49, 16, 3, 2
    linear = T * (D * C + layers * 12 * C * C + C * 2 * D)  # of all T tokens
    attention = layers * 2 * T * T * C
    # Each product has two more in the backward pass, but the images themselves need no gradient.
    expected = 2 * B * (3 * blocks * (linear + attention) - T * D * C)
    make = partial(TarFlow, training.SHAPE, training.CLASSES, **MODEL)
    assert training.products(make, B) == expected


@pytest.mark.usefixtures("planted")
def test_training_steps_are_compared_with_tarflows_way(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = tuple(training.Case(t, p) for p in ("float32", "bf16") for t in ("affine", "rqs-4"))
    monkeypatch.setattr(training, "CASES", cases)
    table = pd.DataFrame(training.rows(repeats=2)).set_index("case")
    names = ["affine, float32", "rqs-4, float32", "affine, bf16", "rqs-4, bf16"]
    assert table.index.tolist() == [training.BASELINE, *names]
    assert TIMES - {"case"} <= {*table}
    assert table["seconds"].tolist() == [1, 2, 3, 4, 5]
    assert table["images_per_second"].tolist() == [8 / n for n in range(1, 6)]
    assert table["ratio"].tolist() == [1 / n for n in range(1, 6)]
    assert math.isnan(table["ratio_to_affine"].iloc[0])
    assert table["ratio_to_affine"].tolist()[1:] == [1, 2 / 3, 1, 4 / 5]
    assert table["peak_bytes"].tolist() == [7.0] * 5
    assert table["matmul_bf16"].tolist() == [4e9] * 5
    work = table["flop"]
    assert work["rqs-4, float32"] == work["rqs-4, bf16"] > work["affine, float32"] > 0
    assert table["share"]["rqs-4, float32"] == work["rqs-4, float32"] / 3 / 2e9
    assert table["share"]["rqs-4, bf16"] == work["rqs-4, bf16"] / 5 / 4e9


@pytest.mark.usefixtures("planted")
def test_a_training_step_moves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.optim.AdamW] = []
    make = torch.optim.AdamW
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda *a, **k: moved.append(make(*a, **k)) or moved[-1]
    )
    batch = training.digits(8)
    case = training.Case("affine")
    baseline = training.tarflow_step(training.experiment(case), batch)
    steps = [baseline, training.step(case, batch)]
    for work, adam in zip(steps, moved, strict=True):
        weights = [w for group in adam.param_groups for w in group["params"]]
        before = [w.detach().clone() for w in weights]
        work()
        work()
        assert all(not torch.equal(w, old) for w, old in zip(weights, before, strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
def test_a_compiled_step_is_a_step() -> None:
    batch = training.digits(8)
    training.step(training.Case("affine", "bf16", compile=True), batch)()


@pytest.mark.usefixtures("planted")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_precisions_learn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load(Data("mnist-5k"))
    few = replace(
        splits, train=splits.train.take(torch.arange(32)), val=splits.val.take(torch.arange(16))
    )
    monkeypatch.setattr("flowbench.data.module.load", lambda _: few)
    monkeypatch.setattr(precision, "EPOCHS", 2)
    monkeypatch.setattr(precision, "SEEDS", 3)
    monkeypatch.setattr(precision, "BATCH", 8)
    exact, half = precision.rows()
    assert exact["case"] == "affine, float32"
    assert half["case"] == "affine, bf16"
    assert exact["setting"] == half["setting"] == "8 steps on mnist-5k, 3 seeds"
    assert exact["difference"] == exact["difference_low"] == exact["difference_high"] == 0
    assert 0 < abs(half["difference"]) < 0.05
    assert half["difference_low"] < half["difference"] < half["difference_high"]
    together = (half["val_loss"] - exact["val_loss"]) / abs(exact["val_loss"])
    assert half["difference"] == pytest.approx(together, abs=1e-3)


@pytest.mark.usefixtures("planted")
def test_sampling_is_compared_with_tarflows_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BATCHES", (3,))
    monkeypatch.setattr(sampling, "TRANSFORMS", ("affine", "rqs-4"))
    table = pd.DataFrame(sampling.rows(repeats=2)).set_index("case")
    names = ["affine, float32", "rqs-4, float32", "affine, bf16", "rqs-4, bf16"]
    assert table.index.tolist() == [sampling.BASELINE, *names]
    assert table["images_per_second"].tolist() == [3 / n for n in range(1, 6)]
    assert table["ratio"].tolist() == [1 / n for n in range(1, 6)]
    assert table["ratio_to_affine"].tolist()[1:] == [1, 2 / 3, 1, 4 / 5]
    assert table["error"]["affine, float32"] < 1e-5
    assert table["error"]["rqs-4, float32"] < 1e-4
    assert 1e-4 < table["error"]["affine, bf16"] < 1


def test_random_flows_are_no_identity_and_stay_small() -> None:
    for name in ("affine", "rqs-8"):
        flow = flows.random_flow(name)
        z = torch.randn(4, flow.tokens, flow.features)
        images = flow.inverse(z, torch.arange(4))
        assert (flow(images, torch.arange(4))[0] - z).abs().max() < 1e-3
        assert images.std() > 1.05
        assert images.abs().max() < 50


def test_a_worker_more_is_compared_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {1: (100.0, [1.0, 2.0, 9.0]), 2: (60.0, [3.0, 4.0, 5.0])}
    monkeypatch.setattr(sweeping, "run", planted.__getitem__)
    one, two = sweeping.rows(repeats=2)
    assert (one["case"], two["case"]) == ("1 worker", "2 workers")
    assert (one["ratio"], two["ratio"]) == (1, 100 / 60)
    assert (one["overhead"], two["overhead"]) == (2, 4)
    assert two["setting"] == "3 trials, a thread each"


def test_workers_get_one_thread_for_the_time_being(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("3", None):
        if before:
            monkeypatch.setenv("OMP_NUM_THREADS", before)
        else:
            monkeypatch.delenv("OMP_NUM_THREADS")
        with sweeping.one_thread():
            assert os.environ["OMP_NUM_THREADS"] == "1"
        assert os.environ.get("OMP_NUM_THREADS") == before


def test_the_study_of_the_benchmark_is_one(tmp_path: Path) -> None:
    study = sweeping.written(tmp_path)
    assert study.trials == 4
    assert study.points[0].experiment.data.name == "mnist-5k"


@pytest.mark.slow
@tiny.LIBRARIES[0]
def test_a_sweep_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {**sweeping.STUDY["base"], "model": {"transform": "affine", **MODEL, "layers": 1}}
    base["trainer"] = {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu"}
    monkeypatch.setattr(sweeping, "STUDY", {**sweeping.STUDY, "base": base, "seeds": [0]})
    taken, beside = sweeping.run(2)
    assert len(beside) == 2
    assert 0 < max(beside) < taken


@pytest.mark.slow
def test_a_report_of_planted_runs_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[set[str]] = []
    build = reporting.build

    def counted(*arguments: Any) -> list[Path]:
        files = build(*arguments)
        built.append({path.name for path in files})
        return files

    monkeypatch.setattr(reporting, "build", counted)
    for name in ("TRANSFORMS", "SEEDS", "EPOCHS"):
        monkeypatch.setattr(reporting, name, 2)
    monkeypatch.setattr(reporting, "seconds", taken)
    monkeypatch.setattr(reporting, "peak_memory", lambda _: 7.0)
    (row,) = reporting.rows(repeats=1)
    assert row["setting"] == "4 runs of 2 epochs"
    assert TIMES | {"peak_bytes"} <= row.keys()
    assert {"report.html", "runs.csv", "confusion.csv", "bpd.png"} <= built[0]


def test_the_start_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []

    def counted(data: Data) -> None:
        splits = load(data)
        read.append(tuple(map(len, (splits.train, splits.val, splits.test))))

    monkeypatch.setattr(starting, "load", counted)
    monkeypatch.setattr(starting, "TRAIN", 120)
    monkeypatch.setattr(starting, "TEST", 30)
    table = pd.DataFrame(starting.rows(repeats=1)).set_index("case")
    assert table.index.tolist() == [starting.PYTHON, "flowbench --help", "load 150 images"]
    assert read == [(110, 10, 30)] * 2
    assert (table["seconds"] > 0).all()


def test_rates_that_rows_have_measured_are_kept(tmp_path: Path) -> None:
    row = {"case": "x", "setting": "s", **spread([2.0]), **RATES}
    csv, _ = record("train", [row], tmp_path)
    assert pd.read_csv(csv)["matmul_float32"].tolist() == [2e9]


def test_every_subject_is_told_and_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {words}" in told for name, (_, words) in BENCHES.items())
    assert {*subjects.MEASURED, "decoding"} == {*BENCHES}


def test_a_subject_is_measured_and_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(repeats: int) -> Sequence[dict[str, Any]]:
        return [{"case": "x", "setting": "s", **spread([2.0] * repeats), **RATES}]

    monkeypatch.setitem(subjects.MEASURED, "train", rows)
    monkeypatch.setattr(precision, "rows", lambda: rows(1))
    monkeypatch.setattr(ablation, "training", rows)
    assert main(["bench", "train", f"--results={tmp_path}"]) == 0
    names = [
        f"{name}.{kind}"
        for name in ("train", "train-kernels", "train-quality")
        for kind in ("csv", "png")
    ]
    assert {path.name for path in (tmp_path / "bench").iterdir()} == {*names}
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "bench" / names[-1])
    assert pd.read_csv(tmp_path / "bench" / "train.csv")["repeats"].tolist() == [5]
