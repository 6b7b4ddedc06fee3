"""Which frame is which: frame numbers, timestamps and entry points of a video, from its packets
alone.

Nothing here decodes or touches a file, so that every rule can be tested on its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import islice
from typing import Any

import numpy as np

__all__ = [
    "CodedOrder",
    "Follower",
    "PacketRecord",
    "Timeline",
    "count_vops",
    "from_key_frames",
    "from_timestamps",
    "from_vops",
    "may_have_fields",
]

# An N-VOP, the empty place of a B-frame that travelled in the packet before, is no longer.
_NOT_CODED_BYTES = 19
_WITH_CHROMA = {44, 83, 86, 100, 110, 118, 122, 128, 244}  # H.264 profiles that say their chroma
_PREDICTED = {2, 3, 4}  # AVPictureType P, B and S; not every decoder flags its key frames


@dataclass(frozen=True)
class PacketRecord:
    """What a demuxer says of one packet; stamps in units of the stream's time base, None where
    unknown or, as Matroska's decoding stamps, made up anew after each seek.
    """

    pts: int | None
    dts: int | None
    is_key: bool
    is_discarded: bool = False  # decoded but not shown (an edit list of MP4)
    vops: tuple[int, ...] = ()  # MPEG-4 only: coding types in the packet, 0 I, 1 P, 2 B, 3 S
    size: int = 0  # bytes
    place: int = -1  # byte of the file, -1 where unknown

    @property
    def stamp(self) -> int | None:
        """The stamp that tells a packet from others where presentation stamps do not serve."""
        return self.pts if self.dts is None else self.dts


@dataclass(frozen=True, eq=False)
class CodedOrder:
    """Which frames each packet makes the decoder decode, where that is known without stamps."""

    frames: tuple[tuple[int, ...], ...]  # of each packet, in decoding order
    lost: tuple[tuple[int, ...], ...]  # the frames that skipping B-pictures at a packet costs
    is_b: np.ndarray  # (num_frames,) bool: B-pictures, which no other picture needs
    key_packets: tuple[int, ...]  # packet of each of Timeline.key_frames


@dataclass(frozen=True, eq=False)
class Timeline:
    """Frames of a video in display order, and the key frames at which decoding can begin.

    stamps: (num_frames,) int64, presentation stamp of every frame, or None where the file's stamps
    cannot be trusted and frames are counted from a key frame instead. key_frames: (K,) int64 frame
    numbers, ascending, the first 0. key_stamps: (K,) int64, stamp of each key frame's packet:
    presentation stamps where stamps is not None, else decoding stamps if the file has them.
    key_places: (K,) int64, where in the file those packets are, -1 where unknown.
    """

    num_frames: int
    stamps: np.ndarray | None
    key_frames: np.ndarray
    key_stamps: np.ndarray
    key_places: np.ndarray
    coded: CodedOrder | None = None  # where B-pictures may be skipped without stamps

    def entry(self, frame: int) -> int:
        """Index into key_frames of the last key frame at or before `frame`."""
        return int(np.searchsorted(self.key_frames, frame, side="right")) - 1

    def from_start(self) -> "Timeline":
        """The same frames, where decoding may begin at the start alone."""
        keys = self.key_frames[:1], self.key_stamps[:1], self.key_places[:1]
        return Timeline(self.num_frames, self.stamps, *keys)


def from_timestamps(packets: Sequence[PacketRecord]) -> Timeline | None:
    """Frame k is the k-th presentation stamp; None where stamps are missing, repeated, or begin
    before a key frame.
    """
    if not packets or any(packet.pts is None for packet in packets):
        return None
    shown = np.sort(np.array([p.pts for p in packets if not p.is_discarded], dtype=np.int64))
    if not len(shown) or (np.diff(shown) == 0).any() or not packets[0].is_key:
        return None
    # Whether pictures before the first key frame decode is the decoder's choice.
    if packets[0].pts != min(packet.pts for packet in packets):
        return None
    keys = np.array([(packet.pts, packet.place) for packet in packets if packet.is_key], np.int64)
    # A discarded key frame still opens the way to the first frame shown after it.
    numbers = np.searchsorted(shown, keys[:, 0])
    return _timeline(len(shown), shown, numbers, keys)


def from_vops(packets: Sequence[PacketRecord]) -> Timeline | None:
    """MPEG-4 part 2, whose stamps in AVI are made up: frames counted by coding type.

    A reference picture (I, P, S) is shown after the B-pictures that follow it in decoding order.
    DivX packs a reference and the next B into one packet and leaves an empty picture in the place
    of the B. None where a packet could be either an empty or a very short picture, or is packed
    otherwise: then only decoding tells.
    """
    types: list[int] = []  # coding types in decoding order
    owner: list[int] = []  # packet that makes the decoder decode each
    waiting = False  # a packed B is decoded when the next packet comes
    chained: set[int] = set()  # packets that bring a B while another is decoded
    for index, packet in enumerate(packets):
        vops = packet.vops
        if packet.is_discarded or len(vops) > 2 or (len(vops) == 2 and vops[1] != 2):
            return None
        if waiting and vops == (2,):  # takes the place of the one that waited
            types.append(2)
            owner.append(index + 1)
            chained.add(index)
        elif waiting:
            if packet.size > _NOT_CODED_BYTES:  # the place of the packed B is missing
                return None
            waiting = False
        elif len(vops) == 1 and packet.size <= _NOT_CODED_BYTES:
            return None
        else:
            types += vops
            owner += [index, index + 1][: len(vops)]
            waiting = len(vops) == 2
    if waiting:  # no packet comes after it
        types.pop()
        owner.pop()
        chained.discard(len(packets) - 1)
    if types[:1] != [0] or types[1:2] == [2]:
        return None
    return _from_types(packets, types, owner, chained)


def _from_types(
    packets: Sequence[PacketRecord], types: list[int], owner: list[int], chained: set[int]
) -> Timeline | None:
    """The timeline of pictures with these coding types, each decoded at its owner packet."""
    frames: list[list[int]] = [[] for _ in packets]
    is_b = np.zeros(len(types), dtype=bool)
    numbers, keys, key_packets = [], [], []
    leading = 0  # B-pictures that follow a picture at once
    for position in range(len(types) - 1, -1, -1):
        packet, kind = packets[owner[position]], types[position]
        number = position - 1 if kind == 2 else position + leading
        leading = leading + 1 if kind == 2 else 0
        frames[owner[position]].insert(0, number)
        is_b[number] = kind == 2
        if kind == 0 and packet.is_key:
            numbers.append(number)
            keys.append((packet.stamp, packet.place))
            key_packets.append(owner[position])
    if not numbers or numbers[-1] != 0 or not _findable(packets):
        return None
    timeline = Timeline(len(types), None, np.array(numbers[::-1]), *np.array(keys[::-1]).T)
    if not is_b.any():
        return timeline
    lost = list(map(tuple, frames))
    for index in sorted(chained, reverse=True):
        lost[index] += lost[index + 1]  # the decoder drops what a skipped packet brings
    packets_of_keys = tuple(key_packets[::-1])
    coded = CodedOrder(tuple(map(tuple, frames)), tuple(lost), is_b, packets_of_keys)
    return replace(timeline, coded=coded)


def from_key_frames(packets: Sequence[PacketRecord], shown_keys: Sequence[bool]) -> Timeline:
    """From a decode of the whole video: shown_keys[k] says whether frame k is a key frame.

    Key packets and key frames pair up in order; where their numbers differ decoding always begins
    at the start.
    """
    numbers = np.flatnonzero(np.asarray(shown_keys, dtype=bool))
    keys = [(packet.stamp, packet.place) for packet in packets if packet.is_key]
    pair_up = len(numbers) == len(keys) > 0 and numbers[0] == 0
    if not pair_up or not _findable(packets):
        first = packets[0].stamp if packets and packets[0].stamp is not None else 0
        numbers, keys = np.zeros(1), [(first, -1)]
    return _timeline(len(shown_keys), None, numbers, np.array(keys))


def _findable(packets: Sequence[PacketRecord]) -> bool:
    """Whether a seek finds a key packet by its stamp: decoding stamps ascend from packet to packet,
    presentation stamps, where there are no others, from key to key.
    """
    stamps = [packet.stamp for packet in packets if packet.is_key or packet.dts is not None]
    return None not in stamps and bool((np.diff(np.array(stamps, dtype=np.int64)) > 0).all())


def _timeline(
    num_frames: int, stamps: np.ndarray | None, numbers: np.ndarray, keys: np.ndarray
) -> Timeline:
    """Sorted by frame number; of key packets that open at one frame the last is kept.

    keys: (K, 2), stamp and place of each.
    """
    order = np.lexsort((keys[:, 0], numbers))
    numbers, keys = np.asarray(numbers, np.int64)[order], keys[order]
    last = np.append(np.diff(numbers) > 0, True) & (numbers < num_frames)
    return Timeline(num_frames, stamps, numbers[last], *keys[last].T)


def count_vops(payload: bytes) -> tuple[int, ...]:
    """Coding types of the pictures in an MPEG-4 packet, in order (ISO/IEC 14496-2, vop_start_code
    000001B6).
    """
    found, position = [], payload.find(b"\0\0\1\xb6")
    while 0 <= position < len(payload) - 4:
        found.append(payload[position + 4] >> 6)
        position = payload.find(b"\0\0\1\xb6", position + 4)
    return tuple(found)


def may_have_fields(extradata: bytes | None) -> bool:
    """Whether H.264, by the sequence parameters before its packets as MP4 and Matroska keep them,
    may code the two fields of a frame one by one: each may then be a packet (ITU-T H.264,
    7.3.2.1.1).
    """
    sps = extradata[8:].replace(b"\0\0\3", b"\0\0") if extradata else b""
    bits = iter("".join(f"{byte:08b}" for byte in sps[4:]))
    with suppress(StopIteration):
        _golomb(bits)
        if sps[1] in _WITH_CHROMA:
            if _golomb(bits) == 3:
                next(bits)
            _golomb(bits), _golomb(bits), next(bits)
            if next(bits) == "1":  # matrices of weights, whose end is not looked for
                return True
        _golomb(bits)
        order = _golomb(bits)
        if order == 0:
            _golomb(bits)
        elif order == 1:
            next(bits), _golomb(bits), _golomb(bits)
            for _ in range(_golomb(bits)):
                _golomb(bits)
        _golomb(bits), next(bits), _golomb(bits), _golomb(bits)
        return next(bits) == "0"  # frame_mbs_only_flag
    return True


def _golomb(bits: Iterator[str]) -> int:
    """The next Exp-Golomb number."""
    zeros = 0
    while next(bits) == "0":
        zeros += 1
    return int("1" + "".join(islice(bits, zeros)), 2) - 1


class Follower:
    """Says, while a run is decoded from key frame `entry` on, which frame each one is.

    Where it `can_skip`, call `may_skip` with each packet before it is decoded; then `number` with
    each frame shown.
    """

    def __init__(self, timeline: Timeline, entry: int, wanted: set[int]) -> None:
        self._timeline = timeline
        self.can_skip = timeline.stamps is not None or timeline.coded is not None
        self._first = int(timeline.key_frames[entry])
        # Nothing but the key frame itself tells that decoding can begin there: a container may mark
        # any packet. At the start it does not matter, and where an edit list hides it none comes.
        self._key_due = (
            entry > 0
            and timeline.stamps is not None
            and timeline.stamps[self._first] == timeline.key_stamps[entry]
        )
        self._wanted = wanted | {self._first} if self._key_due else wanted
        self._keys = set(timeline.key_frames.tolist())
        self._packet = timeline.coded.key_packets[entry] if timeline.coded else 0
        self._pending: list[int] = []  # decoded and not yet shown
        # At the start all that comes is counted; elsewhere only from the key frame on.
        self._count = -1 if entry == 0 else None

    def may_skip(self, packet: Any) -> bool:
        """Whether the decoder may leave this packet's picture out if no other picture needs it."""
        if self._timeline.stamps is not None:
            return self._by_stamp(packet.pts) not in self._wanted
        coded = self._timeline.coded
        if self._packet == len(coded.frames):
            return False
        frames, lost = coded.frames[self._packet], coded.lost[self._packet]
        self._packet += 1
        skip = not any(coded.is_b[frame] and frame in self._wanted for frame in lost)
        for frame in frames:
            # Before the entry lie B-pictures whose past is not there: the decoder drops them.
            if frame >= self._first and not (skip and coded.is_b[frame]):
                heappush(self._pending, frame)
        return skip

    def number(self, frame: Any) -> int | None:
        """Number of the frame shown next, -1 for one that is to be ignored, None if out of step."""
        if self._timeline.stamps is not None:
            number = self._by_stamp(frame.pts)
            if self._key_due and number >= self._first:
                self._key_due = False
                opens = number == self._first and int(frame.pict_type) not in _PREDICTED
                return number if opens else None
            return number
        if self._timeline.coded is not None:
            if not self._pending:
                return None
            number = heappop(self._pending)
            is_b = int(frame.pict_type) == 3
            in_step = is_b == self._timeline.coded.is_b[number]
        else:
            if self._count is None and not frame.key_frame:
                return -1  # shown before the entry, coded after it
            self._count = self._first if self._count is None else self._count + 1
            number, in_step = self._count, True
        if frame.key_frame and len(self._keys) > 1 and number not in self._keys:
            return None
        return number if in_step else None

    def _by_stamp(self, stamp: int | None) -> int:
        """-1 where no frame has this stamp."""
        stamps = self._timeline.stamps
        if stamp is None:
            return -1
        number = int(np.searchsorted(stamps, stamp))
        return number if number < len(stamps) and stamps[number] == stamp else -1
