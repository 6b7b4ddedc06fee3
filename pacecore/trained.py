"""A checkpoint as a network ready for use, with the input that it was trained on."""

import hashlib
import os
import shlex
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pacecore.backbones import Backbone, build_backbone
from pacecore.checkpoint import CheckpointError, load_checkpoint
from pacecore.config import FinetuneOptions, RunOptions, TrainOptions
from pacecore.convert import read_weights
from pacecore.distributed import usual_defaults
from pacecore.errors import PacecoreError
from pacecore.files import expanded
from pacecore.probe import folded
from pacecore.rules import OptionError

__all__ = [
    "NETWORK_OPTIONS",
    "Trained",
    "fingerprint",
    "is_place",
    "load_trained",
    "require_trained",
    "require_videos",
    "stored_options",
]

# Options that a network's weights belong to.
NETWORK_OPTIONS = ("backbone", "depth", "width")
_KINDS = {"pretrain": TrainOptions, "finetune": FinetuneOptions}  # of trainings


@dataclass(frozen=True)
class Trained:
    """A network with its weights, on the CPU, and how it was trained."""

    path: Path
    kind: str  # "pretrain", "finetune", or "weights": a file of weights without options
    options: RunOptions
    backbone: Backbone
    head: nn.Linear | None  # on features as they are; of a linear probe too
    classes: tuple[str, ...]  # of the head: paces, or names of actions
    pretrained: dict[str, Any]  # options of the pre-training before a fine-tuning; {} from scratch
    identity: str = ""  # of the videos that it was trained on
    step: int | None = None  # steps of training behind the weights; None where the file tells none
    # Of bare weights, options of their input that are taken for granted, and as what.
    unsaid: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()  # weights of the backbone that the file lacks, here as drawn

    def trainings(self) -> tuple[dict[str, Any], ...]:
        """Options of the trainings behind the weights, as far as the checkpoint tells: of this one,
        of the pre-training before it, {} where there is none, and of fine-tunings between them.
        """
        before = self.pretrained if self.pretrained.get("kind") == "pretrain" else {}
        return asdict(self.options), before, *self.pretrained.get("labelled", ())

    def require_head(self) -> None:
        """Raises PacecoreError where the checkpoint has no head."""
        if self.head is None:
            command = shlex.join(["pacecore", "finetune", str(self.path)])
            raise PacecoreError(
                f"{self.path}: a checkpoint without a head for actions; make one with: {command}"
            )

    def require_network(self, name: str, wanted: Any) -> None:
        """Raises OptionError for another network's value of one of NETWORK_OPTIONS."""
        stored = getattr(self.options, name)
        # Depth 0 is depth 10.
        if wanted != stored and not (name == "depth" and (wanted or 10) == (stored or 10)):
            raise OptionError(f"{name} must be {stored!r}, as in {self.path}, got {wanted!r}")


def require_trained(verb: str, trained: Any) -> None:
    """Raises PacecoreError where a verb is given a path, say, for the network of a checkpoint."""
    if not isinstance(trained, Trained):
        got = type(trained).__name__
        raise PacecoreError(f"{verb}: the network must be what load_trained gives, got {got}")


@usual_defaults()
def load_trained(path: str | Path, *, partial: bool = False) -> Trained:
    """The network of a checkpoint, or of a file of weights that `convert` reads.

    partial: also of a file that lacks some of the network's weights.

    Raises PacecoreError for a file that is neither, or whose weights do not fit its options or are
    not finite, which would give figures all the same: of nan, top-5 is 100 %.
    """
    path = Path(path)
    if os.path.isdir(path):
        last = path / "last.pt"
        is_there = os.path.isfile(last)
        named = f"name the checkpoint in it, {last}" if is_there else "a checkpoint is a file"
        raise CheckpointError(f"{path}: a folder; {named}")
    try:
        content = load_checkpoint(path)
    except CheckpointError as error:
        return _of_weights(path, error, partial)
    try:
        return _of_checkpoint(path, content)
    except CheckpointError:
        raise
    except PacecoreError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: not as pacecore writes it: {error!r}") from None


