"""When to try the broker again, and with which protocol version: pure policy, no clock, no sockets."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

Protocol = Literal["5", "3.1.1"]

#: 2 ** 32 s is past any cap; the bound keeps the power small after months of failures.
_MAX_DOUBLINGS = 32


class Ending(Enum):
    """How one attempt at a connection ended."""

    UNREACHABLE = "unreachable"  # no TCP or TLS connection
    SILENT = "silent"  # no answer to CONNECT in time
    CLOSED_EARLY = "closed early"  # the broker closed instead of answering CONNECT
    VERSION_REFUSED = "version refused"  # CONNACK: unsupported protocol version
    REFUSED = "refused"  # CONNACK: any other refusal (password, client id, busy)
    LOST = "lost"  # accepted, and later it ended
    DEAD = "dead"  # accepted, and later nothing came any more: the link is gone, or the broker's machine
    TAKEN_OVER = "taken over"  # accepted, and ended because another client came with our id


@dataclass
class Reconnect:
    """Full jitter under a capped exponential; MQTT 5 first and 3.1.1 where that is not spoken.

    While nobody answers at all, a try costs one packet and the link may be back at any moment: those waits
    stay below `absent_cap_s`, however often the link dies. Whoever answers and sends us away is asked ever
    more seldom, up to `cap_s`.

    The first retry after a settled connection is fast, because a broker that restarts is back at once. A
    connection that ends before it has settled counts as a failure, and the next one comes `apart_s` after it
    at the earliest: two clients that share one id and throw each other out would otherwise do so several
    times a second. A refusal and a known takeover wait that long at least, too.

    A broker of the older version refuses by name, or simply closes. A close may also be a broker that is
    just going down, so only the second one in a row counts as a refusal. Every outage starts again with
    `preferred`: the older version has no receive maximum and no packet limit.
    """

    preferred: Protocol
    first_s: float = 0.2
    base_s: float = 1.0
    absent_cap_s: float = 3.0
    cap_s: float = 30.0
    apart_s: float = 5.0
    settled_s: float = 10.0
    protocol: Protocol = field(init=False)  # of the next attempt
    failures: int = field(default=0, init=False)  # in a row, of a broker that answers
    absences: int = field(default=0, init=False)  # in a row, of one that does not
    thrown_out: int = field(default=0, init=False)  # connections in a row that ended unsettled
    _early_closes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.protocol = self.preferred

    def next_delay_s(self, ending: Ending, lived_s: float, jitter: float) -> float:
        """Note how an attempt ended; return the wait before the next, which uses `protocol`.

        `lived_s`: seconds since the broker accepted the connection (of LOST and TAKEN_OVER). `jitter`: in
        [0, 1).
        """
        if self._speaks_older_version(ending):
            self.protocol = "3.1.1"
            self._early_closes = 0
            return 0.0
        self._early_closes = self._early_closes + 1 if ending is Ending.CLOSED_EARLY else 0
        self.protocol = self.preferred
        if ending in {Ending.UNREACHABLE, Ending.DEAD}:
            self.thrown_out = 0  # a takeover leaves the broker where it is
            ceiling_s = min(self._ceiling_s(self.absences), self.absent_cap_s)
            self.absences += 1
            return ceiling_s * jitter
        self.absences = 0
        return self._delay_of_present_s(ending, lived_s, jitter)

    def _delay_of_present_s(self, ending: Ending, lived_s: float, jitter: float) -> float:
        least_s = self.apart_s if ending in {Ending.REFUSED, Ending.TAKEN_OVER} else 0.0
        if ending in {Ending.LOST, Ending.TAKEN_OVER}:
            if lived_s >= self.settled_s:
                self.failures = self.thrown_out = 0
            else:
                self.thrown_out += 1
                least_s = max(least_s, self.apart_s - lived_s)
        ceiling_s = min(self._ceiling_s(self.failures), self.cap_s - least_s)
        self.failures += 1
        return least_s + ceiling_s * jitter

    def _speaks_older_version(self, ending: Ending) -> bool:
        if self.protocol != "5":
            return False
        return ending is Ending.VERSION_REFUSED or (ending is Ending.CLOSED_EARLY and self._early_closes > 0)

    def _ceiling_s(self, before: int) -> float:
        """Of the wait after `before` failures and this one."""
        if before == 0:
            return self.first_s
        return min(self.cap_s, self.base_s * 2.0 ** min(before - 1, _MAX_DOUBLINGS))
