from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from pacecore.errors import PacecoreError
from pacecore.sampling import (
    Sampling,
    centre_plan,
    epoch_order,
    fitting_starts,
    frame_indices,
    loop_share,
    parse_pace,
    parse_paces,
    plan_views,
)


def stepwise(num_frames, start_frame, pace, clip_frames, boundary):
    """frame_indices told step by step: a run of floor(k * pace), and what follows its end."""
    pace, backwards = Fraction(abs(pace)), pace < 0
    shown, first, k = [], start_frame, 0
    while len(shown) < clip_frames:
        frame = first + int(k * pace)
        if frame >= num_frames and boundary == "restart":
            first, k = 0, 0
            continue
        if frame >= num_frames:
            frame = frame % num_frames if boundary == "modulo" else num_frames - 1
        shown.append(frame)
        k += 1
    return shown[::-1] if backwards else shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, 7, 3, 8), [7, 0, 3, 6, 9, 0, 3, 6]),
        ((10, 7, 3, 8, "modulo"), [7, 0, 3, 6, 9, 2, 5, 8]),
        ((10, 7, 3, 8, "clamp"), [7, 9, 9, 9, 9, 9, 9, 9]),
        ((10, 8, "1/2", 8), [8, 8, 9, 9, 0, 0, 1, 1]),
        ((10, 0, "1/3", 7), [0, 0, 0, 1, 1, 1, 2]),
        ((10, 0, Fraction(3, 2), 6), [0, 1, 3, 4, 6, 7]),
        ((10, 0, -2, 4), [6, 4, 2, 0]),
        ((1, 0, 4, 3), [0, 0, 0]),
    ],
)
def test_frame_indices_by_hand(arguments, expected):
    shown = frame_indices(*arguments)
    assert shown.dtype == np.int64
    assert shown.tolist() == expected


@pytest.mark.parametrize("boundary", ["restart", "modulo", "clamp"])
def test_frame_indices_step_by_step(boundary):
    draw = np.random.default_rng(0)
    for _ in range(500):
        num_frames = int(draw.integers(1, 80))
        start = int(draw.integers(num_frames))
        pace = Fraction(int(draw.integers(1, 9)), int(draw.integers(1, 7)))
        pace = pace if draw.random() < 0.7 else -pace
        length = int(draw.integers(1, 70))
        expected = stepwise(num_frames, start, pace, length, boundary)
        assert frame_indices(num_frames, start, pace, length, boundary).tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0, 1, 16), "num_frames must be from 1"),
        (("a", 0, 1, 16), "num_frames must be a whole number, got 'a'"),
        ((10, 0.5, 1, 16), "start_frame must be a whole number, got 0.5"),
        ((10, 0, 1, None), "clip_frames must be a whole number, got None"),
        ((10, 10, 1, 16), "start_frame must be from 0 to num_frames - 1 = 9, got 10"),
        ((10, -1, 1, 16), "start_frame must be from 0"),
        ((10, 0, 0, 16), "or -n/d, got 0"),
        ((10, 0, 1.5, 16), "whole number or a ratio such as 1/3, got 1.5"),
        ((10, 0, "fast", 16), "got 'fast'"),
        ((10, 0, "1/0", 16), "got '1/0'"),
        ((10, 0, 2000, 16), "n and d from 1 to 1000"),
        ((10, 0, "1001/1000", 16), "from 1 to 1000, or -n/d, got 1001/1000"),
        ((10, 0, Decimal("0.5"), 16), "pace must be a whole number or a ratio such as 1/3"),
        ((10, 0, 1, 0), "clip_frames must be from 1"),
        ((10, 0, 1, 16, "wrap"), "boundary must be one of restart, modulo, clamp, got 'wrap'"),
    ],
)
def test_frame_indices_errors(arguments, words):
    with pytest.raises(PacecoreError) as caught:
        frame_indices(*arguments)
    assert words in str(caught.value)


def test_pace_sets_are_ranked():
    assert parse_paces("4, 1/3,1,1/2") == (Fraction(1, 3), Fraction(1, 2), 1, 4)
    assert parse_pace("-1000") == -1000
    for wrong in ("1.5", "1e0", "1 /2", 1.5, True):
        with pytest.raises(PacecoreError, match="must be a whole number or a ratio such as 1/3"):
            parse_pace(wrong)
    with pytest.raises(PacecoreError, match="differ from each other"):
        parse_paces("1,2,2/2")
    with pytest.raises(PacecoreError, match="must be positive"):
        parse_paces("-1,2")


