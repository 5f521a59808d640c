"""Enrolment: the engine asks for devices' recent readings, the database has them."""

from __future__ import annotations

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

#: Devices enrolled in one go: bounds the memory that a change of weights takes.
ENROL_CHUNK = 16


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
        for chunk in chunks(events, ENROL_CHUNK):
            heartbeat()
            histories = {
                e.device: history_of(
                    database.history(e.device, fields, e.limit, before_lsn), judged.get(e.device, ())
                )
                for e in chunk
            }
            engine.enrol({name: history for name, history in histories.items() if name in engine.devices})
            due[:] = [event for event in due if event not in chunk]


def history_of(stored: StoredHistory, judged: Iterable[Span] = ()) -> History:
    """A device's stored rows as enrolment wants them: none that an operator says was a fault.

    What is normal by an operator's word is left as it was scored: it is known by its pattern, and must not
    widen what everything else is measured by.
    """
    normal = (stored.flags & IN_ALARM) == 0
    return History(stored.time_s, stored.values, taught(stored.time_s, normal, judged, faults_only=True))


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Items in lists of at most `size`."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
