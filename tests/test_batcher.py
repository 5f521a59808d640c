"""Waves: every device at most once, order kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support_engine import reading

from gruard.daemon.core.batcher import waves


def test_waves_distinct_devices_make_one_wave() -> None:
    """Readings of different devices are one batch."""
    assert [len(w) for w in waves([reading(f"d{n}", 0, {}) for n in range(7)])] == [7]


def test_waves_full_wave_spills_into_the_next() -> None:
    """A wave never holds more than its limit."""
    assert [len(w) for w in waves([reading(f"d{n}", 0, {}) for n in range(7)], most=3)] == [3, 3, 1]


@given(st.lists(st.sampled_from("abcde"), max_size=60), st.integers(1, 8))
def test_waves_keep_each_device_in_order_and_lose_nothing(names: list[str], most: int) -> None:
    """Whatever arrives: no device twice in a wave, each device's readings in order, none lost."""
    readings = [reading(name, n, {}) for n, name in enumerate(names)]
    made = waves(readings, most)
    assert all(len({r.device for r in wave}) == len(wave) <= most for wave in made)
    flat = [r for wave in made for r in wave]
    for name in set(names):
        assert [r.time_s for r in flat if r.device == name] == [
            r.time_s for r in readings if r.device == name
        ]
    assert len(flat) == len(readings)
