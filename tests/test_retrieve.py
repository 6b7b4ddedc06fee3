"""Retrieval: exact neighbours, VCOP's hits, bounded blocks, end to end, bad input."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pacecore.cli import retrieve as retrieve_verb
from pacecore.config import RetrieveOptions, from_mapping
from pacecore.errors import PacecoreError
from pacecore.extract import Features
from pacecore.retrieve import _largest, hit_rates, nearest, retrieve_features, run_retrieve
from pacecore.rules import OptionError
from pacecore.source import VideoFiles
from pacecore.trained import load_trained

from .ranks import run_ranks
from .tiny import CLASSES, finetuned, pretrained, tiny_set, write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

KS = (1, 5, 10, 20, 50)


def plain_cosines(queries, gallery) -> np.ndarray:
    """(Q, N) in float64, by the definition."""
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    lengths = np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(gallery, axis=1))
    return np.divide(queries @ gallery.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def vcop_hits(train, train_labels, test, test_labels, ks) -> dict[int, int]:
    """VCOP's procedure: (N, 10, D) features averaged over clips, cosine distances, argsort."""
    distances = 1 - plain_cosines(test.mean(axis=1), train.mean(axis=1))
    order = np.argsort(distances, axis=1, kind="stable")
    hits = dict.fromkeys(ks, 0)
    for k in ks:
        for row, label in enumerate(test_labels):
            hits[k] += int(label in train_labels[order[row, :k]])
    return hits


@pytest.mark.parametrize("block_bytes", [2**8, 2**12, 2**28])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_neighbours_are_exact_whatever_the_blocks(block_bytes, k):
    rng = np.random.default_rng(k)
    queries = rng.standard_normal((37, 24), dtype=np.float32)
    gallery = rng.standard_normal((53, 24), dtype=np.float32)
    done = []
    try:
        torch.set_default_dtype(torch.float64)  # as a user may have it
        numbers, cosines = nearest(
            queries, gallery, k, block_bytes=block_bytes, on_progress=done.append
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert done == sorted(done)
    assert done[-1] == 37
    expected = plain_cosines(queries, gallery)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :k]
    assert np.array_equal(numbers, order)
    np.testing.assert_allclose(
        cosines, np.take_along_axis(expected, order, axis=1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("width", [50, 160, 167, 1000])
@pytest.mark.parametrize("values", ["random", "few", "equal"])
def test_the_largest_of_each_row_are_those_of_a_sort(width, values):
    generator = torch.Generator().manual_seed(width)
    rows = {
        "random": torch.randn(300, width, generator=generator),
        "few": torch.randint(0, 4, (300, width), generator=generator).float(),
        "equal": torch.zeros(300, width),
    }[values]
    found, places = _largest(rows, 10)
    assert torch.equal(found, rows.sort(dim=1, descending=True).values[:, :10])
    assert torch.equal(rows.gather(1, places), found)
    assert all(len(set(row)) == 10 for row in places.tolist())  # none twice


@pytest.mark.parametrize("block_bytes", [2**14, 2**28])
def test_neighbours_among_many_rows_are_exact(block_bytes):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((1100, 16), dtype=np.float32)
    gallery = rng.standard_normal((1500, 16), dtype=np.float32)
    numbers, _ = nearest(queries, gallery, 20, block_bytes=block_bytes)
    order = np.argsort(-plain_cosines(queries, gallery), axis=1, kind="stable")[:, :20]
    assert np.array_equal(numbers, order)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True
)
def test_neighbours_are_exact_where_torch_may_round_products(device):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((300, 64), dtype=np.float32)
    gallery = rng.standard_normal((5000, 64), dtype=np.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        numbers, _ = nearest(queries, gallery, 20, device=device)
    finally:
        torch.set_float32_matmul_precision(before)
    order = np.argsort(-plain_cosines(queries, gallery), axis=1, kind="stable")[:, :20]
    assert np.array_equal(numbers, order)


def test_products_are_asked_for_in_true_fp32(monkeypatch):
    """Which processors without bf16 of their own do in any case."""
    found, multiply = [], torch.mm

    def told(*args, **options):
        found.append(torch.get_float32_matmul_precision())
        return multiply(*args, **options)

    monkeypatch.setattr(torch, "mm", told)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        nearest(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32), 2)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(found) == {"highest"}


def test_cosines_that_fp32_cannot_tell_apart_are_settled_exactly():
    rng = np.random.default_rng(0)
    base = rng.standard_normal(4096)
    near = base + 1e-5 * rng.standard_normal((40, 4096))  # cosines differ by about 1e-11
    gallery = np.concatenate([near, rng.standard_normal((60, 4096))]).astype(np.float32)
    queries = (base + 0.3 * rng.standard_normal((9, 4096))).astype(np.float32)
    numbers, cosines = nearest(queries, gallery, 40)
    expected = plain_cosines(queries, gallery)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :40]
    assert np.array_equal(numbers, order)
    assert np.array_equal(cosines, np.take_along_axis(expected, order, axis=1).astype(np.float32))


