"""Per-device arrays: blocks, places, growth, bytes."""

from __future__ import annotations

import numpy as np
import pytest

from gruard.models.arena import FIRST_CAPACITY, Arena, Column, fresh
from gruard.models.errors import ModelError

COLUMNS = {
    "h": Column((3,)),
    "w": Column((2, 2)),
    "count": Column((), "i8"),
    "scale": Column((2,), "f8", 1.0),
}
BLOCKS = {"device": COLUMNS, "model": {"memory": Column((4,), fill=2.0)}}


def filled(devices: int) -> tuple[Arena, np.ndarray]:
    """An arena in which every number tells whose it is."""
    arena = Arena(BLOCKS)
    slots = np.array([arena.allocate() for _ in range(devices)])
    for slot in slots:
        arena["h"][slot], arena["w"][slot], arena["count"][slot] = slot, 10 + slot, 100 + slot
    return arena, slots


def test_allocate_gives_distinct_slots_at_fill_value() -> None:
    """Every device gets a slot of its own that starts clean, in every block."""
    arena = Arena(BLOCKS)
    slots = [arena.allocate() for _ in range(5)]
    assert len(set(slots)) == 5
    assert len(arena) == 5
    np.testing.assert_array_equal(arena["scale"][slots], np.ones((5, 2)))
    np.testing.assert_array_equal(arena["memory"][slots], np.full((5, 4), 2.0))
    assert arena["w"].shape == (FIRST_CAPACITY, 2, 2)


def test_allocate_past_capacity_doubles_and_keeps_rows() -> None:
    """Growth keeps what is there, and it comes in few large steps."""
    arena = Arena(BLOCKS)
    capacities = set()
    for n in range(10 * FIRST_CAPACITY):
        slot = arena.allocate()
        arena["count"][slot], arena["memory"][slot] = n, n
        capacities.add(arena.capacity)
    count, memory = arena["count"][: 10 * FIRST_CAPACITY], arena["memory"][: 10 * FIRST_CAPACITY]
    assert sorted(count) == list(range(10 * FIRST_CAPACITY))
    np.testing.assert_array_equal(memory[:, 1], count)
    assert capacities == {FIRST_CAPACITY << n for n in range(5)}


def test_release_slot_is_given_out_again_clean() -> None:
    """A forgotten device leaves nothing behind for the next one."""
    arena, slots = filled(3)
    arena.release(int(slots[1]))
    assert arena.allocate() == slots[1]
    np.testing.assert_array_equal(arena["h"][slots[1]], np.zeros(3))
    np.testing.assert_array_equal(arena["memory"][slots[1]], np.full(4, 2.0))


@pytest.mark.parametrize("chosen", [[2, 0], [0, 1, 2], [3], [1, 2], [3, 1, 0], [0, 2]])
def test_gather_changes_reach_the_slots_named_and_no_others(chosen: list[int]) -> None:
    """What is done to gathered rows, in place or anew, is there after the scatter, in a run or not."""
    arena, slots = filled(5)
    before = {name: arena[name].copy() for name in (*COLUMNS, "memory")}
    rows = arena.gather(slots[chosen], "device")
    assert set(rows) == set(COLUMNS)
    np.testing.assert_array_equal(rows["count"], 100 + slots[chosen])
    rows["h"] += 0.5
    rows["w"] = rows["w"] * 2.0
    arena.scatter(slots[chosen], rows)
    np.testing.assert_array_equal(arena["h"][slots[chosen]], before["h"][slots[chosen]] + 0.5)
    np.testing.assert_array_equal(arena["w"][slots[chosen]], before["w"][slots[chosen]] * 2.0)
    others = np.setdiff1d(np.arange(arena.capacity), slots[chosen])
    for name, was in before.items():
        np.testing.assert_array_equal(arena[name][others], was[others], err_msg=name)
    np.testing.assert_array_equal(arena["memory"], before["memory"])
    np.testing.assert_array_equal(arena["count"], before["count"])


def test_gather_slots_in_a_run_copies_nothing() -> None:
    """Devices that stand next to each other are read where they lie; others are copied out."""
    arena, slots = filled(6)
    rows = arena.gather(slots[1:4], "device")
    assert all(np.shares_memory(rows[name], arena[name]) for name in COLUMNS)
    apart = arena.gather(slots[[1, 3]], "device")
    assert not any(np.shares_memory(apart[name], arena[name]) for name in COLUMNS)