def test_fitting_starts_end_inside_the_video():
    for pace in map(Fraction, ("1/3", "1/2", "1", "3/2", "2", "4")):
        for num_frames in (5, 16, 61, 62, 200):
            starts = fitting_starts(num_frames, pace, 16)
            run = int(15 * pace)
            if num_frames > run:
                assert starts - 1 + run == num_frames - 1
                last = frame_indices(num_frames, starts - 1, pace, 16)
                assert (np.diff(last) >= 0).all()
            else:
                assert starts == 1


def test_loop_share_counts_the_starts_that_leave_the_video():
    lengths = [20, 61, 200]
    for pace in (1, 2, 4):
        exact = [np.mean([s + 15 * pace >= length for s in range(length)]) for length in lengths]
        assert loop_share(lengths, Fraction(pace), 16) == pytest.approx(np.mean(exact))
        fitting = [fitting_starts(length, Fraction(pace), 16) for length in lengths]
        exact = [
            np.mean([s + 15 * pace >= length for s in range(starts)])
            for length, starts in zip(lengths, fitting, strict=True)
        ]
        assert loop_share(lengths, Fraction(pace), 16, "fit") == pytest.approx(np.mean(exact))


def test_a_loop_share_of_no_such_clips_is_refused():
    with pytest.raises(PacecoreError, match="start must be one of all, fit, got 'fits'"):
        loop_share([50], Fraction(4), 16, "fits")
    with pytest.raises(PacecoreError, match="clip_frames must be a whole number from 1, got 0"):
        loop_share([50], Fraction(4), 0)
    with pytest.raises(PacecoreError, match="must be a whole number or a ratio such as 1/3, got 4"):
        loop_share([50], 4.0, 16)
    for lengths in ([], [0], [50, -5], ["a"], [[50]], [float("nan")]):
        with pytest.raises(PacecoreError, match="lengths must be numbers from 1, one axis, got"):
            loop_share(lengths, 4, 16)
    assert loop_share([300], 4, np.uint8(100)) == loop_share([300], 4, 100) == 1.0
    assert loop_share([5], np.int16(1000), 64) == 1.0
    with pytest.raises(PacecoreError, match="paces must be text such as 1/3,1/2,1,2,3, got"):
        parse_paces((1, 2))


def test_a_video_that_just_fits_does_not_loop():
    """Neither by the share nor in the clips themselves."""
    sampling = Sampling(paces=(Fraction(1), Fraction(2)), views=1, start="fit")
    for length in (14, 15, 16, 17, 30, 31):
        plans = [plan_views(sampling, length, 0, video)[0] for video in range(60)]
        for pace in sampling.paces:
            loops = {(np.diff(p.frame_numbers) < 0).any() for p in plans if p.pace == pace}
            assert loops == {length < 15 * pace + 1}
            assert loop_share([length], pace, 16, "fit") == float(length < 15 * pace + 1)


def test_epoch_order_is_a_permutation_of_its_own():
    orders = [epoch_order(3, each, 50).tolist() for each in range(4)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(3, 1, 50).tolist() == orders[1]
    assert epoch_order(3, 1, 50) is epoch_order(3, 1, 50)  # drawn once, not at every step


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in (
            "pace",
            "label",
            "start_frame",
            "frame_numbers",
            "crop",
            "jitter",
            "jitter_order",
        )
    )


def test_a_plan_depends_on_its_key_alone():
    sampling = Sampling(seed=7)
    plans = {key: plan_views(sampling, 100, *key) for key in ((0, 3), (1, 3), (0, 4))}
    again = plan_views(sampling, 100, 0, 3)
    assert all(same(a, b) for a, b in zip(plans[0, 3], again, strict=True))
    flat = [plan for views in plans.values() for plan in views]
    assert len({plan.jitter.tobytes() for plan in flat}) == len(flat)
    other = plan_views(replace(sampling, seed=8), 100, 0, 3)
    assert not same(plans[0, 3][0], other[0])
    # Whatever type the numbers of the key have, and to their last bit.
    for large in (2**60 + 1, 2**63, 2**64 - 1):
        same_key, other_key = [], []
        for video in range(5):
            for found, seed, number in (
                (same_key, large, video),
                (same_key, np.uint64(large), np.int64(video)),
                (other_key, large - 1, video),
            ):
                plan = plan_views(replace(sampling, seed=seed), 1000, 0, number)[0]
                found.append(plan.start_frame)
        assert same_key[::2] == same_key[1::2] != other_key
    # And is that of the key for good: a run that an older version began goes on with these.
    sampling = replace(sampling, view_paces="free", reverse="augment")
    drawn = [plan for video in (3, 4) for plan in plan_views(sampling, 100, 1, video)]
    assert [(plan.pace, plan.start_frame, *plan.crop, plan.jitter_order[1]) for plan in drawn] == [
        (-4, 36, 5, 6, 1, 39),
        (-1, 26, 11, 28, 0, 147),
        (4, 49, 5, 55, 0, -1),
        (-1, 94, 3, 28, 0, 198),
    ]
    assert epoch_order(7, 1, 8).tolist() == [2, 7, 6, 4, 5, 3, 1, 0]


