"""From files to series: CSV, NumPy archives, the daemon's database, and directories of them."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support_database import FIELDS, NOW_S, alert, readings

from gruard.daemon.backtest import archives
from gruard.daemon.backtest.readings import load
from gruard.daemon.edges.database import open_database
from gruard.daemon.errors import ConfigError
from gruard.daemon.recording import START_S

if TYPE_CHECKING:
    from pathlib import Path


def written(folder: Path, text: str, name: str = "pump.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def saved(folder: Path, name: str = "rig.npz", **arrays: Any) -> Path:
    path = folder / name
    np.savez(path, **arrays)
    return path


# --- CSV -----------------------------------------------------------------------------------------------


def test_table_labels_are_found_by_name_and_are_no_field(tmp_path: Path) -> None:
    """A label column is recognised whatever its case, and so are the usual words in it."""
    path = written(tmp_path, "time,a,Anomaly\n1,5,no\n2,6,TRUE\n3,7,\n4,8,1.0\n")
    (one,) = load(path)
    assert (one.name, one.fields, one.timed) == ("pump", ("a",), True)
    assert one.labels is not None
    assert one.labels.tolist() == [False, True, False, True]
    assert one.history.values[:, 0].tolist() == [5, 6, 7, 8]
    assert one.history.normal.all()


def test_table_label_column_may_be_named_or_denied(tmp_path: Path) -> None:
    """`--label` wins over the usual names; an empty one says that there is no label, and none is a field."""
    path = written(tmp_path, "time,a,label,fault\n1,5,0,1\n2,6,0,0\n")
    (named,) = load(path, "fault")
    assert named.labels is not None
    assert named.labels.tolist() == [True, False]
    assert named.fields == ("a", "label")
    (denied,) = load(path, "", exclude=["fault"])
    assert denied.labels is None
    assert denied.fields == ("a", "label")


def test_table_devices_are_told_apart(tmp_path: Path) -> None:
    """A device column splits the file; each has its own fields, labels and order of time."""
    path = written(tmp_path, "time,device,a,label\n1,x,1,0\n1,y,2,1\n2,x,3,0\n2,y,4,0\n")
    x, y = load(path)
    assert (x.name, y.name) == ("x", "y")
    assert y.labels is not None
    assert y.labels.tolist() == [True, False]
    assert y.history.values[:, 0].tolist() == [2, 4]


def test_table_late_and_broken_rows_are_left_out_and_told(tmp_path: Path) -> None:
    """What the engine would refuse is not scored, and the notes say how much and where."""
    path = written(tmp_path, "time,a,b\n5,1,2\n3,9,9\nsoon,1,1\n6,x,2\n7,3,4\n8,4,4\n")
    (one,) = load(path)
    assert one.history.time_s.tolist() == [5, 6, 7, 8]
    assert np.isnan(one.history.values[1, 0])
    told = "\n".join(one.notes)
    assert "bad_time (first: line 4)" in told
    assert "left out: late" in told or "left out: out_of_order" in told
    assert 'column "a" are no numbers' in told


def test_table_column_of_text_is_no_field(tmp_path: Path) -> None:
    """A column with more text than numbers is left out and said so."""
    (one,) = load(written(tmp_path, "time,a,mode\n1,1,auto\n2,2,manual\n3,3,4\n"))
    assert one.fields == ("a",)
    assert any('column "mode" is no field' in note for note in one.notes)


def test_table_without_a_time_counts_seconds(tmp_path: Path) -> None:
    """Rows without a time are one second apart and the series says that no time is known."""
    (one,) = load(written(tmp_path, "a\n1\n2\n"))
    assert not one.timed
    assert (one.history.time_s - START_S).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "labels", "told"),
    [
        ("time,a\n1,1\n", "fault", r"pump.csv:1: no column \"fault\" \(found: time, a\)"),
        ("time,a,label\n1,1,0\n2,2,maybe\n", None, 'pump.csv:3: column "label": "maybe" is no label'),
        ("time,a,label\n1,1,-1\n", None, 'pump.csv:2: column "label": "-1" is no label'),
        ("time,a\n1,on\n2,off\n", None, "pump.csv:2: none of the rows can be used: no_numeric_field"),
        ("time,a\n", None, "pump.csv:2: there is no row below the header"),
        ("time,a,a\n1,1,1\n", None, 'pump.csv:1: two columns are called "a"'),
        ("", None, "pump.csv:1: a recording begins with a header row"),
    ],
)
def test_table_mistake_is_told_with_file_and_line(
    tmp_path: Path, text: str, labels: str | None, told: str
) -> None:
    """One sentence says where in the file it is wrong and what would be right."""
    with pytest.raises(ConfigError, match=told):
        load(written(tmp_path, text), labels)


def test_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A picture called .csv is a sentence, not a traceback."""
    path = tmp_path / "picture.csv"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match=r"picture\.csv: cannot be read"):
        load(path)


