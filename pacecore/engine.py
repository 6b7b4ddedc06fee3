"""The training loop that pre-training and fine-tuning share: step, log, save, resume, stop.

A task says what a network's outputs cost; the loop knows nothing of paces or actions.
"""

import math
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pacecore.backbones.tuning import (
    MEMORY_FORMAT,
    check_bf16_conv3d,
    memory_format,
    prepare,
)
from pacecore.checkpoint import CheckpointError, load_checkpoint, previous, save_checkpoint
from pacecore.config import AnyOptions, RunOptions, input_scale, write_toml
from pacecore.distributed import all_reduce_any, all_reduce_sum, is_main, rank, world_size, wrap
from pacecore.errors import PacecoreError
from pacecore.inputs import resident_frames, worker_count
from pacecore.loader import (
    ClipBatch,
    ClipFormat,
    TrainingSchedule,
    load_batches,
)
from pacecore.runlog import Progress, RunFolder, duration
from pacecore.source import FrameSource

_COLLAPSED = 1e-3  # z_spread; that of an untrained network is above 0.1

__all__ = ["Task", "TrainingError", "clip_format", "fit", "learning_rate", "pick_device", "trusted"]


class TrainingError(PacecoreError):
    """Training cannot go on; names the step, the rule and the videos concerned."""


class Task(Protocol):
    """What is learnt: a network and the loss of its outputs."""

    kind: str  # "pretrain" or "finetune"
    model: nn.Module  # clips (B, 3, T, H, W) -> tuple of outputs, each (B, ...)
    headline: str  # the metric that the progress line shows beside the loss
    chosen_by: str  # the held-out result whose highest value marks best.pt; "": none is kept

    def loss(self, outputs: tuple[Tensor, ...], batch: ClipBatch) -> tuple[Tensor, dict]:
        """Scalar loss and, for the log, scalars without gradient."""
        ...

    def evaluate(self) -> dict[str, Any]:
        """Metrics on the held-out videos, run after each epoch; empty when there are none."""
        ...

    def extra_state(self) -> dict[str, Any]:
        """What a user of the checkpoint needs beside weights and options."""
        ...