def test_draws_follow_their_distributions():
    sampling = Sampling()
    plans = [plan for video in range(1500) for plan in plan_views(sampling, 90, 0, video)]
    labels = np.array([plan.label for plan in plans])
    assert np.bincount(labels, minlength=4) / len(plans) == pytest.approx(0.25, abs=0.03)
    starts = np.array([plan.start_frame for plan in plans])
    assert starts.min() == 0
    assert starts.max() == 89
    crops = np.stack([plan.crop for plan in plans])
    assert crops[:, 0].max() == 128 - 112
    assert crops[:, 1].max() == 171 - 112
    assert crops[:, :2].min() == 0
    assert crops[:, 2].mean() == pytest.approx(0.5, abs=0.05)
    jitter = np.concatenate([plan.jitter for plan in plans])
    assert jitter[:, :3].min() >= 0.2 - 1e-6
    assert jitter[:, :3].max() <= 1.8 + 1e-6
    assert np.abs(jitter[:, 3]).max() <= 0.2
    orders = np.concatenate([plan.jitter_order for plan in plans])
    assert (orders >= 0).mean() == pytest.approx(0.8, abs=0.01)
    drawn, counts = np.unique(orders[orders >= 0], return_counts=True)
    assert len(drawn) == 24
    assert counts / counts.sum() == pytest.approx(1 / 24, abs=0.003)


def test_jitter_is_uniform_and_each_factor_free_of_the_others_and_of_whether_it_is_used():
    sampling = Sampling()
    plans = [plan_views(sampling, 100, 0, video)[0] for video in range(400)]
    used = np.concatenate([plan.jitter_order for plan in plans]) >= 0
    factors = np.concatenate([plan.jitter for plan in plans])[used]
    for column, span in enumerate([(0.2, 1.8)] * 3 + [(-0.2, 0.2)]):
        counts, _ = np.histogram(factors[:, column], bins=8, range=span)
        assert counts / len(factors) == pytest.approx(1 / 8, abs=0.025)
    assert np.corrcoef(factors.T) == pytest.approx(np.eye(4), abs=0.1)


def test_of_four_clips_one_often_has_no_other_of_its_pace():
    """In (3/4)^3 of cases, 42 %: a trap for Eq. 3, whose mean over positives is then over none."""
    sampling = Sampling(views=1)
    labels = [plan_views(sampling, 90, 0, video)[0].label for video in range(8000)]
    batches = np.array(labels).reshape(-1, 4)
    alone = (batches[:, :, None] == batches[:, None, :]).sum(axis=2) == 1
    assert alone.mean() == pytest.approx(0.75**3, abs=0.02)


def test_views_of_a_video():
    for video in range(50):
        first, second = plan_views(Sampling(), 90, 0, video)
        assert first.label != second.label
        assert not np.array_equal(first.jitter, second.jitter)
    shared = Sampling(views=4, view_augment="shared", start="fit")
    for video in range(50):
        views = plan_views(shared, 120, 0, video)
        assert sorted(plan.label for plan in views) == [0, 1, 2, 3]
        assert all(np.array_equal(plan.crop, views[0].crop) for plan in views)
        assert all(np.array_equal(plan.jitter, views[0].jitter) for plan in views)
        assert len({plan.start_frame for plan in views}) > 1
        assert all((np.diff(plan.frame_numbers) > 0).all() for plan in views)
    with pytest.raises(PacecoreError, match="at most 4, the number of paces"):
        plan_views(Sampling(views=5), 90, 0, 0)
    free = [plan_views(Sampling(view_paces="free"), 90, 0, video) for video in range(200)]
    assert 20 < sum(a.label == b.label for a, b in free) < 80


