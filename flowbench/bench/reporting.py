"""The report of two hundred runs."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from flowbench.bench import planted
from flowbench.bench.measure import peak_memory, seconds, spread
from flowbench.report import build
from flowbench.report.files import Study

TRANSFORMS, SEEDS, EPOCHS = 10, 20, 20
STUDY = Study("planted", "How long does a report take?", "Not long.", "flowbench bench report")


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure; one row: seconds and peak memory of tables, figures and pages together."""
    with tempfile.TemporaryDirectory() as directory:
        names = ["affine", *(f"rqs-{bins}" for bins in range(2, TRANSFORMS + 1))]
        points = [(name, 8, 1) for name in names]
        rank = {name: place for place, name in enumerate(names)}
        trained = planted.runs(
            points, lambda name, *_: (0.5, 2.5 + 0.01 * rank[name]), seeds=SEEDS, epochs=EPOCHS
        )
        out = Path(directory) / "report"
        work = partial(build, STUDY, planted.evaluated(trained), out)
        name = "tables, figures and pages"
        yield {
            "case": name,
            "setting": f"{TRANSFORMS * SEEDS} runs of {EPOCHS} epochs",
            **spread(seconds({name: work}, repeats)[name]),
            "peak_bytes": peak_memory(work),
        }
