"""Recorded runs become figures, tables and a page; imports what is heavy only when it builds."""

from pathlib import Path
from typing import TYPE_CHECKING

from flowbench.errors import UsageError
from flowbench.report.study import Study

if TYPE_CHECKING:
    from flowbench.report.files import Recorded
    from flowbench.report.plates import Format

__all__ = ["Study", "build", "load"]


def build(
    study: Study,
    recorded: "Recorded",
    out: Path,
    format: "Format" = "png",
    run: str | None = None,
) -> list[Path]:
    """Write the report of a study: its tables, samples, figures, ``report.md`` and ``report.html``.

    Earlier files in ``out`` are replaced only once all the new ones are complete.

    Args:
        study: What the study asks.
        recorded: Its runs, their history, samples and evaluation, and its trials.
        out: Directory for all files, made where it is missing.
        format: pdf writes every figure as PDF besides the PNG that the pages show.
        run: Run whose own curves are drawn; none for the best.

    Returns:
        The files written.

    Raises:
        UsageError: No run is finished, ``run`` is not one of them, an indispensable column is
            missing, or ``out`` cannot be written to.
    """
    from flowbench.report import document, evaluated, files, searched, sweeps, trained
    from flowbench.report.page import page
    from flowbench.report.plates import drawn

    recorded = files.complete(recorded)
    if not (recorded.runs["status"] == "finished").any():
        statuses = recorded.runs["status"].value_counts().to_dict()
        told = ", ".join(f"{count} {status}" for status, count in statuses.items()) or "none at all"
        raise UsageError(f"study {study.name!r} has no finished run to report; recorded: {told}")
    title = f"flowbench: {study.name}"
    with files.published(out) as staging:
        study.write(staging)
        files.write(recorded, staging)
        recorded = files.load(staging)  # so that what is drawn is what can be drawn again
        along = drawn(sweeps.plates(recorded), staging, format)
        training = drawn(trained.plates(recorded, run), staging, format)
        evaluation = drawn(evaluated.plates(recorded), staging, format)
        search = drawn(searched.plates(study.objectives, recorded), staging, format)
        blocks = list(page(study, recorded, along, training, evaluation, search))
        (staging / "report.md").write_text(document.markdown(title, blocks), encoding="utf-8")
        (staging / "report.html").write_text(
            document.html(title, blocks, staging), encoding="utf-8"
        )
        names = sorted(path.name for path in staging.iterdir())
    figures = [*sweeps.NAMES, *trained.NAMES, *evaluated.NAMES, *searched.NAMES]
    ours = {f"{name}.{kind}" for name in figures for kind in ("png", "pdf")}
    tables = {f"{name}.csv" for name in (*files.TABLES, *files.SEARCH)}
    for stale in (ours | tables) - {*names}:
        (out / stale).unlink(missing_ok=True)
    return [out / name for name in names]


def load(directory: Path) -> "Recorded":
    """Read back what a report rests on, exactly as it was written.

    Raises:
        UsageError: A file is missing or lacks an indispensable column.
    """
    from flowbench.report import files

    return files.load(directory)
