"""Memory that decoding processes fill and the training process reads, used again and again.

The frames of a batch are tens of megabytes. Sent through shared memory that is made for each batch,
the faults of its fresh pages take nearly as long as the decoding (10.2 ms of processor time a clip
against 6, two views of UCF101's files).
"""

import mmap
import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pacecore.files import NO_RESERVE
from pacecore.frames import Frames, concatenate, shifted

__all__ = ["Arena", "Room", "RoomWriter"]

# Of address space; only pages that frames were written to take memory.
_SLOT_BYTES = 2**30
# For one process that writes: two batches wait, one is in use, one comes.
_SLOTS_EACH = 4

_arenas: "weakref.WeakValueDictionary[int, Arena]" = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Room:
    """Where the frames of a batch lie: small enough to be sent from process to process."""

    arena: int
    slot: int
    used: int  # bytes

    def data(self) -> Tensor:
        """(used,) uint8, in place; the slot is free again when nothing refers to it any more."""
        return _arenas[self.arena].data(self)


class Arena:
    """Slots of shared memory, some for each of `writers` processes, which are forked later."""

    def __init__(self, writers: int, *, slot_bytes: int = _SLOT_BYTES) -> None:
        slots = writers * _SLOTS_EACH
        self._slot_bytes = slot_bytes
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NO_RESERVE
        self._memory = mmap.mmap(-1, slots * slot_bytes, flags)
        self._busy = np.frombuffer(mmap.mmap(-1, slots), dtype=np.uint8)  # 1: not to be written to
        _arenas[id(self)] = self

    @classmethod
    def make(cls, writers: int) -> "Arena | None":
        """An arena, or None where the system does not give so much address space."""
        try:
            return cls(writers)
        except (OSError, ValueError, OverflowError):
            return None

    def take(self, writer: int) -> Room | None:
        """A free slot of this writer, or None while all are in use; called by that writer alone."""
        for slot in range(writer * _SLOTS_EACH, (writer + 1) * _SLOTS_EACH):
            if not self._busy[slot]:
                self._busy[slot] = 1
                return Room(id(self), slot, 0)
        return None

    def free(self, room: Room) -> None:
        self._busy[room.slot] = 0

    def bytes_of(self, room: Room) -> np.ndarray:
        """The whole slot, (slot bytes,) uint8."""
        start = room.slot * self._slot_bytes
        return np.frombuffer(self._memory, np.uint8, self._slot_bytes, start)

    def data(self, room: Room) -> Tensor:
        array = self.bytes_of(room)[: room.used]
        # The tensor's storage holds this very array, so that the last view of it counts.
        weakref.finalize(array, self.free, room).atexit = False
        return torch.from_numpy(array)


class RoomWriter:
    """Puts the frames of a batch into a slot, video by video; into fresh memory where none is free
    or one is too small.
    """

    def __init__(self, arena: Arena | None, writer: int) -> None:
        self._arena = arena
        self._room = arena.take(writer) if arena else None
        self._bytes = arena.bytes_of(self._room) if self._room else np.empty(0, np.uint8)
        self._used = 0
        self._tables: list[Tensor] = []
        self._beside: list[Frames] = []

    def add(self, part: Frames) -> None:
        size = part.data.numel()
        if self._beside or self._used + size > len(self._bytes):
            self._beside.append(part)
            return
        self._bytes[self._used : self._used + size] = part.data.numpy()
        self._tables.append(shifted(part.table, self._used))
        self._used += size

    def finish(self) -> tuple[Frames, Room | None]:
        """All frames in the order added: their table and where their bytes are, or, where there is
        no Room, the bytes too. The writer must not be used afterwards.
        """
        empty = torch.empty(0, dtype=torch.uint8)
        table = torch.cat([torch.empty(0, 8, dtype=torch.int64), *self._tables])
        if self._room and not self._beside and self._used:
            return Frames(empty, table), Room(self._room.arena, self._room.slot, self._used)
        written = Frames(torch.from_numpy(self._bytes[: self._used].copy()), table)
        if self._room:
            self._arena.free(self._room)
        return (concatenate([written, *self._beside]) if self._beside else written), None