def test_equal_rows_come_in_the_order_of_their_numbers():
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.standard_normal((4, 16), dtype=np.float32), 3, axis=0)
    for k in (1, 3):
        assert nearest(gallery[:1], gallery, k)[0].tolist() == [[0, 1, 2][:k]]


def test_rows_of_zeros_have_cosine_zero():
    gallery = np.array([[0, 0], [-1, 0], [1, 0]], dtype=np.float32)
    numbers, cosines = nearest(np.array([[2, 0], [0, 0]], dtype=np.float32), gallery, 3)
    assert numbers[0].tolist() == [2, 0, 1]
    assert cosines.tolist() == [[1, 0, -1], [0, 0, 0]]


def test_hits_by_hand():
    neighbours = np.array([[2, 0, 1], [1, 2, 0]])
    rates = hit_rates(neighbours, np.array([7, 8]), np.array([7, 9, 8]), (1, 2, 3))
    assert rates == {1: 0.0, 2: 1.0, 3: 1.0}


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_vcop_to_the_last_hit(seed):
    rng = np.random.default_rng(seed)
    centres = 0.6 * rng.standard_normal((20, 128))

    def features(count):
        labels = rng.integers(0, 20, count)
        noise = rng.standard_normal((count, 10, 128)) + rng.standard_normal((count, 1, 128))
        return np.maximum(centres[labels, None] + noise, 0).astype(np.float32), labels

    (train, train_labels), (test, test_labels) = features(900), features(300)
    expected = vcop_hits(train, train_labels, test, test_labels, KS)
    numbers, _ = nearest(test.mean(axis=1), train.mean(axis=1), 50, boundaries=KS)
    found = hit_rates(numbers, test_labels, train_labels, KS)
    assert {k: round(share * 300) for k, share in found.items()} == expected
    assert 30 < expected[1] < expected[50]  # neither chance nor trivial


class Counted(np.ndarray):
    """An array that notes the size of every piece taken of it."""

    largest = 0

    def __getitem__(self, key):
        taken = super().__getitem__(key)
        Counted.largest = max(Counted.largest, np.asarray(taken).nbytes)
        return taken


def test_no_more_than_a_block_is_held(tmp_path):
    np.save(tmp_path / "gallery.npy", np.random.default_rng(0).random((3000, 64), np.float32))
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r").view(Counted)
    Counted.largest = 0
    nearest(mapped[:200], mapped, 10, block_bytes=2**16)
    assert 0 < Counted.largest <= 2**16


