"""The built-in demo set: video files of textured objects in six kinds of motion, drawn on the spot.

It stands in for UCF101 where nobody has named any data. Layout, naming and lists are UCF101's.
Clips of one group share object, texture and background; groups never cross between the train and
the test list.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path

import numpy as np

from pacecore.errors import PacecoreError
from pacecore.files import read_json
from pacecore.isolated import JobFailure, run_jobs
from pacecore.video_writer import video_encoder, write_video
from pacecore.workers import core_count

__all__ = ["DEMO_CLASSES", "DemoOptions", "make_demo"]

DEMO_CLASSES = ("Bounce", "Orbit", "Pulse", "Slide", "Spin", "Swing")
_DRAWING = 1  # raise it with every change of the pictures: a set of another drawing is refused
_MARK = "demo.json"
_BEGUN = ".demo.json.unfinished"  # the same, of a set that is made where it stays
_VIDEOS, _LISTS = "UCF-101", "ucfTrainTestlist"
_WORTH_A_PROCESS = 24  # videos, which take longer than to start it
_HEIGHT, _WIDTH = 120, 160
_FRAMES = (80, 136)  # 16 of them at pace 4 span 61, so every start of the first 20 fits
_PERIOD = 256  # pixels after which a background repeats
# Of every set, as its mark tells.
_DRAWN = {"height": _HEIGHT, "width": _WIDTH, "min_frames": _FRAMES[0], "max_frames": _FRAMES[1]}
_WAVE = 0.18  # depth of the objects' outline, as a share of their size
_TURN = np.float32(2 * np.pi)


@dataclass(frozen=True)
class DemoOptions:
    """What the demo set is made from. Videos: len(DEMO_CLASSES) * groups * clips."""

    seed: int = 0
    groups: int = 8  # of each class; the first quarter of them, rounded up, is the test list
    clips: int = 3  # of each group

    def __post_init__(self) -> None:
        for name, low, high in (("seed", 0, 2**32 - 1), ("groups", 2, 99), ("clips", 1, 99)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or not low <= value <= high:
                rule = f"must be a whole number from {low} to {high}"
                raise PacecoreError(f"demo: {name} {rule}, got {value}")

    @property
    def test_groups(self) -> int:
        return -(-self.groups // 4)


def make_demo(
    folder: str | Path,
    *,
    seed: int = 0,
    groups: int = 8,
    clips: int = 3,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Makes the demo set in `folder` and returns that path; a set already there is left as it is.

        folder/UCF-101/Bounce/v_Bounce_g01_c01.mp4 ...
        folder/ucfTrainTestlist/classInd.txt, trainlist01.txt, testlist01.txt

    Six classes of `groups` groups of `clips` videos, 160 x 120, 25 frames per second, 80 to 136
    frames. The set is written beside `folder`, which gets its name when it is whole, or into one
    that is there and empty; what an interrupted call left is used. The same seed gives the same
    pictures. processes: by default one a core, as far as each has work for longer than it takes to
    start. progress(done, total) is called after each video.

    Raises PacecoreError where `folder`, or what stands in its place until it is whole, holds
    something else, or a set made with other options.
    """
    folder = Path(folder)
    options = DemoOptions(seed=seed, groups=groups, clips=clips)
    numbers = {name: int(value) for name, value in asdict(options).items()}
    mark = {"drawing": _DRAWING, "encoder": video_encoder(), **numbers, **_DRAWN}
    try:
        if _is_made(folder, mark):
            return folder
        # Nothing takes the name of the current folder, say, or of one where a disk is mounted.
        stays = folder.is_dir()
        begun = folder if stays else folder.with_name(folder.name + ".unfinished")
        marked = begun / (_BEGUN if stays else _MARK)
        _empty_for(mark, begun, marked)
        marked.write_text(json.dumps(mark, indent=1) + "\n")
        _write_videos(begun, options, processes, progress)
        _write_lists(begun, options)
        last = (marked, folder / _MARK) if stays else (begun, folder)
        _name(*last, folder, mark)
    except OSError as error:
        raise PacecoreError(f"demo: cannot write {folder}: {error.strerror or error}") from error
    return folder


def _is_made(folder: Path, mark: dict) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / _MARK).is_file():
        if (folder / _BEGUN).is_file():
            return False
        raise PacecoreError(f"demo: {folder} holds something else; name a folder that is not there")
    if read_json(folder / _MARK) != mark:
        rule = f"was made with other options, see {folder / _MARK}"
        raise PacecoreError(f"demo: {folder} {rule}; name another folder or remove this one")
    return True


def _empty_for(mark: dict, begun: Path, marked: Path) -> None:
    """Makes the folder `begun`, or takes out of it what was begun with other options; nothing of
    another's, which has no file `marked`.
    """
    begun.mkdir(parents=True, exist_ok=True)
    if not marked.is_file() and any(begun.iterdir()):
        raise PacecoreError(f"demo: {begun} holds something else; remove it or name another folder")
    if read_json(marked) != mark:
        for name in (_VIDEOS, _LISTS):
            if (begun / name).exists():
                shutil.rmtree(begun / name)


