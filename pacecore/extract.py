"""Features of videos to a file: rows in a fixed order, with a JSON beside it that names them.

A run that is stopped goes on where it was; what is whole already is not made again.
"""

import hashlib
import json
import os
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pacecore.backbones import Backbone, stage_features
from pacecore.config import ExtractOptions, FeatureOptions, taken
from pacecore.device import pick_device, trusted
from pacecore.distributed import any_rank, barrier, is_main, join, merge_over_ranks, of_all_ranks
from pacecore.errors import PacecoreError
from pacecore.files import aside, for_one_process, safetensors, write_json, writing
from pacecore.index import BadVideo, none_readable
from pacecore.inputs import Inputs
from pacecore.media import state_of
from pacecore.protocol import PATIENCE, ClipRunner, open_measured, out_folder, ready
from pacecore.source import FrameSource, Subset
from pacecore.store import FrameStore
from pacecore.trained import Trained, fingerprint, require_trained

__all__ = ["Features", "extract_split", "features_name", "load_features", "run_extract"]

_FORMAT = 1
_WRITTEN = 1  # state of a row; 0: still to do
_SECONDS_BETWEEN_FLUSHES = 10.0  # what a kill may cost, whatever a row takes


@dataclass(frozen=True, eq=False)
class Features:
    """Rows of features and what they are of."""

    path: Path
    values: np.ndarray  # (N, D) of videos, or (N, K, D) of clips; fp32, mapped from the file
    order: dict[str, Any]  # the JSON beside it
    replaced: str = ""  # of those just written, what gave way: of other videos, or the other format

    @property
    def rows(self) -> np.ndarray:
        """(rows, D): a row a video, or a row a clip."""
        return self.values.reshape(-1, self.values.shape[-1])

    @property
    def clips(self) -> int:
        """Rows of one video."""
        return 1 if self.values.ndim == 2 else self.values.shape[1]

    @property
    def labels(self) -> np.ndarray:
        """(rows,) int64, into order["classes"]. Raises PacecoreError where a video has none."""
        labels = [video["label"] for video in self.order["videos"]]
        if None in labels:
            bare = self.order["videos"][labels.index(None)]["path"]
            raise PacecoreError(f"{self.path}: videos without a label, such as {bare}")
        return np.repeat(np.array(labels, dtype=np.int64), self.clips)

    def paths(self) -> list[str]:
        return [video["path"] for video in self.order["videos"]]


