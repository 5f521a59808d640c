"""What the journal keeps of a reading beside its numbers comes back as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruard.daemon.core.flags import IN_ALARM, REPLAYED, flags_of, sequence_of


@given(st.booleans(), st.booleans(), st.none() | st.integers(0, 2**54 - 1))
def test_flags_hold_alarm_backlog_and_sequence(
    in_alarm: bool,  # noqa: FBT001 - drawn
    replayed: bool,  # noqa: FBT001
    sequence: int | None,
) -> None:
    """Each is read back whatever the others are, and all of it fits SQLite's signed 64 bits."""
    flags = flags_of(in_alarm=in_alarm, replayed=replayed, sequence=sequence)
    assert (bool(flags & IN_ALARM), bool(flags & REPLAYED), sequence_of(flags)) == (
        in_alarm,
        replayed,
        sequence,
    )
    assert 0 <= flags < 2**63


@pytest.mark.parametrize(
    ("flags", "in_alarm", "replayed", "sequence"),
    [
        (0, False, False, None),
        (1, True, False, None),
        (2, False, True, None),
        (0x103, True, True, 0),
        (0x2A00, False, False, 41),
    ],
)
def test_flags_are_laid_out_as_in_databases_already_written(
    flags: int, *, in_alarm: bool, replayed: bool, sequence: int | None
) -> None:
    """The integers stand in users' journals, so their meaning never changes."""
    assert flags_of(in_alarm=in_alarm, replayed=replayed, sequence=sequence) == flags
    assert sequence_of(flags) == sequence
