"""Enrolment: the engine asks for devices' recent readings, the database has them."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from gruard.daemon.core.flags import IN_ALARM
from gruard.daemon.core.words import taught
from gruard.models.history import History

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gruard.daemon.core.engine import Engine
    from gruard.daemon.core.events import EnrolDue
    from gruard.daemon.core.words import Span
    from gruard.daemon.edges.history import Reader
    from gruard.daemon.edges.rows import History as StoredHistory

T = TypeVar("T")

#: Fields of all devices enrolled in one go, fewest and most devices: bounds the memory that a change
#: of weights takes. A step over many devices costs little more than one over few, and scoring waits for it.
ENROL_FIELDS, FEWEST, MOST = 1024, 16, 64


def enrol(
    engine: Engine,
    database: Reader,
    due: list[EnrolDue],
    heartbeat: Callable[[], None],
    before_lsn: int | None = None,
) -> None:
    """Enrol devices on their readings before an LSN (None: all), and take them off the list as that is done.

    Raises:
        StateError: the history cannot be read; who is still on the list is still due.
    """
    wanted: dict[tuple[str, ...], list[EnrolDue]] = {}
    for event in due:
        wanted.setdefault(event.fields, []).append(event)
    # Words as old as the newest of these readings were said after it.
    judged = database.judged(None if before_lsn is None else before_lsn - 1) if wanted else {}
    for fields, events in wanted.items():
        for chunk in chunks(events, at_a_time(len(fields))):
            heartbeat()
            histories = {
                e.device: history_of(
                    database.history(e.device, fields, e.limit, before_lsn),
                    judged.get(e.device, ()),
                    e.normal_from_s,
                    e.normal_to_s,
                )
                for e in chunk
            }
            engine.enrol({name: history for name, history in histories.items() if name in engine.devices})
            due[:] = [event for event in due if event not in chunk]


def at_a_time(fields: int) -> int:
    """How many devices of so many fields are enrolled in one go."""
    return min(max(ENROL_FIELDS // max(fields, 1), FEWEST), MOST)


def history_of(
    stored: StoredHistory,
    judged: Iterable[Span] = (),
    normal_from_s: float = -math.inf,
    normal_to_s: float = -math.inf,
) -> History:
    """A device's stored rows as enrolment wants them, without those before its newest normal.

    Rows from `normal_from_s` to `normal_to_s` are normal whatever alarm they were in; none is that an
    operator says was a fault. What is normal by an operator's word is left as it was scored: it is known by
    its pattern, and must not widen what everything else is measured by.
    """
    since = stored.time_s >= normal_from_s
    time_s, values, flags = stored.time_s[since], stored.values[since], stored.flags[since]
    normal = ((flags & IN_ALARM) == 0) | (time_s <= normal_to_s)
    return History(time_s, values, taught(time_s, normal, judged, faults_only=True))


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Items in lists of at most `size`."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
