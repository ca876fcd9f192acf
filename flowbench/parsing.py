"""Configurations read from YAML, nested values and command lines, with errors on one line."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args

import yaml

from flowbench.config import Experiment, check, options
from flowbench.errors import UsageError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

T = TypeVar("T")


class OnlyOnce(yaml.SafeLoader):
    """YAML's usual types; refuses a key that stands twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Read a mapping.

        Raises:
            yaml.constructor.ConstructorError: A key stands twice.
        """
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    line = key.start_mark.line + 1
                    reason = f"{key.value} stands twice, the second time in line {line}"
                    raise yaml.constructor.ConstructorError(problem=reason)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UsageError: The file cannot be read or holds no mapping; the message calls it ``what``.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), OnlyOnce)
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
    return parse_as(Experiment, values)


def parse_as(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass from nested plain values, with their types checked.

    Raises:
        UsageError: A key is unknown or a value is of the wrong type or out of its range.
    """
    parser = _parser_of(kind)  # type: ignore[arg-type]  # mypy takes a type for unhashable
    made = parser.instantiate(parser.parse_object(values))
    return kind(**{name: made[name] for name in _names(kind)})


def parse(parser: "ArgumentParser", arguments: Sequence[str]) -> tuple[Experiment, "Namespace"]:
    """Read a command line: the experiment, and the command's own options.

    Raises:
        UsageError: An option is unknown or a value is of the wrong type or out of its range.
    """
    parsed = parser.parse_args(_config_first(arguments))
    made = parser.instantiate(parsed)
    experiment = Experiment(**{entry.name: made[entry.name] for entry in fields(Experiment)})
    return experiment, parsed


def check_arguments(kind: type, values: Mapping[str, Any], name: str) -> None:
    """Check keyword arguments of a class against the types in its signature.

    Raises:
        UsageError: A value is of another type; the message calls the arguments ``name.key``.
    """
    if find_spec("jsonargparse") is None:
        return  # on a bare GPU machine, whose configurations are flowbench's own
    given = {key: value for key, value in values.items() if value is not None}
    _parser_of(kind, name).parse_object({name: given}, defaults=False)


def _names(kind: type) -> list[str]:
    return [entry.name for entry in fields(kind)]


@cache
def _parser_of(kind: type, name: str | None = None) -> "ArgumentParser":
    """Make a parser once: making it takes ten times as long as building an experiment."""
    return _parser(kind, kind.__name__.lower(), name=name)


COMMON = (
    *("config", "resume", "results", "name", "seed"),
    *("model.transform", "model.blocks", "model.layers", "model.width", "model.patch"),
    *("data.name", "data.root", "data.noise", "data.batch"),
    *("optim.lr", "optim.ema", "trainer", "seconds", "compile", "capture"),
)
"""The options that the short help lists."""


def experiment_parser(prog: str, description: str = "") -> "ArgumentParser":
    """Make a parser of every option of an experiment, in YAML (``--config``) and dotted."""
    parser = _parser(Experiment, prog, description)
    parser.usage = "%(prog)s [--config FILE] [--OPTION VALUE ...]"
    parser.add_argument("--config", action="config", help="YAML file of options")
    return parser


def short_help(parser: "ArgumentParser") -> str:
    """List the common options of an experiment's parser, a line each."""
    lines = [parser.format_usage().strip(), "", str(parser.description), ""]
    actions = {action.dest: action for action in parser._actions}
    for name in COMMON:
        action = actions[name]
        words = " ".join(str(action.help).split()).split(". ")[0].split("; ")[0].rstrip("., ")
        usual = "" if action.default in (None, "==SUPPRESS==") else f" [{action.default}]"
        lines.append(f"  --{name:<17} {words}{usual}")
    return "\n".join(
        [*lines, "", "--help-all lists every option, with its type and what it means."]
    )


def _parser(
    kind: type, prog: str, description: str = "", name: str | None = None
) -> "ArgumentParser":
    from jsonargparse import ArgumentParser, set_parsing_settings

    class OneLine(ArgumentParser):
        """Raises errors on one line and leaves the exit to the command line."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UsageError(_plainly(message, kind)) from ex

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = OneLine(prog=prog, description=description, allow_abbrev=False)
    parser.add_class_arguments(kind, name)
    return parser


def check_keys(values: Mapping[str, Any], of: type = Experiment, prefix: str = "") -> None:
    """Check that an experiment has all of these keys.

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
            check(isinstance(value, Mapping), f"{prefix}{key}", value, valid)
            check_keys(value, group, f"{prefix}{key}.")
        elif value is None and type(None) not in get_args(group):  # else it would be left out
            check(False, f"{prefix}{key}", value, "a value; leave the key out for the default")


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
    """Move ``--config`` to the front, so that every other option overrides it; check its keys."""
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
    "<class 'str'>": "text",
    "<class 'list'>": "a list of different values",
}


def _plainly(message: str, kind: type) -> str:
    """Rewrite a message of the parser in the words of the other errors."""
    if message.startswith("unrecognized arguments: "):
        _unknown(message.split()[2].lstrip("-").partition("=")[0], "option")
    if missing := re.match(r"the following arguments are required: (\w+)", message):
        return f"{missing[1]} is missing"
    if unknown := re.match(r"Option '(.+?)' is not accepted", message):
        valid = ", ".join(_names(kind))
        return f"unknown key {unknown[1]}: valid are {valid}"
    one = r"Expected an? (?P<one>.+?)\. Got value: "
    several = r"Subtypes: \[(?P<several>[^\n]+)\].*Given value: "
    wrong = re.search(rf'key "(?P<key>[\w.]+)":.*?(?:{one}|{several})(?P<value>.*)', message, re.S)
    if not wrong:
        return message
    expected = wrong["one"] or wrong["several"].replace(", ", " or ")
    for written, plain in TYPES.items():
        expected = expected.replace(written, plain)
    expected = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", expected)
    return f"{wrong['key']} = {wrong['value']!r} is not valid: {expected}"
