"""One step of training: forward, loss, backward, optimiser, and the ways to run them.

The whole batch at once or in parts, in fp32 or under bf16 autocast, compiled, or replayed from a
CUDA graph. The loss is the same to rounding, but in parts, of which batch norm sees one at a time.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pacecore.backbones.tuning import memory_format, prepare
from pacecore.config import RunOptions
from pacecore.distributed import fewest, rank, world_size, wrap
from pacecore.errors import PacecoreError
from pacecore.loader import ClipBatch

__all__ = ["Learnt", "TrainingStep", "check_device", "learning_rate"]


class Learnt(Protocol):
    """A network and the loss of its outputs."""

    model: nn.Module  # clips (B, 3, T, H, W) -> tuple of outputs, each (B, ...)

    def loss(self, outputs: tuple[Tensor, ...], batch: ClipBatch) -> tuple[Tensor, dict]:
        """Scalar loss and, for the log, scalars without gradient."""
        ...


def learning_rate(options: RunOptions, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Learning rate of step `step`: a function of the step alone, so that a resume repeats it."""
    if options.schedule == "cosine":
        rate = options.lr * 0.5 * (1 + math.cos(math.pi * step / max(1, total_steps)))
    else:
        rate = options.lr * 0.1 ** (step // steps_per_epoch // options.lr_step)
    return rate * min(1.0, (step + 1) / max(1, options.warmup_steps))


class _SGD(torch.optim.SGD):
    """Without what keeps torch.compile out of its methods, and first imports it, for 2 s."""

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)


