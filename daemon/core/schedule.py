"""When is a group's next training round due, and why? Pure policy: time and counts in, a reason out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

#: Why a round begins: the group has no model yet; the time is up; enough was read since the round before; the
#: live model has become worse; somebody asked for it; it was cut off by an end of the daemon.
RoundReason: TypeAlias = Literal["first", "time", "readings", "drift", "command", "resumed"]
ROUND_REASONS: tuple[RoundReason, ...] = get_args(RoundReason)
#: A first round that failed is tried again after this long, or after `every_s` where that is shorter.
RETRY_S = 300.0
#: The running skill is looked at each time the device that has shown most has shown so many more readings:
#: half of the time constant of the errors it is made from (models/group.py).
LOOK_READINGS = 200
#: Looks that are passed over after a change of weights, and looks that then show what is usual for them.
SKIP_LOOKS, SETTLE_LOOKS = 2, 6
#: Fallen: the model's error, in errors of the last value, is above the worst that was usual by this factor,
#: at so many looks in a row.
FALLEN_FACTOR, FALLEN_LOOKS = 1.25, 3
#: Skill is compared as 1 - skill, at least this: a model without errors may make some.
LEAST_ERROR = 0.02


@dataclass(slots=True)
class _Watch:
    """The running skill of one live model since it took charge."""

    seen: int  # readings of the device that had shown most, at the newest look
    looks: int = 0
    worst: float = LEAST_ERROR
    below: int = 0

    def note(self, error: float) -> None:
        self.looks += 1
        if self.looks <= SKIP_LOOKS:
            return
        if self.looks <= SKIP_LOOKS + SETTLE_LOOKS:
            self.worst = max(self.worst, error)
        else:
            self.below = self.below + 1 if error > FALLEN_FACTOR * self.worst else 0


@dataclass(slots=True)
class Schedule:
    """Per group: the first round as soon as a device has shown enough, then by time, readings and drift.

    `every_s` None: training is off, except by command. After a restart the clock, the count and the watch
    begin anew, so that a restart costs no round.
    """

    every_s: float | None
    warmup: int
    after_readings: int | None = None  # more of them, of the device that has shown most; None: no such round
    on_drift: bool = False
    least_pause_s: float = 0.0  # between a round's end and one by readings or drift; `every_s` where shorter
    _next_s: dict[str, float] = field(default_factory=dict)
    _ended_s: dict[str, float] = field(default_factory=dict)
    _counted: dict[str, int] = field(default_factory=dict)  # what had been shown when the newest round began
    _watches: dict[str, _Watch] = field(default_factory=dict)

    def why(self, group: str, *, has_model: bool, most_readings: int, now: float) -> RoundReason | None:
        """Why a round is due, or None: `most_readings` is of the device of the group that has shown most."""
        if self.every_s is None or most_readings < self.warmup:
            return None
        if group not in self._next_s:
            if not has_model:
                return "first"
            # Restarted with a live model: do not train at once, every restart would cost a round.
            self._next_s[group] = now + self.every_s
            self._ended_s[group] = now
        counted = self._counted.setdefault(group, most_readings)
        if now >= self._next_s[group]:
            return "time" if has_model else "first"
        if not has_model or now - self._ended_s[group] < min(self.least_pause_s, self.every_s):
            return None
        if self.after_readings is not None and most_readings - counted >= self.after_readings:
            return "readings"
        watch = self._watches.get(group)
        return "drift" if watch is not None and watch.below >= FALLEN_LOOKS else None

    def must_look(self, group: str, most_readings: int) -> bool:
        """Whether the running skill of the group's live model is to be noted now."""
        if not self.on_drift or self.every_s is None:
            return False
        watch = self._watches.get(group)
        if watch is None:
            self._watches[group] = _Watch(most_readings)
            return False
        return most_readings - watch.seen >= LOOK_READINGS

    def note_skill(self, group: str, skill: float, most_readings: int) -> None:
        """Note the running skill, 1 - error / error of the last value; NaN: no device is with the model."""
        watch = self._watches[group]
        watch.seen = most_readings
        if not math.isnan(skill):
            watch.note(1.0 - skill)

    def began(self, group: str, most_readings: int) -> None:
        """A round of the group began, on what was shown so far."""
        self._counted[group] = most_readings

    def ended(self, group: str, *, promoted: bool, has_model: bool, now: float) -> None:
        """A round of the group ended. What is usual for its model is found out anew."""
        every_s = self.every_s or 0.0
        self._next_s[group] = now + (every_s if promoted or has_model else min(every_s, RETRY_S))
        self._ended_s[group] = now
        # A rejected candidate leaves the old model, which then is as good as any: no round after round.
        self._watches.pop(group, None)
