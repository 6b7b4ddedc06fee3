"""Which frame is which, from packets alone, worked by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from pacecore.timeline import (
    Follower,
    PacketRecord,
    Timeline,
    count_vops,
    from_key_frames,
    from_timestamps,
    from_vops,
    may_have_fields,
)

INTRA, P, B = 0, 1, 2


def stamped(*packets: tuple) -> list[PacketRecord]:
    return [PacketRecord(pts, dts, bool(key)) for pts, dts, key in packets]


def coded(*packets: tuple[int, ...], keys: tuple[int, ...] = (0,)) -> list[PacketRecord]:
    """MPEG-4 packets of these pictures; () stands for the empty picture after a packed B."""
    return [
        PacketRecord(n + 1, n, n in keys, vops=vops or (P,), size=1000 if vops else 6)
        for n, vops in enumerate(packets)
    ]


def test_stamps_in_coded_order_give_display_order():
    #        I0         P3         B1         B2         I6         B4         B5
    packets = stamped((0, -2, 1), (3, -1, 0), (1, 0, 0), (2, 1, 0), (6, 2, 1), (4, 3, 0), (5, 4, 0))
    timeline = from_timestamps(packets)
    assert timeline.num_frames == 7
    assert timeline.stamps.tolist() == list(range(7))
    assert timeline.key_frames.tolist() == [0, 6]
    assert [timeline.entry(frame) for frame in (0, 5, 6)] == [0, 0, 1]


def test_stamps_that_tell_nothing():
    assert from_timestamps([]) is None
    assert from_timestamps(stamped((0, 0, 1), (None, 1, 0))) is None
    assert from_timestamps(stamped((0, 0, 1), (0, 1, 0))) is None  # two frames at one time
    assert from_timestamps(stamped((1, 0, 0), (2, 1, 1))) is None  # no key frame at the start
    assert from_timestamps(stamped((2, 0, 1), (1, 1, 0), (3, 2, 0))) is None  # a frame before it


def test_frames_cut_off_by_an_edit_list():
    packets = stamped((0, 0, 1), (1, 1, 0), (2, 2, 0), (3, 3, 1))
    packets = [PacketRecord(p.pts, p.dts, p.is_key, is_discarded=p.pts in (0, 1)) for p in packets]
    timeline = from_timestamps(packets)
    assert timeline.stamps.tolist() == [2, 3]
    assert timeline.key_frames.tolist() == [0, 1]  # the first key frame opens frame 0, unseen
    assert timeline.key_stamps.tolist() == [0, 3]


def test_pictures_are_found_in_a_packet():
    start = b"\0\0\1\xb6"
    assert count_vops(b"\0\0\1\xb2XviD" + start + b"\x10abc" + start + b"\x90ab") == (INTRA, B)
    assert count_vops(start + b"\x50") == (P,)
    assert count_vops(start) == ()
    assert count_vops(b"\x7f") == ()


def test_mpeg4_counts_references_after_their_b_pictures():
    timeline = from_vops(coded((INTRA,), (P,), (B,), (B,), (INTRA,), (B,), (P,), keys=(0, 4)))
    # Shown:               I0   B1 B2 P3   B4 I5   P6
    assert timeline.num_frames == 7
    assert timeline.key_frames.tolist() == [0, 5]
    assert timeline.key_stamps.tolist() == [0, 4]
    assert timeline.coded.frames == ((0,), (3,), (1,), (2,), (5,), (4,), (6,))
    assert timeline.coded.is_b.tolist() == [False, True, True, False, True, False, False]


def test_mpeg4_packed_by_divx():
    timeline = from_vops(coded((INTRA,), (P, B), (), (P, B), (B,), (), (P,)))
    # Shown:               I0  B1 P2     B3 B4 P5      P6
    assert timeline.num_frames == 7
    assert timeline.coded.frames == ((0,), (2,), (1,), (5,), (3,), (4,), (6,))
    # Where the decoder skips one B it also drops the one that comes in the same packet.
    assert timeline.coded.lost == ((0,), (2,), (1,), (5,), (3, 4), (4,), (6,))


def test_mpeg4_cut_after_a_packed_picture():
    timeline = from_vops(coded((INTRA,), (P, B), (), (P, B)))
    assert timeline.num_frames == 4  # the last B never finds its place


def test_mpeg4_that_only_decoding_tells():
    assert from_vops(coded((INTRA,), (P, B), (P,))) is None  # the place of the B is missing
    assert from_vops(coded((INTRA,), ())) is None  # empty, or very short?
    assert from_vops(coded((P,), (INTRA,))) is None
    assert from_vops(coded((INTRA,), (B,), (P,))) is None  # a B without a past
    assert from_vops(coded((INTRA,), (P, B, B))) is None
    assert from_vops(coded((INTRA,), (P, P))) is None
    assert from_vops(coded((INTRA,), (P,), keys=())) is None
    same = [PacketRecord(0, 0, n == 0, vops=(min(n, 1),), size=100) for n in range(3)]
    assert from_vops(same) is None  # a seek would not find its packet


def test_from_a_whole_decode():
    packets = stamped((0, 0, 1), (1, 1, 0), (2, 2, 1), (3, 3, 0))
    timeline = from_key_frames(packets, [True, False, True, False])
    assert (timeline.key_frames.tolist(), timeline.key_stamps.tolist()) == ([0, 2], [0, 2])
    assert timeline.stamps is None
    for others, keys in (
        (packets, [True, False, False, False]),  # a key packet that gave no key frame
        (packets, [False, True, False, True]),
        (stamped((0, 0, 1), (1, 1, 0), (0, 0, 1), (1, 1, 0)), [True, False, True, False]),
        (stamped((None, None, 1), (None, None, 0)), [True, False]),
        (stamped((0, 0, 0)), [False]),
    ):
        assert from_key_frames(others, keys).key_frames.tolist() == [0]


def shown(pict_type: int, key: bool = False, pts: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(pict_type=pict_type, key_frame=key, pts=pts)


def test_follower_numbers_what_is_left_when_b_pictures_are_skipped():
    timeline = from_vops(coded((INTRA,), (P,), (B,), (P,), (B,), (P,), (B,)))
    # Shown:                    I0    B1 P2      B3 P4      B5 P6
    follower = Follower(timeline, 0, {3, 6})
    assert follower.can_skip
    packet = SimpleNamespace(pts=None)
    assert [follower.may_skip(packet) for _ in range(7)] == [
        True, True, True, True, False, True, True,
    ]  # fmt: skip
    order = [shown(1, True), shown(2), shown(3), shown(2), shown(2)]
    assert [follower.number(frame) for frame in order] == [0, 2, 3, 4, 6]
    assert follower.number(shown(2)) is None  # more frames than were decoded


def test_follower_sees_frames_out_of_step():
    timeline = from_vops(coded((INTRA,), (P,), (B,), (INTRA,), keys=(0, 3)))
    follower = Follower(timeline, 0, {0, 1, 2, 3})
    for _ in range(4):
        follower.may_skip(SimpleNamespace(pts=None))
    assert follower.number(shown(1, True)) == 0
    assert follower.number(shown(2)) is None  # a P where the B is due
    counted = Timeline(9, None, *3 * [np.array([0, 4])])
    follower = Follower(counted, 1, {5})
    frames = [shown(3), shown(1, True), shown(2), shown(1, True)]
    assert [follower.number(frame) for frame in frames] == [-1, 4, 5, None]
    assert not follower.can_skip
    assert Follower(counted, 0, {0}).number(shown(3)) == 0  # whatever its decoder says of it
    start = np.array([0])
    by_stamp = Timeline(3, np.array([10, 20, 30]), start, np.array([10]), start)
    follower = Follower(by_stamp, 0, {1})
    assert [follower.number(shown(2, pts=pts)) for pts in (10, 15, 30, None)] == [0, -1, 2, -1]
    assert follower.may_skip(SimpleNamespace(pts=10))
    assert not follower.may_skip(SimpleNamespace(pts=20))


def test_follower_begins_at_a_key_frame_that_is_one():
    keys = np.array([0, 1])
    marked = Timeline(3, np.array([10, 20, 30]), keys, np.array([10, 20]), keys)
    for numbers, *frames in (
        ([0, 1, 2], shown(3, pts=10), shown(1, pts=20), shown(2, pts=30)),
        ([None], shown(2, pts=20)),  # a P
        ([None], shown(1, pts=30)),  # the marked one does not come
    ):
        follower = Follower(marked, 1, {2})
        assert not follower.may_skip(SimpleNamespace(pts=20))
        assert [follower.number(frame) for frame in frames] == numbers


@pytest.mark.parametrize(
    ("sps", "fields"),
    [
        ("6764000aacd9447a1000000300100000030320f122596001", False),  # High
        ("67640015acd9444fcb0800000300080000030190f8a14cb001", True),  # High, interlaced
        ("674d001eda292001", True),  # Main, of fields
        ("67f4000a91d6847a1000000300100000030320f1226a01", False),  # High 4:4:4
        ("67640015adffffff", True),  # with matrices
        ("6764", True),  # cut
        ("", True),
    ],
)
def test_whether_h264_may_have_fields(sps, fields):
    assert may_have_fields(bytes(8) + bytes.fromhex(sps)) == fields
    assert may_have_fields(None)