def test_shapes_that_do_not_fit():
    with pytest.raises(PacecoreError, match=r"must be .rows, D. of one D"):
        nearest(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), 1)
    with pytest.raises(PacecoreError, match="needs k from 1 and a gallery, got 1 and 0"):
        nearest(np.zeros((2, 3), np.float32), np.zeros((0, 3), np.float32), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("side", [0, 1])
def test_rows_that_are_not_finite_are_refused_by_the_name_of_where_they_are(value, side):
    rows = np.random.default_rng(0).random((2, 5000, 4), dtype=np.float32)
    rows[side, 4999, 2] = value
    name = ("queries", "gallery")[side]
    with pytest.raises(PacecoreError, match=f"^{name}: holds rows that are not finite, or of a"):
        nearest(*rows, 1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny_set(tmp_path_factory.mktemp("retrieve") / "set", train=2, test=2)


def options_of(out, **changes) -> RetrieveOptions:
    values = {"workers": 0, "device": "cpu", "out": str(out), "clips": 2, "stage": "gap"}
    return from_mapping(RetrieveOptions, {**values, "k": "1,3,50", **changes})


@pytest.mark.parametrize("unit", ["video", "clip"])
def test_end_to_end(videos, tmp_path, unit, monkeypatch):
    trained = load_trained(pretrained(tmp_path / "last.pt", data=str(videos)))
    options = options_of(tmp_path, unit=unit, gallery=2)
    result = run_retrieve(trained, options)
    rows = 2 if unit == "clip" else 1
    assert (result["queries"], result["gallery"]) == (6 * rows, 6 * rows)
    assert (result["query_videos"], result["gallery_videos"]) == (6, 6)
    assert result["top"]["1"] <= result["top"]["3"] <= result["top"]["50"] == 1.0
    assert result["top"]["3"] > 0
    assert json.loads((tmp_path / f"retrieve-gap-{unit}.json").read_text())["top"] == result["top"]
    lines = [json.loads(line) for line in (tmp_path / f"neighbours-gap-{unit}.jsonl").open()]
    right = [
        [near["path"].split("/")[-2] == line["query"].split("/")[-2] for near in line["neighbours"]]
        for line in lines
    ]
    assert result["top"]["1"] == np.mean([near[0] for near in right])
    with av.open(str(tmp_path / f"gallery-gap-{unit}.png")) as container:
        (sheet,) = container.decode(video=0)
    # Corners of frames of 4 around pictures of 120 x 160, 4 apart: of the first and last video.
    corners = sheet.to_ndarray(format="rgb24")[4 :: 120 + 12, 4 :: 160 + 12].argmax(axis=2)
    red, green, blue = range(3)
    assert corners.tolist() == [
        [blue, *(green if each else red for each in near[:5])] for near in (right[0], right[-rows])
    ]

    def refuse(self, video, wanted):
        raise AssertionError("decoded again")

    monkeypatch.setattr(VideoFiles, "decode", refuse)
    assert run_retrieve(trained, options_of(tmp_path, unit=unit))["top"] == result["top"]


def retrieved_by_rank(rank, checkpoint, out, unit):
    result = run_retrieve(load_trained(checkpoint), options_of(out, unit=unit))
    return {name: result[name] for name in ("top", "queries", "gallery", "dimensions")}


@pytest.mark.parametrize("unit", ["video", "clip"])
def test_two_ranks_find_what_one_process_does(videos, tmp_path, unit):
    checkpoint = pretrained(tmp_path / "last.pt", data=str(videos))
    one = run_retrieve(load_trained(checkpoint), options_of(tmp_path / "one", unit=unit))
    both = run_ranks(retrieved_by_rank, 2, str(checkpoint), str(tmp_path / "two"), unit)
    assert both[0] == both[1] == {name: one[name] for name in both[0]}
    name = f"gap-{unit}"
    for split in ("train", "test"):
        alone, together = (
            np.load(tmp_path / ranks / f"features-{name}-{split}.npy") for ranks in ("one", "two")
        )
        np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    alone, together = (
        [json.loads(line) for line in (tmp_path / ranks / f"neighbours-{name}.jsonl").open()]
        for ranks in ("one", "two")
    )
    for ours, theirs in zip(alone, together, strict=True):
        near, far = ours.pop("neighbours"), theirs.pop("neighbours")
        assert [(each["path"], each["clip"]) for each in near] == [
            (each["path"], each["clip"]) for each in far
        ]
        assert ours == theirs


def features_of(path, labels, classes=CLASSES, **changes) -> Features:
    values = np.eye(max(4, len(labels)), dtype=np.float32)[: len(labels)]
    order = {
        **{"network": "aa", "stage": "gap", "pool": "max", "unit": "video", "input": {}},
        **{"backbone": "r3d", "width": 0.125},
        **{"clips": 2, "classes": list(classes), "identity": "x", "unreadable": {}, **changes},
        "videos": [{"path": f"v{row}", "label": label} for row, label in enumerate(labels)],
    }
    return Features(path, values, order)


def test_features_made_in_another_way_are_refused_by_name(tmp_path):
    gallery = features_of(tmp_path / "a.npy", [0, 1])
    others = {"network": "bb", "stage": "p5", "pool": "gap", "unit": "clip", "clips": 5}
    for name, value in (others | {"input": {"crop": 9}}).items():
        queries = features_of(tmp_path / "b.npy", [0, 1], **{name: value})
        words = rf"b\.npy: features of another (number of )?{name} than .*a\.npy: {value} against"
        with pytest.raises(PacecoreError, match=words):
            retrieve_features(gallery, queries, options_of(tmp_path), "cpu")


def test_classes_are_matched_by_name_and_missing_ones_told(tmp_path):
    gallery = features_of(tmp_path / "a.npy", [0, 1], classes=("Red", "Green"))
    queries = features_of(tmp_path / "b.npy", [1, 0], classes=("Green", "Red"))
    result, _ = retrieve_features(gallery, queries, options_of(tmp_path), "cpu")
    assert result["top"]["1"] == 1.0
    queries = features_of(tmp_path / "b.npy", [0, 1], classes=("Red", "Violet"))
    result, _ = retrieve_features(gallery, queries, options_of(tmp_path), "cpu")
    assert result["classes_without_gallery"] == ["Violet"]
    assert result["top"]["50"] == 0.5
    for each in (gallery, queries):
        np.save(each.path, each.values)
        about = {**each.order, "shape": list(each.values.shape)}
        each.path.with_suffix(".json").write_text(json.dumps(about))
    words = ["--features", str(gallery.path), str(queries.path), "--device", "cpu"]
    shown = CliRunner().invoke(retrieve_verb.retrieve, words, catch_exceptions=False)
    said = "classes without a gallery video, which can have no hit: Violet\n"
    assert said in shown.output


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (1 + 1e-8 * np.eye(4), True),
        (np.full((600, 4), -3.0), True),
        (np.zeros((4, 4)), True),
        (np.eye(4), False),
        (np.repeat(np.eye(2, 4), 300, axis=0), False),  # of a query all the nearest are alike
        (np.vstack([np.ones((3, 4)), np.zeros((1, 4))]), False),
        (np.ones((1, 4)), False),
    ],
)
def test_features_that_have_collapsed_are_told(tmp_path, values, told):
    gallery = features_of(tmp_path / "a.npy", [row % 2 for row in range(len(values))])
    gallery = replace(gallery, values=values.astype(np.float32))
    queries = features_of(tmp_path / "b.npy", [0, 1])
    result, _ = retrieve_features(gallery, queries, options_of(tmp_path), "cpu")
    assert result["gallery_collapsed"] is told
    assert ("warning: the gallery's features all" in retrieve_verb._words(result)) is told