def _name(made: Path, name: Path, folder: Path, mark: dict) -> None:
    """Has the set be in `folder` by giving what was `made` its last name."""
    try:
        os.replace(made, name)
    except OSError:
        if not _is_made(folder, mark):  # else another process was first, with the same videos
            raise
        if made.is_dir():
            shutil.rmtree(made, ignore_errors=True)


def _names(options: DemoOptions) -> Iterator[tuple[int, int, int, str]]:
    """(class number, group, clip, "Class/v_Class_gNN_cMM.mp4"), groups and clips counted from 1."""
    for number, name in enumerate(DEMO_CLASSES):
        for group in range(1, options.groups + 1):
            for clip in range(1, options.clips + 1):
                yield number, group, clip, f"{name}/v_{name}_g{group:02d}_c{clip:02d}.mp4"


def _write_videos(
    folder: Path,
    options: DemoOptions,
    processes: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    for name in DEMO_CLASSES:
        (folder / _VIDEOS / name).mkdir(parents=True, exist_ok=True)
    jobs = [(folder / _VIDEOS, options, *named) for named in _names(options)]
    # Not threads, of which one at a time draws.
    count = processes or min(core_count(), -(-len(jobs) // _WORTH_A_PROCESS))
    for done, (number, result) in enumerate(run_jobs(_write_video, jobs, count), 1):
        if isinstance(result, JobFailure):
            raise PacecoreError(f"demo: {jobs[number][-1]} was not drawn: {result.reason}")
        if progress:
            progress(done, len(jobs))


def _write_video(job: tuple[Path, DemoOptions, int, int, int, str]) -> None:
    videos, options, number, group, clip, name = job
    if not (videos / name).exists():
        write_video(videos / name, _draw(options, number, group, clip))


def _write_lists(folder: Path, options: DemoOptions) -> None:
    lists = folder / _LISTS
    lists.mkdir(exist_ok=True)
    entries = list(_names(options))
    text = {
        "classInd.txt": [f"{number} {name}" for number, name in enumerate(DEMO_CLASSES, 1)],
        "trainlist01.txt": [
            f"{name} {number + 1}"
            for number, group, _, name in entries
            if group > options.test_groups
        ],
        "testlist01.txt": [name for _, group, _, name in entries if group <= options.test_groups],
    }
    for name, lines in text.items():
        (lists / name).write_text("\n".join(lines) + "\n")


def _draw(options: DemoOptions, number: int, group: int, clip: int) -> Iterator[np.ndarray]:
    """The frames of one video, each (H, W, 3) uint8."""
    look = np.random.default_rng([options.seed, number, group])
    run = np.random.default_rng([options.seed, number, group, clip])
    background = 255 * (0.15 + 0.6 * _texture(look, _PERIOD, octaves=(4, 8, 16, 32)))
    edge = ((0, _HEIGHT + 1), (0, _WIDTH + 1), (0, 0))
    background = np.pad(background, edge, mode="wrap")
    skin = _texture(look, 64, octaves=(2, 4, 8)) * 0.6 + 0.4 * _pattern(look, 64)
    skin = 255 * np.clip(1.3 * (skin - 0.5) + look.uniform(0.25, 0.75, 3), 0, 1).astype(np.float32)
    corners, size = int(look.integers(3, 7)), look.uniform(20, 28)

    frames = int(run.integers(_FRAMES[0], _FRAMES[1] + 1))
    time = np.arange(frames)
    # One turn in 36 to 44 frames, wavering slowly, from any phase, either way round.
    period = 40 * run.uniform(0.9, 1.1)
    turns = time / period + 0.02 * np.sin(_TURN * (time / 90 + run.random()))
    phase = _TURN * (run.random() + (1 if run.random() < 0.5 else -1) * turns)
    across, down, angle, scale = np.broadcast_arrays(*_MOTIONS[DEMO_CLASSES[number]](phase))
    heading, speed = _TURN * run.random(), 0.7 * run.uniform(0.9, 1.1)  # the camera's drift
    shake = 0.5 * np.sin(_TURN * (time / 30 + run.random()))
    camera = run.uniform(0, 256, 2)[:, None] + np.stack(
        [np.sin(heading) * speed * time + shake, np.cos(heading) * speed * time]
    )
    centre = run.uniform(-6, 6, 2) + np.array([_HEIGHT / 2, _WIDTH / 2])
    tilt = _TURN * run.random() if DEMO_CLASSES[number] != "Swing" else 0.0
    light = 1 + 0.05 * np.sin(_TURN * (time / 70 + run.random()))

    pose = np.stack(
        [centre[0] + down, centre[1] + across, angle + tilt, size * scale, *camera, light]
    ).astype(np.float32)
    for frame in range(frames):
        yield _render(background, skin, corners, pose[:, frame])


def _bounce(phase: np.ndarray) -> tuple:
    height = (phase / _TURN * 2 % 1) * 2 - 1  # two bounces a turn; a parabola between them
    return 14 * np.sin(phase / 2), 26 - 56 * (1 - height**2), 0.3 * phase, 1


def _swing(phase: np.ndarray) -> tuple:
    lean = 0.75 * np.sin(phase)  # a pendulum that hangs from the upper edge
    return 66 * np.sin(lean), 66 * np.cos(lean) - 44, -lean, 1


# Across and down in pixels, angle, and scale, by phase.
_MOTIONS: dict[str, Callable[[np.ndarray], tuple]] = {
    "Bounce": _bounce,
    "Orbit": lambda phase: (36 * np.cos(phase), 26 * np.sin(phase), 0, 1),
    "Pulse": lambda phase: (0, 0, 0, 1.2 + 0.55 * np.sin(phase)),
    "Slide": lambda phase: (46 * np.sin(phase), 0, 0, 1),
    "Spin": lambda phase: (0, 0, phase, 1.5),
    "Swing": _swing,
}


def _texture(rng: np.random.Generator, size: int, octaves: tuple[int, ...]) -> np.ndarray:
    """Smooth coloured noise that repeats without a seam: (size, size, 3) float32 in 0..1."""
    total = np.zeros((size, size, 3), np.float32)
    for cells in octaves:
        knots = rng.random((cells, cells, 3), dtype=np.float32)
        position = np.arange(size, dtype=np.float32) * (cells / size)
        total += _sample(knots, position[:, None], position[None, :]) / np.sqrt(cells)
    low, high = total.min(axis=(0, 1)), total.max(axis=(0, 1))
    return (total - low) / (high - low)


def _pattern(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stripes or checks of two colours: (size, size, 3) float32 in 0..1."""
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    pitch = int(rng.choice([16, 32]))
    kinds = ((rows // (pitch // 2)) % 2, (rows // (pitch // 2) + columns // (pitch // 2)) % 2)
    dark = kinds[int(rng.integers(len(kinds)))][..., None]
    return np.where(dark, rng.uniform(0, 0.4, 3), rng.uniform(0.6, 1, 3)).astype(np.float32)


def _sample(picture: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear look-up in a picture (h, w, 3) that repeats; rows and columns broadcast."""
    height, width = picture.shape[:2]
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    top, left = top.astype(np.int32) % height, left.astype(np.int32) % width
    below, beside = (top + 1) % height, (left + 1) % width
    upper = picture[top, left] * (1 - right) + picture[top, beside] * right
    lower = picture[below, left] * (1 - right) + picture[below, beside] * right
    return upper * (1 - down) + lower * down


def _render(background: np.ndarray, skin: np.ndarray, corners: int, pose: np.ndarray) -> np.ndarray:
    """One frame, (H, W, 3) uint8. pose: (7,), a column of the array that `_draw` stacks."""
    down, across, angle, size, camera_down, camera_across, light = pose
    picture = _shifted(background, camera_down, camera_across)
    reach = size * (1 + _WAVE) + 1  # only the box around the object is worth looking at
    top, left = max(0, int(down - reach)), max(0, int(across - reach))
    box = picture[top : max(0, int(down + reach) + 2), left : max(0, int(across + reach) + 2)]
    y = np.arange(top, top + box.shape[0], dtype=np.float32)[:, None] - down
    x = np.arange(left, left + box.shape[1], dtype=np.float32)[None, :] - across
    cosine, sine = np.cos(angle), np.sin(angle)
    v, u = (cosine * y - sine * x) / size, (sine * y + cosine * x) / size  # -1..1 on the object
    # A rounded star of `corners` rays; its edge is one pixel soft.
    radius = 1 - _WAVE + _WAVE * np.cos(corners * np.arctan2(v, u))
    cover = np.clip((radius - np.hypot(u, v)) * size + 0.5, 0, 1)
    inside = cover > 0
    share = cover[inside][:, None]
    texels = _sample(skin, v[inside] * 32 + 32, u[inside] * 32 + 32)
    box[inside] += (texels - box[inside]) * share
    picture *= light
    picture += 0.5
    return np.minimum(picture, 255, out=picture).astype(np.uint8)


def _shifted(background: np.ndarray, down: np.float32, across: np.float32) -> np.ndarray:
    """The (H, W, 3) window of the repeating background at a position between pixels."""
    row, column = int(down // 1) % _PERIOD, int(across // 1) % _PERIOD
    lower, right = down % 1, across % 1
    window = background[row : row + _HEIGHT + 1, column : column + _WIDTH + 1]
    bands = window[1:] - window[:-1]
    bands *= lower
    bands += window[:-1]
    out = bands[:, 1:] - bands[:, :-1]
    out *= right
    out += bands[:, :-1]
    return out
