"""What an experiment is: frozen dataclasses with YAML in and out; imports no torch.

Field names equal the constructor arguments they feed, so a run's recorded configuration reads like
the code that it ran.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import yaml

from flowbench.errors import UsageError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def _check(holds: bool, key: str, value: object, valid: str) -> None:
    if not holds:
        raise UsageError(f"{key} = {value!r} is not valid: {valid}")


@dataclass(frozen=True)
class Model:
    """The flow: blocks of a causal vision transformer around one elementwise transform."""

    transform: str = "rqs-8"
    """Elementwise transform: additive, affine, rqs-K (K bins), or a composition: affine+rqs-8."""
    blocks: int = 8
    """Flow blocks; each runs over the patches in the opposite order of the one before."""
    layers: int = 4
    """Transformer layers in each block."""
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

    def __post_init__(self) -> None:
        for key in ("blocks", "layers", "width", "patch", "expansion"):
            value = getattr(self, key)
            _check(value >= 1, f"model.{key}", value, "an integer of at least 1")
        if self.heads is not None:
            valid = f"an integer that divides model.width = {self.width}"
            whole = self.heads >= 1 and self.width % self.heads == 0
            _check(whole, "model.heads", self.heads, valid)


@dataclass(frozen=True)
class Data:
    """The images, and the noise that turns their 256 levels into a density."""

    name: Literal["mnist-5k", "mnist", "fashion-mnist", "kmnist", "folder"] = "mnist-5k"
    """Data set; mnist-5k needs no files, folder reads the images below root."""
    root: str = "data"
    """Directory of the data set's files; downloads go there."""
    noise: Literal["uniform", "gaussian"] = "uniform"
    """uniform: dequantisation, the density protocol (bpd); gaussian: the sample protocol."""
    noise_std: float = 0.1
    """Standard deviation of the Gaussian noise, on pixels in [-1, 1]."""
    batch: int = 256
    """Images in a batch, on each device."""
    size: int = 32
    """folder: side in pixels to which images are resized and centre-cropped."""
    channels: Literal[1, 3] = 3
    """folder: 1 for grey, 3 for colour."""
    skip_unreadable: bool = False
    """folder: leave out the files that cannot be decoded instead of stopping at the first."""

    def __post_init__(self) -> None:
        for key in ("batch", "size"):
            _check(getattr(self, key) >= 1, f"data.{key}", getattr(self, key), "at least 1")
        _check(self.noise_std > 0, "data.noise_std", self.noise_std, "a number above 0")


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
    """Decay of a moving average of the weights, which is then what is evaluated; 0: none."""
    label_dropout: float = 0.0
    """Share of labels hidden from the flow in training: what classifier-free guidance needs."""

    def __post_init__(self) -> None:
        _check(0 < self.lr < math.inf, "optim.lr", self.lr, "a number above 0")
        low = 0 <= self.min_lr <= self.lr
        _check(low, "optim.min_lr", self.min_lr, f"a number from 0 to optim.lr = {self.lr}")
        decaying = all(0 <= beta < 1 for beta in self.betas)
        _check(decaying, "optim.betas", self.betas, "two numbers in [0, 1)")
        _check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        _check(self.clip >= 0, "optim.clip", self.clip, "a number of at least 0")
        _check(0 <= self.ema < 1, "optim.ema", self.ema, "a number in [0, 1)")
        hiding = 0 <= self.label_dropout < 1
        _check(hiding, "optim.label_dropout", self.label_dropout, "a number in [0, 1)")
        _check(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "at least 0")


@dataclass(frozen=True)
class Evaluate:
    """What is measured and drawn besides the losses."""

    samples_every: int = 5
    """Epochs between grids of samples; 0: only at the end."""
    samples_per_class: int = 10
    """Images of each class (rows of ten where there are no classes) in a grid."""
    draws: int = 4
    """Passes over the test set, each with noise of its own."""
    bayes: int = 1000
    """Test images that are classified by Bayes' rule; 0: none."""
    samples: int = 10_000
    """Images generated for FID, KID, precision, recall and patch quality; 0: none of these."""
    guidance: float = 1.0
    """Scale of the guided samples shown of a flow that was trained with label dropout."""
    inception_weights: str | None = None
    """File of torch-fidelity's Inception weights; null: looked for where it keeps them."""
    fidelity_every: int = 0
    """Epochs between FIDs against the validation images; 0: none. Leave out where time counts."""
    fidelity_samples: int = 1000
    """Images generated for each of those."""

    def __post_init__(self) -> None:
        for key in ("samples_every", "bayes", "samples", "guidance", "fidelity_every"):
            _check(getattr(self, key) >= 0, f"evaluate.{key}", getattr(self, key), "at least 0")
        for key in ("samples_per_class", "draws", "fidelity_samples"):
            _check(getattr(self, key) >= 1, f"evaluate.{key}", getattr(self, key), "at least 1")


