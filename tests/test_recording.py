"""CSV recordings and `gruard replay`."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support_engine import plant_rows

from gruard.daemon.errors import ConfigError
from gruard.daemon.recording import START_S, open_recording
from gruard.daemon.records import SourceOptions

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = SourceOptions("plant", "plant/{device}")


def written(folder: Path, text: str, name: str = "pump.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


def test_recording_header_names_time_and_fields(tmp_path: Path) -> None:
    """A time column is found by its name and is no field; numbers become values."""
    path = written(tmp_path, "timestamp,a,b\n2020-03-09T10:14:33Z,1,2.5\n1583748874,3,4\n")
    first, second = open_recording(path, SOURCE, None)
    assert (first.device, first.time_s, dict(first.values)) == ("pump", 1583748873.0, {"a": 1.0, "b": 2.5})
    assert second.time_s == 1583748874.0


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_recording_delimiter_is_recognised(tmp_path: Path, delimiter: str) -> None:
    """Exports of any usual kind are read, with or without a byte order mark."""
    text = delimiter.join(["time", "a", "b"]) + "\n" + delimiter.join(["5", "1", "2"]) + "\n"
    (reading,) = open_recording(written(tmp_path, text, encoding="utf-8-sig"), SOURCE, None)
    assert dict(reading.values) == {"a": 1.0, "b": 2.0}


def test_recording_without_time_counts_seconds(tmp_path: Path) -> None:
    """Rows without a time are one second apart."""
    readings = list(open_recording(written(tmp_path, "a\n1\n2\n3\n"), SOURCE, None))
    assert [r.time_s - START_S for r in readings] == [0, 1, 2]


def test_recording_device_column_and_override(tmp_path: Path) -> None:
    """Several devices in one file are told apart, unless the caller names one."""
    path = written(tmp_path, "time,device,a\n1,x,1\n2,y,2\n")
    assert [r.device for r in open_recording(path, SOURCE, None)] == ["x", "y"]
    assert {r.device for r in open_recording(path, SOURCE, "z")} == {"z"}


def test_recording_empty_and_nan_cells_are_missing(tmp_path: Path) -> None:
    """An empty cell and a written NaN are missing values, never 0."""
    first, second = open_recording(written(tmp_path, "time,a,b\n1,,2\n2,nan,2\n"), SOURCE, None)
    assert "a" not in first.values
    assert "a" not in second.values


def test_recording_broken_rows_are_counted_by_reason(tmp_path: Path) -> None:
    """A row that cannot be a reading is counted and the rest goes on."""
    recording = open_recording(written(tmp_path, "time,a\n1,1\nsoon,2\n,3\n4,text\n5,5\n"), SOURCE, None)
    assert [r.time_s for r in recording] == [1, 5]
    assert recording.refused == {"bad_time": 1, "missing_time": 1, "no_numeric_field": 1}


def test_recording_rows_tell_what_came_of_each(tmp_path: Path) -> None:
    """Every row comes with its line and cells, a refused one with its reason; nothing is counted."""
    recording = open_recording(
        written(tmp_path, 'time,a,note\n1,1,x\nsoon,2,"two\nlines"\n4,4,\n'), SOURCE, None
    )
    first, broken, last = recording.rows()
    assert (first.line, broken.line, last.line) == (2, 4, 5)
    assert broken.cells["note"] == "two\nlines"
    assert broken.refusal is not None
    assert broken.refusal.reason == "bad_time"
    assert broken.readings == ()
    assert [r.time_s for r in (*first.readings, *last.readings)] == [1.0, 4.0]
    assert recording.refused == {}


def test_recording_goes_through_the_sources_own_rules(tmp_path: Path) -> None:
    """Include, exclude and rename hold for a file as for live payloads."""
    source = SourceOptions("plant", "plant/{device}", time="t", exclude=("b",), rename={"a": "alpha"})
    (reading,) = open_recording(written(tmp_path, "t,a,b\n1,1,2\n"), source, None)
    assert dict(reading.values) == {"alpha": 1.0}


@pytest.mark.parametrize(
    ("text", "told"), [("", "header row"), ("\n", "header row"), ("a,b\n1,2\n", 'no column "ts"')]
)
def test_open_recording_mistake_is_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    """What is wrong with a file is said with its name and line."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=told) as caught:
        open_recording(path, SourceOptions("plant", "plant/{device}", time="ts"), None)
    assert str(caught.value).startswith(f"{path}:1:")


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gruard.daemon", "replay", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_replay_without_configuration_finds_the_fault(tmp_path: Path) -> None:
    """One command on a file: alerts as JSON lines, scores of every row on request, a summary on stderr."""
    rows = plant_rows(620)
    rows[500:540, 2] += 15.0
    path = tmp_path / "plant.csv"
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["time", "a", "b", "c"])
        writer.writerows([1e9 + t, *row] for t, row in enumerate(rows))
    done = replay(str(path), "--scores", str(tmp_path / "scores.csv"))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["state"] == "opened"
    assert events[0]["contributions"][0]["field"] == "c"
    assert {e["id"] for e in events} == {events[0]["id"]}
    assert "620 readings scored" in done.stderr
    with (tmp_path / "scores.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert len(table) == 620
    assert {row["state"] for row in table} == {"warming", "learning", "ready"}
    assert float(table[520]["score"]) > float(table[520]["threshold"])


def test_replay_mistakes_exit_78_without_traceback(tmp_path: Path) -> None:
    """A missing file and an unknown source are told in one line."""
    path = written(tmp_path, "time,a\n1,1\n")
    for arguments in ([str(tmp_path / "none.csv")], [str(path), "--source", "nobody"]):
        done = replay(*arguments)
        assert done.returncode == 78
        assert "Traceback" not in done.stderr
        assert done.stderr.strip()
