"""How a training child conducts itself: it yields to all, waits when asked, and ends in order.

Everything here is for the child's main thread. The other side is `gruard.daemon.edges.trainer`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.edges.trainer import TrainProgress
from gruard.daemon.errors import GruardError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: Niceness at which a round yields to all.
LOWEST = 19
#: How often a child that waits looks whether anybody still wants it.
ORPHAN_S = 5.0


class OutOfTimeError(GruardError):
    """The round has used the processor time that it may have."""


def yield_to_all(nice: int) -> None:
    """Take the priority asked for; at the lowest also only what processor and disk have left over.

    The kernel gives a process of the idle policy the idle class of disk access too. Where it does not allow
    the policy, niceness alone must do.
    """
    os.nice(nice)
    if nice >= LOWEST:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class Conduct:
    """What a child hears from outside, and what it tells."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._waited_s = 0.0
        # Kept for `_wait` to take: a SIGCONT that came between the question and the wait must not be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})
        signal.signal(signal.SIGTSTP, self._wait)
        signal.signal(signal.SIGXCPU, self._out_of_time)

    def clock(self) -> float:
        """Monotonic seconds in which the round did not wait."""
        return time.monotonic() - self._waited_s

    def tell(self, stage: str, done: float) -> None:
        """Tell how far the round has come, 0..1; end it where nobody listens any more."""
        self._end_if_orphaned()
        line = msgspec.json.encode(TrainProgress(stage, round(done, 3)))
        sys.stdout.flush()
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """While something is held that others need, such as a view of the database, no pause begins."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})

    def _wait(self, _number: int, _frame: FrameType | None) -> None:
        # Not by SIGSTOP: nobody would wake us once our parent is gone.
        began_s = time.monotonic()
        with self.holding():
            while signal.sigtimedwait({signal.SIGCONT}, ORPHAN_S) is None:
                self._end_if_orphaned()
            self._waited_s += time.monotonic() - began_s

    def _end_if_orphaned(self) -> None:
        if os.getppid() != self._parent:
            sys.exit("the daemon has ended")

    def _out_of_time(self, _number: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError("out of processor time")
