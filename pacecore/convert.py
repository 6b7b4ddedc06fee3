"""Weights of other projects in, plain weights out.

Files are read with torch's weights_only unpickler, which runs no code. Our own names are
`backbone.*` (the state dict of `build_backbone`), `head.weight` and `head.bias`.
"""

import glob
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pacecore.checkpoint import FORMAT
from pacecore.config import INPUT_OPTIONS, TrainOptions, from_mapping
from pacecore.errors import PacecoreError
from pacecore.files import (
    aside,
    damaged_part,
    read_json,
    require_end,
    safetensors,
    unread,
    write_json,
)
from pacecore.probe import folded
from pacecore.weight_names import HEADS, SOURCES, Source, candidate_networks, names_of, shapes_of

__all__ = ["Weights", "convert", "load_weights", "read_weights", "unsaid_words"]

TARGETS = ("plain", "official")
_FED_BY_VIDEO_PACE = {"channel_order": "bgr", "normalize": "none"}
_USUALLY_FED = {"channel_order": "rgb", "normalize": "none"}  # to what does not say


@dataclass(frozen=True, eq=False)
class Weights:
    """What a file held, in our names, and what became of each of its own."""

    path: Path
    source: str
    network: str
    depth: int | None
    width: float | None  # None for thinned weights whose file does not say how thin
    weights: dict[str, Tensor]
    renamed: dict[str, str] = field(repr=False)  # loaded under another name: theirs -> ours
    left_over: tuple[str, ...]  # in the file, with no place in the network
    missing: tuple[str, ...]  # in the network, not in the file
    input: dict[str, Any]  # INPUT_OPTIONS, as far as the file says or its format settles them
    note: str = ""

    @property
    def fed(self) -> dict[str, str]:
        """Channel order and range of the input that the network is given."""
        return {key: self.input.get(key, usual) for key, usual in _USUALLY_FED.items()}

    @property
    def unsaid(self) -> dict[str, str]:
        """What of that is taken for granted, as the file does not say it."""
        return {key: usual for key, usual in _USUALLY_FED.items() if key not in self.input}

    def report(self, verbose: bool = False) -> str:
        """Lines that say what was loaded; every renamed weight too, if verbose."""
        depth = f", depth {self.depth}" if self.depth else ""
        lines = [
            f"{self.path}: {self.network}{depth}, written by {self.source}",
            f"loaded {len(self.weights)}, {len(self.renamed)} of them renamed; "
            f"left over {len(self.left_over)}, missing {len(self.missing)}",
        ]
        if verbose:
            lines += [f"renamed {theirs} -> {ours}" for theirs, ours in self.renamed.items()]
        if self.width is None:
            lines.append(
                f"of another width than 1, which {self.path.with_suffix('.json').name} does not say"
            )
        lines += [f"left over {name}" for name in self.left_over]
        lines += [f"missing {name}" for name in self.missing]
        if self.unsaid:
            lines.append(unsaid_words(self.unsaid))
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)


def unsaid_words(unsaid: Mapping[str, str]) -> str:
    """What is said of a file that leaves `unsaid`, with the value of each option, open."""
    options = " and ".join(f"--{name.replace('_', '-')}" for name in unsaid)
    return f"does not say {options}, which is taken to be {' and '.join(unsaid.values())}"


def load_weights(path: str | os.PathLike[str], partial: bool = False) -> dict[str, Tensor]:
    """The weights of a file in our names, from any format that `convert` reads.

    Returns a state dict of `backbone.*` and, where the file has a classifier, `head.*`. Raises
    PacecoreError as `read_weights` does.
    """
    return read_weights(path, partial=partial).weights