# --- archives ------------------------------------------------------------------------------------------


def test_archive_of_many_devices_follows_its_manifest(tmp_path: Path) -> None:
    """Devices come in the manifest's order, with its warm-up, its field names and its step."""
    manifest = [
        {"name": "b", "warmup": 3, "dt": 2.0, "fields": ["p", "q"], "kind": "x"},
        {"name": "a", "warmup": 1},
    ]
    path = saved(
        tmp_path,
        manifest=np.frombuffer(json.dumps(manifest).encode(), np.uint8),
        **{
            "a|x": np.arange(5.0),
            "a|t": np.array([10.0, 20, 15, np.nan, 30]),
            "a|y": np.array([0, 0, 1, 0, 1], np.uint8),
            "b|x": np.ones((4, 2), np.float32),
        },
    )
    b, a = load(path)
    assert (b.name, b.fields, b.warmup, b.timed, b.labels) == ("b", ("p", "q"), 3, True, None)
    assert np.diff(b.history.time_s).tolist() == [2, 2, 2]
    assert a.history.time_s.tolist() == [10, 20, 30]
    assert a.history.values[:, 0].tolist() == [0, 1, 4]
    assert a.labels is not None
    assert a.labels.tolist() == [False, False, True]
    assert a.fields == ("x1",)
    assert "2 readings of a left out" in a.notes[0]


