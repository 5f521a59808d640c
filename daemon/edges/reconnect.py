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

    UNREACHABLE = "unreachable"  # no TCP or TLS connection, or no answer to CONNECT in time
    CLOSED_EARLY = "closed early"  # the broker closed instead of answering CONNECT
    VERSION_REFUSED = "version refused"  # CONNACK: unsupported protocol version
    REFUSED = "refused"  # CONNACK: any other refusal (password, client id, busy)
    LOST = "lost"  # accepted, and later it ended


@dataclass
class Reconnect:
    """Full jitter under a capped exponential; MQTT 5 first and 3.1.1 where that is not spoken.

    The first retry after a settled connection is fast, because a broker that restarts is back at once. A
    connection that ends before it has settled counts as a failure: two clients that share one id and throw
    each other out would otherwise do so several times a second.

    A broker of the older version refuses by name, or simply closes. A close may also be a broker that is
    just going down, so only the second one in a row counts as a refusal. Every outage starts again with
    `preferred`: the older version has no receive maximum and no packet limit.
    """

    preferred: Protocol
    first_s: float = 0.2
    base_s: float = 1.0
    cap_s: float = 30.0
    settled_s: float = 10.0
    protocol: Protocol = field(init=False)  # of the next attempt
    failures: int = field(default=0, init=False)
    _early_closes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.protocol = self.preferred

    def next_delay_s(self, ending: Ending, lived_s: float, jitter: float) -> float:
        """Note how an attempt ended; return the wait before the next, which uses `protocol`.

        `lived_s`: seconds since the broker accepted the connection (only for LOST). `jitter`: in [0, 1).
        """
        if self._speaks_older_version(ending):
            self.protocol = "3.1.1"
            self._early_closes = 0
            return 0.0
        self._early_closes = self._early_closes + 1 if ending is Ending.CLOSED_EARLY else 0
        self.protocol = self.preferred
        if ending is Ending.LOST and lived_s >= self.settled_s:
            self.failures = 0
        ceiling_s = self._ceiling_s()
        self.failures += 1
        return ceiling_s * jitter

    def _speaks_older_version(self, ending: Ending) -> bool:
        if self.protocol != "5":
            return False
        return ending is Ending.VERSION_REFUSED or (ending is Ending.CLOSED_EARLY and self._early_closes > 0)

    def _ceiling_s(self) -> float:
        if self.failures == 0:
            return self.first_s
        return min(self.cap_s, self.base_s * 2.0 ** min(self.failures - 1, _MAX_DOUBLINGS))
