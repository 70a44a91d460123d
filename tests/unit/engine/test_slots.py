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


@pytest.mark.parametrize("token_major", [False, True])
def test_tokens_are_written_saved_and_restored_in_either_layout(token_major):
    shape = SHAPE | {"width": 5, "length": 7}
    slots = KVSlots(
        **shape, dtype=torch.float32, device=torch.device("cpu"), token_major=token_major
    )
    assert slots.keys[1].shape == slots.values[0].shape == (3, 3, 7, 5)
    assert (slots.pools is not None) is token_major
    assert slots.nbytes == 2 * 2 * 3 * 3 * 7 * 5 * 4
    key, value = torch.randn(2, 3, 4, 5)  # four tokens: one of slot 2, three of slot 0
    places = slots.places([2, 0, 0, 0], [6, 1, 2, 3])
    slots.write(1, places, key, value)
    for cache, new in ((slots.keys[1], key), (slots.values[1], value)):
        assert torch.equal(cache[2, :, 6], new[:, 0])
        assert torch.equal(cache[0, :, 1:4], new[:, 1:])
        cache[2, :, 6] = cache[0, :, 1:4] = 0
        assert not cache.any()
    slots.write(1, places, key, value)
    saved = slots.save(0, 4)
    assert saved.shape == (2, 2, 3, 4, 5)
    slots.restore(1, saved)
    assert torch.equal(slots.keys[1][1, :, :4], slots.keys[1][0, :, :4])
    assert torch.equal(slots.values[1][1, :, 1:4], value[:, 1:])
    for _ in range(3):
        slots.take()
    slots.release(0, used=4, wipe=True)
    assert not slots.keys[1][0].any()
    assert slots.keys[1][1].any()


def test_a_pool_is_the_same_memory_token_by_token_and_has_a_place_to_spare():
    slots = KVSlots(**SHAPE, dtype=torch.float32, device=torch.device("cpu"), token_major=True)
    keys, values = slots.pools[1]
    assert keys.shape == (3 * 512 + 1, 3, 64)
    assert keys.is_contiguous()
    slots.keys[1][2, 1, 100] = 7
    slots.values[1][0, 2, 5] = 8
    assert keys[2 * 512 + 100, 1].unique().item() == 7
    assert values[5, 2].unique().item() == 8
    keys[slots.spare] = 9
    assert slots.keys[1].max() == 7
