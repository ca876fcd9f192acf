"""Recorded runs become figures, tables and a page; imports what is heavy only when it builds."""

from pathlib import Path
from typing import TYPE_CHECKING

from flowbench.errors import UsageError

if TYPE_CHECKING:
    from flowbench.report.files import Recorded, Study
    from flowbench.report.page import Format

__all__ = ["build"]


def build(
    study: "Study",
    recorded: "Recorded",
    out: Path,
    format: "Format" = "png",
    run: str | None = None,
) -> list[Path]:
    """Write the report of a study: its tables, samples, figures, ``report.md`` and ``report.html``.

    Earlier files in ``out`` are replaced only once all the new ones are complete. The figure of the
    spline, which all reports share, is written into the directory of all studies, above ``out``.

    Args:
        study: The study's texts.
        recorded: Its runs, their history, samples and evaluation, and its trials.
        out: Directory for all files, made where it is missing.
        format: pdf writes every figure as PDF in addition to the PNG that the pages show.
        run: Run whose own curves are drawn; None for the best.

    Returns:
        The files written.

    Raises:
        UsageError: No run is finished, ``run`` is not one of them, an indispensable column is
            missing, or ``out`` cannot be written to.
    """
    from flowbench.report import document, files
    from flowbench.report.analysis import analyses
    from flowbench.report.figures import FIGURES, style
    from flowbench.report.figures.spline import spline
    from flowbench.report.page import page, shared

    recorded = files.complete(recorded)
    if not (recorded.runs["status"] == "finished").any():
        statuses = recorded.runs["status"].value_counts().to_dict()
        counts = ", ".join(f"{number} {status}" for status, number in statuses.items()) or "none"
        raise UsageError(f"study {study.name!r} has no finished run to report; recorded: {counts}")
    title = f"flowbench: {study.name}"
    with files.published(out) as staging:
        study.write(staging)
        files.write(recorded, staging)
        recorded = files.load(staging)  # so that what is drawn is what can be drawn again
        found = analyses(study, recorded, run)
        _ = found[0].one  # a wrong run is an error before anything is drawn
        common = shared(study)
        if not (out / common).exists():
            style.save(spline(), out / common)
        blocks = list(page(found, staging, format))
        (staging / "report.md").write_text(document.markdown(title, blocks), encoding="utf-8")
        whole = document.html(
            title, blocks, lambda file: (out if file == common else staging) / file
        )
        (staging / "report.html").write_text(whole, encoding="utf-8")
        names = sorted(path.name for path in staging.iterdir())
    tables = {f"{name}.csv" for name in (*files.TABLES, *files.SEARCH)}
    ours = [path for plot in FIGURES for path in out.glob(f"{plot.name}*.p[nd][gf]")]
    for path in [*ours, *(out / name for name in tables)]:
        if path.name not in names:
            path.unlink(missing_ok=True)
    return [out / name for name in names]
