"""The authors' way of training: our rebuilding of it, and the driver of a copy of their repository.

The copies here are made by the tests: files of the names and signatures that the repository has.
"""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import pretrain
from benchmarks.data import open_videos
from benchmarks.official import ExtractedFrames, Official, Rebuilt, Shape, extract, training_step
from benchmarks.pretrain import Setting, rate_between
from pacecore.datasets import find_videos, probe_all
from pacecore.errors import PacecoreError
from tests.video_files import write_video

cv2 = pytest.importorskip("cv2", reason="the authors' way of loading needs cv2 and PIL")
pytest.importorskip("PIL", reason="the authors' way of loading needs cv2 and PIL")

SHAPE = Shape(clip_frames=4, resize=(24, 32), crop=16)

TRANSFORMS = """
class _Step:
    def __init__(self, value):
        self.value = value
class ClipResize(_Step):
    pass
class RandomCrop(_Step):
    pass
class RandomHorizontalFlip(_Step):
    pass
"""
DATASET = """
import os
import numpy as np
from utils.video_transforms import ClipResize

class ucf101_pace_pretrain:
    def __init__(self, data_list, rgb_prefix, clip_len, max_sr, transforms_=None,
                 color_jitter_=None):
        self.lines = [line.split() for line in open(data_list)]
        self.folder, self.length, self.paces = rgb_prefix, clip_len, max_sr
        self.transforms, self.jitter = transforms_, color_jitter_
    def __len__(self):
        return 10 * len(self.lines)
    def __getitem__(self, place):
        name, label, count = self.lines[place % len(self.lines)]
        assert os.path.isfile(os.path.join(self.folder, name, f"frame{int(count):06}.jpg"))
        resize, crop, flip = self.transforms.steps
        assert isinstance(resize, ClipResize)
        return np.zeros((3, self.length, crop.value, crop.value), np.uint8), place % self.paces
"""
NETWORK = """
import torch
class R2Plus1DNet(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.linear = torch.nn.Linear(3, num_classes)
    def forward(self, clips):
        return self.linear(clips.mean((2, 3, 4)))
"""
FILES = {
    "utils/video_transforms.py": TRANSFORMS,
    "datasets/ucf101.py": DATASET,
    "models/r21d.py": NETWORK,
}
TORCHVISION = """
class Compose:
    def __init__(self, steps):
        self.steps = steps
class RandomApply:
    def __init__(self, steps, p):
        self.steps, self.p = steps, p
class ColorJitter:
    def __init__(self, brightness, contrast, saturation, hue):
        assert (brightness, contrast, saturation, hue) == (0.8, 0.8, 0.8, 0.2)
"""


