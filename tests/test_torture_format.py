"""The state directory of an older gruard is carried on; that of a newer one is refused and left alone."""

from __future__ import annotations

import gzip
import sqlite3
from pathlib import Path

import pytest
from torture.rig import Rig
from torture.truth import FOR_EVER

from gruard.daemon.edges.database import open_readonly

pytestmark = [pytest.mark.broker, pytest.mark.slow]

#: Made by gruard 0.1.0 with schema version 1: a fleet of three places and seed 11, 150 readings each.
VERSION_1 = Path(__file__).parent / "torture" / "version1.db.gz"
SEED, PLACES, BEGUN, ALERT = 11, 3, 150, "ca6b7942674aea82"


def test_upgrade_from_version_1_keeps_every_reading_and_goes_on(tmp_path: Path) -> None:
    """What an older version journalled is there, counts once, and its devices go on where they stood."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "gruard.db").write_bytes(gzip.decompress(VERSION_1.read_bytes()))
    with Rig(tmp_path, SEED, places=PLACES, rate=200.0, life=FOR_EVER, begun=BEGUN) as rig:
        assert rig.sender.send_each(BEGUN + 50)
        rig.daemon.kill()
        rig.daemon.launch()
        rig.sender.resume()
        assert rig.sender.send_each(BEGUN + 100)
        verdict = rig.finish()
    assert verdict.readings >= PLACES * (BEGUN + 100)
    # Memory and alerts are as good as the older version made them: it decided by its own rules.
    kept = [str(finding) for finding in verdict.findings if finding.promise not in {"P3", "P4"}]
    assert kept == []
    assert _names(state) == ["commands", "gruard.db", "gruard.lock"]
    with open_readonly(state) as reader:
        assert ALERT in {alert.id for alert in reader.alerts(100)}


def test_start_on_a_newer_format_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """One sentence, no traceback, not a byte changed; with the version put back it goes on, nothing lost."""
    with Rig(tmp_path, 1, places=3, rate=300.0) as rig:
        assert rig.sender.send_each(60)
        rig.settle()
        rig.stop()
        file, told = rig.daemon.state / "gruard.db", len(rig.daemon.log())
        version = _version(file, 1)
        held, names = file.read_bytes(), _names(rig.daemon.state)
        rig.daemon.launch()
        assert rig.daemon.died(20) == 70
        said = rig.daemon.log()[told:].strip()
        assert f"schema version {version}" in said
        assert len(said.splitlines()) == 1
        assert "Traceback" not in said
        assert (file.read_bytes(), _names(rig.daemon.state)) == (held, names)
        _version(file, -1)
        rig.daemon.launch()
        rig.sender.resume()
        assert rig.sender.send_each(90)
        assert [str(finding) for finding in rig.finish().findings] == []


def _version(file: Path, step: int) -> int:
    """Move the version of a database's format, in both places where it stands."""
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version + step}")
        connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(version + step),))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    return int(version + step)


def _names(folder: Path) -> list[str]:
    """Files of a state directory; SQLite's own companions come and go."""
    return sorted(f.name for f in folder.iterdir() if not f.name.endswith(("-wal", "-shm")))
