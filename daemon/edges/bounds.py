"""Keeping the database within bounds: readings by number, size and age, and what is over and done with."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

import numpy as np

from gruard.daemon.edges.history import HIGHEST_LSN
from gruard.daemon.edges.journal import Journal
from gruard.daemon.edges.packs import PACK_RECORDS, pack_range, record_layout

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A device is cut back once it is over its cap by one part in so many: pruning by single readings would
#: rewrite a pack for each.
_SLACK: Final = 16
#: So many devices are looked at in vain in one call: each look is a query.
_LOOKS: Final = 256
#: What is over and done with, how much of it is kept, and how the oldest goes: each a bound on the disk.
_ENDED: Final = (
    (
        "SELECT count(*) FROM alerts",
        10_000,
        (
            "DELETE FROM alerts WHERE rowid IN"
            " (SELECT rowid FROM alerts WHERE resolved_s IS NOT NULL ORDER BY updated_s LIMIT ?)"
        ),
    ),
    (
        "SELECT count(*) FROM models",
        1000,
        (
            "DELETE FROM models WHERE rowid IN"
            " (SELECT rowid FROM models WHERE status IN ('retired', 'rejected') ORDER BY created_s LIMIT ?)"
        ),
    ),
    (
        "SELECT count(*) FROM feedback",
        10_000,
        "DELETE FROM feedback WHERE id IN (SELECT id FROM feedback ORDER BY id LIMIT ?)",
    ),
)


class Bounded(Journal):
    """A journal whose disk space has an end."""

    def _start_over(self) -> None:
        super()._start_over()
        self._to_age: list[int] = []  # devices not looked at yet in this round

    def prune(
        self,
        max_rows_per_device: int,
        keep_from_lsn: int,
        limit: int,
        *,
        max_bytes: int | None = None,
        oldest_s: float | None = None,
    ) -> int:
        """Delete at most `limit` stored rows; returns how many, 0 once there is nothing to do.

        First what the journal still holds of packed readings; then what forgotten devices left and each
        device's oldest readings beyond its cap (looked at once it is over by a sixteenth); readings of before
        `oldest_s`, Unix seconds, of some devices a call (by event time, or by arrival where a device's clock
        was ahead); while the pages in use take more than `max_bytes`, the oldest readings of whichever device
        holds most; then all but the newest 10,000 alerts and words of operators and 1,000 models, open and
        live ones never.

        A reading counts twice on its way out, so a steady stream needs a pace of twice its readings. No
        reading with lsn >= keep_from_lsn goes, nor the newest of all, which tells `next_lsn` after a restart.
        The caller passes `Reader.keep_from_lsn()`, or recovery may miss what it needs. Pages that become free
        are used again: the file stops growing and does not shrink.
        """
        with self._whole():
            cut = min(keep_from_lsn, self.next_lsn - 1)
            removed = self._trim_journal(cut, limit)
            for device, excess in self._over_cap(max_rows_per_device):
                if removed >= limit:
                    break
                removed += self._drop_oldest(device, min(excess, limit - removed), cut)
            if oldest_s is not None:
                removed += self._drop_aged(oldest_s, limit - removed, cut)
            if max_bytes is not None:
                removed += self._drop_largest(max_bytes, limit - removed, cut)
            return removed + self._drop_ended(limit - removed)

    # --- how it is done -------------------------------------------------------------------------------------

    def _trim_journal(self, cut: int, limit: int) -> int:
        """Delete up to `limit` journal rows below `cut` that are packed or nobody's."""
        cut = min(cut, self._tail.oldest(default=cut))
        if not self._all("SELECT 1 FROM readings WHERE lsn < ? LIMIT 1", (cut,)):
            return 0
        sql = (
            "DELETE FROM readings WHERE lsn IN (SELECT lsn FROM readings WHERE lsn < ? ORDER BY lsn LIMIT ?)"
        )
        return self._write(sql, (cut, limit)).rowcount

    def _held(self) -> Iterator[tuple[int, int]]:
        """Each device's id and how many readings it holds."""
        for identity, packed in self._all("SELECT id, packed_rows FROM devices WHERE device IS NOT NULL"):
            yield identity, packed + len(self._tail.lsns.get(identity, ()))

    def _over_cap(self, cap: int) -> Iterator[tuple[int, int]]:
        """Device ids and by how many readings each is over its cap; forgotten ones by all they have."""
        forgotten = "SELECT id FROM devices WHERE device IS NULL AND (packed_rows > 0 OR packed_lsn < ?)"
        for (identity,) in self._all(forgotten, (self._oldest_lsn(),)):
            yield identity, HIGHEST_LSN
        for identity, rows in self._held():
            if rows > cap + cap // _SLACK:
                yield identity, rows - cap

    def _oldest_lsn(self) -> int:
        """The first LSN that the journal holds."""
        return int(self._all("SELECT coalesce(min(lsn), ?) FROM readings", (HIGHEST_LSN,))[0][0])

    def _drop_aged(self, oldest_s: float, limit: int, cut: int) -> int:
        """Delete up to `limit` readings of before `oldest_s`, of the next few devices of a round."""
        removed = 0
        if not self._to_age:
            self._to_age = [identity for identity, rows in self._held() if rows]
        for _ in range(min(_LOOKS, len(self._to_age))):
            if removed >= limit:
                break
            removed += self._drop_oldest(self._to_age.pop(), limit - removed, cut, oldest_s)
        return removed

    def _drop_largest(self, most_bytes: int, limit: int, cut: int) -> int:
        """Delete up to `limit` of the oldest readings of the devices that hold most, if over `most_bytes`."""
        removed = 0
        fruitless = 0  # devices whose readings recovery needs, every one
        if self._used_bytes() <= most_bytes:
            return removed
        held = [(-rows, identity) for identity, rows in self._held() if rows]
        heapify(held)
        while held and removed < limit and fruitless < _LOOKS and self._used_bytes() > most_bytes:
            rows, identity = heappop(held)
            dropped = self._drop_oldest(identity, min(PACK_RECORDS, limit - removed), cut)
            removed += dropped
            fruitless += not dropped
            if dropped and -rows > dropped:
                heappush(held, (rows + dropped, identity))
        return removed

    def _used_bytes(self) -> int:
        """What the pages in use take."""
        sizes = "SELECT (page_count - freelist_count) * page_size"
        sql = f"{sizes} FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        return int(self._all(sql)[0][0])

    def _drop_oldest(self, identity: int, wanted: int, cut: int, oldest_s: float | None = None) -> int:
        """Delete up to `wanted` of a device's oldest readings below `cut`, none of `oldest_s` or after."""
        removed = 0
        while removed < wanted:
            packs = self._all(
                "SELECT id, fieldset, body FROM packs WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1",
                pack_range(identity),
            )
            if packs:
                pack, fieldset, body = packs[0]
                count = self._shorten(pack, fieldset, body, wanted - removed, cut, oldest_s)
                if not count:
                    break
                removed += count
            elif not (self._tail.between(identity, 0, cut) and self._pack_oldest(identity)):
                break
        if removed:
            entry = self._entry(identity)
            self._keep("devices", entry._replace(packed_rows=max(0, entry.packed_rows - removed)))
        if not packs:
            sql = "DELETE FROM devices WHERE id = ? AND device IS NULL AND packed_lsn < ?"
            self._write(sql, (identity, self._oldest_lsn()))
        return removed

    def _shorten(  # a pack's columns, and what of it may go
        self, pack: int, fieldset: int, body: object, wanted: int, cut: int, oldest_s: float | None
    ) -> int:
        """Take the oldest records that may go out of a pack; how many those were."""
        found = self._fieldset(fieldset)
        if found is None or not isinstance(body, bytes):  # damaged: nobody can read it
            self._write("DELETE FROM packs WHERE id = ?", (pack,))
            return 1
        layout = record_layout(len(found.fields))
        records = np.frombuffer(body, layout, len(body) // layout.itemsize)
        lsns = records["lsn"]
        count = min(wanted, int(np.searchsorted(lsns, cut)))
        if oldest_s is not None:
            young = np.minimum(records["time_s"], records["received_s"]) >= oldest_s
            count = min(count, int(np.argmax(young)) if young.any() else count)
        if count == len(lsns):
            self._write("DELETE FROM packs WHERE id = ?", (pack,))
            return max(count, 1)
        if count:
            self._write(
                "UPDATE packs SET first_lsn = ?, body = ? WHERE id = ?",
                (int(lsns[count]), body[count * layout.itemsize :], pack),
            )
        return count

    def _drop_ended(self, limit: int) -> int:
        """Delete up to `limit` of the oldest resolved alerts and replaced models beyond what is kept."""
        removed = 0
        for counting, kept, deleting in _ENDED:
            excess = min(self._all(counting)[0][0] - kept, limit - removed)
            if excess > 0:
                removed += self._write(deleting, (excess,)).rowcount
        return removed
