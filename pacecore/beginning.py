"""What a training asks for before it has a network: options that it can keep to, and its videos."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pacecore.checkpoint import load_resume
from pacecore.config import AnyOptions
from pacecore.device import trusted
from pacecore.distributed import is_main, require_same
from pacecore.errors import PacecoreError
from pacecore.inputs import Inputs, open_inputs
from pacecore.runlog import RunFolder, refuse_second_run
from pacecore.step import check_graph

__all__ = ["begin"]


def begin(
    options: AnyOptions, device: torch.device, *, resume: bool, fall_back: bool
) -> tuple[AnyOptions, Inputs, dict[str, Any] | None]:
    """What a verb needs before its network: options that `device` is trusted with, the videos, and
    with `resume` the content of the run's last checkpoint (`fall_back`: of the one before, where
    the last is damaged). Raises PacecoreError, also for a checkpoint of other videos, and for a new
    run in the folder of another.
    """
    if not options.out:
        raise PacecoreError("out must name the folder of the run, got ''")
    if is_main():
        # Not after an hour's reading of videos, and so all that follows.
        RunFolder.check(Path(options.out), tensorboard=options.tensorboard)
    if not resume:
        refuse_second_run(options.out)
    content = load_resume(options.out, fall_back=fall_back) if resume else None
    require_same(options, **{"last.pt": content and content["totals"]})
    if options.graph:
        check_graph(device)
    options = trusted(options.resolved(), device, resume=resume)
    data = open_inputs(options)
    options = replace(options, repeat=options.repeat or data.repeat)
    if content and content["identity"] != data.identity:
        raise PacecoreError(
            f"{options.out}: the run was trained or measured on other videos than"
            f" {options.data or 'the demo set'} holds now: {data.words}"
        )
    return options, data, content
