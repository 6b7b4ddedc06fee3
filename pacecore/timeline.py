"""Which frame is which: frame numbers, timestamps and entry points of a video, from its packets
alone.

Nothing here decodes or touches a file, so that every rule can be tested on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "PacketRecord",
    "Timeline",
    "count_vops",
    "from_key_frames",
    "from_timestamps",
    "from_vops",
]

_NOT_CODED_BYTES = (
    19  # an N-VOP, the empty place of a B-frame that travelled in the packet before, is no longer
)


@dataclass(frozen=True)
class PacketRecord:
    """What a demuxer says of one packet; stamps in units of the stream's time base, None where
    unknown.
    """

    pts: int | None
    dts: int | None
    is_key: bool
    is_discarded: bool = False  # decoded but not shown (an edit list of MP4)
    vops: tuple[int, ...] = ()  # MPEG-4 only: coding types in the packet, 0 I, 1 P, 2 B, 3 S
    size: int = 0  # bytes

    @property
    def stamp(self) -> int | None:
        """The stamp by which a packet is told from others."""
        return self.dts if self.pts is None else self.pts


@dataclass(frozen=True)
class Timeline:
    """Frames of a video in display order, and the key frames at which decoding can begin.

    stamps: (num_frames,) int64, presentation stamp of every frame, or None where the file's stamps
    cannot be trusted and frames are counted from a key frame instead. key_frames: (K,) int64 frame
    numbers, ascending, the first 0. key_stamps: (K,) int64, stamp of each key frame's packet.
    """

    num_frames: int
    stamps: np.ndarray | None
    key_frames: np.ndarray
    key_stamps: np.ndarray

    def entry(self, frame: int) -> int:
        """Index into key_frames of the last key frame at or before `frame`."""
        return int(np.searchsorted(self.key_frames, frame, side="right")) - 1


def from_timestamps(packets: Sequence[PacketRecord]) -> Timeline | None:
    """Frame k is the k-th presentation stamp; None where stamps are missing, repeated, or begin
    before a key frame.
    """
    if not packets or any(packet.pts is None for packet in packets):
        return None
    shown = np.sort(np.array([p.pts for p in packets if not p.is_discarded], dtype=np.int64))
    first = min(packet.pts for packet in packets)
    if not len(shown) or (np.diff(shown) == 0).any() or not packets[0].is_key:
        return None
    if (
        packets[0].pts != first
    ):  # pictures before the first key frame: whether they decode is the decoder's choice
        return None
    keys = np.array([packet.pts for packet in packets if packet.is_key], dtype=np.int64)
    # A discarded key frame still opens the way to the first frame shown after it.
    numbers = np.searchsorted(shown, keys)
    return _timeline(len(shown), shown, numbers, keys)


def from_vops(packets: Sequence[PacketRecord]) -> Timeline | None:
    """MPEG-4 part 2, whose stamps in AVI are made up: frames counted by coding type.

    A reference picture (I, P, S) is shown after the B-pictures that follow it in decoding order.
    DivX packs a reference and the next B into one packet and leaves an empty picture in the place
    of the B. None where a packet could be either an empty or a very short picture, or is packed
    otherwise: then only decoding tells.
    """
    types: list[int] = []  # coding types in decoding order
    owner: list[int] = []  # packet of each
    packed = False  # the packet before held a B whose place is still to come
    for index, packet in enumerate(packets):
        count = len(packet.vops)
        if packet.is_discarded or count > 2 or (count == 2 and packet.vops[1] != 2):
            return None
        if count == 1 and packet.size <= _NOT_CODED_BYTES:
            if not packed:
                return None
            packed = False
            continue
        if packed and count == 1:  # the place of the packed B is missing
            return None
        packed = count == 2 or (packed and count == 0)
        types += packet.vops
        owner += [index] * count
    if not types or types[0] != 0 or packed:
        return None
    numbers, keys = [], []
    for position, (kind, index) in enumerate(zip(types, owner, strict=True)):
        packet = packets[index]
        if kind == 0 and packet.is_key and packet.vops[0] == 0:
            if packet.stamp is None:
                return None
            numbers.append(position + _leading_b(types, position + 1))
            keys.append(packet.stamp)
    if not numbers or numbers[0] != 0:
        return None
    return _timeline(len(types), None, np.array(numbers), np.array(keys))


def _leading_b(types: Sequence[int], start: int) -> int:
    """How many B-pictures follow from `start` on: they are shown before the reference ahead of
    them.
    """
    stop = start
    while stop < len(types) and types[stop] == 2:
        stop += 1
    return stop - start


def from_key_frames(packets: Sequence[PacketRecord], shown_keys: Sequence[bool]) -> Timeline:
    """From a decode of the whole video: shown_keys[k] says whether frame k is a key frame.

    Key packets and key frames pair up in order; where their numbers differ decoding always begins
    at the start.
    """
    numbers = np.flatnonzero(np.asarray(shown_keys, dtype=bool))
    keys = [packet.stamp for packet in packets if packet.is_key]
    if len(numbers) != len(keys) or None in keys or not len(keys) or numbers[0] != 0:
        first = packets[0].stamp if packets and packets[0].stamp is not None else 0
        numbers, keys = np.zeros(1), [first]
    return _timeline(len(shown_keys), None, numbers, np.array(keys))


def _timeline(
    num_frames: int, stamps: np.ndarray | None, numbers: np.ndarray, keys: np.ndarray
) -> Timeline | None:
    """Sorted by frame number; of key packets that open at one frame the last is kept."""
    order = np.lexsort((keys, numbers))
    numbers, keys = np.asarray(numbers, np.int64)[order], np.asarray(keys, np.int64)[order]
    last = np.append(np.diff(numbers) > 0, True) & (numbers < num_frames)
    return Timeline(num_frames, stamps, numbers[last], keys[last])


def count_vops(payload: bytes) -> tuple[int, ...]:
    """Coding types of the pictures in an MPEG-4 packet, in order (ISO/IEC 14496-2, vop_start_code
    000001B6).
    """
    found, position = [], payload.find(b"\0\0\1\xb6")
    while 0 <= position < len(payload) - 4:
        found.append(payload[position + 4] >> 6)
        position = payload.find(b"\0\0\1\xb6", position + 4)
    return tuple(found)
