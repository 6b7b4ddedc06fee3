"""The training loop that pre-training and fine-tuning share: step, log, save, resume, stop.

A task says what a network's outputs cost; the loop knows nothing of paces or actions.
"""

import math
import platform
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from pacecore import __version__
from pacecore.checkpoint import VERBS, CheckpointError, check_kind, save_checkpoint
from pacecore.config import RunOptions
from pacecore.device import clip_format, repeatable_or_fast
from pacecore.distributed import (
    any_rank,
    is_main,
    merge_over_ranks,
    share_buffers,
    world_size,
)
from pacecore.errors import PacecoreError
from pacecore.inputs import resident_frames, worker_count
from pacecore.loader import ClipBatch, LoaderError, TrainingSchedule, load_batches, on_device
from pacecore.meter import Meter, NotFinite, Totals
from pacecore.rules import OptionError, write_toml
from pacecore.runlog import Progress, RunFolder, duration, tell
from pacecore.source import FrameSource
from pacecore.step import Learnt, TrainingStep, learning_rate
from pacecore.stopping import Stop, Stopped, stop_requests

__all__ = ["Task", "TrainingError", "fit"]

_COLLAPSED = 1e-3  # z_spread; that of an untrained network is above 0.1


class TrainingError(PacecoreError):
    """Training cannot go on; names the step, the rule and the videos concerned."""


class Task(Learnt, Protocol):
    """What is learnt: a network, the loss of its outputs, and how well it does."""

    kind: str  # "pretrain" or "finetune"
    headline: str  # the metric that the progress line shows beside the loss
    chosen_by: str  # the held-out result whose highest value marks best.pt; "": none is kept

    def evaluate(self, between: Callable[[], None]) -> dict[str, Any]:
        """Metrics on the held-out videos, run after each epoch; empty when there are none.

        between: called again and again; what it raises ends the measuring.
        """
        ...

    def extra_state(self) -> dict[str, Any]:
        """What a user of the checkpoint needs beside weights and options."""
        ...