def read_weights(
    path: str | os.PathLike[str], network: str | None = None, partial: bool = False
) -> Weights:
    """Reads a file of weights, ours or another project's, and says what it held.

    network: c3d, r3d, r21d or s3dg, where the file must hold that one; None finds it by the names.
    partial: also take a file that lacks some of the network's weights.

    Raises PacecoreError for a file that is missing or broken, that would run code when read, that
    holds no network known here or another than `network`, whose weights have other shapes than at
    the width it is of or are no floating point numbers, or, unless `partial`, that lacks some.
    """
    path = Path(path)
    content = _read_file(path)
    tensors = _tensors_of(content, path)
    source, found, depth = _recognise(tensors, network, path)
    prefix, head = source.prefix, HEADS[found] if source.head is None else source.head
    spelt = names_of(source.spelling, found, depth)
    names = {prefix + theirs: ours for theirs, ours in spelt.items()}

    weights: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    left_over = []
    for theirs, tensor in tensors.items():
        if theirs in names:
            ours = "backbone." + names[theirs]
        elif head and theirs in (f"{head}weight", f"{head}bias"):
            ours = "head." + theirs.removeprefix(head)
        elif source.title == "pacecore" and theirs.startswith("projection."):
            ours = theirs
        elif source.repeats and re.search(source.repeats, theirs.removeprefix(prefix)):
            continue
        else:
            left_over.append(theirs)
            continue
        weights[ours] = tensor
        if ours != theirs:
            renamed[theirs] = ours

    said = _said_of(content, path, found)
    shapes = shapes_of(found, depth)
    width = _width_of(said, weights, shapes) if source.spelling == "pacecore" else 1.0
    if width is not None:
        _check_shapes(weights, shapes_of(found, depth, width), path, found)
    missing = []
    for name in shapes:
        ours = f"backbone.{name}"
        if ours in weights:
            continue
        if name.endswith("num_batches_tracked"):  # older than torch 0.4.1
            weights[ours] = torch.tensor(0)
        else:
            missing.append(ours)
    result = Weights(
        path=path,
        source=source.title,
        network=found,
        depth=depth,
        width=width,
        weights=weights,
        renamed=renamed,
        left_over=tuple(left_over),
        missing=tuple(missing),
        input=_input_of(content, said, source),
        note=source.note,
    )
    if missing and not partial:
        raise PacecoreError(
            f"{path}: {found} lacks {len(missing)} of {len(shapes)} weights, the first "
            f"{missing[0]}; convert and finetune take the rest by --partial (partial=True)"
            + (f" ({source.note})" if source.note else "")
        )
    return result


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str = "plain",
    network: str | None = None,
    partial: bool = False,
    input: Mapping[str, Any] | None = None,
) -> Weights:
    """Reads `source` and writes `out`, and beside it `out` with .json in place of its suffix.

    to: "plain" writes a state dict in our names; "official" writes video-pace's
        {epoch, state_dict, opt_dict} in its names, which VCOP's and RSPNet's code reads too.
    out: *.safetensors for that format (plain only), any other suffix for torch's.
    input: INPUT_OPTIONS of the clips that the weights were trained on, over what the file says.

    Raises PacecoreError as `read_weights` does, for an `input` that the network cannot have, for a
    thinned network as "official", and for an `out` that cannot be written, or in whose place more
    would be lost: the source, a checkpoint that training can go on from, or the .json of other
    weights.
    """
    if to not in TARGETS:
        raise PacecoreError(f"target must be one of {', '.join(TARGETS)}, got {to!r}")
    out = Path(out)
    if not out.name:
        raise PacecoreError(f"{out}: cannot be written: it is a folder")
    if to == "official" and out.suffix == ".safetensors":
        raise PacecoreError(f"{out}: official files are torch's; give another suffix")
    if out.suffix == ".json":
        raise PacecoreError(f"{out}: the .json beside the weights needs that name; give another")
    found = read_weights(source, network, partial)
    if to == "official" and found.width != 1:
        raise PacecoreError(f"{source}: official files are of full width, got {found.width}")
    if input:
        if unknown := [name for name in input if name not in INPUT_OPTIONS]:
            raise PacecoreError(f"input must be of {', '.join(INPUT_OPTIONS)}, got {unknown[0]!r}")
        given = from_mapping(TrainOptions, {"backbone": found.network, **found.input, **input})
        found = replace(found, input=found.input | {name: getattr(given, name) for name in input})
    if to == "official" and found.fed != _FED_BY_VIDEO_PACE:
        words = ", ".join(found.fed.values())
        taken = "taken to be " if found.unsaid else ""
        note = f"{taken}trained on {words}, but video-pace's code feeds bgr, none"
        # Without it, it would be read as video-pace's own.
        found = replace(found, input=found.input | found.fed, note=note)
    if os.path.isfile(out):
        _require_no_loss(found.path, out)
    description = _description(found, to)
    _require_own_json(out, description)
    with aside(out) as part:
        if out.suffix == ".safetensors":
            weights = {name: tensor.contiguous() for name, tensor in found.weights.items()}
            safetensors("torch", out).save_file(weights, part)
        else:
            with open(part, "wb") as file:  # a file of torch's own does not say why it fails
                torch.save(found.weights if to == "plain" else _official(found), file)
    write_json(out.with_suffix(".json"), description)
    return found


