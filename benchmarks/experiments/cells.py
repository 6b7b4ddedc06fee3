"""Runs the stages of one cell, an arm with one seed, each by the verb that a user would type.

A stage that has left its result is not run again; a training that was stopped goes on.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pacecore.errors import PacecoreError
from pacecore.files import for_one_process, write_json

from ..common import PACECORE, machine_info, processor
from .arms import RANDOM, Arm, Setting

__all__ = ["Cell", "CellError", "stop_all"]

_GRACE_SECONDS = 60.0  # from SIGTERM, at which a training saves, to SIGKILL

_running: set[subprocess.Popen] = set()
_stopping = threading.Event()


class CellError(Exception):
    """A stage ended without its result; names it and its log."""


@dataclass(frozen=True)
class Cell:
    """An arm with one seed, in a folder of its own: pretrain/, finetune/, probe/, cell.log, and
    finetune-4x/ where it is fine-tuned four times as long.
    """

    arm: Arm
    seed: int
    setting: Setting
    data: Path
    folder: Path
    limit_seconds: float
    threads: int
    device: str
    fold: str = "1"  # of the data's splits

    @property
    def name(self) -> str:
        return f"{self.arm.name}-seed{self.seed}"

    @property
    def pretrained(self) -> Path:
        return self.folder / "pretrain"

    def run_folders(self) -> list[Path]:
        """Folders of the cell's runs that have a result."""
        found = (result for _, result, command in self._stages() if command[0] != "test")
        return [path.parent for path in found if path.name == "summary.json" and path.is_file()]

    def leaves(self, path: Path) -> bool:
        """Whether the file is there, and by a stage of this arm: another grid's may have more."""
        return path.is_file() and path.parent in {result.parent for _, result, _ in self._stages()}

    def finished(self) -> bool:
        return all(path.is_file() for _, path, _ in self._stages())

    def run(self) -> None:
        """Runs what is missing. Raises CellError when a stage fails or the time is over, or where
        another grid, of which this arm is too, runs it.
        """
        try:
            with for_one_process(self.folder / ".lock", "runs this cell"):
                self._run(time.monotonic() + self.limit_seconds)
        except PacecoreError as error:
            raise CellError(str(error)) from None

    def _run(self, end_time: float) -> None:
        if not self.finished():
            self._note_machine()
        for words, result, command in self._stages():
            if not result.is_file():
                if "--resume" not in command and command[0] in ("train", "finetune"):
                    shutil.rmtree(result.parent, ignore_errors=True)  # had no checkpoint yet
                self._run_stage(words, result, command, end_time)

    def machines(self) -> list[str]:
        """What the cell was trained on, in words; [] where nobody noted it."""
        path = self.folder / "machines.json"
        return json.loads(path.read_text()) if path.is_file() else []

    def _note_machine(self) -> None:
        info = machine_info(self.device)
        words = f"{info.get('gpu') or processor(info)}, torch {info['torch']}"
        noted = dict.fromkeys([*self.machines(), words])
        write_json(self.folder / "machines.json", list(noted))

    def _stages(self) -> list[tuple[str, Path, list[str]]]:
        """(what it is, file that it leaves, arguments of pacecore), in order."""
        stages = []
        setting = self.setting
        own = ["--fold", self.fold, "--seed", str(self.seed), "--device", self.device]
        weights = str(self.pretrained / "last.pt")
        scratch = self.arm.pretraining is None
        if not scratch:
            options = [
                *setting.common,
                *self._schedule(),
                *self._views(),
                *self.arm.pretraining,
                *own,
            ]
            stages.append(self._training("pretrain", ["train", str(self.data), *options]))
            found = self.pretrained / "retrieve-p5-video.json"
            stages.append(("retrieve", found, ["retrieve", weights, "--device", self.device]))
        source = ["--scratch", str(self.data)] if scratch else [weights, str(self.data)]
        trainings = [] if scratch else [("probe", [*setting.probe, "--freeze", "backbone"])]
        for times in self.arm.finetunes:
            name = "finetune" if times == 1 else f"finetune-{times}x"
            trainings.append((name, _times(setting.finetune, times)))
        for name, options in trainings:
            arguments = ["finetune", *source, *setting.common, *setting.labelled, *options, *own]
            stages.append(self._training(name, arguments))
            folder = self.folder / name
            test = ["test", str(folder / "last.pt"), "--device", self.device]
            stages.append((f"test {name}", folder / "test.json", test))
        return stages

    def _schedule(self) -> list[str]:
        if self.arm is RANDOM:
            return list(self.setting.random)
        return _times(self.setting.pretrain, self.arm.schedules)

    def _views(self) -> list[str]:
        """A batch of the setting's clips: all paces of a video, as far as the setting goes."""
        chosen = self.arm.pretraining
        paces = chosen[chosen.index("--paces") + 1] if "--paces" in chosen else "1,2,3,4"
        views = min(self.setting.views, len(paces.split(",")))
        return ["--views", str(views), "--batch", str(self.setting.clips // views)]

    def _training(self, name: str, arguments: list[str]) -> tuple[str, Path, list[str]]:
        out = self.folder / name
        if (out / "last.pt").is_file():
            arguments = [arguments[0], "--resume", str(out)]
        else:
            arguments = [*arguments, "--out", str(out)]
        return name, out / "summary.json", arguments

    def _run_stage(self, words: str, result: Path, command: list[str], end_time: float) -> None:
        threads = str(self.threads)
        with (self.folder / "cell.log").open("a") as log:
            log.write(f"\n$ {shlex.join(['pacecore', *command])}\n")
            log.flush()
            process = subprocess.Popen(
                [*PACECORE, *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": threads},
                start_new_session=True,
            )
            _running.add(process)
            try:
                if _stopping.is_set():
                    _end(process)
                code = process.wait(max(1.0, end_time - time.monotonic()))
            except subprocess.TimeoutExpired:  # it saves and ends
                _end(process)
                raise CellError(
                    f"{self.name}: {words} stopped after {self.limit_seconds / 60:.0f} minutes;"
                    " the same command goes on with it"
                ) from None
            finally:
                _running.discard(process)
        if _stopping.is_set() and not result.is_file():
            raise CellError(f"{self.name}: {words} stopped; the same command goes on with it")
        if code != 0 or not result.is_file():
            raise CellError(f"{self.name}: {words} ended with code {code}: {self.folder}/cell.log")


def _times(length: tuple[str, ...], times: int) -> list[str]:
    return [str(times * int(word)) if word.isdigit() else word for word in length]


def _end(process: subprocess.Popen) -> None:
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
            return


def stop_all() -> None:
    """Ends what runs in other threads, which raise CellError, and lets nothing more begin."""
    _stopping.set()
    for process in list(_running):
        _end(process)
