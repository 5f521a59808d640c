"""History bounded by size and age, without touching what recovery needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support_database import FIELDS, NOW_S, reading, readings

from gruard.daemon.edges import bounds as bounds_module
from gruard.daemon.edges import history as history_module
from gruard.daemon.edges import journal as journal_module
from gruard.daemon.edges.database import Database, open_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEVER = 10**9  # a cap, or an LSN, that nothing reaches


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database whose readings move early into packs of 16."""
    for module in (journal_module, history_module):
        monkeypatch.setattr(module, "TAIL_RECORDS", 40)
        monkeypatch.setattr(module, "PACK_RECORDS", 16)
    monkeypatch.setattr(bounds_module, "PACK_RECORDS", 16)
    with open_database(tmp_path, now_s=NOW_S) as opened:
        yield opened


def _lsns(database: Database, device: str = "pump-1") -> list[int]:
    return database.history(device, FIELDS, 10**6).lsn.tolist()


def _prune_all(
    database: Database,
    keep_from_lsn: int = NEVER,
    max_bytes: int | None = None,
    oldest_s: float | None = None,
) -> None:
    """Prune until there is nothing to do."""
    while database.prune(NEVER, keep_from_lsn, 500, max_bytes=max_bytes, oldest_s=oldest_s):
        pass


# --- age -------------------------------------------------------------------------------------------------


def test_readings_older_than_the_age_go_and_the_rest_stays(database: Database) -> None:
    """Each device loses exactly its readings of before the moment, packed or not."""
    database.append(readings(1, 600, ["pump-1", "pump-2", "pump-1"]))
    before = {name: _lsns(database, name) for name in ("pump-1", "pump-2")}
    _prune_all(database, oldest_s=NOW_S + 400)
    for name, lsns in before.items():
        assert _lsns(database, name) == [lsn for lsn in lsns if lsn >= 400]
    assert database.prune(NEVER, NEVER, 500, oldest_s=NOW_S + 400) == 0


def test_age_of_a_quiet_device_is_found_in_the_tail(database: Database) -> None:
    """A device that never had a pack loses its old readings too."""
    database.append([reading(1, "quiet"), reading(2, "quiet"), reading(3, "other")])
    _prune_all(database, oldest_s=NOW_S + 2)
    assert _lsns(database, "quiet") == [2]
    assert _lsns(database, "other") == [3]


def test_reading_from_the_future_ages_by_its_arrival(database: Database) -> None:
    """A device whose clock is ten years ahead cannot keep its history for ever."""
    ahead = [replace(row, time_s=row.time_s + 3e8) for row in readings(1, 100)]
    database.append(ahead)
    _prune_all(database, oldest_s=NOW_S + 60)
    assert _lsns(database)[0] == 60


def test_age_looks_at_a_bounded_number_of_devices_a_call(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many devices are looked at in turns, a few in each call, until all have been."""
    monkeypatch.setattr(bounds_module, "_LOOKS", 3)
    names = [f"pump-{number}" for number in range(10)]
    database.append(readings(1, 200, names))
    for call in range(4):
        database.prune(NEVER, NEVER, 500, oldest_s=NOW_S + 101)
        aged = sum(min(_lsns(database, name)) >= 101 for name in names)
        assert aged == min(3 * (call + 1), 10)


def test_age_respects_the_limit_of_a_call(database: Database) -> None:
    """One call deletes at most `limit` rows, whatever is too old."""
    database.append(readings(1, 300, ["pump-1", "pump-2"]))
    while database.prune(NEVER, NEVER, 1000):
        pass
    assert database.prune(NEVER, NEVER, 10, oldest_s=NOW_S + 999) == 10
    assert database.count_readings() == 290


def test_age_keeps_what_recovery_needs(database: Database) -> None:
    """No reading with lsn >= keep_from_lsn goes, however old."""
    database.append(readings(1, 300))
    _prune_all(database, keep_from_lsn=200, oldest_s=NOW_S + 999)
    assert _lsns(database) == list(range(200, 301))
    assert [row.lsn for row in database.readings_after(199)] == list(range(200, 301))


# --- size ------------------------------------------------------------------------------------------------


def test_size_takes_from_the_devices_that_hold_most(database: Database) -> None:
    """Beyond the bytes the busiest devices lose their oldest readings; a quiet one keeps all."""
    for first in range(1, 40_001, 500):
        database.append(readings(first, 500, ["busy", "busier", "busier"]))
    database.append(readings(40_001, 60, ["quiet"]))
    used = database._used_bytes()
    _prune_all(database, max_bytes=used // 6)
    assert database._used_bytes() <= used // 6
    assert len(_lsns(database, "quiet")) == 60
    held = {name: _lsns(database, name) for name in ("busy", "busier")}
    assert abs(len(held["busy"]) - len(held["busier"])) <= 32
    assert max(held["busy"] + held["busier"]) == 40_000
    for lsns in held.values():
        assert lsns == sorted(lsns)
    assert database.skipped_rows == 0


def test_size_within_the_bound_takes_nothing(database: Database) -> None:
    """A database with room is left alone, once what is packed has left the journal."""
    database.append(readings(1, 2000))
    _prune_all(database)
    assert database.prune(NEVER, NEVER, 500, max_bytes=database._used_bytes()) == 0
    assert database.count_readings() == 2000


def test_size_respects_the_limit_of_a_call(database: Database) -> None:
    """One call deletes at most `limit` rows, whatever is too much."""
    database.append(readings(1, 2000, ["pump-1", "pump-2"]))
    _prune_all(database)
    assert database.prune(NEVER, NEVER, 40, max_bytes=1) == 40
    assert database.count_readings() == 1960


def test_size_keeps_what_recovery_needs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that cannot be held is held as far as recovery allows, in bounded time."""
    monkeypatch.setattr(bounds_module, "_LOOKS", 5)
    database.append(readings(1, 900, [f"pump-{number}" for number in range(30)]))
    _prune_all(database, keep_from_lsn=1, max_bytes=1)
    assert database.count_readings() == 900
    _prune_all(database, keep_from_lsn=600, max_bytes=1)
    assert {row.lsn for row in database.readings_after(599)} == set(range(600, 901))


def test_disk_stays_within_the_bytes_under_a_steady_stream(database: Database) -> None:
    """With pruning at the pace of the stream the file stays near the bound for good."""
    sizes = []
    for first in range(1, 60_001, 500):
        database.append(readings(first, 500, ["pump-1", "pump-2"]))
        database.prune(NEVER, first - 500, 2000, max_bytes=1_000_000)
        database.commit()
        sizes.append(database._all("PRAGMA page_count")[0][0] * 4096)
    assert max(sizes) < 1_300_000
    assert min(_lsns(database)) > 30_000


# --- forgotten devices -----------------------------------------------------------------------------------


def test_forgotten_devices_cost_a_look_only_when_something_can_go(database: Database) -> None:
    """A flood of devices that were forgotten does not make every call slow while the journal holds them."""
    database.append([reading(1, "first"), *(reading(lsn, f"flood-{lsn}") for lsn in range(2, 40))])
    for lsn in range(2, 40):
        database.forget_device(f"flood-{lsn}")
    assert list(database._over_cap(NEVER)) == []
    database.append(readings(40, 400, ["first"]))
    _prune_all(database)
    assert len(database._all("SELECT 1 FROM devices")) == 1
    assert database.skipped_rows == 0
