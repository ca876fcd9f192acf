"""The evaluation as tables: likelihood, classification and patches; fidelity by extractor."""

from collections.abc import Iterator

import pandas as pd

from flowbench.report.configurations import configurations
from flowbench.report.document import Block, Paragraph, Table
from flowbench.report.extractors import Extractor, extractors
from flowbench.report.numbers import MISSING, confidence, number
from flowbench.report.seeds import finished, patch_ratio
from flowbench.report.tables import means, values_of

LIKELIHOODS = {"uniform": ("bpd", "bits/dim"), "gaussian": ("nll", "nats/dim")}
"""What a likelihood is called and its unit, by the noise: the two never meet in one table."""
_EVALUATED = ["test/draws", "bayes/accuracy", "patches/ratio"]
_PLACES = {"fid": 2, "kid": 4, "precision": 3, "recall": 3, "agreement": 3}
_TITLES = {"fid": "FID", "kid": "KID", "agreement": "class agreement"}


def scores(runs: pd.DataFrame) -> Iterator[Block]:
    """A table for each noise and one for each extractor, with what they rest on beneath.

    Args:
        runs: All recorded runs of a study.
    """
    runs = finished(runs)
    for noise, (name, unit) in LIKELIHOODS.items():
        own = runs[runs["noise"] == noise]
        if own[_EVALUATED].notna().any(axis=None):
            yield _likelihood(own, f"test/{name}", unit)
            yield Paragraph(_rests_on(own, f"test/{name}", unit), lead=f"Noise: {noise}.")
    found = extractors(runs)
    for extractor in found:
        yield _fidelity(extractor)
        yield Paragraph(extractor.told, lead="Extractor.")
    if found:
        yield Paragraph(
            "Generated against test images, mean ± standard deviation over seeds; FID and KID are "
            "better the lower, the others the higher. Floor: what training images score in place "
            "of generated ones. Class agreement: the share of generated images in which the "
            "extractor's classifier reads the class that was asked for. Values compare within a "
            "table only: other weights or fewer images move all of them. Images of flows that were "
            "trained with Gaussian noise are denoised before."
        )
    reasons = runs["skipped"].dropna().astype("str").str.split("; ").explode().value_counts()
    if len(reasons):
        told = "; ".join(
            f"{reason} ({count} of {len(runs)} runs)" for reason, count in reasons.items()
        )
        yield Paragraph(f"{told}.", lead="Not measured.")


def _likelihood(runs: pd.DataFrame, metric: str, unit: str) -> Table:
    every = configurations(runs)
    errors = {name: (own[f"{metric}_se"] ** 2).mean() ** 0.5 for name, own in every.items()}
    ratios = {name: patch_ratio(own, own["transform"].iloc[0]) for name, own in every.items()}
    columns = {
        f"test {unit}": means(runs, metric, 3),
        "standard error over draws": {name: number(error, 4) for name, error in errors.items()},
        f"importance-weighted {unit}": means(runs, "test/bpd_iw", 3),
        "Bayes accuracy": means(runs, "bayes/accuracy", 3),
        "Bayes calibration error": means(runs, "bayes/ece", 3),
        "edge ÷ even noise": {
            name: confidence(ratio, "", places=2, sign="-") for name, ratio in ratios.items()
        },
    }
    return _table(runs, columns)


def _rests_on(runs: pd.DataFrame, metric: str, unit: str) -> str:
    said = [
        f"Test {unit} with every constant: mean ± standard deviation over seeds; draws of the "
        f"noise: {values_of(runs['test/draws'])}."
    ]
    if runs[f"{metric}_se"].notna().any():
        said.append(
            "Standard error: of one run's value over these draws (root mean square of the runs')."
        )
    if runs["test/bpd_iw"].notna().any():
        said.append(
            "Importance-weighted: the bound with the mean over these draws inside the logarithm."
        )
    if runs["bayes/accuracy"].notna().any():
        said.append(
            "Bayes: the class of the highest likelihood under equal priors; calibration error "
            f"over 15 bins; test images: {values_of(runs['bayes/images'])}."
        )
    if runs["patches/ratio"].notna().any():
        said.append(
            "Edge ÷ even noise: (distance + 1) / (floor + 1) of the first and last two patches, "
            "where distance and floor are how far the high-frequency amplitude in generated and "
            "in training images is from that in test images, in grey levels; divided by what it "
            "is in training images with so much even noise that their other patches are as far "
            "off as the generated ones. 1: the edge is no noisier than the rest, though plain "
            "patches show noise more. Geometric mean with its 95 % t interval over seeds, or a "
            "single run's own over groups of images."
        )
    return " ".join(said)


def _fidelity(extractor: Extractor) -> Table:
    runs = extractor.runs
    names = [name for name in _PLACES if extractor.column(name).notna().any()]
    columns, floors = {}, ["floor", ""]
    for name in names:
        columns[_TITLES.get(name, name)] = means(
            runs.assign(score=extractor.column(name)), "score", _PLACES[name]
        )
        floors.append(number(extractor.column(f"{name}_floor").mean(), _PLACES[name]))
    table = _table(runs, columns)
    return Table(table.header, [*table.rows, floors])


def _table(runs: pd.DataFrame, columns: dict[str, dict[str, str]]) -> Table:
    """A row a configuration; columns without a number are left out."""
    kept = {title: cells for title, cells in columns.items() if set(cells.values()) != {MISSING}}
    rows = [
        [name, str(own["seed"].nunique()), *(cells[name] for cells in kept.values())]
        for name, own in configurations(runs).items()
    ]
    return Table(["transform", "seeds", *kept], rows)
