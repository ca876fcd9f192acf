"""Every column of a recorded run, described once: its source, name, unit and purpose.

Settings need no entry: each option of an ``Experiment`` is a column under its dotted name. An
option that no run shares with another (name, seed), that names a place on a machine (data.root) or
that only the evaluation uses (evaluate.*) is not a setting. Imports no torch and no pandas.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from flowbench import config

Kind = Literal["identity", "setting", "machine", "fact", "metric"]
"""identity: which run it is; setting: decides the result; machine: decides whether times compare;
fact: follows from the others; metric: what was measured."""
Direction = Literal["minimize", "maximize", ""]

TRANSFORM, SEED = "model.transform", "seed"
BLOCKS, LAYERS, WIDTH, PATCH = "model.blocks", "model.layers", "model.width", "model.patch"
DATA, IMAGES, SPREAD = "data.name", "data_hash", "data_std"
NOISE, BATCH, EPOCHS = "data.noise", "data.batch", "trainer.max_epochs"
TRAIN_IMAGES, BUDGET = "data.train_images", "flops"
FLOPS = 6
"""Floating-point operations of a training step per parameter and token: 2 forward, 4 backward."""
LAYERS_LISTED = "layers_by_block"
"""The column with the layers of every block, such as 1-1-6, where they are given as a list;
``model.layers`` is then their mean."""
SECONDS, KERNELS = "seconds_per_epoch", "kernels"

HASH = "extractor_"
"""The column ``extractor_<suffix>`` has the hash of the weights that ``fid_<suffix>`` uses."""
SCORES = ("fid", "kid", "precision", "recall")
"""What is measured in an extractor's features; each has a floor, ``fid_<suffix>_floor``."""


@dataclass(frozen=True)
class Column:
    """One column of the table of runs, or of their history.

    Attributes:
        name: Its name in CSV files, and of the parameter or metric in MLflow.
        kind: What it is for.
        label: Its name in the header of a table, with the unit.
        axis: Its name along the axis of a figure, with the unit.
        direction: Which values are better; empty where neither is.
        places: Decimal places in tables.
        tag: The tag in MLflow that holds it; empty for a parameter or metric.
        epochs: Whether it is measured in every epoch, and so is part of the history.
        final: Whether the table of runs has its last value.
        text: Whether its values are text even where they look like numbers.
    """

    name: str
    kind: Kind
    label: str
    axis: str = ""
    direction: Direction = ""
    places: int = 3
    tag: str = ""
    epochs: bool = False
    final: bool = True
    text: bool = False


def _identities() -> list[Column]:
    tags = {"name": "flowbench.study", "scale": "flowbench.scale", "skipped": "skipped"}
    texts = [
        Column(name, "identity", name, tag=tags.get(name, ""), text=True)
        for name in ("run_id", "name", "scale", "status", "started", "skipped")
    ]
    return [
        *texts,
        Column(SEED, "identity", "seed", places=0),
        Column("trial", "identity", "trial", places=0, tag="optuna.trial"),
        Column("workers", "identity", "workers", places=0, tag="flowbench.workers"),
    ]


def _machine() -> list[Column]:
    return [
        Column("device", "machine", "device", text=True),
        Column("threads", "machine", "threads", places=0),
        Column("precision", "machine", "precision", text=True),
        Column("kernels", "machine", "kernels", text=True),
        Column("torch", "machine", "torch", tag="version.torch", text=True),
    ]


def _facts() -> list[Column]:
    versions = ("lightning", "flowbench")
    return [
        Column("bins", "fact", "bins", places=0),
        Column("classes", "fact", "classes", places=0),
        Column("parameters", "fact", "parameters", "Parameters", places=0),
        *(Column(name, "fact", name, tag=f"version.{name}", text=True) for name in versions),
        Column("commit", "fact", "commit", tag="commit", text=True),
        Column(IMAGES, "fact", "hash of the images", tag=IMAGES, text=True),
        Column(SPREAD, "fact", "standard deviation of the pixels", tag=SPREAD),
        Column("test/draws", "fact", "draws of the noise in the test", places=0),
        Column("bayes/images", "fact", "images classified", places=0),
        Column("fidelity/samples", "fact", "images generated for FID", places=0),
        Column("fidelity/real", "fact", "test images for FID", places=0),
        Column("fidelity/kid_subset", "fact", "images in a subset for KID", places=0),
        Column(f"{HASH}*/accuracy", "fact", "accuracy of the {} extractor"),
        Column(f"{HASH}*", "fact", "extractor of {}", text=True),
        Column("evaluation/seconds", "fact", "seconds of evaluation", places=1),
    ]


