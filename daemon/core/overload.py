"""Is scoring behind? Then training waits. Pure policy: counts and time come in.

A queue that fills for a moment is how batches come about; one that stays long is an overload. The time for
which it was long adds up, the time for which it was not takes away as much.
"""

from __future__ import annotations

#: Seconds of a long queue that make an overload, and the most that add up: the longest until it is over.
PAUSE_AFTER_S, GO_ON_AFTER_S = 1.0, 5.0


class Overload:
    """`is_on` from when more than `bound` readings have waited for long, until they are worked off."""

    def __init__(self, bound: int) -> None:
        self.is_on = False
        self._bound = bound
        self._long_s = 0.0
        self._noted_s: float | None = None

    def note(self, waiting: int, now: float) -> None:
        """Note how many readings wait; `now` is monotonic seconds."""
        passed_s = 0.0 if self._noted_s is None else now - self._noted_s
        self._noted_s = now
        change_s = passed_s if waiting > self._bound else -passed_s
        self._long_s = min(max(self._long_s + change_s, 0.0), GO_ON_AFTER_S)
        if self._long_s >= PAUSE_AFTER_S:
            self.is_on = True
        elif self._long_s == 0.0:
            self.is_on = False
