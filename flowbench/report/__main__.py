"""``python -m flowbench.report STUDY``: the report of a recorded study."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowbench.errors import UsageError
from flowbench.report import Study, build, load
from flowbench.report.files import RUNS, TIMED, TIMING, Recorded
from flowbench.terminal import Parser, say

if TYPE_CHECKING:
    import pandas as pd

    from flowbench.tracking.store import Run, Store


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``results/<study>/``: figures, tables, ``report.md`` and ``report.html``."""
    parser = Parser(
        prog="flowbench report", description="Make the figures, tables and page of a study."
    )
    parser.add_argument("study", help="name of a recorded study, as compare-affine-rqs")
    parser.add_argument("--run", help="run whose own curves are drawn (default: the best)")
    parser.add_argument("--format", choices=("png", "pdf"), default="png", help="pdf: those too")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs are")
    parser.add_argument(
        "--from-csv", action="store_true", help="rebuild from the CSV files, without the store"
    )
    parsed = parser.parse_args(arguments)
    out = parsed.results / parsed.study
    study, recorded = _read(parsed.study, parsed.results, out if parsed.from_csv else None)
    for path in build(study, recorded, out, parsed.format, parsed.run):
        print(path)


def _read(name: str, results: Path, directory: Path | None) -> tuple[Study, Recorded]:
    """Read a study from the store; from the files of its last report where the store has none."""
    if directory is not None:
        return Study.load(directory), load(directory)
    from flowbench.tracking import tables
    from flowbench.tracking.store import Store

    store = Store(results)
    try:
        parent = tables.study_parent(store, name)
    except UsageError:
        directory = results / name
        if not (directory / RUNS).exists():
            raise
        say(f"{name} is not in the store; made again from {directory}/*.csv")
        return Study.load(directory), load(directory)
    tags = parent.data.tags
    children = tables.children(store, parent.info.run_id)
    runs, history = tables.read(store, children)
    study = Study(
        name,
        tags["flowbench.question"],
        tags["flowbench.expected"],
        tags["flowbench.command"],
        tables.objectives(parent),
    )
    evaluation, search = tables.evaluation(store, children), tables.search(store, parent)
    evaluation[TIMING] = _timing(store, parent, runs)
    return study, Recorded(runs, history, tables.samples(store, runs), evaluation, search)


def _timing(store: "Store", study: "Run", runs: "pd.DataFrame") -> "pd.DataFrame":
    """Read the rounds in which the newest study of times, of this scale, measured such flows."""
    from flowbench.report.rounds import rounds, standing_for
    from flowbench.tracking import tables

    scales = [scale for scale in runs["scale"].unique() if scale]
    timed = tables.newest(store, TIMING, scales[0]) if len(scales) == 1 else None
    if timed is None or timed.info.run_id == study.info.run_id:
        return runs.reindex(columns=TIMED)[:0]
    found = rounds(*tables.read(store, tables.children(store, timed.info.run_id)))
    return standing_for(found, runs)


if __name__ == "__main__":
    from flowbench.__main__ import main as command_line

    sys.exit(command_line(["report", *sys.argv[1:]]))
