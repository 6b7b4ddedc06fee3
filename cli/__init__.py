"""The command `pacecore`: parse, call one function, print. Expected errors are one line, exit 2."""

import errno
import importlib
import io
import os
import re
import stat
import sys
from contextlib import suppress
from typing import Any

import click

from pacecore.errors import PacecoreError

__all__ = ["main"]

# Verb -> the module of this package that holds the command of the same name. Loaded when called,
# so that --help does not wait for torch.
_VERBS = {
    "train": "Learn from videos without labels.",
    "finetune": "Learn to recognise actions, from a checkpoint or from scratch.",
    "test": "Measure accuracy on held-out videos.",
    "retrieve": "Find the nearest neighbours of videos.",
    "attend": "Show where the network looks, at each pace.",
    "extract": "Write features of videos to a file.",
    "report": "Lay runs side by side, beside the paper's figures.",
    "convert": "Read other projects' weights, or write plain ones.",
    "data": "Index, check and pack videos, or make the demo set.",
    "bench": "Measure the speed here, beside what else one would use.",
    "doctor": "Say what was built, what was found, and what is missing.",
}


_FULL_GPU = (
    "the GPU's memory is full; in training --checkpointing, a higher --accumulate, --amp bf16 and a"
    " smaller --batch need less, and --data-on host keeps the frames off it"
)
_FULL = (
    "the memory is full; fewer --workers need less, and in training a smaller --batch or --crop, a"
    " higher --accumulate and --checkpointing"
)


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        return getattr(importlib.import_module(f"pacecore.cli.{name}"), name)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click itself would say "Aborted!" and exit with 1
            sys.stderr.write("\npacecore: stopped\n")
            sys.exit(130)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "color": False if os.environ.get("NO_COLOR") else None,  # None: by the terminal
}


@click.group(cls=_Verbs, context_settings=_SETTINGS)
@click.version_option(package_name="pacecore")
def pacecore() -> None:
    """Video representations without labels, by pace prediction."""


def _cannot_print() -> bool:
    """Whether a line more cannot be printed: what stdout goes to is full. Python then shall not try
    once more at its end.
    """
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _replace_closed_streams() -> None:
    """By /dev/null, as of `pacecore train 2>&-`: its number would be the next file's, a checkpoint
    say, and the warnings of FFmpeg be written into that.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            hole = os.open(os.devnull, os.O_RDWR)  # gets the lowest number
            os.set_inheritable(hole, True)
            setattr(sys, name, open(hole, mode))  # noqa: SIM115


class _Pipe(io.FileIO):
    """What nobody reads any more is let go, as of `pacecore train 2>&1 | head -1`: the verb's work
    goes on, and its exit code tells of that.
    """

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _open_streams() -> None:
    """Has stdout and stderr take names of files, which need not be text, and readers that go."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with suppress(OSError, AttributeError):  # it is no file, but a test's, in memory
            kind = os.fstat(stream.fileno()).st_mode
            if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
                file = _Pipe(stream.fileno(), "w", closefd=False)
                stream = io.TextIOWrapper(
                    file if stream.write_through else io.BufferedWriter(file),
                    encoding=stream.encoding,
                    line_buffering=stream.line_buffering,
                    write_through=stream.write_through,
                )
                setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _full_words(error: RuntimeError | MemoryError) -> str:
    """What needs less where memory has ended, and the error's own words; "" of another error."""
    text = str(error).partition("\n")[0]
    said = text.rpartition("DefaultCPUAllocator: ")[2]  # before it a line of torch's source
    # OutOfMemoryError is torch's own, whose import would take seconds.
    full = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    if not full and not re.search("can't allocate memory|not enough memory", said):
        return ""
    return ": ".join(filter(None, (_FULL_GPU if "CUDA" in text else _FULL, said)))


def main() -> None:
    """Entry point: an expected error is one line on stderr and exit code 2, without traceback, and
    Ctrl-C one line and 130.
    """
    _replace_closed_streams()
    _open_streams()
    try:
        pacecore(prog_name="pacecore", standalone_mode=True)
    except PacecoreError as error:
        sys.stderr.write(f"pacecore: {error}\n")
        sys.exit(2)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("av", "numpy", "torch"):
            raise
        advice = "pacecore doctor says what is wrong"
        sys.stderr.write(f"pacecore: {package} cannot be imported: {error}; {advice}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno == errno.ENOMEM:  # as of a process that cannot be begun
            sys.stderr.write(f"pacecore: {_FULL}: {error.strerror}\n")
            sys.exit(2)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and _cannot_print():
            sys.stderr.write(f"pacecore: the output cannot be written: {error.strerror}\n")
            sys.exit(2)
        # Any path that is looked at, by Path.exists for one, can raise these two.
        if error.errno not in (errno.EACCES, errno.ENAMETOOLONG) or not error.filename:
            raise
        sys.stderr.write(f"pacecore: {error.filename}: {error.strerror}\n")
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not (words := _full_words(error)):
            raise
        sys.stderr.write(f"pacecore: {words}\n")
        sys.exit(2)