def _losses() -> list[Column]:
    terms: dict[str, tuple[str, str, Direction]] = {
        "loss": ("loss (nats/dim)", "loss (nats per dimension)", "minimize"),
        "prior": ("prior (nats/dim)", "prior (nats per dimension)", "minimize"),
        "logdet": ("logdet (nats/dim)", "log-determinant (nats per dimension)", "maximize"),
        "bpd": ("bits/dim", "bits per dimension", "minimize"),
    }
    stages = {"train": "Training", "val": "Validation", "test": "Test"}
    return [
        Column(
            f"{stage}/{term}",
            "metric",
            f"{stage} {label}",
            f"{title} {axis}",
            direction,
            epochs=stage != "test",
        )
        for stage, title in stages.items()
        for term, (label, axis, direction) in terms.items()
    ]


def _measured() -> list[Column]:
    def metric(
        name: str, label: str, direction: Direction = "", places: int = 3, axis: str = ""
    ) -> Column:
        return Column(name, "metric", label, axis or label, direction, places)

    def epoch(name: str, label: str, axis: str = "", direction: Direction = "") -> Column:
        return Column(name, "metric", label, axis or label, direction, epochs=True, final=False)

    titles = {"fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall"}
    places = {"fid": 2, "kid": 4}
    scores: list[Column] = []
    for name, title in titles.items():
        better: Direction = "minimize" if name in places else "maximize"
        whole = title[0].upper() + title[1:] + " ({})"
        scores += [
            metric(f"{name}_*_floor", f"floor of {title} ({{}})", "", places.get(name, 3)),
            metric(f"{name}_*", f"{title} ({{}})", better, places.get(name, 3), whole),
        ]
    return [
        metric("test/bpd_se", "standard error of test bits/dim", places=4),
        metric("test/bpd_iw", "importance-weighted bits/dim", "minimize"),
        metric("test/nll", "test nats/dim", "minimize", axis="Test nats per dimension"),
        metric("test/nll_se", "standard error of test nats/dim", places=4),
        metric("test/bpd_median", "median test bits/dim", "minimize"),
        metric("test/nll_median", "median test nats/dim", "minimize"),
        metric("test/failed", "test images worse than under the identity", "minimize", 4),
        metric("val/failed", "validation images worse than under the identity", "minimize", 4),
        metric("samples/nonfinite", "samples that are not finite", "minimize", 4),
        metric("samples/per_second", "samples/s", "maximize", 0, "Samples drawn per second"),
        metric("roundtrip/max", "largest error of a round trip", "minimize", 6),
        metric("roundtrip/steps", "most steps of a searched inverse", places=0),
        metric("bayes/accuracy", "Bayes accuracy", "maximize"),
        metric("bayes/ece", "Bayes calibration error", "minimize"),
        metric("bayes/log_loss", "Bayes log loss (nats/image)", "minimize"),
        metric("bayes/entropy", "Bayes entropy (nats/image)"),
        metric("bayes/excess", "Bayes log loss − entropy", "minimize"),
        metric("auroc_png_*", "AUROC of likelihood and PNG against {}", "maximize"),
        metric("auroc_typical_*", "AUROC of typicality against {}", "maximize"),
        metric("auroc_*", "AUROC of likelihood against {}", "maximize"),
        metric("patches/ratio", "edge ÷ even noise", "minimize", 2),
        metric("patches/ratio_low", "lower end of edge ÷ even noise", places=2),
        metric("patches/ratio_high", "upper end of edge ÷ even noise", places=2),
        epoch("val/fid_*", "validation FID ({})", "Validation FID ({})", "minimize"),
        *scores,
        metric("agreement_*", "class agreement ({})", "maximize", axis="Agreement ({})"),
        Column(SECONDS, "metric", "s/epoch", "Time per epoch (s)", "minimize", 2, epochs=True),
        Column(
            "images_per_second",
            "metric",
            "images/s",
            "Images per second",
            "maximize",
            0,
            epochs=True,
        ),
        Column("load", "metric", "load average", epochs=True),
        Column("training_seconds", "metric", "total s", places=0),
        epoch("first_epoch", "first epoch"),
        epoch("lr", "learning rate"),
        epoch("grad_norm", "norm of the gradient"),
        epoch("max_log_slope/*", "largest |log slope|, {}"),
        epoch("outside/*", "share of inputs in the tails, {}"),
    ]