def load_features(path: str | Path) -> Features:
    """The features that `extract` wrote to `path`, *.npy or *.safetensors.

    Raises PacecoreError for a file that is not there, or does not fit the JSON beside it.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".safetensors"):
        raise PacecoreError(f"{path}: holds no rows; name the .npy or .safetensors beside it")
    try:
        if path.suffix == ".safetensors":
            values = safetensors("numpy", path).load_file(path)["features"]
        else:
            values = np.lib.format.open_memmap(path, "r")  # np.load also tries pickles and zips
        beside = path.with_suffix(".json")
        text = beside.read_bytes()
    except OSError as error:
        named, reason = error.filename or path, error.strerror or error
        raise PacecoreError(f"{named}: features cannot be read: {reason}") from None
    except PacecoreError:
        raise
    except Exception as error:  # numpy and safetensors raise many types for a broken file
        raise PacecoreError(f"{path}: not features of pacecore extract: {error}") from None
    try:
        order = json.loads(text)
        _require_order(order)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise PacecoreError(f"{beside}: not of pacecore extract: {error!r}") from None
    shape = order["shape"]
    axes = 3 if order["unit"] == "clip" else 2
    if values.ndim != axes or values.dtype.kind != "f":
        rule = f"must be numbers with a fraction, of {axes} axes"
        raise PacecoreError(f"{path}: {rule}, got {values.dtype} {list(values.shape)}")
    if shape != list(values.shape) or len(order["videos"]) != len(values):
        raise PacecoreError(f"{path}: {list(values.shape)} values, but the JSON says {shape}")
    return Features(path, values, order)


def _require_order(order: dict[str, Any]) -> None:
    """Raises ValueError, LookupError or TypeError for what is not as `_Writer` writes it."""
    classes = order["classes"]
    kinds = {"videos": list, "unreadable": dict, "clips": int, "width": float}
    kinds |= dict.fromkeys(("network", "stage", "pool", "unit", "backbone", "identity"), str)
    for name, kind in kinds.items():
        if not isinstance(order[name], kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {order[name]!r:.100}")
    if not (isinstance(classes, list) and all(isinstance(each, str) for each in classes)):
        raise ValueError(f"classes must be a list of names, got {classes!r:.100}")
    for video in order["videos"]:
        label = video["label"]
        known = type(label) is int and 0 <= label < (len(classes) or label + 1)
        if not (isinstance(video["path"], str) and (label is None or known)):
            rule = f"path must be a text and label null or one of {len(classes)} classes"
            raise ValueError(f"{rule}, got {video!r:.200}")


def run_extract(trained: Trained, options: ExtractOptions) -> list[Features]:
    """Writes features of the training videos, the held-out ones, or both, one file each.

    Files features-STAGE-UNIT-SPLIT.npy (or .safetensors) and .json in options.out; the one JSON is
    of one format, and a file of the other gives way. Raises PacecoreError for input that cannot be
    used.
    """
    options = taken("extract", options, ExtractOptions)
    require_trained("extract", trained)
    if options.format == "safetensors":
        # Told before the work, not after it.
        safetensors("numpy", "--format safetensors, unlike npy,")
    device = pick_device(options.device)
    with join(device, patience=PATIENCE):
        data = open_measured(trained, options)
        splits = ("train", "test") if options.split == "all" else (options.split,)
        if options.split == "all":
            splits = [split for split in splits if _source_of(data, split)]
        options = trusted(options, device, measures=trained.options)
        model = ready(trained.backbone, device)
        before = set(out_folder(trained, options).iterdir()) if is_main() else set()
        written = [extract_split(model, trained, data, split, options, device) for split in splits]
        barrier()  # nobody reads what now gives way
        if is_main():
            written = [_in_format(features, options.format, before) for features in written]
        return written


def extract_split(
    backbone: Backbone,
    trained: Trained,
    data: Inputs,
    split: str,
    options: FeatureOptions,
    device: torch.device,
) -> Features:
    """Features of one split, written or found written already; every rank must call it.

    Ranks write their rows into one file, so they need a folder that they share.
    """
    source = _source_of(data, split)
    if not source:
        raise PacecoreError(f"{options.data or 'the data'}: no {split} video")
    model, what = _model(backbone, options), f"{split} features"
    each = {"clips": options.clips, "batch_clips": options.batch_clips}
    runner = ClipRunner.of(model, backbone, trained.options, options, device, what, **each)
    name = features_name(options.stage, options.pool, options.unit)
    writer = _Writer(
        out_folder(trained, options) / f"features-{name}-{split}.npy",
        _description(backbone, trained, source, split, options),
        source,
        runner,
        options.unit,
        dict(data.unreadable),
    )
    return writer.write()


def _source_of(data: Inputs, split: str) -> FrameSource | None:
    return data.train if split == "train" else data.held_out


def features_name(stage: str, pool: str, unit: str) -> str:
    """What tells files of one network apart: p5-video, p4-gap-clip."""
    return f"{stage}-gap-{unit}" if pool == "gap" and stage != "gap" else f"{stage}-{unit}"


def _model(backbone: Backbone, options: FeatureOptions) -> Any:
    def run(clips: Tensor) -> tuple[Tensor]:
        return (stage_features(backbone, clips, options.stage, options.pool),)

    return run


def _description(
    backbone: Backbone,
    trained: Trained,
    source: FrameSource,
    split: str,
    options: FeatureOptions,
) -> dict[str, Any]:
    """What the features depend on: equal descriptions mean equal features."""
    used = trained.options
    return {
        "pacecore_features": _FORMAT,
        "network": fingerprint(backbone),
        "backbone": used.backbone,
        "width": used.width,
        "stage": options.stage,
        "pool": options.pool,
        "unit": options.unit,
        "clips": options.clips,
        "input": {
            "clip_frames": used.clip_frames,
            "resize": list(used.resize),
            "crop": used.crop,
            "normalize": used.normalize,
            "channel_order": used.channel_order,
            "boundary": "restart",  # at pace 1, whatever the training's; older files have that
            "amp": options.amp,
        },
        # The first's: copies of the videos on other machines may have dates of their own.
        "identity": of_all_ranks(_identity(source))[0],
        "split": split,
        "classes": list(source.classes),
    }


def _identity(source: FrameSource) -> str:
    """Of the videos as they are: names, labels, and sizes and dates of the files read."""
    whole = source.source if isinstance(source, Subset) else source
    store = whole if isinstance(whole, FrameStore) else None
    digest = hashlib.sha256()
    if store:  # its frames are those of the files, as they were then, resized
        digest.update(f"{store.size}\t{state_of(store.folder / 'index.json')}\n".encode())
    for video in range(len(source)):
        path = source.path(video)
        line = f"{path}\t{source.num_frames(video)}\t{source.label(video)}"
        line += "\n" if store else f"\t{state_of(path)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


@dataclass
class _Writer:
    """One file of features, made row by row."""

    path: Path
    description: dict[str, Any]
    source: FrameSource
    runner: ClipRunner
    unit: str
    bad: dict[str, str]  # files left out, and why
    replaced: str = ""

    def __post_init__(self) -> None:
        self.part = self.path.with_suffix(".npy.part")
        self.state_part = self.path.with_suffix(".state.part")
        self.begun = self.path.with_suffix(".json.part")

    def write(self) -> Features:
        found = self._finished()
        if any_rank(found is None)[0]:
            lock = self.path.with_name(f".{self.path.stem}.lock")
            holder = for_one_process(lock, f"is writing {self.path.name}")
            with holder if is_main() else nullcontext():
                self._fill()
                if is_main():
                    with writing(self.path):
                        self._finish()
            barrier()  # nobody reads before it is finished
            found = replace(load_features(self.path), replaced=self.replaced)
        return found

    def _finished(self) -> Features | None:
        """What was written before by the same description, in either format."""
        for path in (self.path, self.path.with_suffix(".safetensors")):
            with suppress(PacecoreError):
                found = load_features(path)
                if all(found.order.get(n) == value for n, value in self.description.items()):
                    return found
        return None

    def _fill(self) -> None:
        """Opens or makes the unfinished file, and computes this rank's missing rows."""
        count = len(self.source)
        shape = (self.runner.clips, self._feature_size())
        shape = (count, *shape) if self.unit == "clip" else (count, shape[1])
        if is_main() and not self._goes_on(shape):
            self._begin(shape)
        barrier()
        try:
            values, state = (np.load(path, mmap_mode="r+") for path in (self.part, self.state_part))
        except OSError as error:
            raise PacecoreError(
                f"{self.part}: cannot be opened: {error.strerror}; ranks need a folder in common"
            ) from None
        remaining = np.flatnonzero(np.array(state) != _WRITTEN).tolist()
        fresh: list[int] = []

        def flush() -> float:
            with writing(self.part):
                values.flush()
                state[fresh] = _WRITTEN
                state.flush()
            fresh.clear()
            return time.monotonic()

        barrier()  # all ranks have the same list before any writes
        flushed = time.monotonic()
        try:
            for video, outputs in self.runner.run(self.source, remaining):
                rows = outputs[0]
                values[video] = (rows if self.unit == "clip" else rows.mean(dim=0)).cpu().numpy()
                fresh.append(video)
                if time.monotonic() - flushed > _SECONDS_BETWEEN_FLUSHES:
                    flushed = flush()
        finally:  # also of Ctrl-C
            flush()
        unreadable = merge_over_ranks(self.runner.unreadable)
        self.bad |= unreadable
        if is_main() and (lost := np.sum(state != _WRITTEN) - len(unreadable)):
            raise PacecoreError(
                f"{self.part}: {lost} rows are lost that ranks have written: into a file on a"
                " network's disk only ranks of one machine can write together"
            )

    def _feature_size(self) -> int:
        used = self.runner.options
        clip = torch.zeros(1, 3, used.clip_frames, used.crop, used.crop, device=self.runner.device)
        with torch.inference_mode():
            return self.runner.model(clip)[0].shape[1]

    def _goes_on(self, shape: tuple[int, ...]) -> bool:
        try:
            begun = json.loads(self.begun.read_text(encoding="utf-8"))
            values = np.load(self.part, mmap_mode="r")
            state = np.load(self.state_part, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return False
        return begun == self.description and values.shape == shape and len(state) == shape[0]

    def _begin(self, shape: tuple[int, ...]) -> None:
        try:
            self.begun.unlink(missing_ok=True)
            _mapped(self.part, np.float32, shape).flush()
            _mapped(self.state_part, np.uint8, shape[:1]).flush()
            self.begun.write_text(json.dumps(self.description), encoding="utf-8")
        except OSError as error:
            with suppress(OSError):  # a folder has its name, say
                self.part.unlink(missing_ok=True)
            needed = 4 * np.prod(shape, dtype=np.int64)
            raise PacecoreError(
                f"{self.part}: cannot be made: {error.strerror}; it takes {needed:,} bytes"
            ) from None

    def _finish(self) -> None:
        """Leaves out the rows of unreadable videos and gives the files their names."""
        state = np.array(np.load(self.state_part, mmap_mode="r"))
        kept = np.flatnonzero(state == _WRITTEN)
        if not len(kept):
            bad = [BadVideo(*each) for each in self.bad.items()]
            raise PacecoreError(f"{self.path}: {none_readable(len(state), bad)}")
        made, values = self.part, np.load(self.part, mmap_mode="r")
        if len(kept) < len(values):
            made, whole = self.part.with_suffix(".shorter"), values
            with writing(made):
                values = _mapped(made, np.float32, (len(kept), *whole.shape[1:]))
            for row, video in enumerate(kept):
                values[row] = whole[video]
            values.flush()
        names = self.source.classes
        videos = [self._video_words(int(video), names) for video in kept]
        order = {
            **self.description,
            "shape": list(values.shape),
            "dtype": "float32",
            "videos": videos,
            "unreadable": self.bad,
        }
        beside = self.path.with_suffix(".json")
        self.replaced = _replaced_by(order, beside)
        with aside(beside) as described:
            write_json(described, order)  # while the rows can still be gone on with
            for old in (beside, self.path.with_suffix(".safetensors")):  # of other features
                old.unlink(missing_ok=True)
            os.replace(made, self.path)
        for each in (self.begun, self.state_part, self.part):
            each.unlink(missing_ok=True)

    def _video_words(self, video: int, names: tuple[str, ...]) -> dict[str, Any]:
        label = self.source.label(video)
        return {
            "path": str(self.source.path(video)),
            "number": video,
            "label": label,
            "class": names[label] if label is not None and names else None,
            "frames": self.source.num_frames(video),
        }


def _replaced_by(order: dict[str, Any], path: Path) -> str:
    """In words, of what other videos the features are that the JSON at `path` describes, and that
    those of `order` are about to replace; "" where there are none, or of the same videos.
    """
    with suppress(OSError, ValueError, TypeError, LookupError):  # none, or not ours
        before = json.loads(path.read_text(encoding="utf-8"))
        one, other = (
            {os.path.realpath(video["path"]) for video in each["videos"]}
            | set(map(os.path.realpath, each["unreadable"]))
            for each in (before, order)
        )
        if one != other:
            first = before["videos"][0]["path"]
            return f"features of other videos, {len(before['videos'])}, the first {first}"
    return ""


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """A new file, mapped, its room on the disk taken: a full disk would end the process without a
    word when a row is written. Raises OSError.
    """
    values = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return values


def _in_format(features: Features, kind: str, before: set[Path]) -> Features:
    """The same features in a file of that kind alone. before: the files that were in the folder."""
    path = features.path.with_suffix(f".{kind}")
    if path != features.path:
        with aside(path) as part:
            if kind == "npy":
                with open(part, "wb") as file:
                    np.save(file, features.values)
            else:
                values = {"features": np.ascontiguousarray(features.values)}
                safetensors("numpy", path).save_file(values, part)
        features.path.unlink()
    other = path.with_suffix(".npy" if kind == "safetensors" else ".safetensors")
    gone = other.name if other in before and not other.exists() else ""
    return replace(features, path=path, replaced=features.replaced or gone)
