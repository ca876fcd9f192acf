import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import EPOCHS, PLANTED, SEEDS, tables

from flowbench.errors import UsageError
from flowbench.report import Study, build, load, trained
from flowbench.report.claims import claims
from flowbench.report.cost import seconds_per_epoch
from flowbench.report.curves import bpd, losses, over_seeds, term
from flowbench.report.digits import digits
from flowbench.report.document import Code, Paragraph, Table, html, markdown
from flowbench.report.files import Recorded, complete, write
from flowbench.report.page import page
from flowbench.report.plates import Drawn, drawn
from flowbench.report.seeds import cost, difference, interval, spread
from flowbench.report.spline import KNOTS_X, KNOTS_Y, spline
from flowbench.report.style import looks, save
from flowbench.report.tables import mixed, run_table, summary
from flowbench.report.trained import chosen

STUDY = Study(
    name="compare <quick>",
    question="Is a spline better than a line, at |x| < B & beyond?",
    expected="It is, at twice the cost.",
    command="python -m flowbench.report compare",
)


NOTHING = Drawn([], [])
NAMES = ["bins", *trained.NAMES, "digits", "pareto"]
"""The figures of runs that were not evaluated."""


@pytest.fixture
def recorded() -> Recorded:
    return tables()


def verdicts(runs: pd.DataFrame) -> list[str]:
    return [claim.verdict for claim in claims(runs)]


