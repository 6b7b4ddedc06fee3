"""An option as a field with its help and its rule, checked, and written to and read from TOML.

The command line, the reader of files and the checks all read this one definition.
"""

import json
import re
import sys
from dataclasses import Field, asdict, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pacecore.errors import PacecoreError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["OptionError", "check_fields", "named_by", "option", "read_toml", "write_toml"]

AnyDataclass = TypeVar("AnyDataclass")

# What an option tells of a run. Only those of the setting tell the rows of a report apart.
#   setting  what is learned or measured; it stays as it is, the same on all ranks
#   run      which run of a setting, or how its result is come by; it stays, the same on all ranks
#   course   how a run goes and what it writes; it may change when a run goes on
#   place    where things are, on each rank's machine its own; it stays, unless they were moved
#   machine  how a machine does its part; it may change, and differ from rank to rank


class OptionError(PacecoreError):
    """An option is unknown or out of range; names the option, the rule and the value."""


def option(
    default: Any,
    text: str,
    *,
    choices: tuple = (),
    low: Any = None,
    high: Any = None,
    tells: str = "setting",
):
    """A dataclass field: its default, its help, the values that it may have, and what it tells
    (above). Its type is one of bool, int, float, str and tuple.
    """
    rule = {"help": text, "choices": choices, "low": low, "high": high, "tells": tells}
    return field(default=default, metadata=rule)


def named_by(options: Any, *tells: str) -> set[str]:
    """The names of the options of a dataclass, or of an instance, that tell one of `tells`."""
    return {each.name for each in fields(options) if each.metadata["tells"] in tells}


def check_fields(options: AnyDataclass) -> AnyDataclass:
    """The options of a dataclass, whole numbers as floats where those are asked for, so that the
    same is written down of 1 and 1.0. Raises OptionError for the first that breaks its rule.
    """
    for each in fields(options):
        _check_field(each, getattr(options, each.name))
    floats = [each.name for each in fields(options) if each.type is float]
    return replace(options, **{name: float(getattr(options, name)) for name in floats})


def _check_field(each: Field, value: Any) -> None:
    kind, rule = each.type, each.metadata
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise OptionError(f"{each.name} must be {_TYPE_NAMES[kind]}, got {value!r}")
    if rule["choices"] and value not in rule["choices"]:
        names = ", ".join(map(str, rule["choices"]))
        raise OptionError(f"{each.name} must be one of {names}, got {value!r}")
    # Python keeps bytes of a path that are no UTF-8 as lone surrogates.
    if kind is str and re.search("[\ud800-\udfff]", value):
        raise OptionError(f"{each.name} must be text that UTF-8 can write, got {value!r}")
    if kind is str and "\0" in value:  # which no path can have
        raise OptionError(f"{each.name} must be text without NUL, got {value!r}")
    if kind is float and not abs(value) <= sys.float_info.max:
        raise OptionError(f"{each.name} must be finite, got {value}")
    if rule["low"] is not None and value < rule["low"]:
        raise OptionError(f"{each.name} must be at least {rule['low']}, got {value}")
    if rule["high"] is not None and value > rule["high"]:
        raise OptionError(f"{each.name} must be at most {rule['high']}, got {value}")


_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "HEIGHT,WIDTH",
}


def read_toml(path: str | Path) -> dict[str, Any]:
    """The options written in a TOML file. Raises OptionError naming the file."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise OptionError(f"{path}: options cannot be read: {error.strerror}") from None
    except ValueError as error:  # also of text that is no UTF-8, and of a number past 4,300 digits
        raise OptionError(f"{path}: not a TOML file: {error}") from None


def write_toml(options: Any) -> str:
    """The full set of options as TOML text, which read_toml reads back."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in asdict(options).items())


def _toml(value: Any) -> str:
    """As JSON writes it, which TOML takes too, but for DEL in a text."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
