"""How transforms are called and ordered wherever people read about them."""

import math
import re
from collections.abc import Iterable

AFFINE = "affine"
"""The baseline of every comparison."""

_SPLINE = re.compile(r"rqs-(\d+)(?:-(.+))?")  # rqs-K, or rqs-K-B where B is not the default


def label(transform: str) -> str:
    """Name of a transform as figures and tables print it.

    Example:
        >>> label("affine+rqs-8"), label("rqs-8-6")
        ('affine + RQS K=8', 'RQS K=8 B=6')
    """
    return " + ".join(_label(part) for part in transform.split("+"))


def _label(part: str) -> str:
    match = _SPLINE.fullmatch(part)
    return f"RQS K={match[1]}{f' B={match[2]}' if match[2] else ''}" if match else part


def is_spline(transform: str) -> bool:
    """Whether this is a rational-quadratic spline with nothing before or after it.

    Example:
        >>> is_spline("rqs-8"), is_spline("affine+rqs-8")
        (True, False)
    """
    return _SPLINE.fullmatch(transform) is not None


def bins(transform: str) -> float:
    """Number of bins of the one spline in a transform; NaN where there is none, or several.

    Example:
        >>> bins("affine+rqs-8"), bins("affine")
        (8.0, nan)
    """
    found = [int(match[1]) for match in map(_SPLINE.fullmatch, transform.split("+")) if match]
    return float(found[0]) if len(found) == 1 else math.nan


def family(transform: str) -> str:
    """What a transform is but for its number of bins.

    Example:
        >>> family("affine+rqs-8"), family("rqs-8-6"), family("affine")
        ('affine + RQS', 'RQS B=6', 'affine')
    """
    return label(transform).replace(f" K={bins(transform):.0f}", "")


def ordered(transforms: Iterable[str]) -> list[str]:
    """The distinct transforms: simple before composed, splines by their number of bins.

    Example:
        >>> ordered(["affine+rqs-4", "rqs-16", "rqs-4", "affine"])
        ['affine', 'rqs-4', 'rqs-16', 'affine+rqs-4']
    """

    def rank(transform: str) -> tuple[int, list[tuple[bool, str | int]]]:
        pieces = re.findall(r"\d+|\D+", transform)
        return transform.count("+"), [(p.isdigit(), int(p) if p.isdigit() else p) for p in pieces]

    return sorted(set(transforms), key=rank)


_METRICS = {
    "loss": "loss (nats per dimension)",
    "prior": "prior (nats per dimension)",
    "logdet": "log-determinant (nats per dimension)",
    "bpd": "bits per dimension",
    "nll": "loss of noisy images (nats per dimension)",
}
_STAGES = {"train": "Training", "val": "Validation", "test": "Test"}
_SCORES = {
    "fid": "FID",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "agreement": "Agreement",
}
_TIMES = {"seconds_per_epoch": "Time per epoch (s)", "images_per_second": "Images per second"}


def metric_label(metric: str) -> str:
    """Name of a metric as an axis has it, with its unit.

    Example:
        >>> metric_label("val/bpd"), metric_label("seconds_per_epoch"), metric_label("fid_digits")
        ('Validation bits per dimension', 'Time per epoch (s)', 'FID (digits)')
    """
    stage, _, name = metric.rpartition("/")
    score, _, extractor = name.partition("_")
    if score in _SCORES and extractor:
        return f"{_SCORES[score]} ({extractor})"
    if stage in _STAGES and name in _METRICS:
        return f"{_STAGES[stage]} {_METRICS[name]}"
    return _TIMES.get(metric, metric)


def short(parameter: str) -> str:
    """Name of a parameter, or of several that vary together, without where it belongs.

    Example:
        >>> short("optim.lr"), short("model.blocks, model.layers")
        ('lr', 'blocks, layers')
    """
    return ", ".join(part.rpartition(".")[2] for part in parameter.split(", "))
