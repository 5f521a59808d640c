"""When is a group's next training round due? Pure policy: time comes in, a decision goes out."""

from __future__ import annotations

from dataclasses import dataclass, field

#: A first round that failed is tried again after this long, or after `every_s` where that is shorter.
RETRY_S = 300.0


@dataclass(slots=True)
class Schedule:
    """Per group: the first round as soon as a device has shown enough, then one every `every_s`.

    `every_s` None: training is off.
    """

    every_s: float | None
    warmup: int
    _next_s: dict[str, float] = field(default_factory=dict)

    def is_due(self, group: str, *, has_model: bool, most_readings: int, now: float) -> bool:
        """Whether a round may start: `most_readings` is of the device of the group that has shown most."""
        if self.every_s is None or most_readings < self.warmup:
            return False
        if group not in self._next_s:
            if not has_model:
                return True
            # Restarted with a live model: do not train at once, every restart would cost a round.
            self._next_s[group] = now + self.every_s
        return now >= self._next_s[group]

    def ended(self, group: str, *, promoted: bool, has_model: bool, now: float) -> None:
        """A round of the group ended."""
        every_s = self.every_s or 0.0
        self._next_s[group] = now + (every_s if promoted or has_model else min(every_s, RETRY_S))