def test_labels_without_names_are_not_matched_with_names(tmp_path):
    """Number 0 of one side need not be class 0 of the other."""
    named = features_of(tmp_path / "a.npy", [0, 1])
    bare = features_of(tmp_path / "b.npy", [0, 1], classes=())
    for gallery, queries in ((named, bare), (bare, named)):
        with pytest.raises(PacecoreError, match=r"b\.npy: its labels are numbers without names"):
            retrieve_features(gallery, queries, options_of(tmp_path), "cpu")
    result, _ = retrieve_features(bare, bare, options_of(tmp_path), "cpu")
    assert result["top"]["1"] == 1


def test_what_two_files_hold_is_written_down_not_what_options_say(tmp_path):
    kept = {"stage": "p4", "clips": 3}
    one, two = (features_of(tmp_path / name, [0, 1], **kept) for name in ("a.npy", "b.npy"))
    result, _ = retrieve_features(one, two, options_of(tmp_path), "cpu")
    assert {name: result["measured_with"][name] for name in kept} == kept


def test_videos_without_labels(tmp_path):
    gallery = features_of(tmp_path / "a.npy", [0, None])
    with pytest.raises(PacecoreError, match=r"a\.npy: videos without a label, such as v1"):
        retrieve_features(
            gallery, features_of(tmp_path / "b.npy", [0]), options_of(tmp_path), "cpu"
        )


def test_labels_and_held_out_videos_are_required_before_features_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr("pacecore.retrieve.extract_split", None)
    trained = load_trained(pretrained(tmp_path / "last.pt"))
    for number in range(2):
        write_tiny(tmp_path / f"few/Red/{number}.mp4", 0, number, 20)
        write_tiny(tmp_path / f"few/Blue/{number}.mp4", 2, number, 20)
    for number in range(11):
        write_tiny(tmp_path / f"bare/{number}.mp4", 0, number, 20)
    few, bare = (str(tmp_path / name) for name in ("few", "bare"))
    for data, message in (
        ({"data": few}, "few: no held-out video to ask by; --held-out names others"),
        ({"data": bare}, "bare: training videos: 10 of 10 videos have no label, the first .*mp4"),
        ({"data": few, "held_out": bare}, "few: held-out videos: 11 of 11 videos have no label"),
    ):
        with pytest.raises(PacecoreError, match=message):
            run_retrieve(trained, options_of(tmp_path, **data))


