"""How fast a device comes to be judged: when it was first scored, and when the model first took charge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gruard.daemon.core.events import Reached

if TYPE_CHECKING:
    from gruard.daemon.core.devices import Device
    from gruard.daemon.records import Reading


def note(device: Device, reading: Reading, *, scored: bool, ready: bool) -> list[Reached]:
    """Move a device's milestones past a reading that was applied: what it has reached with it, if anything.

    By the arrival of its readings, which is what people wait for. A device that was known before milestones
    were kept has no beginning, and reaches nothing.
    """
    if device.count == 1:
        device.first_s = reading.received_s
    if device.first_s is None:
        return []
    found = []
    passed_s = max(reading.received_s - device.first_s, 0.0)
    if scored and device.first_score_s is None:
        device.first_score_s = passed_s
        found.append(Reached(device.name, "first_score", passed_s, device.count))
    if ready and device.ready_s is None:
        device.ready_s = passed_s
        found.append(Reached(device.name, "ready", passed_s, device.count))
    return found