@pytest.fixture
def copy(tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in ("utils", "datasets", "models", "torchvision", "torchvision.transforms"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    installed = tmp_path / "installed" / "torchvision"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    (installed / "transforms.py").write_text(TORCHVISION)
    monkeypatch.syspath_prepend(installed.parent)
    yield folder
    for name in [n for n in sys.modules if n.split(".")[0] in ("utils", "datasets", "models")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for name in ("a.avi", "b.avi"):
        write_video(root / name, frames=9)
    index, bad = probe_all(find_videos(root), 1)
    assert not bad
    return extract(index, root / "frames")


def test_every_frame_is_extracted_under_its_number(frames):
    assert frames.counts == (9, 9)
    assert frames.path(1, 0).endswith("/1/frame000001.jpg")
    assert all(cv2.imread(frames.path(v, n)) is not None for v in (0, 1) for n in range(9))
    assert frames.write_list().read_text() == "0 0 9\n1 0 9\n"


def test_the_rebuilt_way_gives_jittered_crops_in_their_form(frames):
    clips = Rebuilt().dataset(frames, SHAPE)
    assert len(clips) == 20
    made = [clips[place] for place in range(20)]
    assert all(clip.shape == (3, 4, 16, 16) and clip.dtype == np.uint8 for clip, _ in made)
    assert {label for _, label in made} == {0, 1, 2, 3}
    assert len({clip.tobytes() for clip, _ in made}) == 20


def test_a_clip_without_jitter_and_flip_is_the_resized_crop(frames, monkeypatch):
    clips = Rebuilt().dataset(frames, SHAPE)
    from dataclasses import replace

    clips.sampling = replace(clips.sampling, jitter=None, flip=0.0)
    from pacecore.sampling import plan_views

    (plan,) = plan_views(clips.sampling, 9, 0, 1)
    clip, label = clips[1]
    picture = cv2.resize(cv2.imread(frames.path(1, int(plan.frame_numbers[2]))), (32, 24))
    top, left, _ = plan.crop
    expected = picture[top : top + 16, left : left + 16].transpose(2, 0, 1)
    assert np.array_equal(clip[:, 2], expected)
    assert label == plan.label


def test_a_copy_of_the_repository_is_driven_by_its_own_parts(copy, frames):
    official = Official(copy)
    clips = official.dataset(frames, SHAPE)
    clip, label = clips[5]
    assert clip.shape == (3, 4, 16, 16)
    assert label == 1
    step = training_step(official.network(), torch.device("cpu"))
    before = [p.clone() for p in _parameters(step)]
    step(torch.randint(0, 255, (2, 3, 4, 16, 16), dtype=torch.uint8), torch.tensor([0, 3]))
    assert any((a != b).any() for a, b in zip(before, _parameters(step), strict=True))


def _parameters(step):
    network = next(c.cell_contents for c in step.__closure__ if hasattr(c.cell_contents, "train"))
    return list(network.parameters())


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("datasets/ucf101.py", None, "has no datasets/ucf101.py"),
        ("models/r21d.py", "class Other: pass", "r21d.py has no R2Plus1DNet"),
        ("utils/video_transforms.py", "import nothing_such", "needs nothing_such, which is not"),
        ("models/r21d.py", "1 / 0", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_what_a_copy_lacks_is_named(copy, name, text, words):
    (copy / name).unlink() if text is None else (copy / name).write_text(text)
    with pytest.raises(PacecoreError, match=f"official: .*{words}"):
        Official(copy)


def test_a_package_of_the_same_name_is_not_taken_for_the_copy(copy, tmp_path, monkeypatch):
    other = tmp_path / "installed" / "datasets"
    other.mkdir()
    (other / "__init__.py").write_text("raise RuntimeError('another package')")
    assert Official(copy)._dataset.__name__ == "ucf101_pace_pretrain"


def test_without_cv2_the_way_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="the authors' way needs cv2"):
        Rebuilt().dataset(ExtractedFrames(tmp_path, (1,)), SHAPE)


def test_the_rate_is_that_between_two_lines():
    first = {"step": 2, "clips_per_second": 4.0}  # 20 clips in 5 seconds
    last = {"step": 10, "clips_per_second": 10.0}  # 100 clips in 10
    assert rate_between(first, last, 10) == pytest.approx(16.0)


def test_the_clock_starts_after_what_the_workers_prefetched():
    setting = Setting(torch.device("cpu"), SHAPE, batch=4, workers=3, timed_steps=14)
    assert setting.warm_steps == 7  # two batches a worker, and the first
    assert setting.steps == 21


def test_videos_that_cannot_be_read_are_named(tmp_path):
    write_video(tmp_path / "good.avi", frames=5)
    (tmp_path / "bad.avi").write_bytes(b"RIFF nothing")

    class Given:
        data, videos = str(tmp_path), 36

    with pytest.raises(PacecoreError, match=r"bad\.avi"):
        open_videos(Given(), tmp_path)


def test_a_way_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    def broken():
        raise AttributeError("their loader has no len")

    shown = [
        pretrain.Run("the authors' way", broken),
        pretrain.Run("pacecore, store", lambda: {"clips_per_second": 8.0, "steps": 3}),
        pretrain.Run("the other way", lambda: {"clips_per_second": 2.0, "steps": 3}),
    ]
    monkeypatch.setattr(pretrain, "runs", lambda *_: shown)
    monkeypatch.setattr(pretrain, "network_alone", lambda *_: 10.0)
    record = tmp_path / "pretrain.json"
    monkeypatch.setattr("sys.argv", ["pretrain", "--device", "cpu", "--out", str(record)])
    with pytest.raises(SystemExit) as ended:
        pretrain.main()
    assert ended.value.code == 1
    failed, ours, other = json.loads(record.read_text())["cases"]
    assert failed["failed"] == "AttributeError: their loader has no len"
    assert ours["times the other way"] == 4.0
    assert other["network_alone"] == 10.0
