"""What people are told of an alarm, and when. One table, no nested ifs; the rules stand beside it.

    state      the device is               event      next
    quiet      in alarm                    opened     open
    open       in alarm, more severe       updated    open
    open       in alarm, update is due     updated    open
    open       in alarm no longer          resolved   quiet

When a device is in alarm, `gruard.models.alarm` alone decides: whether one wild value is enough, and when it
is over, is not asked again here. The id is a hash of instance, device, opening time and the number of the
reading: the same readings give the same ids, live or replayed.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from gruard.daemon.records import AlertState, Severity

#: Severity by u / u at the threshold, where score = u^2 / (1 + u^2).
SEVERITY_STEPS: tuple[tuple[float, Severity], ...] = ((2.5, "critical"), (1.3, "warning"), (0.0, "info"))
SEVERITY_ORDER: tuple[Severity, ...] = ("info", "warning", "critical")


class Track(msgspec.Struct):
    """The alert state of one device. Part of its checkpoint."""

    id: str = ""  # empty: quiet
    opened_s: float = 0.0
    told_s: float = 0.0  # event time of the last event about this alert
    severity: str = "info"  # as told last


def severity_of(score: float, threshold: float, *, learning: bool) -> Severity:
    """How bad: by how many times the threshold's u is exceeded. The baseline never says critical."""
    ratio = _u(score) / max(_u(threshold), 1e-6)
    severity = next(name for step, name in SEVERITY_STEPS if ratio >= step)
    return "warning" if learning and severity == "critical" else severity


def follow(
    track: Track,
    *,
    alarm: bool,
    time_s: float,
    update_every_s: float,
    severity: Severity,
    new_id: str,
) -> AlertState | None:
    """Move a device's alert past one scored reading; returns the event to tell, if any. Changes `track`."""
    if not track.id:
        if not alarm:
            return None
        track.id, track.opened_s, track.told_s, track.severity = new_id, time_s, time_s, severity
        return "opened"
    # Where the device's clock went back, nothing was told later than now.
    track.opened_s, track.told_s = min(track.opened_s, time_s), min(track.told_s, time_s)
    if not alarm:
        track.id = ""
        return "resolved"
    worse = SEVERITY_ORDER.index(severity) > SEVERITY_ORDER.index(_severity(track.severity))
    if worse or time_s - track.told_s >= update_every_s:
        track.told_s, track.severity = time_s, severity
        return "updated"
    return None


def alert_id(instance: str, device: str, opened_s: float, count: int) -> str:
    """The same for the same device, moment and reading, and no other: 16 hex digits.

    `count`: readings applied to the device. A clock that is set back shows a moment twice, no reading.
    """
    return hashlib.sha256(f"{instance}\0{device}\0{opened_s!r}\0{count}".encode()).hexdigest()[:16]


def _severity(name: str) -> Severity:
    return next(known for known in SEVERITY_ORDER if known == name)


def _u(score: float) -> float:
    score = min(max(score, 0.0), 0.999999)
    return math.sqrt(score / (1.0 - score))
