"""The report of two hundred runs."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from flowbench.bench.measure import peak_memory, seconds, spread
from flowbench.bench.planted import recorded
from flowbench.report import build
from flowbench.report.files import Study

TRANSFORMS, SEEDS, EPOCHS = 10, 20, 20
STUDY = Study("planted", "How long does a report take?", "Not long.", "flowbench bench report")


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure; one row: seconds and peak memory of tables, figures and pages together."""
    with tempfile.TemporaryDirectory() as directory:
        work = partial(build, STUDY, recorded(TRANSFORMS, SEEDS, EPOCHS), Path(directory))
        name = "tables, figures and pages"
        yield {
            "case": name,
            "setting": f"{TRANSFORMS * SEEDS} runs of {EPOCHS} epochs",
            **spread(seconds({name: work}, repeats)[name]),
            "peak_bytes": peak_memory(work),
        }
