"""The configuration of an experiment as frozen dataclasses; imports no torch.

Field names equal the names of the constructor arguments, so a recorded configuration reads like the
code that it configures.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from flowbench.errors import UsageError


def check(holds: bool, key: str, value: object, valid: str) -> None:
    """Raise a ``UsageError`` that says what would be valid, unless a condition holds."""
    if not holds:
        raise UsageError(f"{key} = {value!r} is not valid: {valid}")


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""A name that is safe as a part of a path, an address and a query: of a study or a group."""


def check_name(key: str, name: str) -> None:
    """Check the name of a study or of a group of runs; it becomes a directory.

    Raises:
        UsageError: It has other characters than the valid ones, or too many.
    """
    valid = "up to 100 letters a to z, digits and _ . -, a letter or digit first"
    check(NAME.fullmatch(name) is not None, key, name, valid)


@dataclass(frozen=True)
class Model:
    """The flow: blocks of a causal vision transformer around one elementwise transform."""

    transform: str = "rqs-8"
    """Elementwise transform: additive, affine, softaffine (clipped), rqs-K (K bins), or a
    composition: affine+rqs-8."""
    blocks: int = 8
    """Flow blocks; the first is the one nearest the data."""
    layers: int | tuple[int, ...] = 4
    """Transformer layers in each block, or a list with those of every block: [1, 1, 1, 5]."""
    width: int = 128
    """Channels of the transformer."""
    heads: int | None = None
    """Attention heads; null: one for every 64 channels."""
    patch: int = 4
    """Side of the square patches, in pixels."""
    expansion: int = 4
    """Hidden channels of the MLP, as a multiple of the width."""
    activation: Literal["gelu", "gelu-tanh"] = "gelu"
    """The MLP's activation: exact GELU or its tanh approximation."""
    conditional: bool = True
    """Condition on the class label where the data set has labels."""
    start: Literal["identity", "learned", "token"] = "identity"
    """What becomes of the first patch of a block: it passes unchanged, has parameters of its own,
    or gets them from a start token."""
    order: str = "flip"
    """Order in which the blocks take the patches: flip (raster, every second block reversed),
    raster, columns, snake, hilbert, spiral-in, spiral-out, checkerboard, random-SEED, or several
    in turn: flip+snake."""
    clip: float | None = None
    """c: raw parameters r of the transform become c tanh(r/c); null: they are left as they are."""
    qk_norm: bool = False
    """Normalise queries and keys of the attention."""
    final_norm: bool = False
    """Normalise the tokens before the head that gives the parameters."""

    def __post_init__(self) -> None:
        for key in ("blocks", "width", "patch", "expansion"):
            value = getattr(self, key)
            check(value >= 1, f"model.{key}", value, "an integer of at least 1")
        each = [self.layers] if isinstance(self.layers, int) else list(self.layers)
        fits = isinstance(self.layers, int) or len(each) == self.blocks
        valid = f"an integer of at least 1, or a list of {self.blocks}, one for each block"
        given = each if isinstance(self.layers, tuple) else self.layers
        check(fits and min(each) >= 1, "model.layers", given, valid)
        clipped = self.clip is None or 0 < self.clip < math.inf
        check(clipped, "model.clip", self.clip, "a number above 0, or null")
        if self.heads is not None:
            valid = f"an integer that divides model.width = {self.width}"
            whole = self.heads >= 1 and self.width % self.heads == 0
            check(whole, "model.heads", self.heads, valid)

    @property
    def total_layers(self) -> int:
        """Transformer layers of all blocks together."""
        return self.blocks * self.layers if isinstance(self.layers, int) else sum(self.layers)


DataName = Literal[
    "mnist-5k",
    "digits-on-photos",
    "photo-crops",
    "mnist",
    "fashion-mnist",
    "kmnist",
    "cifar10",
    "cifar100",
    "svhn",
    "celeba",
    "imagenet-old-32",
    "imagenet-old-64",
    "imagenet-new-32",
    "imagenet-new-64",
    "folder",
]


@dataclass(frozen=True)
class Data:
    """The images, and the noise that turns their 256 levels into a density."""

    name: DataName = "mnist-5k"
    """Data set; the first three need no files, folder reads the images below root."""
    root: str = "data"
    """Directory of the data set's files; downloads go there."""
    noise: Literal["uniform", "gaussian"] = "uniform"
    """uniform: dequantisation, the density protocol (bpd); gaussian: the sample protocol."""
    noise_std: float = 0.1
    """Standard deviation of the Gaussian noise, on pixels in [-1, 1]."""
    batch: int = 256
    """Images in a batch, on each device."""
    size: int = 32
    """folder, celeba: side in pixels to which images are resized and centre-cropped."""
    channels: Literal[1, 3] = 3
    """folder: 1 for grey, 3 for colour."""
    train_images: int | None = None
    """Training images to use, the first of the training part; null: all."""
    flip: bool = False
    """Mirror every training image with probability ½, left to right."""
    skip_unreadable: bool = False
    """folder: leave out the files that cannot be decoded instead of stopping at the first."""

    @property
    def places(self) -> tuple[Path, Path]:
        """The directories in which a data set's files are looked for, in this order."""
        return Path(self.root) / self.name, Path(self.root)

    def __post_init__(self) -> None:
        for key in ("batch", "size"):
            check(getattr(self, key) >= 1, f"data.{key}", getattr(self, key), "at least 1")
        if self.train_images is not None:
            valid = "an integer of at least 1, or null"
            check(self.train_images >= 1, "data.train_images", self.train_images, valid)
        check(0 < self.noise_std < math.inf, "data.noise_std", self.noise_std, "a number above 0")