COLUMNS = {
    column.name: column
    for column in (*_identities(), *_machine(), *_facts(), *_losses(), *_measured())
}
"""Every column but the settings, by its name; ``*`` in a name stands for a suffix."""
NAMES = [name for name in COLUMNS if "*" not in name]

MACHINE = [column.name for column in COLUMNS.values() if column.kind == "machine"]
"""What two runs must share, in addition to their settings, for their times to be comparable."""
TIMES = [SECONDS, "images_per_second", "training_seconds", "load", "samples/per_second"]
"""What counts only for a run that had the machine to itself."""

_NOT_SETTINGS = {"name", SEED, "data.root", "trainer"}
_UNTIMED = {NOISE, "data.noise_std", EPOCHS, "trainer.max_steps", "optim.lr", "optim.betas"}
_UNTIMED |= {BUDGET} | {f"optim.{name}" for name in ("weight_decay", "warmup_epochs", "min_lr")}
_LABELS = {
    DATA: "data",
    BATCH: "batch (images)",
    EPOCHS: "epochs",
    LAYERS: "layers per block",
    LAYERS_LISTED: "layers by block",
    "model.clip": "clip of raw parameters",
    "model.start": "first patch",
    "model.qk_norm": "QK-norm",
    "optim.lr": "learning rate",
    BUDGET: "FLOPs",
    TRAIN_IMAGES: "training images",
    "optim.clip": "clip",
}


def is_setting(name: str) -> bool:
    """Return whether a recorded parameter is an option that decides the result of a run.

    Example:
        >>> [is_setting(name) for name in ("model.blocks", "trainer.precision", "data.root")]
        [True, True, False]
    """
    if name.startswith("trainer.") or name == LAYERS_LISTED:
        return True
    evaluated = name.startswith("evaluate.")
    return name in config.types() and not evaluated and name not in _NOT_SETTINGS


def settings(columns: Iterable[str]) -> list[str]:
    """Return the settings among some columns, in the order of the configuration's options."""
    order = {name: place for place, name in enumerate(config.options())}
    found = [name for name in columns if is_setting(name)]
    return sorted(found, key=lambda name: (order.get(name, len(order)), name))


def is_protocol(setting: str) -> bool:
    """Return whether losses of runs that differ in this setting measure different things."""
    return setting.startswith("data.") and setting not in (BATCH, TRAIN_IMAGES)


def is_timed(setting: str) -> bool:
    """Return whether a setting can change how long an epoch takes."""
    return setting not in _UNTIMED


@cache
def find(name: str) -> Column:
    """Describe a column.

    Returns:
        Its description, with the suffix filled in. A name that the schema does not know is an
        option's, or else a metric under its own name.

    Example:
        >>> find("fid_digits").label, find("optim.weight_decay").label, find("loops").kind
        ('FID (digits)', 'weight decay', 'metric')
    """
    if name in COLUMNS:
        return COLUMNS[name]
    if is_setting(name):
        return Column(name, "setting", _setting_label(name))
    for pattern, column in COLUMNS.items():
        before, star, after = pattern.partition("*")
        match = star and re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", name)
        if match:
            fields = {key: getattr(column, key).format(match[1]) for key in ("label", "axis")}
            return Column(**{**vars(column), **fields, "name": name})
    return Column(name, "metric", name, name, epochs=True)


def is_objective(name: str) -> bool:
    """Return whether a study can minimize or maximize this metric."""
    return find(name).direction != "" and "*" not in name


def is_hash(name: str) -> bool:
    """Return whether a column holds the hash of a feature extractor's weights.

    Example:
        >>> is_hash("extractor_digits"), is_hash("extractor_digits/accuracy")
        (True, False)
    """
    return name.startswith(HASH) and "/" not in name


def is_known(name: str) -> bool:
    """Return whether the schema or the configuration describes a column."""
    column = find(name)
    return column.kind != "metric" or column.label != name


def _setting_label(name: str) -> str:
    last = name.rpartition(".")[2]
    unique = sum(option.rpartition(".")[2] == last for option in config.options()) <= 1
    return _LABELS.get(name, last.replace("_", " ") if unique else name)
