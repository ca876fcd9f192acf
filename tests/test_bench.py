import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from plain_flow import wake

from flowbench.__main__ import main
from flowbench.bench import decoding, transform
from flowbench.bench.measure import peak_memory, seconds, spread
from flowbench.bench.record import record
from flowbench.flow import Flow

MIB = 2**20


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


def test_splines_are_compared_on_equal_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform, "SCALARS", 100_000)
    monkeypatch.setattr(transform, "BINS", (4,))
    table = pd.DataFrame(transform.rows(repeats=2)).set_index("case")
    assert {"flowbench", "flowbench, plain", "zuko"} <= set(table.index)
    assert table.loc["zuko", "ratio"] == 1
    shares = table.loc["zuko", "seconds"] / table["seconds"]
    assert table["ratio"].tolist() == pytest.approx(shares.tolist())


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