def _of_checkpoint(path: Path, content: dict[str, Any]) -> Trained:
    kind = content.get("kind")
    if kind not in list(_KINDS):
        known = ", ".join(_KINDS)
        raise CheckpointError(f"{path}: kind must be one of {known}, got {kind!r}")
    options = stored_options(content, path.parent)
    backbone = _backbone(path, options, content["model"])
    return Trained(
        path=path,
        kind=kind,
        options=options,
        backbone=backbone,
        head=_head(folded(content["model"])),
        classes=tuple(content.get("classes", ())),
        pretrained=dict(content.get("pretrained", {})),
        identity=content.get("identity", ""),
        step=content.get("totals", {}).get("step"),
    )


def stored_options(content: dict[str, Any], folder: Path) -> RunOptions:
    """The options that the run of a checkpoint's `content` was trained with.

    folder: where the run is now. Of data named relative to where it was started, that is where it
    still says, so that they are found from any other place too.
    """
    kind = _KINDS[content["kind"]]
    known = {each.name for each in fields(kind)}
    stored = {name: value for name, value in content["options"].items() if name in known}
    options = kind(**stored).resolved()
    place, out = Path(os.path.abspath(folder)), Path(options.out)
    start = Path(*place.parts[: len(place.parts) - len(out.parts)])
    if not options.out or start / out != place or start == Path.cwd():
        return options
    named = {"data": options.data, "held_out": options.held_out}
    paths = {n: str(start / expanded(value)) for n, value in named.items() if is_place(value)}
    return replace(options, **paths)


def is_place(value: str) -> bool:
    """Whether an option `data` or `held_out` is a path, and none of the words beside it."""
    return value not in ("", "auto", "none")


def require_videos(where: str | Path, data: str, held_out: str = "") -> None:
    """Raises PacecoreError where the videos that a run was trained or measured on, as `where` keeps
    them, are not there any more.
    """
    for value, how in ((data, "DATA"), (held_out, "--held-out")):
        if is_place(value) and not os.path.exists(expanded(value)):
            raise PacecoreError(
                f"{where}: its videos are not there any more, {value!r}; name with {how} where they"
                " are now"
            )


def _of_weights(path: Path, error: CheckpointError, partial: bool) -> Trained:
    try:
        found = read_weights(path, partial=partial)
    except PacecoreError as reason:
        # Of a file that torch cannot read, `error` says it better.
        raise CheckpointError(str(error if reason.__cause__ else reason)) from None
    if found.width is None:
        raise CheckpointError(
            f"{path}: {found.network} of another width than 1; pacecore convert writes the width"
            f" into {path.with_suffix('.json').name}, which is not there or of other weights"
        )
    try:
        options = TrainOptions(
            backbone=found.network, depth=found.depth or 0, width=found.width, **found.input
        ).resolved()
    except PacecoreError as reason:  # of the .json beside it
        raise CheckpointError(f"{path}: {reason}") from None
    return Trained(
        path=path,
        kind="weights",
        options=options,
        backbone=_backbone(path, options, found.weights, strict=not found.missing),
        head=None,
        classes=(),
        pretrained={},
        unsaid=found.unsaid,
        missing=tuple(name.removeprefix("backbone.") for name in found.missing),
    )


def _backbone(
    path: Path, options: RunOptions, state: dict[str, torch.Tensor], strict: bool = True
) -> Backbone:
    """The network with its part of `state`, all of which is checked."""
    # As the network will hold them: 1e300 is infinite there.
    spoilt = [name for name, value in state.items() if not torch.isfinite(value.float()).all()]
    if spoilt:
        raise CheckpointError(
            f"{path}: {len(spoilt)} of its {len(state)} weights are not finite, the first"
            f" {spoilt[0]}"
        )
    backbone = build_backbone(options.backbone, options.depth or None, options.width)
    prefix = "backbone."
    weights = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    try:
        backbone.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise CheckpointError(
            f"{path}: its weights do not fit {options.backbone} of depth {options.depth or 10} and"
            f" width {options.width}: {reason}"
        ) from None
    return backbone.eval()


def _head(state: dict[str, torch.Tensor]) -> nn.Linear | None:
    weight = state.get("head.weight")
    if weight is None:
        return None
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": state["head.bias"]})
    return head


def fingerprint(module: nn.Module) -> str:
    """16 hex digits that name the weights: equal for equal weights, whatever file holds them."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        # As bytes, since NumPy has no bfloat16.
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