@dataclass(frozen=True)
class Experiment:
    """One training run: all that decides its result."""

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
    """Seconds of training, counted as seconds_per_epoch counts them, after which it ends and over
    which the learning rate falls; null: trainer.max_epochs decides. Where both are given the
    earlier ends it: trainer.max_epochs = -1 is no limit."""
    compile: bool = False
    """Train with torch.compile: pays on a GPU, for the minutes that it adds to the first epoch; its
    kernels are kept for later runs. On a CPU it gains nothing."""

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**32, "seed", self.seed, "an integer in [0, 2^32)")
        budget = self.seconds is None or 0 < self.seconds < math.inf
        _check(budget, "seconds", self.seconds, "a number above 0, or null")

    def digest(self) -> str:
        """Hash of the whole configuration: equal exactly for runs that ask for the same thing."""
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


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UsageError: The file cannot be read, or holds something else; names it as ``what``.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{what} {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{what} {path} is not a mapping of keys to values")
    return content


def build(values: Mapping[str, Any]) -> Experiment:
    """Build an experiment from nested plain values, defaults for what they leave out.

    Raises:
        UsageError: A key is unknown or a value is of the wrong type or out of its range.
    """
    check_keys(values)
    return _instantiate(_parser_of_values(), _parser_of_values().parse_object(values))


def parse(parser: "ArgumentParser", arguments: Sequence[str]) -> tuple[Experiment, "Namespace"]:
    """Read a command line: the experiment, and beside it the command's own options.

    Raises:
        UsageError: An option is unknown or a value is of the wrong type or out of its range.
    """
    parsed = parser.parse_args(_config_first(arguments))
    return _instantiate(parser, parsed), parsed


def _instantiate(parser: "ArgumentParser", parsed: "Namespace") -> Experiment:
    made = parser.instantiate(parsed)
    return Experiment(**{entry.name: made[entry.name] for entry in fields(Experiment)})


@cache
def _parser_of_values() -> "ArgumentParser":
    """Made once: a study builds many experiments, and a parser takes ten times as long as one."""
    return experiment_parser("experiment")


def experiment_parser(prog: str, description: str = "") -> "ArgumentParser":
    """Make a parser of every option of an experiment, in YAML (``--config``) and dotted."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    class OneLine(ArgumentParser):
        """Tells an error on one line and leaves the exit to the command line."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UsageError(_plainly(message)) from ex

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = OneLine(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="YAML file of options")
    parser.add_class_arguments(Experiment)
    return parser


def check_keys(values: Mapping[str, Any], of: type = Experiment, prefix: str = "") -> None:
    """Refuse keys that are none of an experiment's.

    Raises:
        UsageError: Names the key and the valid ones.
    """
    known = {entry.name: entry.type for entry in fields(of)}
    for key, value in values.items():
        if key not in known:
            _unknown(f"{prefix}{key}", "key")
        group = known[key]
        if isinstance(group, type) and is_dataclass(group):
            valid = f"a mapping of {', '.join(options(group))}"
            _check(isinstance(value, Mapping), f"{prefix}{key}", value, valid)
            check_keys(value, group, f"{prefix}{key}.")


def options(of: type = Experiment, prefix: str = "") -> list[str]:
    """List the dotted names of all options."""
    names = []
    for entry in fields(of):
        own = f"{prefix}{entry.name}"
        nested = isinstance(entry.type, type) and is_dataclass(entry.type)
        names += options(entry.type, f"{own}.") if nested else [own]  # type: ignore[arg-type]
    return names


def _unknown(name: str, what: str) -> NoReturn:
    known = options()
    group = name.rpartition(".")[0]
    valid = [option for option in known if option.rpartition(".")[0] == group and group]
    if not valid:
        groups = (entry.name for entry in fields(Experiment) if entry.name not in known)
        valid = [*(option for option in known if "." not in option), *(f"{g}.*" for g in groups)]
    close = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise UsageError(f"unknown {what} {name}{hint}: valid are {', '.join(valid)}")


def _config_first(arguments: Sequence[str]) -> list[str]:
    """Move ``--config`` to the front, where every other option wins over it; check its keys."""
    first, rest = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, path = argument.partition("=")
        if name != "--config":
            rest.append(argument)
        elif path := path if equals else next(remaining, ""):
            check_keys(read_yaml(Path(path), "configuration file"))
            first += ["--config", path]
        else:
            raise UsageError("--config needs a YAML file")
    return first + rest


TYPES = {
    "<class 'int'>": "an integer",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'dict'>": "a mapping",
    "<class 'NoneType'>": "null",
}


def _plainly(message: str) -> str:
    """Say what the parser says in the words of the other errors."""
    if message.startswith("unrecognized arguments: "):
        _unknown(message.split()[2].lstrip("-").partition("=")[0], "option")
    one = r"Expected an? (?P<one>.+?)\. Got value: "
    several = r"Subtypes: \[(?P<several>.+?)\].*Given value: "
    wrong = re.search(rf'key "(?P<key>[\w.]+)":.*?(?:{one}|{several})(?P<value>.*)', message, re.S)
    if not wrong:
        return message
    expected = wrong["one"] or wrong["several"].replace(", ", " or ")
    for written, plain in TYPES.items():
        expected = expected.replace(written, plain)
    expected = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", expected)
    return f"{wrong['key']} = {wrong['value']!r} is not valid: {expected}"
