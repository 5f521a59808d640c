"""What the journal keeps of a reading beside its numbers, as one integer.

bit 0   the device was in alarm under a model, so the reading must not teach
bit 1   the reading came with a backlog
bits 8  sequence + 1, where the payload had one
"""

from __future__ import annotations

IN_ALARM, REPLAYED = 1, 2
_SEQUENCE_SHIFT = 8


def flags_of(*, in_alarm: bool, replayed: bool, sequence: int | None) -> int:
    """The integer; `sequence` is below 2 ** 54."""
    flags = IN_ALARM * in_alarm | REPLAYED * replayed
    return flags if sequence is None else flags | (sequence + 1) << _SEQUENCE_SHIFT


def sequence_of(flags: int) -> int | None:
    """The sequence number in the flags, if there is one."""
    return (flags >> _SEQUENCE_SHIFT) - 1 if flags >> _SEQUENCE_SHIFT else None
