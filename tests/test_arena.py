"""Slots of shared memory: written by one process, read by another, used again and not too early."""

import os

import numpy as np
import torch

from pacecore.arena import Arena, RoomWriter
from pacecore.frames import Frames, concatenate


def frames(seed: int, count: int = 2, size: int = 6) -> Frames:
    """`count` planar frames of size x size, random bytes."""
    each = size * size + 2 * ((size + 1) // 2) ** 2
    data = np.random.default_rng(seed).integers(0, 256, count * each, dtype=np.uint8)
    return Frames.of_yuv420p(torch.from_numpy(data), (size, size))


def written(arena: Arena | None, parts: list[Frames], writer: int = 0):
    rooms = RoomWriter(arena, writer)
    for part in parts:
        rooms.add(part)
    return rooms.finish()


def same(one: Frames, other: Frames) -> bool:
    return torch.equal(one.data, other.data) and torch.equal(one.table, other.table)


def test_slot_holds_what_was_written_by_another_process():
    arena, parts = Arena(1, slot_bytes=4096), [frames(1), frames(2, count=3)]
    whole = concatenate(parts)
    table, room = written(arena, parts)
    assert same(Frames(room.data(), table.table), whole)
    child = os.fork()
    if child == 0:
        _, again = written(arena, [frames(3)])
        os._exit(0 if again.slot == room.slot else 1)  # that of above is free: no view is left
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(room.data()[: frames(3).data.numel()], frames(3).data)


def test_slot_is_not_used_again_while_a_view_of_it_lives():
    arena, part = Arena(2, slot_bytes=4096), frames(4)
    held = [room.data()[3:] for _, room in (written(arena, [part]) for _ in range(4))]
    copy, room = written(arena, [frames(5)])
    assert room is None  # all are in use: fresh memory
    assert same(copy, frames(5))
    assert all(torch.equal(view, part.data[3:]) for view in held)
    _, other = written(arena, [part], writer=1)
    assert other.slot >= 4  # the other writer's are its own
    del held[2]
    assert written(arena, [frames(5)])[1].slot == 2


def test_frames_past_a_slot_go_to_fresh_memory():
    parts = [frames(6), frames(7, count=4), frames(8)]
    arena = Arena(1, slot_bytes=parts[0].data.numel() + 10)
    for _ in range(6):  # and the slot is given back each time
        whole, room = written(arena, parts)
        assert room is None
        assert same(whole, concatenate(parts))
    assert written(arena, parts[:1])[1] is not None


def test_frames_that_would_fit_after_some_that_did_not_keep_their_place():
    parts = [frames(6), frames(7, count=8), frames(8)]
    arena = Arena(1, slot_bytes=2 * parts[0].data.numel() + 10)  # has room for the last
    whole, room = written(arena, parts)
    assert room is None
    assert same(whole, concatenate(parts))


def test_of_more_than_memory_is_there_only_what_is_used_counts():
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert Arena.make(2 * memory // 2**32 + 1) is not None


def test_without_an_arena_all_goes_to_fresh_memory():
    whole, room = written(None, [frames(9), frames(10)])
    assert room is None
    assert same(whole, concatenate([frames(9), frames(10)]))


def test_batch_without_frames_has_none():
    whole, room = written(Arena(1, slot_bytes=64), [])
    assert room is None
    assert whole.data.numel() == 0
    assert whole.table.shape == (0, 8)
