"""Every error that gruard raises on purpose. One small tree; the class says who is to blame."""

from __future__ import annotations


class GruardError(Exception):
    """Base of the tree. Its text is one sentence for a person, never a traceback."""


class ConfigError(GruardError):
    """The configuration is wrong: the user mends it. The command line exits with 78."""


class DecodeError(GruardError):
    """A message cannot become a reading: the publisher is to blame. Counted by `reason`, never fatal.

    `reason` is one of `gruard.daemon.records.REJECT_REASONS`, so that it can be a metric label.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class BrokerError(GruardError):
    """The broker cannot be reached or refuses us. One-shot commands exit with 75."""


class StateError(GruardError):
    """The state directory or the database cannot be used."""


class LostLogError(StateError):
    """The database's write-ahead log was deleted under it: what it holds is in no file with a name."""


class ListenError(GruardError):
    """The address for HTTP cannot be listened on: in use, not ours, or not allowed."""