def test_gather_run_after_growth_is_of_the_new_arrays() -> None:
    """Views that were handed out before the arena grew are not handed out again."""
    arena, slots = filled(2)
    arena.gather(slots, "device")
    for _ in range(FIRST_CAPACITY):
        arena.allocate()
    rows = arena.gather(slots, "device")
    rows["h"][:] = 9.0
    arena.scatter(slots, rows)
    np.testing.assert_array_equal(arena["h"][slots], np.full((2, 3), 9.0))


def test_scatter_plain_columns_go_where_they_belong() -> None:
    """A mapping that was never gathered is written column by column, whatever its block."""
    arena, slots = filled(4)
    arena.scatter(slots[[3, 1]], {"h": np.ones((2, 3)), "memory": np.full((2, 4), 7.0)})
    np.testing.assert_array_equal(arena["h"][slots][:, 0], [0, 1, 2, 1])
    np.testing.assert_array_equal(arena["memory"][slots][:, 0], [2, 7, 2, 7])


def test_dump_load_round_trip() -> None:
    """A device's bytes put back elsewhere are the same device, every block of it."""
    arena, other = Arena(BLOCKS), Arena(BLOCKS)
    slot = arena.allocate()
    other.allocate()
    place = other.allocate()
    arena["h"][slot], arena["count"][slot], arena["scale"][slot] = [1, 2, 3], 42, [5, 6]
    arena["memory"][slot], arena["w"][slot] = [1, 2, 3, 4], [[1, 2], [3, 4]]
    stored = arena.dump(slot)
    assert len(stored) == arena.row_bytes
    other.load(place, stored)
    assert other.dump(place) == stored
    for name in (*COLUMNS, "memory"):
        np.testing.assert_array_equal(other[name][place], arena[name][slot])


@pytest.mark.parametrize("size", [0, 3, None])
def test_load_damaged_bytes_are_refused_and_change_nothing(size: int | None) -> None:
    """Wrong lengths and numbers that are not finite never enter the state, not even in part."""
    arena, slots = filled(1)
    slot = int(slots[0])
    before = arena.dump(slot)
    # 0xff.. is NaN in every float; the first block's floats may look sound while a later one is not.
    damaged = b"\x01" * size if size is not None else before[:-16] + b"\xff" * 16
    with pytest.raises(ModelError):
        arena.load(slot, damaged)
    assert arena.dump(slot) == before


def test_layout_id_tells_layouts_apart() -> None:
    """Bytes of another shape, type or model are recognised as foreign."""
    same = Arena(BLOCKS, "m").layout_id
    assert Arena(BLOCKS, "m").layout_id == same
    assert Arena(BLOCKS, "n").layout_id != same
    assert Arena({**BLOCKS, "device": {**COLUMNS, "h": Column((4,))}}, "m").layout_id != same
    assert Arena({**BLOCKS, "device": {**COLUMNS, "h": Column((3,), "f8")}}, "m").layout_id != same
    # The bytes lie in the order of the columns, so another order is another layout.
    assert Arena({**BLOCKS, "device": dict(reversed(COLUMNS.items()))}, "m").layout_id != same
    assert Arena(dict(reversed(BLOCKS.items())), "m").layout_id != same


def test_take_places_keeps_slots_across_arenas() -> None:
    """New weights mean a new arena in which every device keeps its slot, free ones included."""
    old = Arena(BLOCKS)
    slots = [old.allocate() for _ in range(3 * FIRST_CAPACITY)]
    old.release(slots[5])
    new = Arena({"device": {"h": Column((9,))}})
    new.take_places(old)
    assert len(new) == len(old)
    taken = {new.allocate() for _ in range(10)}
    assert taken.isdisjoint(set(slots) - {slots[5]})


def test_fresh_columns_are_at_their_fill_values() -> None:
    """Rows outside of an arena start as those inside do."""
    rows = fresh(COLUMNS, 3)
    assert rows["w"].shape == (3, 2, 2)
    assert rows["count"].dtype == np.int64
    np.testing.assert_array_equal(rows["scale"], np.ones((3, 2)))
