"""Turns a dataclass of options into command line options, and back into an instance."""

from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click

from pacecore.config import AnyOptions, from_mapping
from pacecore.presets import PRESETS
from pacecore.rules import OptionError, read_toml
from pacecore.workers import of_launcher

__all__ = [
    "Named",
    "collect",
    "given_values",
    "options_of",
    "results_beside",
    "run_options",
    "say",
    "say_replaced",
]


class Named(click.Path):
    """A file or a folder; an empty name, as of a shell variable that is not set, is refused."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == "":
            option = isinstance(param, click.Option)
            name = param.opts[0] if option else param.human_readable_name
            raise OptionError(f"{name} must name a file or a folder, got ''")
        return super().convert(value, param, ctx)


class _Pair(click.ParamType):
    name = "HEIGHT,WIDTH"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            height, width = (int(word) for word in value.replace("x", ",").split(","))
        except ValueError:
            self.fail(f"must be HEIGHT,WIDTH, such as 128,171, got {value!r}", param, ctx)
        return (height, width)


def options_of(kind: type, *, leave_out: tuple[str, ...] = (), defaults: bool = True) -> Callable:
    """Decorator: one command line option for each field of `kind`; what is not given is None.

    defaults: whether that stands for the field's default, which the help then says.
    """

    def decorate(command: Callable) -> Callable:
        for each in reversed(fields(kind)):
            if each.name in leave_out:
                continue
            flag = "--" + each.name.replace("_", "-")
            plain, choices = each.type, each.metadata["choices"]
            shown = each.metadata["help"] + _rule_words(each, plain, defaults)
            if plain is bool:
                flag = f"{flag}/--no-{flag[2:]}"
                option = click.option(flag, each.name, default=None, help=shown)
            else:
                typed = _Pair() if plain is tuple else plain
                if choices and plain is str:
                    typed = click.Choice(choices)
                option = click.option(flag, each.name, type=typed, default=None, help=shown)
            command = option(command)
        return command

    return decorate


def _rule_words(each: Field, plain: type, says_default: bool) -> str:
    """Such as "  [default: 0.5; 0.0 to 1.0]": the default, and what else it may be."""
    default, rule = each.default if says_default else "", each.metadata
    words = []
    if plain is bool and says_default:
        words.append(f"default: {'on' if default else 'off'}")
    elif default not in ("", ()):
        words.append(f"default: {default}")
    if rule["choices"] and plain is not str:  # of text click names them itself
        words.append("one of " + ", ".join(map(str, rule["choices"])))
    elif rule["high"] is not None:
        words.append(f"{rule['low']} to {rule['high']}")
    elif rule["low"] is not None:
        words.append(f"at least {rule['low']}")
    return f"  [{'; '.join(words)}]" if words else ""


def run_options(command: Callable) -> Callable:
    """Decorator: where a verb that trains has its options from, beside those given one by one."""
    for option in (
        click.option(
            "--resume-previous",
            is_flag=True,
            help="With --resume: use the checkpoint before a damaged one.",
        ),
        click.option(
            "--resume",
            "run",
            type=Named(),
            help="Go on with the run in this folder.",
        ),
        click.option(
            "--config",
            type=Named(),
            help="TOML file of options, such as RUN/options.toml, for another run of the same.",
        ),
        click.option(
            "--preset",
            type=click.Choice(list(PRESETS)),
            help="A named set of options; a file's go over it.",
        ),
    ):
        command = option(command)
    return command


def collect(kind: type[AnyOptions], given: dict[str, Any]) -> AnyOptions:
    """Options of a verb that measures, from what was given. Raises OptionError."""
    return from_mapping(kind, given_values(given, None, None)[0])


def results_beside(file: str, out: str) -> Path:
    """The folder that a verb which measures by `file` writes into, where `out` names no other."""
    return Path(out or Path(file).parent)


def given_values(
    given: dict[str, Any], preset: str | None, config: str | None
) -> tuple[dict[str, Any], str | None]:
    """The values of the TOML file and over them what was given (None: was not), and the preset,
    which a file's key `preset` names unless one is given.

    Raises OptionError where DATA or CHECKPOINT is given and empty, as a shell variable that is not
    set: in a file that stands for the demo set, or for fresh weights.
    """
    for name in ("data", "checkpoint"):
        if given.get(name) == "":
            raise OptionError(f"{name.upper()} must name a file or a folder, got ''")
    values = read_toml(config) if config else {}
    if config and _is_of_run(Path(config), values.get("out")):
        del values["out"]  # that run is there
    named = values.pop("preset", None)
    values.update({name: value for name, value in given.items() if value is not None})
    checkpoint = values.get("checkpoint", "")  # it is read before options are checked
    if not isinstance(checkpoint, str) or "\0" in checkpoint:
        raise OptionError(f"{config}: checkpoint must be text without NUL, got {checkpoint!r}")
    return values, named if preset is None else preset


def _is_of_run(config: Path, out: Any) -> bool:
    """Whether the file is what a run in the folder `out` wrote down."""
    if not isinstance(out, str) or not out or "\0" in out:
        return False
    return config.name == "options.toml" and config.resolve().parent == Path(out).resolve()


def say(text: str, *, err: bool = False) -> None:
    """Prints, of the processes that torchrun started, in the first one only."""
    if of_launcher("WORLD_SIZE", 1) == 1 or of_launcher("RANK", 0) == 0:
        click.echo(text, err=err)


def say_replaced(words: str) -> None:
    """Where a result of other videos stood in the place of what was written: that it is gone."""
    if words:
        say(f"replaced: {words}; another --out keeps both")
