"""Per-device arrays: places, growth, bytes."""

from __future__ import annotations

import numpy as np
import pytest

from gruard.models.arena import FIRST_CAPACITY, Arena, Column
from gruard.models.errors import ModelError

COLUMNS = {"h": Column((3,)), "count": Column((), "i8"), "scale": Column((2,), "f8", 1.0)}


def test_allocate_gives_distinct_slots_at_fill_value() -> None:
    """Every device gets a slot of its own that starts clean."""
    arena = Arena(COLUMNS)
    slots = [arena.allocate() for _ in range(5)]
    assert len(set(slots)) == 5
    assert len(arena) == 5
    np.testing.assert_array_equal(arena["scale"][slots], np.ones((5, 2)))


def test_allocate_past_capacity_doubles_and_keeps_rows() -> None:
    """Growth keeps what is there; the number of copies is logarithmic in the devices."""
    arena = Arena(COLUMNS)
    arrays = set()
    for n in range(10 * FIRST_CAPACITY):
        slot = arena.allocate()
        arena["count"][slot] = n
        arrays.add(id(arena["h"]))
    assert sorted(arena["count"][: 10 * FIRST_CAPACITY]) == list(range(10 * FIRST_CAPACITY))
    assert arena.capacity == 16 * FIRST_CAPACITY
    assert len(arrays) <= 5


def test_release_slot_is_given_out_again_clean() -> None:
    """A forgotten device leaves nothing behind for the next one."""
    arena = Arena(COLUMNS)
    slot = arena.allocate()
    arena["h"][slot] = 7.0
    arena.release(slot)
    assert arena.allocate() == slot
    np.testing.assert_array_equal(arena["h"][slot], np.zeros(3))


def test_gather_scatter_touches_only_the_slots_named() -> None:
    """Rows come out as copies and go back where they were."""
    arena = Arena(COLUMNS)
    slots = np.array([arena.allocate() for _ in range(4)])
    rows = arena.gather(slots[[2, 0]])
    rows["h"][:] = [[1, 1, 1], [2, 2, 2]]
    assert arena["h"].sum() == 0
    arena.scatter(slots[[2, 0]], rows)
    np.testing.assert_array_equal(arena["h"][slots], [[2, 2, 2], [0, 0, 0], [1, 1, 1], [0, 0, 0]])


def test_dump_load_round_trip() -> None:
    """A device's bytes put back elsewhere are the same device."""
    arena, other = Arena(COLUMNS), Arena(COLUMNS)
    slot, place = arena.allocate(), other.allocate()
    arena["h"][slot], arena["count"][slot], arena["scale"][slot] = [1, 2, 3], 42, [5, 6]
    stored = arena.dump(slot)
    assert len(stored) == arena.row_bytes
    other.load(place, stored)
    assert other.dump(place) == stored


@pytest.mark.parametrize("stored", [b"", b"x" * 3, b"\xff" * 36])
def test_load_damaged_bytes_are_refused_and_change_nothing(stored: bytes) -> None:
    """Wrong lengths and numbers that are not finite never enter the state."""
    arena = Arena(COLUMNS)
    slot = arena.allocate()
    before = arena.dump(slot)
    with pytest.raises(ModelError):
        arena.load(slot, stored)
    assert arena.dump(slot) == before


def test_layout_id_tells_layouts_apart() -> None:
    """Bytes of another shape, type or model are recognised as foreign."""
    same = Arena(COLUMNS, "m").layout_id
    assert Arena(dict(reversed(COLUMNS.items())), "m").layout_id == same
    assert Arena(COLUMNS, "n").layout_id != same
    assert Arena({**COLUMNS, "h": Column((4,))}, "m").layout_id != same
    assert Arena({**COLUMNS, "h": Column((3,), "f8")}, "m").layout_id != same


def test_take_places_keeps_slots_across_arenas() -> None:
    """New weights mean a new arena in which every device keeps its slot, free ones included."""
    old = Arena(COLUMNS)
    slots = [old.allocate() for _ in range(3 * FIRST_CAPACITY)]
    old.release(slots[5])
    new = Arena({"h": Column((9,))})
    new.take_places(old)
    assert len(new) == len(old)
    fresh = {new.allocate() for _ in range(10)}
    assert fresh.isdisjoint(set(slots) - {slots[5]})
