"""Whether the broker still hands over what waited while we were away. Pure counting: no clock, no sockets.

A broker answers a ping after everything that it could send before it, and while messages wait it keeps its
window of open messages full. By its own count it has open, when it answers, what was open here when the ping
left and what came in between. A count well below the most that were ever open therefore says that the window
has room and nothing waits to fill it. The size of the window need not be known, and a stream of live messages
does not hide the end of the backlog.

"Well below" is at most half, because mosquitto 2.0.11 sends somewhat more than its window.
"""

from __future__ import annotations


class Backlog:
    """Of one connection. `waits` is True from `begin` until the broker has caught up."""

    def __init__(self) -> None:
        self.waits = False
        self._most_open = 0  # QoS 1 messages that were ever open at once on this connection
        self._asked = False  # our ping is on its way
        self._open = 0  # what the broker has open, as far as its answer will show

    def begin(self) -> None:
        """Say that messages may wait: the session is resumed, or we have held the broker up for long."""
        self.waits = True

    def received(self, count: int, still_open: int) -> None:
        """Note QoS 1 messages that arrived, and how many are now without an acknowledgement."""
        self._most_open = max(self._most_open, still_open)
        self._open += count

    def must_ask(self, still_open: int) -> bool:
        """Whether a ping could show the end now. False while one is under way or the answer is known."""
        return self.waits and not self._asked and still_open <= self._most_open // 2

    def asked(self, still_open: int) -> None:
        """Note that a ping left, behind every acknowledgement given so far."""
        self._asked, self._open = True, still_open

    def answered(self) -> None:
        """Note the answer to a ping; one that was not ours shows nothing."""
        if self._asked:
            self._asked = False
            self.waits = self._open > self._most_open // 2