def pages(recorded: Recorded) -> tuple[str, str]:
    blocks = list(page(STUDY, recorded, NOTHING, NOTHING, NOTHING, NOTHING))
    return markdown("report", blocks), html("report", blocks, Path())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a whole report, which tests read and leave as it is."""
    out = tmp_path_factory.mktemp("report")
    build(STUDY, tables(), out, format="pdf")
    return out


# Statistics


def test_interval_is_the_textbook_t_interval() -> None:
    value = interval(pd.Series([1.0, 2.0, 3.0]))
    assert value.n == 3
    assert value.mean == pytest.approx(2)
    assert value.high - value.mean == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert value.mean - value.low == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)


def test_one_seed_gives_no_interval() -> None:
    value = interval(pd.Series([1.0]))
    assert (value.mean, value.n) == (1, 1)
    assert np.isnan([value.low, value.high]).all()


def test_pairing_removes_what_seeds_share(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs["val/loss"] = runs["seed"] * 100.0 + (runs["transform"] == "rqs-8")
    value = difference(runs, "val/loss", "rqs-8", "affine")
    assert (value.low, value.high) == (pytest.approx(1), pytest.approx(1))


def test_only_runs_of_equal_settings_are_paired(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[(runs["transform"] == "rqs-8") & (runs["seed"] == 0), "blocks"] = 8
    assert difference(runs, "val/loss", "rqs-8", "affine").n == SEEDS - 1


def test_runs_of_one_seed_count_once(recorded: Recorded) -> None:
    runs = pd.concat([recorded.runs, recorded.runs, recorded.runs.assign(blocks=8)])
    assert difference(runs, "val/loss", "rqs-8", "affine").n == SEEDS
    assert (spread(runs, "val/loss")["n"] == SEEDS).all()


def test_times_of_different_machines_are_not_compared(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    assert cost(runs, "rqs-8", "affine").mean == pytest.approx(2, rel=0.01)
    runs.loc[runs["transform"] == "rqs-8", "device"] = "cuda"
    assert cost(runs, "rqs-8", "affine").n == 0


# Claims


def test_claims_are_supported_by_numbers_on_their_side(recorded: Recorded) -> None:
    assert verdicts(recorded.runs)[:3] == ["supported"] * 3
    assert verdicts(recorded.runs)[6] == "contradicted"  # prior gains less than logdet loses


def test_claims_are_contradicted_by_numbers_on_the_other_side() -> None:
    planted = {"affine": (0.4, 2.0, 10.0), "rqs-4": (0.5, 2.6, 9.0), "rqs-8": (0.5, 2.7, 30.0)}
    runs = tables(planted).runs
    assert verdicts(runs)[:3] == ["contradicted"] * 3
    assert verdicts(runs)[6] == "supported"


def test_each_claim_is_judged_by_its_own_term() -> None:
    planted = {"affine": (0.5, 2.6, 9.0), "rqs-4": (0.4, 2.7, 9.0), "rqs-8": (0.4, 2.8, 9.0)}
    judged = verdicts(tables(planted).runs)
    assert judged == ["contradicted", "supported", "contradicted", *["undecided"] * 3, "supported"]


def test_claims_are_undecided_when_seeds_vary_more_than_transforms() -> None:
    assert set(verdicts(tables(sd=0.5).runs)) == {"undecided"}


def test_claims_are_undecided_when_splines_disagree() -> None:
    planted = PLANTED | {"rqs-4": (0.6, 3.5, 15.0)}
    assert verdicts(tables(planted).runs)[:2] == ["undecided"] * 2


def test_a_ratio_across_the_edge_is_undecided() -> None:
    runs = tables(PLANTED | {"rqs-8": (0.49, 2.6, 25.0)}, sd=0.01).runs
    value = cost(runs, "rqs-8", "affine")
    assert value.low < 2.5 < value.high
    assert verdicts(runs)[2] == "undecided"


def test_one_seed_decides_nothing() -> None:
    judged = claims(tables(seeds=1).runs)
    assert {claim.verdict for claim in judged} == {"undecided"}
    assert "n = 1, no interval" in judged[0].measured


def test_unfinished_runs_decide_nothing(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[runs["transform"] == "rqs-8", "status"] = "failed"
    judged = claims(runs)
    assert "K=8" not in judged[0].measured
    assert judged[2].verdict == "undecided"
    assert judged[2].measured.startswith("–")


def test_composed_transforms_are_judged_on_their_own(recorded: Recorded) -> None:
    assert len(claims(recorded.runs)) == 7
    more = tables(PLANTED | {"affine+rqs-8": (0.4, 3.5, 22.0)}).runs
    assert verdicts(more)[6:] == ["contradicted", "supported"]


# Tables


def test_summary_gives_mean_and_deviation_over_seeds(recorded: Recorded) -> None:
    table = summary(recorded.runs)
    values = recorded.runs.loc[recorded.runs["transform"] == "affine", "val/prior"]
    assert table.rows[0][:2] == ["affine", "3"]
    place = list(table.header).index("val prior (nats/dim)")
    assert table.rows[0][place] == f"{values.mean():.3f} ± {values.std():.3f}"
    assert [row[-2] for row in table.rows] == ["1", "1.50", "2.00"]


def test_unknown_columns_follow_and_missing_ones_are_dashes(recorded: Recorded) -> None:
    runs = recorded.runs.drop(columns=["val/bpd", "parameters"]).assign(loops=3.25)
    runs = complete(recorded._replace(runs=runs)).runs
    table = summary(runs)
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["loops"] == "3.250 ± 0.000"
    assert (row["val bits/dim"], row["parameters"]) == ("–", "–")
    assert run_table(runs).header[-1] == "loops"


def test_a_metric_that_some_seeds_lack_says_how_many_have_it(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[0, "val/prior"] = np.nan
    cells = summary(runs).rows[0]
    assert sum("(n = 2)" in cell for cell in cells) == 1


def test_mixed_settings_are_named(recorded: Recorded) -> None:
    assert mixed(recorded.runs) == []
    runs = recorded.runs.copy()
    runs.loc[0, "commit"] = "fedcba9"
    assert mixed(runs) == ["commit: fedcba9 (1 run), 12e4567 (8 runs)"]


# Figures


RUN = "affine-0-00000000"
DRAWN = {
    "prior": (lambda r: term(r.history.query("run_id == @RUN"), "prior", RUN), "nats per dim"),
    "losses": (lambda r: losses(r.history), "nats per dim"),
    "bpd": (lambda r: bpd(r.history), "bits per dim"),
    "seconds_per_epoch": (lambda r: seconds_per_epoch(r.runs), "(s)"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_name_their_units_and_keep_their_legend_clear(
    name: str, recorded: Recorded
) -> None:
    draw, unit = DRAWN[name]
    figure = draw(recorded)
    labels = [axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes]
    assert all(labels)
    assert any(unit in label.lower() for label in labels)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)


def test_bits_are_never_drawn_where_there_are_none(recorded: Recorded) -> None:
    figure = bpd(recorded.history.assign(**{"val/bpd": np.nan}))
    label = figure.axes[0].get_ylabel()
    assert "nats" in label
    assert "bits" not in label


def test_normalised_curves_span_0_to_1(recorded: Recorded) -> None:
    one = recorded.history.query("seed == 0")
    lines = [line.get_ydata() for line in losses(one).axes[3].get_lines()]
    values = np.concatenate([np.asarray(line) for line in lines])
    assert (values.min(), values.max()) == (pytest.approx(0), pytest.approx(1))


def test_a_mean_has_the_same_seeds_in_every_epoch(recorded: Recorded) -> None:
    last = (recorded.history["run_id"] == RUN) & (recorded.history["epoch"] == EPOCHS)
    table = over_seeds(recorded.history[~last], "val/loss", "affine")
    assert table.shape == (EPOCHS - 1, SEEDS)


def test_one_seed_has_no_band() -> None:
    assert "no bands" in losses(tables(seeds=1).history).legends[0].get_title().get_text()
    assert "n = 3 seeds" in losses(tables().history).legends[0].get_title().get_text()


def test_digits_are_labelled_by_class_and_transform(recorded: Recorded) -> None:
    figure = digits(recorded.samples, classes=True)
    assert [axes.get_ylabel() for axes in figure.axes] == ["affine", "RQS K=4", "RQS K=8"]
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == [str(digit) for digit in range(10)]


def test_the_spline_goes_through_its_knots() -> None:
    (line,) = (x for x in spline().axes[0].get_lines() if x.get_label() == "spline, K = 3")
    at, values = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    np.testing.assert_allclose(np.interp(KNOTS_X, at, values), KNOTS_Y, atol=1e-6)


def test_looks_are_distinct_and_known_transforms_keep_theirs() -> None:
    many = looks(["affine", "rqs-8", *(f"rqs-{2 * bins}" for bins in range(5, 60))])
    drawn = {(look.colour, str(look.line), look.marker) for look in many.values()}
    assert len(drawn) == len(many)
    assert many["affine"] == looks(["affine"])["affine"]
    assert many["rqs-8"] == looks(["rqs-8", "additive"])["rqs-8"]


def test_figures_show_finished_runs_only(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowbench.report.style.save", lambda *_: None)
    status = recorded.runs["status"].where(recorded.runs["transform"] != "rqs-8", "failed")
    runs = recorded.runs.assign(status=status)
    pictures, _ = drawn(trained.plates(recorded._replace(runs=runs), None), tmp_path, "png")
    assert "RQS K=4" in pictures[0].alt
    assert not any("K=8" in picture.alt + picture.caption for picture in pictures)


# Files


def test_every_digit_survives_the_files(recorded: Recorded, tmp_path: Path) -> None:
    write(recorded, tmp_path)
    back = load(tmp_path)
    pd.testing.assert_frame_equal(back.history, recorded.history, check_exact=True)
    kept = recorded.runs.columns
    pd.testing.assert_frame_equal(
        back.runs[kept], recorded.runs, check_dtype=False, check_exact=True
    )
    assert list(back.runs.loc[0, ["commit", "torch", "device"]]) == ["12e4567", "2.10", "None"]
    np.testing.assert_equal(back.samples, recorded.samples)


def test_figures_are_rebuilt_byte_for_byte_from_the_files(report: Path, tmp_path: Path) -> None:
    paths = build(STUDY, load(report), tmp_path)
    expected = {f"{name}.png" for name in NAMES}
    expected |= {"runs.csv", "history.csv", "samples.npz", "study.json"}
    expected |= {"report.md", "report.html"}
    assert {path.name for path in paths} == expected
    assert [p.name for p in paths if p.read_bytes() != (report / p.name).read_bytes()] == []
    drawings = {f"{name}.pdf" for name in NAMES}
    assert {path.name for path in report.iterdir()} == expected | drawings


def test_drawings_for_print_carry_no_dates(report: Path, tmp_path: Path) -> None:
    save(seconds_per_epoch(load(report).runs), tmp_path / "again.pdf")
    drawing = (tmp_path / "again.pdf").read_bytes()
    assert drawing == (report / "seconds_per_epoch.pdf").read_bytes()
    assert b"Date" not in drawing


def test_a_failed_report_leaves_the_earlier_one(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").write_text("earlier")

    def fails(*_: object) -> str:
        raise RuntimeError

    monkeypatch.setattr("flowbench.report.plates.drawn", lambda *_: NOTHING)
    monkeypatch.setattr("flowbench.report.document.html", fails)
    with pytest.raises(RuntimeError):
        build(STUDY, recorded, tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [
        ("report.html", "earlier")
    ]


def test_a_figure_that_cannot_be_drawn_is_named_and_its_old_file_removed(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits.png").touch()
    monkeypatch.setattr("flowbench.report.trained.plates", lambda *_: [])  # the others take seconds
    build(STUDY, recorded._replace(samples={}), tmp_path)
    assert "digits: not drawn, for there are no samples." in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "digits.png").exists()


# What the user can fix


def test_an_unknown_run_is_an_error_that_lists_the_valid(
    recorded: Recorded, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"'nope' is not a finished run.*{RUN}"):
        build(STUDY, recorded, tmp_path, run="nope")
    assert not list(tmp_path.iterdir())


def test_a_study_without_finished_runs_is_an_error(recorded: Recorded, tmp_path: Path) -> None:
    runs = recorded.runs.assign(status="failed")
    with pytest.raises(UsageError, match="no finished run to report; recorded: 9 failed"):
        build(STUDY, recorded._replace(runs=runs), tmp_path)


def test_an_indispensable_column_is_named(recorded: Recorded, tmp_path: Path) -> None:
    runs = recorded.runs.drop(columns="seed")
    with pytest.raises(UsageError, match=r"runs\.csv lacks seed"):
        build(STUDY, recorded._replace(runs=runs), tmp_path)


def test_an_unwritable_directory_is_an_error(recorded: Recorded, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to"):
        build(STUDY, recorded, tmp_path / "file" / "below")


def test_a_directory_without_a_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"runs\.csv does not exist"):
        load(tmp_path)


# Pages


def test_the_chosen_run_is_the_best_or_the_one_asked_for(recorded: Recorded) -> None:
    runs = recorded.runs
    assert chosen(runs, None)[0]["val/bpd"] == runs["val/bpd"].min()
    assert chosen(runs, RUN)[0]["run_id"] == RUN
    lossy = runs.assign(**{"val/bpd": np.nan})
    assert chosen(lossy, None)[0]["val/loss"] == runs["val/loss"].min()


def test_missing_metrics_are_dashes_on_both_pages(recorded: Recorded) -> None:
    runs = recorded.runs.assign(**{"val/bpd": np.nan, "test/bpd": np.nan})
    marked, page_html = pages(recorded._replace(runs=runs))
    assert "| affine | 3 | – | – |" in marked
    assert '<td class="number">–</td>' in page_html
    assert not re.search(r"\bnan\b", (marked + page_html).lower())


def test_runs_left_out_are_counted_and_named(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[0, "status"] = "killed"
    runs.loc[1, ["status", "transform"]] = ["failed", np.nan]  # before it said what it was
    marked, _ = pages(recorded._replace(runs=runs))
    assert "9 recorded: 7 finished, 1 killed, 1 failed." in marked
    assert "killed affine-0 (affine, seed 0); failed affine-1 (–, seed 1)" in marked


def test_mixed_runs_are_told(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[0, "device"] = "cuda"
    mixed = recorded._replace(runs=runs)
    blocks = list(page(STUDY, mixed, NOTHING, NOTHING, NOTHING, NOTHING))
    warnings = [block for block in blocks if isinstance(block, Paragraph) and "Mixed" in block.lead]
    assert "device: cuda (1 run), None (8 runs)" in warnings[0].text


class Strict(HTMLParser):
    """Counts what is open, and gathers references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.alts: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.references += [str(given[key]) for key in ("src", "href") if key in given]
        if tag == "img":
            self.alts.append(given.get("alt"))
        if tag not in {"img", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_self_contained_and_escaped(report: Path) -> None:
    text = (report / "report.html").read_text()
    parser = Strict()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.references) == len(NAMES)
    assert all(reference.startswith("data:image/png;base64,") for reference in parser.references)
    assert all(parser.alts)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "compare &lt;quick&gt;" in text
    assert "|x| &lt; B &amp; beyond" in text
    assert "<quick>" not in text


def test_markdown_escapes_and_keeps_tables_whole() -> None:
    table = Table(["name", "value"], [["a|b_c", "<1>"]])
    text = markdown("*T*", [Paragraph("one\ntwo _three_"), table, Code("a_b | c")])
    assert text == (
        "# \\*T\\*\n\none two \\_three\\_\n\n"
        "| name | value |\n| --- | ---: |\n| a\\|b_c | \\<1\\> |\n\n"
        "```sh\na_b | c\n```\n"
    )


def test_html_sets_numbers_flush_right(tmp_path: Path) -> None:
    text = html("T", [Table(["name", "value"], [["a", "1"]])], tmp_path)
    assert '<td>a</td><td class="number">1</td>' in text