def test_videos_that_are_queries_and_gallery_are_told(videos, tmp_path):
    checkpoint = pretrained(tmp_path / "last.pt", data=str(videos))
    words = [str(checkpoint), "--stage", "gap", "--clips", "2", "--workers", "0"]
    for more, said in (([], False), (["--held-out", str(videos / "train")], True)):
        shown = CliRunner().invoke(retrieve_verb.retrieve, [*words, *more], catch_exceptions=False)
        assert (
            "warning: 6 query videos are in the gallery too, where each finds itself"
            in shown.output
        ) == said


def test_a_result_of_other_videos_that_is_replaced_is_named(videos, tmp_path):
    checkpoint = pretrained(tmp_path / "last.pt", data=str(videos))
    how = ["--clips", "2", "--workers", "0", "--device", "cpu"]
    own = [str(checkpoint), *how, "--stage", "gap"]
    files = [str(tmp_path / f"features-gap-video-{split}.npy") for split in ("train", "test")]
    by_files = ["--features", *files, "--device", "cpu"]
    others = [*own, "--held-out", str(videos / "train")]
    told = []
    for words in (own, by_files, others, others, own):
        shown = CliRunner().invoke(retrieve_verb.retrieve, words, catch_exceptions=False)
        told.append(shown.output.partition(f"written to {tmp_path}\n")[2])
    end = "; another --out keeps both\n"
    assert told[:2] == ["", ""]
    assert told[2] == f"replaced: the result on other videos, 6 of {', '.join(files)}{end}"
    assert told[3:] == ["", f"replaced: the result on other videos, 6 of {videos / 'train'}{end}"]


def test_features_of_other_videos_that_retrieval_replaces_are_named(videos, tmp_path):
    trained = load_trained(pretrained(tmp_path / "last.pt", data=str(videos)))
    assert run_retrieve(trained, options_of(tmp_path))["replaced"] == ""
    (tmp_path / "retrieve-gap-video.json").unlink()
    result = run_retrieve(trained, options_of(tmp_path, held_out=str(videos / "train")))
    first = videos / "test" / "Blue" / "test0.mp4"
    assert result["replaced"] == f"features of other videos, 6, the first {first}"


def test_a_video_is_one_by_whatever_path_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    gallery, queries = (features_of(tmp_path / name, [0, 1, 2]) for name in ("a.npy", "b.npy"))
    for video, path in zip(queries.order["videos"], (tmp_path / "v0", "link/v1", "w"), strict=True):
        video["path"] = str(path)
    result, _ = retrieve_features(gallery, queries, options_of(tmp_path), "cpu")
    assert result["videos_in_both"] == 2


@pytest.mark.parametrize("k", ["", "0", "1,x", "1.5", "-1", "1,00", "9" * 5000])
def test_k_must_be_a_list_of_whole_numbers(k):
    with pytest.raises(OptionError, match="k must be whole numbers from 1"):
        from_mapping(RetrieveOptions, {"k": k})


def test_the_command_prints_the_table(videos, tmp_path):
    checkpoint = finetuned(tmp_path / "best.pt", data=str(videos))
    arguments = [str(checkpoint), "--workers", "0", "--stage", "gap", "--clips", "2"]
    shown = CliRunner().invoke(
        retrieve_verb.retrieve, [*arguments, "--device", "cpu"], catch_exceptions=False
    )
    assert shown.exit_code == 0
    assert "6 query videos, 6 gallery videos" in shown.output
    assert "top-50" in shown.output
    assert shown.output.endswith(f"written to {tmp_path}\n")
    files = [str(tmp_path / f"features-gap-video-{split}.npy") for split in ("train", "test")]
    (tmp_path / "retrieve-gap-video.json").unlink()
    again = CliRunner().invoke(
        retrieve_verb.retrieve, ["--features", *files, "--device", "cpu"], catch_exceptions=False
    )
    assert "6 query videos, 6 gallery videos" in again.output
    assert shown.stdout.endswith(again.stdout)  # click 8.1 has put standard error before it
    assert (tmp_path / "retrieve-gap-video.json").exists()
    idle = ["--features", *files, "--gallery", "2", "--stage", "gap", "--k", "1"]
    failed = CliRunner().invoke(retrieve_verb.retrieve, idle)
    assert isinstance(failed.exception, OptionError)
    assert str(failed.exception).endswith("got --gallery, --stage too")
    below_a_file = ["--features", *files, "--device", "cpu", "--out", f"{files[0]}/results"]
    failed = CliRunner().invoke(retrieve_verb.retrieve, below_a_file)
    assert isinstance(failed.exception, PacecoreError)
    assert str(failed.exception) == f"{files[0]}/results: cannot be made: Not a directory"