class TrainingStep:
    """The network on its device and its optimiser; a call trains them on one batch.

    Raises PacecoreError for options that this device or number of ranks cannot do.
    """

    def __init__(self, task: Learnt, options: RunOptions, device: torch.device):
        self.task, self.options, self.device = task, options, device
        check_device(options, device)
        prepare(task.model, device)
        self.layout = memory_format(task.model, device)
        self.network = wrap(task.model, device, sync_bn=options.sync_bn)
        if options.compile:
            # For each size anew, an epoch having two at most: for any size at once, which torch
            # would go on to, it lacks an operator of our batch norms on a CPU.
            self.network = torch.compile(self.network, dynamic=False)
        self.optimizer = _SGD(
            task.model.parameters(),
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            # Without momentum Nesterov's is the same, which torch refuses to do.
            nesterov=options.nesterov and options.momentum > 0,
            fused=True,
        )
        self._graphs: dict[torch.Size, nn.Module] = {}

    def __call__(
        self, clips: Tensor, batch: ClipBatch, number: int, rate: float
    ) -> tuple[Tensor, dict]:
        """Loss, (), detached, and figures of step `number`, run with learning rate `rate`.

        clips: (B, 3, T, H, W), the batch's, on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        if self.options.accumulate == 1:
            self._seed(number)
            network = self._graphs.get(clips.shape, self.network)
            loss, metrics = self.task.loss(self._forward(network, clips), batch)
            loss.backward()
        else:
            loss, metrics = self._in_parts(clips, batch, number)
        self.optimizer.step()
        return loss.detach(), metrics

    def restore(self, state: dict) -> None:
        """Goes on with the optimiser's state of a checkpoint."""
        self.optimizer.load_state_dict(state)
        for weight, kept in self.optimizer.state.items():
            if (momentum := kept.get("momentum_buffer")) is not None:
                # On another device weights may be laid out otherwise than where the run began, and
                # fused SGD pairs weight and momentum by their places in memory.
                kept["momentum_buffer"] = torch.empty_like(weight).copy_(momentum)

    def _seed(self, number: int, part: int = 0) -> None:
        """Makes dropout a function of seed, step, part and rank, so that a resume repeats it."""
        words = np.random.SeedSequence((self.options.seed, number, part, rank()))
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0]))

    def _forward(self, network: Callable, clips: Tensor) -> tuple[Tensor, ...]:
        bf16 = self.options.amp == "bf16"
        # A graph casts its weights anew in each replay, so none may be kept from before it.
        cached = not self.options.graph
        try:
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=cached
            ):
                outputs = network(clips)
        except (RuntimeError, ValueError) as error:
            if "more than 1 value per channel" in str(error):
                raise PacecoreError(self._of_one_value()) from None
            if self.options.compile and type(error).__module__.startswith("torch._"):
                inner = getattr(error, "inner_exception", error)
                lines = [line for line in str(inner).splitlines() if line.strip()]
                raise PacecoreError(f"compile: torch cannot compile here: {lines[0]}") from error
            raise
        return tuple(output.float() for output in outputs)

    def _of_one_value(self) -> str:
        """What batch norm lacks, in the words of the options."""
        names = ("batch", "accumulate", "views", "crop")
        got = [f"{n} {getattr(self.options, n)}" for n in names if hasattr(self.options, n)]
        words, larger = " whose map has come down to one place", " or crop"
        if getattr(self.options, "freeze", "none") == "backbone":  # of the map no norm learns
            words, larger = ", and a linear probe standardises features over clips", ""
        return (
            "batch norm needs more than one value a channel, but a part of the batch is one clip"
            f"{words}; take a larger batch{larger}, or a smaller accumulate; got {', '.join(got)}"
        )

    def _in_parts(self, clips: Tensor, batch: ClipBatch, number: int) -> tuple[Tensor, dict]:
        """The whole batch's loss with the activations of one part at a time in memory.

        The contrastive loss needs all embeddings at once: a first pass without gradients gives
        them, the loss gives their gradients, and a second pass carries those into the weights.
        Batch norm sees one part at a time, and its running averages move in the second pass only.
        """
        # As many on every rank: synchronised batch norm waits for all of them in each.
        parts = clips.tensor_split(min(self.options.accumulate, fewest(len(clips))))
        outputs = []
        with torch.no_grad(), _buffers_kept(self.task.model):
            for place, part in enumerate(parts):
                self._seed(number, place)
                outputs.append(self._forward(self.task.model, part))
        whole = tuple(torch.cat(each).requires_grad_() for each in zip(*outputs, strict=True))
        loss, metrics = self.task.loss(whole, batch)
        gradients = torch.autograd.grad(loss, whole, allow_unused=True)
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        split = [gradients[index].tensor_split(len(parts)) for index in used]
        for place, part in enumerate(parts):
            last = place == len(parts) - 1
            quiet = nullcontext() if last or world_size() == 1 else self.network.no_sync()
            with quiet:
                self._seed(number, place)
                again = self._forward(self.network, part)
                torch.autograd.backward(
                    [again[index] for index in used], [each[place] for each in split]
                )
        return loss, metrics

    def capture(self, shapes: Iterable[tuple[int, ...]], dtype: torch.dtype) -> None:
        """With the option `graph`: records forward and backward for clips of these shapes.

        The loss and the optimiser, a handful of kernels, run as ever, so a learning rate that
        changes and a loss that looks at its values are no concern of the graph. Clips of another
        shape, a batch with a video left out, run without one. To be called before anything else,
        a loader's pinning thread for one, uses the device: that would spoil the recording.
        """
        if not self.options.graph:
            return
        pool = torch.cuda.graph_pool_handle()
        for shape in shapes:
            clips = torch.zeros(shape, dtype=dtype, device=self.device)
            clips = clips.contiguous(memory_format=self.layout)
            with _buffers_kept(self.task.model):  # the recording's trial runs move the averages
                graphed = torch.cuda.make_graphed_callables(_Forward(self), (clips,), pool=pool)
            self._graphs[clips.shape] = graphed


class _Forward(nn.Module):
    """What a graph records: make_graphed_callables replaces `forward` of this, not the network's,
    which goes on to be used for other shapes and for measuring.
    """

    def __init__(self, step: TrainingStep):
        super().__init__()
        self.network = step.task.model
        self.run = step._forward

    def forward(self, clips: Tensor) -> tuple[Tensor, ...]:
        return self.run(self.network, clips)


def check_device(options: RunOptions, device: torch.device) -> None:
    """Raises PacecoreError where `graph` or `sync_bn` cannot be met on `device` by these ranks."""
    if options.sync_bn and world_size() > 1 and device.type != "cuda":
        raise PacecoreError(f"sync_bn needs CUDA devices, got {device}")
    if options.graph and device.type != "cuda":
        raise PacecoreError(f"graph needs a CUDA device, got {device}")
    if options.graph and world_size() > 1:
        raise PacecoreError(
            f"graph works with one rank: averaging gradients cannot be recorded; got {world_size()}"
        )


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Puts the buffers back, in place: running averages of batch norm, mostly."""
    kept = {name: value.clone() for name, value in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(kept[name])
