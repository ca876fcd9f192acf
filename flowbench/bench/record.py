"""Measurements as a table on the terminal, a CSV file, and a figure."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from flowbench.bench.bars import bars, unit
from flowbench.bench.machine import facts, limits
from flowbench.report.figures import style

TIMES = {"seconds": "{}", "seconds_low": "quartile 1", "seconds_high": "quartile 3"}
SHOWN = {
    "images_per_second": ("images/s", 1, "{:.0f}"),
    "ratio": ("ratio", 1, "{:.2f}"),
    "ratio_to_affine": ("to affine", 1, "{:.2f}"),
    "peak_bytes": ("peak MiB", 2**-20, "{:.0f}"),
    "peak_ratio": ("peak ratio", 1, "{:.2f}"),
    "sweeps_per_block": ("sweeps/block", 1, "{:.1f}"),
    "error": ("largest error", 1, "{:.1e}"),
    "val_loss": ("validation loss", 1, "{:.4f}"),
    "difference": ("difference", 100, "{:+.2f} %"),
    "difference_low": ("from", 100, "{:+.2f} %"),
    "difference_high": ("to", 100, "{:+.2f} %"),
    "overhead": ("overhead of a trial in s", 1, "{:.1f}"),
    "share": ("share of matmul rate", 1, "{:.2f}"),
}


def record(subject: str, rows: Iterable[dict[str, Any]], results: Path) -> list[Path]:
    """Print the rows, and write them with what the machine can do to ``results/bench``.

    Rows that have measured what the machine can do themselves keep that.

    Returns:
        The files written.
    """
    table = pd.DataFrame(rows)
    if "copy" not in table:
        table = table.assign(**limits())
    table = table.assign(**facts())
    directory = results / "bench"
    directory.mkdir(parents=True, exist_ok=True)
    csv, png = directory / f"{subject}.csv", directory / f"{subject}.png"
    table.to_csv(csv, index=False)
    style.save(bars(table), png)
    _show(table)
    return [csv, png]


def _show(table: pd.DataFrame) -> None:
    name, scale = unit(table)
    times = {key: (words.format(name), scale, "{:.1f}") for key, words in TIMES.items()}
    columns = {key: how for key, how in {**times, **SHOWN}.items() if key in table}
    shown = Table("setting", "case", *(name for name, _, _ in columns.values()))
    for _, row in table.iterrows():
        cells = [
            "" if pd.isna(row[key]) else form.format(row[key] * scale)
            for key, (_, scale, form) in columns.items()
        ]
        shown.add_row(row["setting"], row["case"], *cells)
    console = Console()
    console.print(shown)
    first = table.iloc[0]
    rates = f"matrix products {first['matmul_float32'] / 1e9:.0f} GFLOP/s in float32, "
    rates += f"{first['matmul_bf16'] / 1e9:.0f} in bf16; copying {first['copy'] / 1e9:.1f} GB/s"
    console.print(f"{first['device']}, {first['threads']} threads: {rates}")
    for ratio in dict.fromkeys(table.get("ratio_of", pd.Series(dtype=str)).dropna()):
        console.print(f"ratio: {ratio}")