def pick_device(wish: str) -> torch.device:
    """The device of an option `device`. Raises PacecoreError when it is not there."""
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wish)
    except RuntimeError:
        raise PacecoreError(f"device must be auto, cpu, cuda or cuda:<n>, got {wish!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise PacecoreError(f"device must be auto, cpu, cuda or cuda:<n>, got {wish!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise PacecoreError(f"device {wish}: this torch finds no CUDA device; see doctor")
        count = torch.cuda.device_count()
        index = rank() % count if device.index is None else device.index
        if index >= count:
            raise PacecoreError(f"device {wish}: there are {count} CUDA devices")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def trusted(options: AnyOptions, device: torch.device) -> AnyOptions:
    """`options`, with fp32 for bf16 where this device's bf16 convolutions are wrong or slower."""
    if options.amp != "bf16":
        return options
    check = check_bf16_conv3d(device)
    if is_main():
        print(check.report(), flush=True)
    return options if check.usable else replace(options, amp="none")


def clip_format(
    options: RunOptions, device: torch.device, layout: torch.memory_format = MEMORY_FORMAT
) -> ClipFormat:
    """How pace_clip makes the network's input; `layout` as memory_format(network, device) says."""
    mean, std = input_scale(options.normalize)
    return ClipFormat(
        resize=tuple(options.resize),
        crop_size=(options.crop, options.crop),
        mean=mean,
        std=std,
        channel_order=options.channel_order,
        dtype=torch.bfloat16 if options.amp == "bf16" and device.type == "cuda" else torch.float32,
        memory_format=layout,
    )


def learning_rate(options: RunOptions, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Learning rate of step `step`: a function of the step alone, so that a resume repeats it."""
    if options.schedule == "cosine":
        rate = options.lr * 0.5 * (1 + math.cos(math.pi * step / max(1, total_steps)))
    else:
        rate = options.lr * 0.1 ** (step // steps_per_epoch // options.lr_step)
    return rate * min(1.0, (step + 1) / max(1, options.warmup_steps))


def fit(
    task: Task,
    source: FrameSource,
    schedule: TrainingSchedule,
    options: RunOptions,
    device: torch.device,
    *,
    identity: str,
    resume: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains `task` to the end of its schedule and returns the run's summary.

    identity: what the data are, so that a checkpoint is not resumed on others.
    resume: the content of a checkpoint of this run. Raises TrainingError for a loss that is not
    finite, or more than max_bad unreadable videos; the last checkpoint stays.
    """
    return _Run(task, source, schedule, options, device, identity, resume).train()


@dataclass
class _Totals:
    """Counts that go on over a resume."""

    step: int = 0
    clips: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0


class _Run:
    def __init__(self, task, source, schedule, options, device, identity, resume):
        self.task, self.source, self.schedule = task, source, schedule
        self.options, self.device, self.identity = options, device, identity
        self.folder = RunFolder(
            Path(options.out), writes=is_main(), tensorboard=options.tensorboard
        )
        self.per_epoch = schedule.steps_per_epoch
        planned = options.epochs * self.per_epoch
        self.total_steps = min(planned, options.max_steps) if options.max_steps else planned
        if options.deterministic:
            # cuBLAS reads it when its first handle is made.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        prepare(task.model, device)
        self.network = wrap(task.model, device, sync_bn=options.sync_bn)
        self.optimizer = torch.optim.SGD(
            task.model.parameters(),
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            nesterov=options.nesterov,
            fused=True,
        )
        self.form = clip_format(options, device, memory_format(task.model, device))
        self.resident = resident_frames(source, options.data_on, device)
        self.totals = _Totals()
        self.window: list[tuple[int, Tensor, dict[str, Tensor], int]] = []
        self.bad: dict[str, str] = {}
        self.results: dict[str, Any] = {}
        self.best: dict[str, Any] = {}  # results of the step that best.pt was written at
        self.last_text = ""
        if resume:
            self._restore(resume)
        else:
            self.folder.write("options.toml", write_toml(options))

    def _restore(self, content: dict[str, Any]) -> None:
        where = Path(self.options.out) / "last.pt"
        if content["kind"] != self.task.kind:
            verb = _VERBS.get(content["kind"], content["kind"])
            raise CheckpointError(f"{where}: a run of pacecore {verb}; resume it with that")
        try:
            self.task.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{where}: a checkpoint of another model: {reason}") from None
        self.totals = _Totals(**content["totals"])
        self.bad = dict(content["bad"])
        self.results = dict(content["results"])
        self.best = dict(content["best"])
        self.folder.rewind(self.totals.step)

    def train(self) -> dict[str, Any]:
        self.task.model.train()
        options, totals = self.options, self.totals
        progress = Progress("train", self.total_steps, shows=is_main())
        progress.update(totals.step)
        saved = time.monotonic()
        with _stop_signals() as stop:
            for batch in self._timed_batches():
                self._note_bad(batch)
                if not all_reduce_any(len(batch) == 0, self.device):
                    self._step(batch)
                totals.step += 1
                epoch_ends = totals.step % self.per_epoch == 0 or totals.step == self.total_steps
                if totals.step % options.log_every == 0 or epoch_ends:
                    self._flush()
                progress.update(totals.step, self.last_text)
                stopping = all_reduce_any(bool(stop), self.device)
                if epoch_ends:
                    progress.close()
                    self._measure()
                due = time.monotonic() - saved >= 60 * options.save_minutes
                if epoch_ends and self._is_best():
                    self.best = {"step": totals.step, **self.results}
                    self.save("best.pt")
                if epoch_ends or stopping or all_reduce_any(due, self.device):
                    self.save()
                    saved = time.monotonic()
                if stopping and totals.step < self.total_steps:
                    progress.close()
                    raise TrainingError(
                        f"stopped by {stop[0] if stop else 'another rank'} after step"
                        f" {totals.step} of {self.total_steps}, saved; go on with:"
                        f" pacecore {_VERBS[self.task.kind]} --resume {options.out}"
                    )
        return self._summary()

    def _timed_batches(self) -> Iterator[ClipBatch]:
        """Batches on the device; counts how long the loop waited for them, and how long it ran."""
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
        while True:
            before = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            arrived = time.monotonic()
            yield batch.to(self.device)
            self.totals.waited_seconds += arrived - before
            self.totals.seconds += time.monotonic() - before

    def _step(self, batch: ClipBatch) -> None:
        rate = learning_rate(self.options, self.totals.step, self.per_epoch, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        clips = batch.clips(self.form, self.resident)
        if self.options.accumulate == 1:
            loss, metrics = self.task.loss(self._forward(self.network, clips), batch)
            loss.backward()
        else:
            loss, metrics = self._accumulated(clips, batch)
        self.optimizer.step()
        self.window.append((batch.number, loss.detach(), metrics, len(batch)))

    def _forward(self, network: Callable, clips: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.options.amp == "bf16", cache_enabled=True
        ):
            outputs = network(clips)
        return tuple(output.float() for output in outputs)

    def _accumulated(self, clips: Tensor, batch: ClipBatch) -> tuple[Tensor, dict]:
        """The whole batch's loss with the activations of one part at a time in memory.

        The contrastive loss needs all embeddings at once: a first pass without gradients gives
        them, the loss gives their gradients, and a second pass carries those into the weights.
        Batch norm sees one part at a time, and its running averages move in the second pass only.
        """
        parts = clips.tensor_split(min(self.options.accumulate, len(clips)))
        buffers = {name: value.clone() for name, value in self.task.model.named_buffers()}
        with torch.no_grad():
            outputs = [self._forward(self.task.model, part) for part in parts]
            for name, value in self.task.model.named_buffers():
                value.copy_(buffers[name])
        whole = tuple(torch.cat(each).requires_grad_() for each in zip(*outputs, strict=True))
        loss, metrics = self.task.loss(whole, batch)
        gradients = torch.autograd.grad(loss, whole, allow_unused=True)
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        split = [gradients[index].tensor_split(len(parts)) for index in used]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            quiet = nullcontext() if last or world_size() == 1 else self.network.no_sync()
            with quiet:
                again = self._forward(self.network, part)
                torch.autograd.backward(
                    [again[index] for index in used], [each[number] for each in split]
                )
        return loss.detach(), metrics

    def _note_bad(self, batch: ClipBatch) -> None:
        for path, reason in batch.bad:
            if path not in self.bad:
                self.bad[path] = reason
                self.folder.log(step=self.totals.step, event="unreadable", path=path, reason=reason)
        if all_reduce_any(len(self.bad) > self.options.max_bad, self.device):
            name, reason = list(self.bad.items())[-1] if self.bad else ("on another rank", "")
            raise TrainingError(
                f"more than max_bad = {self.options.max_bad} videos cannot be read; the last one:"
                f" {name}: {reason}"
            )

    def _flush(self) -> None:
        """Reads the losses of the last steps: one line of the log, and the guard against NaN."""
        if not self.window:
            return
        names = list(self.window[0][2])
        rows = [
            torch.stack([loss, *(metrics[name].float() for name in names)])
            for _, loss, metrics, _ in self.window
        ]
        # Each rank's figures are scaled so that their mean over the ranks is the whole batch's.
        table = all_reduce_sum(torch.stack(rows).cpu(), self.device) / world_size()
        losses = table[:, 0]
        if not torch.isfinite(losses).all():
            place = int((~torch.isfinite(losses)).nonzero()[0])
            self._report_not_finite(self.window[place][0], float(losses[place]))
        values = dict(zip(names, table.mean(dim=0)[1:].tolist(), strict=True))
        clips = torch.tensor(sum(count for _, _, _, count in self.window))
        self.totals.clips += int(all_reduce_sum(clips, self.device))
        totals = self.totals
        line = {
            "step": totals.step,
            "epoch": round(totals.step / self.per_epoch, 4),
            "loss": float(losses.mean()),
            **values,
            "lr": self.optimizer.param_groups[0]["lr"],
            "clips_per_second": self._rate(),
            "waiting_share": totals.waited_seconds / max(totals.seconds, 1e-9),
        }
        self.window.clear()
        self.folder.log(**line)
        if values.get("z_spread", 1.0) < _COLLAPSED and is_main():
            print(
                f"warning: step {totals.step}: the embeddings have collapsed, z_spread"
                f" {values['z_spread']:.1e}: every clip gets the same one",
                flush=True,
            )
        self.last_text = (
            f"loss {line['loss']:.3f}  {self.task.headline}"
            f" {values.get(self.task.headline, math.nan):.3f}  {line['clips_per_second']:.1f}"
            f" clips/s  waiting {100 * line['waiting_share']:.0f} %"
        )

    def _rate(self) -> float:
        return self.totals.clips / max(self.totals.seconds, 1e-9)

    def _report_not_finite(self, step: int, loss: float) -> None:
        requests = self.schedule(step)
        names = ", ".join(str(self.source.path(request.video)) for request in requests[:30])
        kept = Path(self.options.out) / "last.pt"
        where = f"the last good checkpoint is {kept}" if kept.exists() else "nothing was saved yet"
        raise TrainingError(
            f"step {step}: the loss is {loss}; {where}; videos of the step: {names}"
        )

    def _measure(self) -> None:
        self.task.model.eval()
        with torch.no_grad():
            results = self.task.evaluate()
        self.task.model.train()
        if results:
            self.results = results
            self.folder.log(step=self.totals.step, **results)
            if is_main():
                shown = ", ".join(f"{k} {v:.3f}" for k, v in results.items() if type(v) is float)
                print(f"epoch {self.totals.step / self.per_epoch:.3g}: {shown}", flush=True)
                if "warning" in results:
                    print(f"warning: {results['warning']}", flush=True)

    def _is_best(self) -> bool:
        name = self.task.chosen_by
        return name in self.results and self.results[name] > self.best.get(name, -math.inf)

    def save(self, name: str = "last.pt") -> None:
        """Writes a checkpoint; only after the losses so far are known to be finite."""
        self._flush()
        if not is_main():
            return
        save_checkpoint(
            Path(self.options.out) / name,
            {
                "kind": self.task.kind,
                "model": self.task.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "totals": asdict(self.totals),
                "results": self.results,
                "best": self.best,
                "bad": self.bad,
                "options": asdict(self.options),
                "identity": self.identity,
                "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
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
            "clips_per_second": self._rate(),
            "waiting_share": totals.waited_seconds / max(totals.seconds, 1e-9),
            "device": str(self.device),
            "ranks": world_size(),
            "torch": str(torch.__version__),
            "unreadable": self.bad,
            "results": self.results,
            "best": self.best,
            "time": duration(totals.seconds),
        }


_VERBS = {"pretrain": "train", "finetune": "finetune"}


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """A list that gets the name of a signal that asks to stop; a second one stops at once."""
    received: list[str] = []

    def handler(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    old = {each: signal.signal(each, handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, action in old.items():
            signal.signal(number, action)


def load_resume(folder: str, *, fall_back: bool = False) -> dict[str, Any]:
    """The last checkpoint of a run; with `fall_back`, the one before it where that is damaged."""
    path = Path(folder) / "last.pt"
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        if fall_back and previous(path).exists():
            return load_checkpoint(previous(path))
        if previous(path).exists():
            raise CheckpointError(
                f"{error}; the one before it is {previous(path)}: --resume-previous uses it"
            ) from None
        raise