def test_archive_of_one_device_and_its_units_of_time(tmp_path: Path) -> None:
    """Plain names are read too; milliseconds and NumPy's own dates become seconds."""
    values = np.array([[1.0, 2], [3, np.inf], [5, 6]])
    milliseconds = saved(
        tmp_path, "m.npz", values=values, time=1.7e12 + 1000 * np.arange(3), fields=np.array(["u", "v"])
    )
    (one,) = load(milliseconds)
    assert one.fields == ("u", "v")
    assert one.history.time_s.tolist() == [1.7e9, 1.7e9 + 1, 1.7e9 + 2]
    assert np.isnan(one.history.values[1, 1])
    days = np.array(["2020-01-01", "2020-01-02", "NaT"], "datetime64[D]")
    (dated,) = load(saved(tmp_path, "d.npz", x=values, t=days))
    assert dated.history.time_s.tolist() == [1577836800.0, 1577923200.0]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"z": np.ones(3)}, 'neither an array "x" or "values"'),
        ({"x": np.array(["a", "b"])}, 'array "x": holds <U1, not numbers'),
        ({"x": np.array([{}, []], object)}, "cannot be read: Object arrays"),
        ({"x": np.ones((2, 2, 2))}, r"has the shape \(2, 2, 2\)"),
        ({"x": np.full(4, np.nan)}, "holds no number"),
        ({"x": np.ones(4), "y": np.ones(3)}, 'array "y": is no label 0 or 1 for each of 4 rows'),
        ({"x": np.ones(2), "t": np.array([-5.0, 1])}, 'array "t": holds times before 1970'),
        ({"x": np.ones((2, 2)), "fields": np.array(["a"])}, "2 fields, but other names"),
        ({"a|x": np.ones(2), "manifest": np.array("[1]")}, 'array "manifest"'),
    ],
)
def test_archive_mistake_is_one_sentence(tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    """What is wrong with an archive is said with its file and array, and nothing is unpickled."""
    with pytest.raises(ConfigError, match=told) as caught:
        load(saved(tmp_path, **arrays))
    assert str(caught.value).startswith(str(tmp_path / "rig.npz"))


def test_archive_damaged_or_foreign_is_refused(tmp_path: Path) -> None:
    """A cut archive, a foreign zip file and an array that lies about its size are sentences."""
    whole = saved(tmp_path, x=np.arange(1000.0)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("not an archive")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00garbage")
    np.save(tmp_path / "single", np.ones(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }"
    header = b"\x93NUMPY\x01\x00" + (128 - 10).to_bytes(2, "little") + head.ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as archive:
        archive.writestr("x.npy", header + b"\x00" * 64)
    for name in ("cut", "text", "zip", "single", "liar"):
        with pytest.raises(ConfigError, match=rf"{name}\.npz: cannot be read: "):
            load(tmp_path / f"{name}.npz")


def test_archive_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an archive unpacks to is bounded before it is unpacked."""
    monkeypatch.setattr(archives, "MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="bytes unpacked, at most 1,000 are read"):
        load(saved(tmp_path, x=np.ones(200)))


# --- the daemon's database -----------------------------------------------------------------------------


def database(folder: Path, rows: int = 20) -> Path:
    with open_database(folder, now_s=NOW_S) as opened:
        opened.append(readings(1, rows, ("pump-1", "pump-2")))
        told = replace(alert("a-1", NOW_S + 5, NOW_S + 9), payload='{"message": "too hot"}')
        opened.save_alert(told)
        opened.save_alert(replace(alert("a-2", NOW_S + 12), payload="{damaged"))
        opened.commit()
    return folder


def test_database_gives_readings_and_the_alerts_it_raised(tmp_path: Path) -> None:
    """A state directory, or its file, is read as it lies; alerts come oldest first, damaged ones too."""
    folder = database(tmp_path / "state")
    for path in (folder, folder / "gruard.db"):
        one, other = load(path)
        assert (one.name, other.name) == ("pump-1", "pump-2")
        assert one.fields == FIELDS
        assert one.timed
        assert one.labels is None
        assert one.history.time_s.tolist() == [NOW_S + lsn for lsn in range(2, 21, 2)]
        assert [(s.opened_s, s.resolved_s, s.message) for s in one.stored] == [
            (NOW_S + 5, NOW_S + 9, "too hot"),
            (NOW_S + 12, None, ""),
        ]
        assert other.stored == ()


def test_database_empty_or_damaged_is_a_sentence(tmp_path: Path) -> None:
    """A database without readings, and one that is none of ours, are the user's mistake."""
    with pytest.raises(ConfigError, match="holds no reading yet"):
        load(database(tmp_path / "empty", rows=0))
    foreign = tmp_path / "foreign.db"
    foreign.write_bytes(b"SQLite format 3\0" + bytes(2000))
    with pytest.raises(ConfigError, match=r"foreign\.db: cannot be read"):
        load(foreign)


# --- directories ---------------------------------------------------------------------------------------


def test_directory_of_recordings_gives_all_with_distinct_names(tmp_path: Path) -> None:
    """All CSV and npz files, by name; devices that two files share are told apart by the file."""
    written(tmp_path, "time,device,a\n1,x,1\n", "monday.csv")
    written(tmp_path, "time,device,a\n2,x,1\n3,y,1\n", "tuesday.csv")
    written(tmp_path, "nothing", "notes.txt")
    saved(tmp_path, x=np.ones(3))
    assert [one.name for one in load(tmp_path)] == ["monday.csv/x", "rig", "tuesday.csv/x", "y"]


def test_load_mistakes_are_one_sentence(tmp_path: Path) -> None:
    """Nothing there, nothing in it, and a column option where there are no columns."""
    with pytest.raises(ConfigError, match=r"gone\.csv: cannot be read: No such file"):
        load(tmp_path / "gone.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no \.csv or \.npz file and no gruard\.db"):
        load(tmp_path / "empty")
    path = saved(tmp_path, x=np.ones(3))
    with pytest.raises(ConfigError, match=r'--label: .*rig\.npz is no CSV file: it has no column "fault"'):
        load(path, "fault")
    with pytest.raises(ConfigError, match=r'--exclude: .* it has no column "b"'):
        load(path, exclude=["b"])
