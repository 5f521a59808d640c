"""Too many alerts at once: a few are told one by one, the rest are counted, and one alert speaks for them.

    decide(alert, now)   whether the event is published; what is held back is counted in `suppressed`
    summary(now)         the one alert about those held back, when it has something new to say

Openings are paid from a bucket that refills at `most_per_minute`. Of an alert whose opening was held back
nothing is told, until one of its updates finds room. What is not known to be held back counts as told, so a
limiter that begins with nothing after a restart says at worst the end of an alert that nobody heard of.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gruard.daemon.core.alerts import SEVERITY_ORDER, alert_id
from gruard.daemon.core.events import Alert
from gruard.daemon.core.groups import BASELINE

if TYPE_CHECKING:
    from gruard.daemon.records import AlertState, Severity

#: Seconds between two words on the same storm, and without a held back event until it is over.
UPDATE_EVERY_S, OVER_AFTER_S = 60.0, 120.0
#: The one field of the summary.
FIELD = "suppressed"


class Storm:
    """The limiter. `now` is the caller's monotonic clock in seconds.

    `open_id`, `opened_s`: the summary that a run before this one left open, so that it finds its end.
    """

    def __init__(
        self, instance: str, most_per_minute: float = 60.0, *, open_id: str = "", opened_s: float = 0.0
    ) -> None:
        self.suppressed = 0  # alert events held back so far
        self._instance, self._most = instance, most_per_minute
        self._room, self._paid_at = most_per_minute, 0.0
        self._untold: set[str] = set()  # ids of open alerts that nobody was told of
        self._id, self._opened_s = open_id, opened_s
        self._severity: Severity = "info"
        self._held = self._passed = self._told = 0  # events in this storm: held back, published; held as told
        self._told_at = -math.inf
        self._held_at: float | None = None  # `now` of the last event held back
        self._time_s = opened_s  # and when that was, Unix seconds

    @property
    def untold(self) -> int:
        """Open alerts that nobody was told of."""
        return len(self._untold)

    def decide(self, alert: Alert, now: float, *, room: bool = True) -> bool:
        """Whether to publish an event of an alert. `room`: whether what carries it can take more.

        The end of an alert that was told is always published, room or not: it comes once an alert.
        """
        publish = self._passes(alert, now, room=room)
        if publish:
            self._passed += 1
            return True
        self.suppressed += 1
        self._held += 1
        self._held_at = now
        self._time_s = max(self._time_s, alert.time_s + (alert.late_s or 0.0))
        self._severity = max(self._severity, alert.severity, key=SEVERITY_ORDER.index)
        return False

    def summary(self, now: float) -> Alert | None:
        """One alert about all that is held back: opened, updated at most once a minute, resolved."""
        if self._held_at is None:
            self._held_at = now  # nothing held back yet, but a storm may be open from before
        if not self._id:
            if not self._held:
                self._passed = 0
                return None
            self._opened_s = self._time_s
            self._id = alert_id(self._instance, self._instance, self._opened_s, self.suppressed)
            return self._tell("opened", now)
        if now - self._held_at >= OVER_AFTER_S:
            over = self._tell("resolved", now)
            self._id, self._severity, self._time_s = "", "info", 0.0
            self._held = self._passed = 0
            return over
        if self._held > self._told and now - self._told_at >= UPDATE_EVERY_S:
            return self._tell("updated", now)
        return None

    def _passes(self, alert: Alert, now: float, *, room: bool) -> bool:
        untold = alert.id in self._untold
        if alert.state == "resolved":
            self._untold.discard(alert.id)
            return not untold
        if alert.state == "updated" and not untold:
            return room
        if room and self._pay(now):
            self._untold.discard(alert.id)
            return True
        self._untold.add(alert.id)
        return False

    def _pay(self, now: float) -> bool:
        grown = max(now - self._paid_at, 0.0) * self._most / 60.0
        self._room, self._paid_at = min(self._room + grown, self._most), now
        if self._room < 1.0:
            return False
        self._room -= 1.0
        return True

    def _tell(self, state: AlertState, now: float) -> Alert:
        self._told, self._told_at = self._held, now
        since_s = 0.0 if self._held_at is None else max(now - self._held_at, 0.0)
        return Alert(
            id=self._id,
            state=state,
            severity=self._severity,
            device=self._instance,
            source="",
            group="",
            time_s=max(self._time_s + since_s, self._opened_s),
            opened_s=self._opened_s,
            score=self._held / max(self._held + self._passed, 1),  # share of the events held back
            threshold=0.0,
            value={FIELD: float(self._held)},
            expected={FIELD: 0.0},
            deviation={FIELD: None},
            contributions=((FIELD, 1.0),),
            model=BASELINE,
            sentence=self._sentence(state),
        )

    def _sentence(self, state: AlertState) -> str:
        still = f"{len(self._untold)} of those alerts are still open"
        if state == "resolved":
            return (
                f"{self._instance} tells alerts one by one again:"
                f" {self._held} alert events were held back, {still}."
            )
        return (
            f"{self._instance} sees too many alerts to tell them one by one"
            f" (at most {self._most:.0f} a minute): {self._held} alert events are held back, {still}."
        )
