"""The record of a run: its folder, metrics.jsonl, TensorBoard, and what the terminal shows."""

import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import torch

from pacecore.distributed import is_main
from pacecore.errors import PacecoreError
from pacecore.files import for_one_process, read_text, there, write_text, writing

__all__ = [
    "Progress", "RunFolder", "alone_in", "alone_in_process", "duration", "refuse_second_run",
    "tell",
]  # fmt: skip


class RunFolder:
    """A run's folder: options.toml, metrics.jsonl, last.pt, summary.json.

    Only one rank writes; the others hold a folder with `writes` off. Raises PacecoreError, naming
    the path, when something cannot be written.
    """

    def __init__(self, path: Path, *, writes: bool = True, tensorboard: bool = False):
        self.path, self.writes = path, writes
        self._summary_writer = _summary_writer() if tensorboard and writes else None
        self._tensorboard: Any = None
        if writes:
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def check(path: Path, *, tensorboard: bool = False) -> None:
        """Raises PacecoreError where a folder `path` could not be made or written, or TensorBoard
        is wanted and missing; makes none.
        """
        if tensorboard:
            _summary_writer()
        place = path
        while not (there(place) or place.is_symlink()) and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise PacecoreError(f"{path}: cannot be written: {place} is not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PacecoreError(f"{path}: cannot be written: no right to write in {place}")

    def write(self, name: str, text: str) -> None:
        """Writes a small file, whole or not at all."""
        if self.writes:
            write_text(self.path / name, text)

    def log(self, **values: Any) -> None:
        """One line of metrics.jsonl; numbers also go to TensorBoard, by step."""
        if not self.writes:
            return
        path = self.path / "metrics.jsonl"
        # JSON has no NaN, which a figure is where a batch has nothing to measure it on.
        line = {n: None if isinstance(v, float) and v != v else v for n, v in values.items()}
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._tensorboard:
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    self._tensorboard.add_scalar(name, value, values.get("step"))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl but those that are none, such as a last one cut by a kill."""
        try:
            text = read_text(self.path / "metrics.jsonl", errors="replace")
        except OSError:
            return []
        result = []
        for line in text.splitlines():
            with suppress(ValueError, RecursionError):
                values = json.loads(line)
                if isinstance(values, dict) and isinstance(values.get("step", 0), int | float):
                    result.append(values)
        return result

    def rewind(self, step: int) -> None:
        """Drops the lines after `step`, which a resumed run will write again, also TensorBoard's;
        a run's first call.
        """
        kept = [line for line in self.metrics() if line.get("step", 0) <= step]
        if self.writes and (self.path / "metrics.jsonl").exists():
            self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        if self._summary_writer:
            folder = str(self.path / "tensorboard")
            self._tensorboard = self._summary_writer(folder, purge_step=step + 1)

    def to_disk(self) -> None:
        """Has the disk hold the lines so far, as it holds the checkpoint that counts on them."""
        path = self.path / "metrics.jsonl"
        if self.writes and path.exists():
            with writing(path), open(path, "a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def curves(self, kind: str) -> str:
        """Draws curves.png of a run of `kind`, "pretrain" or "finetune"; its path, or in words why
        there is none: a finished run fails by nothing that is only drawn.
        """
        if not self.writes:
            return "none"
        path = self.path / "curves.png"
        try:
            from pacecore.plots import draw_curves  # matplotlib comes with it
        except PacecoreError:
            return "none, as matplotlib is not installed; pip install 'pacecore[plots]' brings it"
        try:
            run = SimpleNamespace(name=self.path.name, kind=kind, metrics=self.metrics(), test={})
            draw_curves([(run.name, [run])], path)
        except PacecoreError as error:
            return f"none: {error}"
        return str(path)


_training = threading.Lock()


@contextmanager
def alone_in_process(device: torch.device) -> Iterator[None]:
    """Holds what a training on `device` has of its process: torch's random numbers, among others,
    are common to all threads, and each would get others than alone. After it they go on as if there
    had been none. Raises PacecoreError where another trains.
    """
    if not _training.acquire(blocking=False):
        raise PacecoreError(
            "another thread of this process is training, which needs the process for itself: train"
            " after it, or in another process"
        )
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        _training.release()


@contextmanager
def alone_in(folder: str, *, resume: bool) -> Iterator[None]:
    """Makes a run's folder and holds it. Raises PacecoreError where another process trains into
    it, naming which, or, unless to `resume`, has done so while this one read its videos. To resume
    it comes before the checkpoint is read, which one that is still ending would save over.
    """
    lock = Path(folder) / ".lock"
    held = is_main() and (not resume or Path(folder).is_dir())
    with for_one_process(lock, "is training into it") if held else nullcontext():
        if not resume:
            refuse_second_run(folder)
        yield


def refuse_second_run(folder: str) -> None:
    """Raises PacecoreError where a run's folder holds one, which a new one would replace."""
    if (Path(folder) / "last.pt").exists():
        resuming = shlex.join(["--resume", folder])
        raise PacecoreError(f"out: {folder} holds a run already; name another, or {resuming}")


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise PacecoreError(
            "tensorboard is not installed; install pacecore[tensorboard] or leave the option out"
        ) from None
    return SummaryWriter


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def tell(text: str, file: TextIO | None = None) -> None:
    """Prints a line for whoever looks, into stdout or `file`; a run does not end because nobody
    does any more, nor by a name that cannot be printed.
    """
    encoding = getattr(file or sys.stdout, "encoding", None) or "utf-8"
    with suppress(OSError, ValueError):  # of a pipe whose reader has gone, or of a closed file
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def _columns() -> int:
    """Of the terminal that stderr is; 0 where it is none, nor need be a file."""
    with suppress(AttributeError, OSError, ValueError):
        if sys.stderr.isatty():
            return os.get_terminal_size(sys.stderr.fileno()).columns
    return 0


class Progress:
    """A status line that redraws itself on a terminal; elsewhere a plain line now and then. Where
    it cannot be written any more, as in a pipe whose reader has gone, it is silent.
    """

    def __init__(self, what: str, total: int, *, shows: bool = True, seconds_between: float = 15.0):
        self.what, self.total = what, total
        self.shows = shows and sys.stderr is not None
        self.live = shows and _columns() > 0
        self.between = 0.2 if self.live else seconds_between
        self.started = self.shown = time.monotonic()
        self.first: int | None = None  # done at `started`
        self.begun = False  # something was done since then

    def update(self, done: int, text: str = "") -> None:
        """`done` of `total` are behind us; the first call sets where the rate is counted from, and
        again the next one that has done something: what comes first is slow, on a GPU a minute for
        a step where later ones take a hundredth of a second.
        """
        now = time.monotonic()
        if self.first is None:
            self.first, self.started = done, now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        if done > self.first and not self.begun:
            self.first, self.started, self.begun = done, now, True
        if not self.shows or (done < self.total and now - self.shown < self.between):
            return
        self.shown = now
        left = f"{duration((self.total - done) / rate)} left" if rate > 0 else ""
        said = ", ".join(filter(None, (text, left)))
        if self.live:
            filled = round(20 * done / max(1, self.total))
            bar = "#" * filled + "." * (20 - filled)
            line = f"{self.what} [{bar}] {done}/{self.total} {said}"
            width = _columns() or len(line) + 1
            self._write("\r" + line[: width - 1].ljust(width - 1))
        else:
            self._write(f"{self.what} {done}/{self.total} {said}\n")

    def close(self) -> None:
        """Ends the status line."""
        if self.live:
            self._write("\n")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            self.shows = self.live = False