def _require_no_loss(source: Path, out: Path) -> None:
    if out.samefile(source):
        raise PacecoreError(f"{out}: OUT must be another file than SOURCE, which is {source}")
    try:
        content = _read_file(out)
    except PacecoreError:  # no weights at all
        return
    if isinstance(content, Mapping) and "pacecore" in content:
        raise PacecoreError(f"{out}: is a checkpoint of pacecore, which weights do not replace")


def _require_own_json(out: Path, description: Mapping[str, Any]) -> None:
    """Weights whose names differ in the suffix alone have one .json, which must be true of both.
    What is no such .json at all, as a run's test.json beside test.pt, stays too.
    """
    beside = out.with_suffix(".json")
    if not os.path.isfile(beside):
        return
    there = read_json(beside)
    if not isinstance(there, Mapping) or there.get("format") not in TARGETS:
        raise PacecoreError(f"{out}: {beside.name} is there and not of weights; give another name")
    named = out.parent.glob(f"{glob.escape(out.stem)}.*")
    others = [path for path in named if path.stem == out.stem and path not in (out, beside)]
    said = json.loads(json.dumps(description, default=str))  # as it would be read
    if others and there != said:
        raise PacecoreError(f"{out}: {beside.name} is of {others[0].name}; give another name")


def _read_file(path: Path) -> Any:
    try:
        require_end(path)
        if path.suffix == ".safetensors":
            return safetensors("torch", path).load_file(path)
        if damaged := damaged_part(path):
            raise PacecoreError(f"{path}: damaged, {damaged} has a wrong checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise PacecoreError(f"{path}: no such file") from None
    except PacecoreError:
        raise
    except Exception as error:  # torch and safetensors raise many types for a broken file
        raise PacecoreError(f"{path}: not a file of weights: {unread(error)}") from error


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what was read, without DataParallel's "module." and torch.compile's
    "_orig_mod.", a probe's head as others are.
    """
    if isinstance(content, Mapping):
        if (form := content.get("pacecore", FORMAT)) != FORMAT:
            raise PacecoreError(f"{path}: format {FORMAT} is read, and this has format {form}")
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping):
        raise PacecoreError(f"{path}: no state dict in it, but {type(content).__name__}")
    tensors = folded(
        {
            str(name).replace("_orig_mod.", "").removeprefix("module."): tensor
            for name, tensor in content.items()
            if isinstance(tensor, Tensor)
        }
    )
    if not tensors:
        raise PacecoreError(f"{path}: no tensor in it; its entries are {list(content)[:5]}")
    return tensors


def _recognise(
    tensors: Mapping[str, Tensor], network: str | None, path: Path
) -> tuple[Source, str, int | None]:
    """The way of writing, network and depth that explain most of the names, and lack fewest."""
    best: tuple[tuple[int, int], tuple[Source, str, int | None] | None] = ((0, 0), None)
    for source in SOURCES:
        for found, depth in candidate_networks():
            names = names_of(source.spelling, found, depth)
            matched = sum(source.prefix + name in tensors for name in names)
            score = (matched, -len(names))
            if score > best[0]:
                best = (score, (source, found, depth))
    if best[1] is None:
        raise PacecoreError(
            f"{path}: no network known here; its names begin {', '.join(list(tensors)[:3])}"
        )
    found = best[1][1]
    if network is not None and found != network:
        raise PacecoreError(f"{path}: holds {found}, not {network}")
    return best[1]


def _check_shapes(
    weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], path: Path, network: str
) -> None:
    for name, shape in shapes.items():
        tensor = weights.get(f"backbone.{name}")
        if tensor is not None and tensor.shape != shape:
            raise PacecoreError(
                f"{path}: {name} of {network} must be {tuple(shape)}, got {tuple(tensor.shape)}"
            )
        counts = name.endswith("num_batches_tracked")
        if tensor is not None and not counts and not tensor.is_floating_point():
            raise PacecoreError(
                f"{path}: {name} of {network} must be floating point, got {tensor.dtype}"
            )


def _said_of(content: Any, path: Path, network: str) -> Mapping[str, Any]:
    """What a file says of its weights beside them: a checkpoint's options, or what `convert` wrote
    into the .json beside weights of that network; {} where nothing does.
    """
    if isinstance(content, Mapping) and isinstance(content.get("options"), Mapping):
        return content["options"]
    beside = read_json(path.with_suffix(".json"))
    try:
        same = beside["network"] == network and beside["format"] in TARGETS
        return {**beside["input"], "width": beside["width"]} if same else {}
    except (TypeError, KeyError):
        return {}


def _input_of(content: Any, said: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """What a file says of its input; video-pace's checkpoints are known by their opt_dict."""
    kept = {key: said[key] for key in INPUT_OPTIONS if key in said}
    if isinstance(kept.get("resize"), list):  # as JSON has it
        kept["resize"] = tuple(kept["resize"])
    if kept or source.spelling != "vcop":
        return kept
    of_video_pace = isinstance(content, Mapping) and "opt_dict" in content
    return dict(_FED_BY_VIDEO_PACE) if of_video_pace else {}


def _width_of(
    said: Mapping[str, Any], weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> float | None:
    held = ((weights.get(f"backbone.{name}"), shape) for name, shape in shapes.items())
    if all(tensor is None or tensor.shape == shape for tensor, shape in held):
        return 1.0
    width = said.get("width")
    return width if isinstance(width, int | float) else None


def _official(found: Weights) -> dict[str, Any]:
    """video-pace's file: its names, its three entries. What it has no place for stays out."""
    theirs = {ours: name for name, ours in names_of("vcop", found.network, found.depth).items()}
    state = {}
    for name, tensor in found.weights.items():
        if name.startswith("backbone."):
            state[theirs[name.removeprefix("backbone.")]] = tensor
        elif name in ("head.weight", "head.bias"):
            state[HEADS[found.network] + name.removeprefix("head.")] = tensor
    return {"epoch": 0, "state_dict": state, "opt_dict": {}}


def _description(found: Weights, to: str) -> dict[str, Any]:
    head = found.weights.get("head.weight")
    return {
        "format": to,
        "network": found.network,
        "depth": found.depth,
        "width": found.width,
        "classes": None if head is None else head.shape[0],
        "parameters": sum(
            tensor.numel()
            for name, tensor in found.weights.items()
            if tensor.is_floating_point() and not name.endswith(("running_mean", "running_var"))
        ),
        "input": found.input,
        "from": {"file": found.path.name, "written_by": found.source},
        "left_over": list(found.left_over),
        "missing": list(found.missing),
        "note": found.note,
    }