def test_backwards():
    labelled = Sampling(reverse="label")
    assert labelled.classes == tuple(map(Fraction, (-4, -3, -2, -1, 1, 2, 3, 4)))
    for video in range(20):
        for plan in plan_views(labelled, 400, 0, video):
            assert plan.pace == labelled.classes[plan.label]
    augmented = [plan_views(Sampling(reverse="augment"), 400, 0, video)[0] for video in range(200)]
    assert 60 < sum(plan.pace < 0 for plan in augmented) < 140
    assert all(abs(plan.pace) == plan.label + 1 for plan in augmented)


def test_clip_scope_jitters_all_frames_alike():
    sampling = Sampling(jitter="clip")
    for video in range(20):
        for plan in plan_views(sampling, 90, 0, video):
            assert (plan.jitter == plan.jitter[0]).all()
            assert (plan.jitter_order == plan.jitter_order[0]).all()


def test_clips_are_flipped_as_often_as_the_sampling_says():
    def share(flip):
        sampling = Sampling(flip=flip)
        plans = [plan for video in range(300) for plan in plan_views(sampling, 90, 0, video)]
        return np.mean([plan.crop[2] for plan in plans])

    assert (share(0.0), share(1.0)) == (0, 1)
    assert share(0.1) == pytest.approx(0.1, abs=0.04)


def test_without_jitter_no_frame_is_jittered():
    for plan in plan_views(Sampling(jitter=None), 90, 0, 0):
        assert plan.jitter_order.tolist() == [-1] * 16


@pytest.mark.parametrize("boundary", ["restart", "modulo", "clamp"])
def test_clips_go_on_at_the_end_of_a_video_as_the_sampling_says(boundary):
    sampling = Sampling(clip_frames=8, boundary=boundary)
    plans = [plan for video in range(20) for plan in plan_views(sampling, 20, 0, video)]
    plans += [centre_plan(sampling, 20, start, Fraction(3), 2) for start in range(20)]
    for plan in plans:
        expected = stepwise(20, plan.start_frame, plan.pace, 8, boundary)
        assert plan.frame_numbers.tolist() == expected


def test_centre_plan():
    plan = centre_plan(Sampling(), 100, 5, Fraction(2), 1)
    assert plan.crop.tolist() == [8, 29, 0]
    assert (plan.jitter_order == -1).all()
    assert plan.frame_numbers.tolist() == list(range(5, 37, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"paces": (Fraction(4), Fraction(1))}, "paces must be positive and ascend"),
        ({"paces": (Fraction(1), Fraction(1))}, "paces must be positive and ascend"),
        ({"paces": (Fraction(-1), Fraction(1))}, "paces must be positive and ascend"),
        ({"paces": ()}, "paces must be positive and ascend"),
        ({"paces": (1.5, 2.0)}, "paces must be positive and ascend"),
        ({"paces": ("1", "2")}, "paces must be positive and ascend"),
        ({"paces": "1,2"}, "paces must be positive and ascend"),
        ({"clip_frames": 0}, "clip_frames must be a whole number from 1, got 0"),
        ({"clip_frames": "16"}, "clip_frames must be a whole number from 1, got '16'"),
        ({"views": 0}, "views must be a whole number from 1, got 0"),
        ({"start": "fitt"}, "start must be one of all, fit, got 'fitt'"),
        ({"view_augment": "both"}, "view_augment must be one of own, shared, got 'both'"),
        ({"reverse": "on"}, "reverse must be one of off, augment, label, got 'on'"),
        ({"boundary": "wrap"}, "boundary must be one of restart, modulo, clamp, got 'wrap'"),
        ({"view_paces": "same"}, "view_paces must be one of distinct, free, got 'same'"),
        ({"crop": (200, 100)}, r"crop must be 1 to resize \(128, 171\), got \(200, 100\)"),
        ({"crop": (0, 100)}, "crop must be 1 to resize"),
        ({"crop": (112,)}, r"crop must be \(height, width\), got \(112,\)"),
        ({"crop": 112}, r"crop must be \(height, width\), got 112"),
        ({"resize": (128.0, 171)}, r"resize must be \(height, width\), got \(128.0, 171\)"),
        ({"flip": 7.0}, "flip must be 0 to 1, got 7.0"),
        ({"flip": "half"}, "flip must be 0 to 1, got 'half'"),
        ({"jitter": False}, "jitter must be frame, clip, or None for none, got False"),
        ({"seed": 2**64}, r"seed must be a whole number from 0 to 2\^64 - 1, got"),
        ({"seed": -1}, r"seed must be a whole number from 0 to 2\^64 - 1, got -1"),
    ],
)
def test_a_sampling_that_nothing_can_be_drawn_by_is_refused(values, message):
    with pytest.raises(PacecoreError, match=message):
        Sampling(**values)
