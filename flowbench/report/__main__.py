"""``python -m flowbench.report [STUDY ...]``: the reports of recorded studies."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flowbench.errors import UsageError
from flowbench.terminal import Parser, say

if TYPE_CHECKING:
    import pandas as pd

    from flowbench.report.files import Recorded, Study
    from flowbench.tracking.store import Run, Store


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``results/<study>/``, or without a study the page over all of them."""
    parser = Parser(
        prog="flowbench report",
        description="Make the figures, tables and page of a study; without a study, the page over "
        "all reported studies; with several, a page with these side by side.",
    )
    parser.add_argument(
        "studies", nargs="*", metavar="STUDY", help="a recorded study and its scale: bins/quick"
    )
    parser.add_argument("--run", help="run whose own curves are drawn (default: the best)")
    parser.add_argument("--format", choices=("png", "pdf"), default="png", help="pdf: those too")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs are")
    parser.add_argument(
        "--from-csv", action="store_true", help="rebuild from the CSV files, without the store"
    )
    parsed = parser.parse_args(arguments)
    if len(parsed.studies) != 1 and parsed.run:
        raise UsageError("--run names a run of one study: give that study and no other")
    from flowbench.report import build, overview

    names = [_named(study, parsed.results) for study in parsed.studies]
    if len(names) > 1:
        written = overview.write_together(parsed.results, names)
    elif not names:
        written = overview.write(parsed.results)
    else:
        (name,) = names
        out = parsed.results / name
        study, recorded, keep = _read(name, parsed.results, out if parsed.from_csv else None)
        written = build(study, recorded, out, parsed.format, parsed.run)
        keep(written)
    for path in written:
        print(path)


def _named(study: str, results: Path) -> str:
    """Let ``bins`` stand for ``bins/quick``, where that has a report."""
    from flowbench.report.files import STUDY

    quick = f"{study}/quick"
    return quick if (results / quick / STUDY).exists() else study


def _read(
    name: str, results: Path, directory: Path | None
) -> tuple["Study", "Recorded", Callable[[list[Path]], None]]:
    """Read a study from the store; from the files of its last report where the store has none.

    Returns:
        The study, its data, and what keeps the report's files in the store, if it came from there.
    """
    from flowbench.report.files import RUNS, TIMING, Recorded, Study, load

    if directory is not None:
        return Study.load(directory), load(directory), lambda _: None
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
        return Study.load(directory), load(directory), lambda _: None
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
    if lost := tables.lost(runs, search):
        say(f"not in the store, though their trials are complete: {lost}; sweep runs them again")
    recorded = Recorded(runs, history, tables.samples(store, runs), evaluation, search)
    return study, recorded, partial(_keep, store, parent.info.run_id)


def _keep(store: "Store", parent: str, written: list[Path]) -> None:
    """Describe the study's parent run by the head of the report, and show the figures there."""
    report = next(path for path in written if path.name == "report.md")
    head = report.read_text(encoding="utf-8").partition("\n\n")[2].partition("\n\n![")[0]
    store.note(parent, f"{head}\n\nThe whole report: artifact report/report.html")
    shown = [path for path in written if path.suffix == ".png" or path.name == "report.html"]
    store.files(parent, "report", shown)


def _timing(store: "Store", study: "Run", runs: "pd.DataFrame") -> "pd.DataFrame":
    """Read the rounds in which the newest timing study, of this scale, measured such flows."""
    from flowbench.report.files import TABLES, TIMING, Recorded, complete
    from flowbench.report.runs import rounds, standing_for
    from flowbench.tracking import tables

    scales = [scale for scale in runs["scale"].unique() if scale]
    timed = tables.newest(store, TIMING, scales[0]) if len(scales) == 1 else None
    if timed is None or timed.info.run_id == study.info.run_id:
        return runs.reindex(columns=TABLES[TIMING])[:0]
    found = Recorded(*tables.read(store, tables.children(store, timed.info.run_id)), {})
    found = complete(found)
    return standing_for(rounds(found.runs, found.history), runs)


if __name__ == "__main__":
    from flowbench.__main__ import main as command_line

    sys.exit(command_line(["report", *sys.argv[1:]]))
