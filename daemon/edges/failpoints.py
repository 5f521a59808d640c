"""Named places where a test may kill the daemon: before and after each step that makes something durable.

`GRUARD_FAILPOINT=commit.before:3` ends the process with SIGKILL when it comes to `commit.before` for the
third time. Without the variable every call does nothing.
"""

from __future__ import annotations

import os
import signal
from typing import Final

#: Every failpoint there is; reaching another name is an error.
NAMES: Final = (
    "take.after",  # messages left the inbox
    "score.after",  # the state in memory moved, nothing is written
    "journal.before",  # the group goes into the transaction
    "journal.after",
    "commit.before",
    "commit.after",  # durable, and the broker does not know
    "ack.after",  # acknowledgements are queued
    "publish.before",  # an alert goes to the broker
    "publish.after",
    "outbox.done",  # the broker has it, and the outbox is about to forget it
    "checkpoint.before",
    "checkpoint.after",  # written, not committed
    "prune.before",
    "prune.after",
    "model.before",  # new weights are about to take charge
    "model.after",  # they are in charge in memory, and the switch is not committed
    "recover.before",
    "recover.replayed",  # a batch of the journal was replayed
    "recover.after",
    "stop.before",  # a clean stop begins
)
_ARMED: Final = os.environ.get("GRUARD_FAILPOINT", "")
_name, _, _count = _ARMED.partition(":")
_left: int = int(_count or 1) if _ARMED else 0


def reach(name: str) -> None:
    """Come to a failpoint; the process ends here when it is armed and its count is up."""
    global _left  # noqa: PLW0603 - one process, one count
    if name not in NAMES:
        raise ValueError(f"there is no failpoint {name}")
    if name != _name:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