def fit(
    task: Task,
    source: FrameSource,
    schedule: TrainingSchedule,
    options: RunOptions,
    device: torch.device,
    *,
    data: dict[str, Any],
    resume: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains `task` to the end of its schedule and returns the run's summary; to be called
    within `alone_in` its folder.

    data: what of the videos goes into a checkpoint, so that it is not resumed on others.
    resume: the content of a checkpoint of this run. Raises TrainingError for a loss or weights that
    are not finite, more than max_bad unreadable videos, or a signal to stop, and the last
    checkpoint stays; OptionError where the run is to end before the steps it has done.
    """
    with repeatable_or_fast(options.deterministic):
        run = _Run(task, source, schedule, options, device, data, resume)
        try:
            return run.train()
        except KeyboardInterrupt:  # the second one: the first waits for the end of the step
            raise TrainingError(
                f"stopped at once after step {run.totals.step}, nothing saved since;"
                f" {run.kept(and_how=True)}"
            ) from None
        except RuntimeError as error:  # of C3D's and S3D-G's max-pooling on CUDA until lately
            function, lacks, _ = str(error).partition(
                " does not have a deterministic implementation"
            )
            if not lacks:
                raise
            raise TrainingError(
                f"deterministic: torch {torch.__version__} has no repeatable {function} on"
                f" {device}, which {options.backbone} needs; leave it out"
            ) from None


class _Run:
    def __init__(self, task, source, schedule, options, device, data, resume):
        self.task, self.source, self.schedule = task, source, schedule
        self.options, self.device, self.data = options, device, data
        self.folder = RunFolder(
            Path(options.out), writes=is_main(), tensorboard=options.tensorboard
        )
        self.per_epoch = schedule.steps_per_epoch
        planned = options.epochs * self.per_epoch
        self.total_steps = min(planned, options.max_steps) if options.max_steps else planned
        self.step = TrainingStep(task, options, device)
        self.form = clip_format(options, device, self.step.layout)
        self.resident = resident_frames(source, options.data_on, device)
        self.totals, self.meter = Totals(), Meter(device)
        self.counted = time.monotonic()  # up to here the seconds are in totals
        self.bad: dict[str, str] = {}
        self.results: dict[str, Any] = {}
        self.best: dict[str, Any] = {}  # results of the step that best.pt was written at
        self.unmeasured = False  # an epoch is behind us that was not measured
        self.last_text = ""
        if resume:
            self._restore(resume)
        self.folder.rewind(self.totals.step if resume else -1)
        self.folder.write("options.toml", write_toml(options))

    def _restore(self, content: dict[str, Any]) -> None:
        check_kind(self.options.out, content, self.task.kind)
        where = Path(self.options.out) / "last.pt"
        try:
            self.task.model.load_state_dict(content["model"])
            self.step.restore(content["optimizer"])
            self.totals = Totals(**content["totals"])
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{where}: a checkpoint of another model: {reason}") from None
        except (LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{where}: not as pacecore writes it: {error!r}") from None
        self.bad = dict(content["bad"])
        self.results = dict(content["results"])
        self.best = dict(content["best"])
        self.unmeasured = content["unmeasured"]
        self._require_as_long()

    def _require_as_long(self) -> None:
        """Raises OptionError where the run that goes on is to end before what it has done."""
        done = self.totals.step
        if done <= self.total_steps:
            return
        name, rule = "max_steps", f"the {done} steps"
        if self.options.epochs * self.per_epoch == self.total_steps:
            name, rule = "epochs", f"the {done / self.per_epoch:g} epochs"
        got = getattr(self.options, name)
        raise OptionError(
            f"{name} must be at least {rule} that {self.options.out} has done, got {got}"
        )

    def train(self) -> dict[str, Any]:
        self.task.model.train()
        self.step.capture(self._shapes(), self.form.dtype)
        progress = Progress("train", self.total_steps, shows=is_main())
        progress.update(self.totals.step)
        self.counted = time.monotonic()
        with stop_requests() as stop:
            try:
                if self.unmeasured:
                    progress.close()
                    self._measure(stop)
                self._steps(stop, progress)
            except Stopped as ended:
                progress.close()
                raise (ended.__cause__ or self._stopped(stop)) from None
            except LoaderError as error:
                progress.close()
                if world_size() > 1:
                    raise  # saving needs the other ranks, which are in the midst of a step
                self.save()
                raise TrainingError(f"{error}; {self._saved()}") from None
        return self._summary()

    def _steps(self, stop: Stop, progress: Progress) -> None:
        options, totals, saved = self.options, self.totals, time.monotonic()
        for batch in self._timed_batches(stop):
            if self._usable(batch):
                self._learn(batch)
            totals.step += 1
            epoch_ends = totals.step % self.per_epoch == 0 or totals.step == self.total_steps
            if totals.step % options.log_every == 0 or epoch_ends:
                self._log()
            progress.update(totals.step, self.last_text)
            late = time.monotonic() - saved >= 60 * options.save_minutes
            stopping, due = any_rank(bool(stop), late)
            if epoch_ends or stopping or due:
                self.unmeasured = epoch_ends
                self.save()
                saved = time.monotonic()
            if stopping and totals.step < self.total_steps:
                progress.close()
                raise self._stopped(stop)
            if epoch_ends:
                progress.close()
                self._measure(stop)

    def _stopped(self, stop: Stop) -> TrainingError:
        return TrainingError(f"stopped by {stop.signal or 'another rank'} {self._saved()}")

    def _saved_if_learnt(self) -> str:
        """Saves, but without what the batch at hand has shown, which a resumed run sees again."""
        if not self.totals.step:
            return self.kept()
        self.save()
        return self._saved()

    def _saved(self) -> str:
        return (
            f"after step {self.totals.step} of {self.total_steps}, saved; go on with:"
            f" {self.resuming()}"
        )

    def _timed_batches(self, stop: Stop) -> Iterator[ClipBatch]:
        """Batches on the device; counts how long the loop waited for them."""
        batches = load_batches(
            self.source,
            self.schedule,
            range(self.totals.step, self.total_steps),
            clip_frames=self.options.clip_frames,
            workers=worker_count(self.options.workers, self.device),
            timeout_seconds=self.options.decode_timeout,
            pin_memory=self.device.type == "cuda",
            resident=self.resident is not None,
        )
        batches = on_device(batches, self.device)
        for _ in range(self.totals.step, self.total_steps):
            before = time.monotonic()
            # Of several ranks one cannot save while the others are in the midst of a step.
            with stop.saving(self.save) if world_size() == 1 else nullcontext():
                batch = next(batches)
            self.totals.waited_seconds += time.monotonic() - before
            yield batch

    def _count_seconds(self) -> None:
        """Brings the seconds of the run up to now."""
        now = time.monotonic()
        self.totals.seconds += now - self.counted
        self.counted = now

    def _shapes(self) -> list[tuple[int, ...]]:
        """Of the clips of the epoch's batches, which differ by one video at most."""
        frames, side = self.options.clip_frames, self.options.crop
        shown = len(self.schedule.frame_counts) * self.schedule.repeat
        counts = sorted({shown // self.per_epoch, -(-shown // self.per_epoch)})
        return [(n * self.schedule.sampling.views, 3, frames, side, side) for n in counts]

    def _usable(self, batch: ClipBatch) -> bool:
        """Notes the videos that could not be read; whether all ranks can learn from it."""
        new = {path: reason for path, reason in batch.bad if path not in self.bad}
        number = self.totals.step + 1  # as other lines count: a resume from before it drops these
        lacking, found = any_rank(self._lacks_clips(batch), bool(new))
        new = merge_over_ranks(new) if found else {}
        for path, reason in new.items():
            self.folder.log(step=number, event="unreadable", path=path, reason=reason)
        limit, bad, count = self.options.max_bad, self.bad | new, len(self.source)
        if len(bad) > limit or len(bad) == count:
            name, reason = list(bad.items())[-1]
            words = f"more than max_bad = {limit} videos cannot be read"
            if len(bad) <= limit:
                words = f"none of the {count} videos can be read any more"
            raise TrainingError(
                f"{words}; the last one: {name}: {reason}; {self._saved_if_learnt()}"
            )
        self.bad = bad
        if lacking:  # the others cannot go on without the rank whose share it is
            reason = "too few of its videos can be read"
            self.folder.log(step=number, event="left out", reason=reason)
            if is_main():
                tell(f"warning: step {number} is left out: {reason}")
        return not lacking

    def _lacks_clips(self, batch: ClipBatch) -> bool:
        """Whether this rank has no clip of the step or, for want of videos that cannot be read, a
        part of one clip, which batch norm may not take.
        """
        if len(batch) == 0 or not batch.bad:
            return len(batch) == 0
        asked = len(self.schedule(batch.number)) * self.schedule.sampling.views
        parts = self.options.accumulate
        return len(batch) // min(parts, len(batch)) == 1 < asked // min(parts, asked)

    def _learn(self, batch: ClipBatch) -> None:
        number = self.totals.step
        rate = learning_rate(self.options, number, self.per_epoch, self.total_steps)
        clips = batch.clips(self.form, self.resident)
        loss, metrics = self.step(clips, batch, number, rate)
        self.meter.add(number, loss, metrics, len(batch))

    def _log(self) -> None:
        """One line of the log from the last steps; stops the run at a loss that is not finite."""
        try:
            means, clips = self.meter.read()
        except NotFinite as error:
            requests = self.schedule(error.step)
            names = ", ".join(str(self.source.path(request.video)) for request in requests[:30])
            raise TrainingError(f"{error}; {self.kept()}; videos of the step: {names}") from None
        self._count_seconds()
        if not means:
            return
        totals = self.totals
        totals.clips += clips
        line = {
            "step": totals.step,
            "epoch": round(totals.step / self.per_epoch, 4),
            **means,
            "lr": self.step.optimizer.param_groups[0]["lr"],
            "clips": totals.clips,
            "clips_per_second": totals.clips_per_second,
            "waiting_share": totals.waiting_share,
        }
        self.folder.log(**line)
        if means.get("z_spread", 1.0) < _COLLAPSED and is_main():
            tell(
                f"warning: step {totals.step}: the embeddings have collapsed, z_spread"
                f" {means['z_spread']:.1e}: every clip gets the same one"
            )
        self.last_text = (
            f"loss {line['loss']:.3f}  {self.task.headline}"
            f" {means.get(self.task.headline, math.nan):.3f}  {line['clips_per_second']:.1f}"
            f" clips/s  waiting {100 * line['waiting_share']:.0f} %"
        )

    def resuming(self) -> str:
        """The command that goes on with this run."""
        return shlex.join(["pacecore", VERBS[self.task.kind], "--resume", self.options.out])

    def kept(self, *, and_how: bool = False) -> str:
        """Which checkpoint there is, in words, `and_how` to go on with it."""
        kept = Path(self.options.out) / "last.pt"
        if not kept.exists():
            return "nothing was saved yet"
        how = f"; go on with: {self.resuming()}" if and_how else ""
        return f"the last good checkpoint is {kept}{how}"

    def _measure(self, stop: Stop) -> None:
        """Measures on held-out videos, and keeps the best; all is saved before, and so a request to
        stop ends it.
        """

        def heed() -> None:
            if stop and world_size() == 1:  # ranks have no step in common to end it at
                raise Stopped

        began = time.monotonic()
        share_buffers(self.task.model)  # those that are saved
        self.task.model.eval()
        try:
            with torch.no_grad():
                results = self.task.evaluate(heed)
        except PacecoreError as error:
            raise TrainingError(f"{error}; {self.kept(and_how=True)}") from None
        self.task.model.train()
        self.totals.measured_seconds += time.monotonic() - began
        self._count_seconds()
        self.unmeasured = False
        if not results:
            return
        self.results = results
        name = self.task.chosen_by
        if name in results and results[name] > self.best.get(name, -math.inf):
            self.best = {"step": self.totals.step, **results}
            self.save("best.pt")
        self.save()
        # A run that is killed before here measures again, and would have the line twice.
        self.folder.log(step=self.totals.step, **results)
        if is_main():
            shown = ", ".join(f"{k} {v:.3f}" for k, v in results.items() if type(v) is float)
            tell(f"epoch {round(self.totals.step / self.per_epoch, 4):g}: {shown}")
            if "warning" in results:
                tell(f"warning: {results['warning']}")

    def save(self, name: str = "last.pt") -> None:
        """Writes a checkpoint; only after losses and weights are known to be finite."""
        if self.device.type == "cuda":
            # A signal calls this wherever a batch is waited for, so also where `on_device` has its
            # own stream current, on which nothing waits for the step before.
            torch.cuda.synchronize(self.device)
        self._log()
        model = self.task.model.state_dict()
        spoilt = [n for n, value in model.items() if not torch.isfinite(value).all()]
        if any_rank(bool(spoilt))[0]:
            where = spoilt[0] if spoilt else "another rank"
            raise TrainingError(
                f"step {self.totals.step}: the weights are not finite any more ({where});"
                f" {self.kept()}"
            )
        if not is_main():
            return
        self.folder.to_disk()
        save_checkpoint(
            Path(self.options.out) / name,
            {
                "kind": self.task.kind,
                "model": model,
                "optimizer": self.step.optimizer.state_dict(),
                "totals": asdict(self.totals),
                "results": self.results,
                "best": self.best,
                "unmeasured": self.unmeasured,
                "bad": self.bad,
                "options": asdict(self.options),
                **self.data,
                "versions": {
                    "pacecore": __version__,
                    "torch": str(torch.__version__),
                    "python": platform.python_version(),
                },
                **self.task.extra_state(),
            },
        )

    def _summary(self) -> dict[str, Any]:
        totals = self.totals
        return {
            "steps": totals.step,
            "epochs": totals.step / self.per_epoch,
            "clips": totals.clips,
            "seconds": totals.seconds,
            "clips_per_second": totals.clips_per_second,
            "waiting_share": totals.waiting_share,
            "device": str(self.device),
            "ranks": world_size(),
            "torch": str(torch.__version__),
            "unreadable": self.bad,
            "results": self.results,
            "best": self.best,
            "time": duration(totals.seconds),
            "curves": self.folder.curves(self.task.kind),
        }
