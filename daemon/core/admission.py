"""Who gives up a place when all are taken: an id that never became a device, or a device that is long gone.

A flood of invented ids fills what is free and no more: it can take the place of neither an established
device nor a new one that still speaks, and what it costs is bounded, because places are looked for only a few
times a second.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gruard.models.group import BASELINE_READY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from gruard.daemon.core.devices import Device

#: Readings that make a device of an id: from there on it may raise alarms.
ESTABLISHED = BASELINE_READY
#: An id that has not shown as many may be dropped after this long without a reading.
NEWCOMER_LIMIT_S = 600.0
#: At most one look for a place in so many seconds of arrival time: a look goes over all devices.
LOOK_EVERY_S = 0.25
#: Arrival times that jump by more than this are a clock that was set, or a daemon that was off.
JUMP_S = 86_400.0


class Admission:
    """Looks for places. Knows nothing that must survive a restart."""

    def __init__(self, idle_limit_s: float, devices: Iterable[Device] = ()) -> None:
        self._idle_limit_s = idle_limit_s
        self._now_s = max((device.arrived_s for device in devices), default=-math.inf)
        self._since_s = -math.inf  # silence is counted from here: nobody could be heard before
        self._looked_s = -math.inf

    def passes(self, now_s: float) -> None:
        """Note the arrival time of a reading, Unix seconds."""
        if abs(now_s - self._now_s) > JUMP_S and self._now_s > -math.inf:
            self._since_s = now_s
        self._now_s = now_s

    def may_look(self, now_s: float) -> bool:
        """Whether it is time for another look. A clock that was set back does not stop it."""
        return not 0.0 <= now_s - self._looked_s < LOOK_EVERY_S

    def leaver(
        self, devices: Iterable[Device], spared: Collection[str], now_s: float
    ) -> tuple[Device, str] | None:
        """The device that may be dropped for a new one, and why: the one silent longest, newcomers first."""
        self.passes(now_s)
        self._looked_s = now_s
        found, longest = None, (False, 0.0, "")
        for device in devices:
            newcomer = device.count < ESTABLISHED
            # Heard in a future that a wrong clock made up tells nothing.
            heard_s = device.arrived_s if device.arrived_s <= now_s + JUMP_S else -math.inf
            silent_s = now_s - max(heard_s, self._since_s)
            if silent_s < (NEWCOMER_LIMIT_S if newcomer else self._idle_limit_s) or device.name in spared:
                continue
            mine = (newcomer, silent_s, device.name)
            if mine > longest:
                found, longest = device, mine
        return None if found is None else (found, "never_established" if longest[0] else "idle")
