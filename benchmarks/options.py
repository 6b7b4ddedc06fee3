"""What the benchmarks' command lines share: the options that all have, and the rules of values."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pacecore.errors import PacecoreError

__all__ = [
    "comma_separated",
    "device_name",
    "parsed",
    "parser_of",
    "positive",
    "positive_number",
    "whole",
]


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """With the options that every benchmark has; described by the first line of `doc`, None where
    Python was told to leave such out.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument(
        "--device",
        type=device_name,
        default="auto",
        help="auto, cpu, cuda or cuda:<n>; default auto",
    )
    parser.add_argument("--out", type=Path, help="record to write; default benchmarks/results/")
    parser.add_argument("--quick", action="store_true", help="few small cases: does it run at all")
    return parser


def parsed(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """The options given; those of `quick` are the defaults of a quick run."""
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(**quick)
        options = parser.parse_args()
    return options


def device_name(wish: str) -> str:
    """A device that is here, by the name that torch has for it. For argparse."""
    from pacecore.device import pick_device  # not for those that have no such option

    try:
        return str(pick_device(wish))
    except PacecoreError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """The whole number of an option that counts something. For argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0, as a seed is. For argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """A finite number above 0. For argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
    return number


def comma_separated(rule: Callable[[str], Any]) -> Callable[[str], list]:
    """Values by comma, each as `rule` has it and none twice. For argparse."""

    def values(text: str) -> list:
        found = [rule(word) for word in text.split(",")]
        if len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"must differ from each other, got {text!r}")
        return found

    return values
