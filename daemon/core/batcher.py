"""Readings -> waves: batches in which each device stands at most once, its readings kept in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gruard.daemon.records import Reading

#: Most readings of one wave: a bigger batch no longer makes the step cheaper per reading.
MOST_READINGS = 512


def waves(readings: Iterable[Reading], most: int = MOST_READINGS) -> list[list[Reading]]:
    """Split readings into waves. The n-th reading of a device is in a later wave than its (n-1)-th."""
    made: list[list[Reading]] = []
    next_wave: dict[str, int] = {}  # device -> first wave it may join
    for reading in readings:
        at = next_wave.get(reading.device, 0)
        while at < len(made) and len(made[at]) >= most:
            at += 1
        if at == len(made):
            made.append([])
        made[at].append(reading)
        next_wave[reading.device] = at + 1
    return made
