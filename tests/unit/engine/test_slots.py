"""Slots: what they hold, and what they give back."""

from __future__ import annotations

import sys

import pytest
import torch

from gptflow.engine.slots import KVSlots

SHAPE = {"layers": 2, "heads": 3, "width": 64, "slots": 3, "length": 512}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes single pages back")
def test_a_long_sequence_gives_its_memory_back_and_its_neighbours_keep_theirs():
    slots = KVSlots(**SHAPE, dtype=torch.float32, device=torch.device("cpu"))
    assert [slots.take() for _ in range(3)] == [0, 1, 2]
    for cache in (*slots.keys, *slots.values):
        cache.fill_(1)
    slots.release(1, used=512)
    for cache in (*slots.keys, *slots.values):
        assert not cache[1].any()
        assert cache[0].all()
        assert cache[2].all()
        cache[1].fill_(2)  # writable as before
    assert slots.take() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes single pages back")
def test_slots_that_are_no_whole_pages_leave_their_neighbours_alone():
    shape = {"layers": 1, "heads": 1, "width": 5, "slots": 3, "length": 301}
    slots = KVSlots(**shape, dtype=torch.float32, device=torch.device("cpu"))
    for _ in range(3):
        slots.take()
    slots.keys[0].fill_(1)
    slots.release(1, used=301)
    assert slots.keys[0][0].all()
    assert slots.keys[0][2].all()


def test_a_short_sequence_is_wiped_only_if_asked():
    slots = KVSlots(**SHAPE, dtype=torch.float32, device=torch.device("cpu"))
    for wipe in (False, True):
        slot = slots.take()
        slots.keys[0][slot, :, :9].fill_(1)
        slots.release(slot, used=9, wipe=wipe)
        assert bool(slots.keys[0][slot].any()) is not wipe
