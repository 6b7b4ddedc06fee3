"""What a training asks for before it has a network: options that it can keep to, and its videos."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from pacecore.checkpoint import VERBS, check_kind, load_resume
from pacecore.config import AnyOptions
from pacecore.device import trusted
from pacecore.distributed import is_main, require_same
from pacecore.errors import PacecoreError
from pacecore.files import expanded
from pacecore.inputs import Inputs, open_inputs
from pacecore.rules import OptionError, named_by
from pacecore.runlog import RunFolder, refuse_second_run
from pacecore.step import check_device
from pacecore.trained import is_place, require_videos, stored_options
from pacecore.workers import of_launcher

__all__ = ["begin", "in_run_folder"]

# They may change when a run goes on, but not of a cosine, whose every step depends on its end.
_LENGTH = {"epochs", "max_steps"}


@contextmanager
def in_run_folder(kind: str, options: AnyOptions, *, resume: bool = False) -> Iterator[AnyOptions]:
    """`options` of a training of this kind, which without a folder of the run get runs/<verb>-1 or
    the next number that is free. A process alone makes it, so that another takes the next, and what
    is still empty at the end goes again; ranks find one name where none has made it yet.

    Raises PacecoreError without a folder where a run goes on.
    """
    if resume and not options.out:
        raise PacecoreError("out must name the folder of the run that goes on, got ''")
    if options.out:
        yield options
        return
    number = 1
    while (folder := Path("runs") / f"{VERBS[kind]}-{number}").exists() or not _made(folder):
        number += 1
    try:
        yield replace(options, out=str(folder))
    finally:
        with suppress(OSError):  # it holds a run; then its parent, where it was the first
            folder.rmdir()
            folder.parent.rmdir()


def _made(folder: Path) -> bool:
    """Whether another process has not made `folder` before this one could; what else hinders is
    told where the run begins.
    """
    if of_launcher("WORLD_SIZE", 1) == 1:
        try:
            folder.mkdir(parents=True)
        except OSError:
            return not folder.exists()
    return True


def begin(
    kind: str, options: AnyOptions, device: torch.device, *, resume: bool, fall_back: bool
) -> tuple[AnyOptions, Inputs, dict[str, Any] | None]:
    """What a training needs before its network: options that `device` is trusted with, the videos,
    and with `resume` the content of the run's last checkpoint (`fall_back`: of the one before,
    where the last is damaged). Raises PacecoreError, also for a checkpoint of another setting or of
    other videos, and for a new run in the folder of another.
    """
    options = options.resolved()
    if is_main():
        # Not after an hour's reading of videos, and so all that follows.
        RunFolder.check(Path(options.out), tensorboard=options.tensorboard)
    if not resume:
        refuse_second_run(options.out)
    content = load_resume(options.out, fall_back=fall_back) if resume else None
    require_same(options, **{"last.pt": content and content["totals"]})
    if content:
        check_kind(options.out, content, kind)
        _require_kept(options, stored_options(content, Path(options.out)))
        require_videos(options.out, options.data, options.held_out)
    check_device(options, device)
    options = trusted(options, device, resume=resume)
    data = open_inputs(options, before=content and content["listed"])
    options = replace(options, repeat=options.repeat or data.repeat)
    if content and content["identity"] != data.identity:
        raise PacecoreError(
            f"{options.out}: the run was trained or measured on other videos than"
            f" {options.data or 'the demo set'} holds now: {data.words}"
        )
    return options, data, content


def _require_kept(options: AnyOptions, stored: AnyOptions) -> None:
    """Raises OptionError where a run that goes on would do so with another setting."""
    free = named_by(options, "course", "machine") | {"out"}
    if stored.schedule != "cosine":
        free |= _LENGTH
    if not options.repeat:  # as the data set has it
        free.add("repeat")
    places = named_by(options, "place")
    if not is_main():  # on each rank's machine its own
        free |= places
    for each in fields(options):
        was, value = getattr(stored, each.name), getattr(options, each.name)
        same = was == value or (each.name in places and _one_place(was, value))
        if each.name in ("data", "held_out"):  # moved: that they are the same is looked at later
            same |= is_place(was) and is_place(value) and not os.path.exists(expanded(was))
        if each.name not in free and not same:
            raise OptionError(
                f"{each.name} must stay {was!r} in the resumed run {options.out}, got {value!r}"
            )


def _one_place(one: str, other: str) -> bool:
    if not (is_place(one) and is_place(other)):
        return False
    return os.path.abspath(expanded(one)) == os.path.abspath(expanded(other))