@dataclass(frozen=True)
class Optim:
    """AdamW with linear warm-up, then a cosine down to ``min_lr``."""

    lr: float = 2e-3
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    weight_decay: float = 1e-4
    """Decoupled weight decay, on matrices of weights only."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up."""
    min_lr: float = 1e-6
    """Learning rate at the end."""
    clip: float = 1.0
    """Largest gradient norm; 0 clips nothing."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is evaluated in their place; 0: none."""
    label_dropout: float = 0.0
    """Share of labels hidden from the flow in training; classifier-free guidance needs it."""
    norm_penalty: float = 0.0
    """Weight, in the loss that is minimised, of the mean square of what every block but the last
    gives; 0: none. The recorded losses are without it."""

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, "optim.lr", self.lr, "a number above 0")
        low = 0 <= self.min_lr <= self.lr
        check(low, "optim.min_lr", self.min_lr, f"a number from 0 to optim.lr = {self.lr}")
        decaying = all(0 <= beta < 1 for beta in self.betas)
        check(decaying, "optim.betas", self.betas, "two numbers in [0, 1)")
        check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        check(self.norm_penalty >= 0, "optim.norm_penalty", self.norm_penalty, "at least 0")
        check(self.clip >= 0, "optim.clip", self.clip, "a number of at least 0")
        check(0 <= self.ema < 1, "optim.ema", self.ema, "a number in [0, 1)")
        hiding = 0 <= self.label_dropout < 1
        check(hiding, "optim.label_dropout", self.label_dropout, "a number in [0, 1)")
        check(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "at least 0")


@dataclass(frozen=True)
class Evaluate:
    """The evaluation: what is measured and drawn in addition to the losses."""

    samples_every: int = 5
    """Epochs between grids of samples; 0: only at the end."""
    samples_per_class: int = 10
    """Images of each class (rows of ten where there are no classes) in a grid."""
    draws: int = 4
    """Passes over the test set, each with its own noise."""
    bayes: int = 1000
    """Test images to classify by Bayes' rule; 0: none."""
    samples: int = 10_000
    """Images generated for FID, KID, precision, recall and patch quality; 0: none of these."""
    guidance: float = 1.0
    """Guidance scale of the guided samples, drawn from flows trained with label dropout."""
    inception_weights: str | None = None
    """File of torch-fidelity's Inception weights; null: the file in torch's own directory."""
    fidelity_every: int = 0
    """Epochs between FIDs against the validation images; 0: none. Each takes time."""
    fidelity_samples: int = 1000
    """Images generated for each of these FIDs."""
    latents: int = 0
    """Training and test images whose noise is measured: how Gaussian it is, and where the class is
    after every block; 0: none, else at least 10."""
    other_data: list[DataName] = field(default_factory=list)
    """Data sets whose test images the likelihood is to tell from the flow's own, such as
    '[photo-crops]'; the flow's own data set among them is left out."""

    def __post_init__(self) -> None:
        for key in ("samples_every", "bayes", "samples", "guidance", "fidelity_every"):
            check(getattr(self, key) >= 0, f"evaluate.{key}", getattr(self, key), "at least 0")
        enough = self.latents == 0 or self.latents >= 10
        check(enough, "evaluate.latents", self.latents, "0, or at least 10")
        for key in ("samples_per_class", "draws", "fidelity_samples"):
            check(getattr(self, key) >= 1, f"evaluate.{key}", getattr(self, key), "at least 1")


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 1


def _whole_or_none(value: Any) -> bool:
    return value is None or _whole(value)


def _endless(value: Any) -> bool:
    return value == -1 or _whole_or_none(value)


def _part(value: Any) -> bool:
    return _whole_or_none(value) or (isinstance(value, float) and 0 < value <= 1)


PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
_INTEGER = "an integer of at least 1"
_PART = f"{_INTEGER}, that many batches, or a share in (0, 1], written with a point"
TRAINER: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_epochs": (f"{_INTEGER}, or -1 for no limit", _endless),
    "max_steps": (f"{_INTEGER}, or -1 for no limit", _endless),
    "min_epochs": (f"{_INTEGER}, or null", _whole_or_none),
    "min_steps": (f"{_INTEGER}, or null", _whole_or_none),
    "accumulate_grad_batches": (_INTEGER, _whole),
    "check_val_every_n_epoch": (_INTEGER, _whole),
    "val_check_interval": (_PART, _part),
    "limit_train_batches": (_PART, _part),
    "overfit_batches": (f"{_PART}; 0: all", lambda v: v == 0 or _part(v)),
    "limit_val_batches": (f"{_PART}; 0: no validation", lambda v: v == 0 or _part(v)),
    "precision": (
        "32-true, 64-true, bf16-mixed, or on a GPU 16-mixed",
        lambda value: str(value) in ("None", "32", "64", "16", "bf16", *PRECISIONS),
    ),
    "strategy": (
        "one whose processes each run this command, such as auto, ddp or fsdp",
        lambda value: not any(kind in str(value) for kind in ("spawn", "fork", "notebook")),
    ),
}
"""What Lightning takes but cannot train with, or bends silently: the valid values, and a test."""


@dataclass(frozen=True)
class Experiment:
    """One training run: everything that decides its result."""

    name: str = "train"
    """Name under which runs are grouped: the study's, or train."""
    seed: int = 0
    """Seed of the weights, the order of the batches, the noise and the samples."""
    model: Model = field(default_factory=Model)
    """The flow."""
    data: Data = field(default_factory=Data)
    """The images."""
    optim: Optim = field(default_factory=Optim)
    """The optimiser."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """The evaluation."""
    trainer: dict[str, Any] = field(default_factory=lambda: {"max_epochs": 10})
    """Any option of Lightning's Trainer: max_epochs, precision, devices, strategy, ..."""
    seconds: float | None = None
    """Seconds of training (as in seconds_per_epoch) after which it ends; the learning rate falls
    over them. null: trainer.max_epochs decides. If both are given, the earlier ends the training;
    trainer.max_epochs = -1 is no limit."""
    flops: float | None = None
    """Training FLOPs (6 x parameters x patches x images seen) after which it ends, at the nearest
    step. null: the others decide. With several of them, the earliest ends the training."""
    compile: bool = False
    """Train with torch.compile: faster on a GPU, after minutes of compilation in the first epoch,
    whose kernels are kept for later runs. On a CPU it gains nothing."""
    capture: bool = False
    """Replay the passes of a training step as CUDA graphs, compiled ones with compile: faster where
    a flow is so small that an NVIDIA GPU waits for the host. For one GPU."""
    recompute: bool = False
    """Keep what enters each block only and compute the rest again in the backward pass: a fraction
    of the memory, for a third more time."""

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**32, "seed", self.seed, "an integer in [0, 2^32)")
        budget = self.seconds is None or 0 < self.seconds < math.inf
        check(budget, "seconds", self.seconds, "a number above 0, or null")
        budget = self.flops is None or 0 < self.flops < math.inf
        check(budget, "flops", self.flops, "a number above 0, or null")
        if self.capture:
            # Graphs have fixed inputs and outputs, whose memory every step uses again.
            steps = self.trainer.get("accumulate_grad_batches", 1)
            check(steps == 1, "trainer.accumulate_grad_batches", steps, "1 with capture")
            weight = self.optim.norm_penalty
            check(weight == 0, "optim.norm_penalty", weight, "0 with capture")
            check(not self.recompute, "recompute", self.recompute, "false with capture")

        for part in self.name.split("/"):  # a study's name ends with its scale: bins/quick
            check_name("name", part)
        for key, value in flat(asdict(self)).items():
            if isinstance(value, float):
                check(math.isfinite(value), key, value, "a finite number")
            if isinstance(value, str):
                check(bool(value.strip()), key, value, "not empty")
        for key, value in self.trainer.items():
            if key in TRAINER:
                valid, holds = TRAINER[key]
                check(holds(value), f"trainer.{key}", value, valid)

    def digest(self) -> str:
        """Return a hash of the whole configuration."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def to_yaml(experiment: Experiment) -> str:
    """Write an experiment as YAML that ``--config`` reads back."""
    plain = json.loads(json.dumps(asdict(experiment)))
    return yaml.safe_dump(plain, sort_keys=False)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested values dotted names.

    Example:
        >>> flat({"model": {"bins": 8}, "seed": 0})
        {'model.bins': 8, 'seed': 0}
    """
    named: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        named |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return named


@cache
def types(of: type = Experiment, prefix: str = "") -> dict[str, Any]:
    """Return the declared type of every option, by its dotted name."""
    found: dict[str, Any] = {}
    for entry in fields(of):
        own = f"{prefix}{entry.name}"
        nested = isinstance(entry.type, type) and is_dataclass(entry.type)
        found |= types(entry.type, f"{own}.") if nested else {own: entry.type}  # type: ignore[arg-type]
    return found


def options(of: type = Experiment) -> list[str]:
    """List the dotted names of all options."""
    return list(types(of))


def is_number(name: str) -> bool:
    """Return whether the option of this dotted name takes numbers only.

    Example:
        >>> [is_number(name) for name in ("model.blocks", "model.heads", "data.noise")]
        [True, False, False]
    """
    return types().get(name) in (int, float)
