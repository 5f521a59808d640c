"""NumPy archives (.npz) as series. Nothing in them is ever unpickled.

Many devices: NAME|x (T, F) values, NAME|y (T,) labels, NAME|t (T,) seconds, and `manifest`: JSON, a list of
objects with `name` and, where known, `warmup`, `dt` (seconds between rows) and `fields`. One device: x or
values, y or labels, t or time, fields.
"""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from gruard.daemon.backtest.series import Series
from gruard.daemon.decoders.event_time import LATEST_TIME_S
from gruard.daemon.decoders.sample import MAX_MAGNITUDE
from gruard.daemon.errors import ConfigError
from gruard.daemon.recording import START_S, STEP_S
from gruard.models.history import History

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

#: Unpacked bytes that an archive may have: far above any recording, far below what fills a machine.
MOST_BYTES = 4 * 2**30
#: Times above the first number count as many parts of a second as the second says, as in the decoders.
_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
#: What zipfile and numpy raise for a damaged, foreign, pickled or lying member.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    RuntimeError,  # encrypted
    zipfile.BadZipFile,
    zlib.error,
)


class Manifest(msgspec.Struct):
    """What an archive says about one of its devices."""

    name: str
    warmup: Annotated[int, msgspec.Meta(ge=0)] | None = None
    dt: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None  # seconds between rows, 0: not known
    fields: list[str] | None = None


def read_archive(path: Path) -> list[Series]:
    """The devices of an archive, in the order of its manifest.

    Raises:
        ConfigError: the file cannot be used; one sentence with the file and the array.
    """
    try:
        with zipfile.ZipFile(path) as members:
            size = sum(member.file_size for member in members.infolist())
        if size > MOST_BYTES:
            raise ConfigError(f"{path}: holds {size:,} bytes unpacked, at most {MOST_BYTES:,} are read")
        with np.load(path, allow_pickle=False) as archive:
            return _devices(path, archive)
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path}: cannot be read: {reason} (write it with numpy.savez)") from None


def _devices(path: Path, archive: Mapping[str, NDArray[Any]]) -> list[Series]:
    stems = [key.removesuffix("|x") for key in archive if key.endswith("|x")]
    if stems:
        listed = _manifest(path, archive)
        order = {name: place for place, name in enumerate(listed)}
        stems.sort(key=lambda name: (order.get(name, len(order)), name))
        return [
            _series(path, archive, listed.get(name) or Manifest(name), tuple(f"{name}|{a}" for a in "xyt"))
            for name in stems
        ]
    keys = tuple(next((k for k in names if k in archive), names[0]) for names in _PLAIN)
    if keys[0] not in archive:
        raise ConfigError(f'{path}: has neither an array "x" or "values" nor arrays called "NAME|x"')
    fields = [str(name) for name in archive["fields"].ravel()] if "fields" in archive else None
    return [_series(path, archive, Manifest(path.stem, fields=fields), keys)]


_PLAIN = (("x", "values"), ("y", "labels"), ("t", "time"))


def _manifest(path: Path, archive: Mapping[str, NDArray[Any]]) -> dict[str, Manifest]:
    if "manifest" not in archive:
        return {}
    stored = archive["manifest"]
    text = str(stored) if stored.dtype.kind == "U" else stored.tobytes().decode("utf-8", "replace")
    try:
        return {entry.name: entry for entry in msgspec.json.decode(text, type=list[Manifest])}
    except msgspec.DecodeError as error:
        raise ConfigError(f'{path}: array "manifest": {error}') from None


def _series(
    path: Path, archive: Mapping[str, NDArray[Any]], known: Manifest, keys: tuple[str, ...]
) -> Series:
    values = _values(path, keys[0], archive[keys[0]])  # (T, F)
    rows = len(values)
    labels = _labels(path, keys[1], archive[keys[1]], rows) if keys[1] in archive else None
    timed = keys[2] in archive or bool(known.dt)
    if keys[2] in archive:
        times = _times(path, keys[2], archive[keys[2]], rows)
    else:
        times = np.asarray(START_S + np.arange(rows) * (known.dt or STEP_S), np.float64)
    if not ((times >= 0) & (times <= LATEST_TIME_S) | np.isnan(times)).all():
        raise ConfigError(f'{path}: array "{keys[2]}": holds times before 1970 or after 5138 (Unix seconds)')
    # As live: what is not newer than the newest so far is refused.
    newest = np.maximum.accumulate(np.where(np.isnan(times), -np.inf, times))
    kept = times > np.concatenate([[-np.inf], newest[:-1]])  # false where NaN
    notes = (f"{path.name}: {rows - kept.sum()} readings of {known.name} left out: late or without a time",)
    if not kept.any():
        raise ConfigError(f'{path}: array "{keys[2]}": no row has a time')
    return Series(
        known.name,
        _fields(path, known, values.shape[1]),
        History(times[kept], values[kept], np.ones(int(kept.sum()), bool)),
        timed=timed,
        labels=None if labels is None else labels[kept],
        warmup=None if known.warmup is None else int(kept[: known.warmup].sum()),
        notes=() if kept.all() else notes,
    )


def _values(path: Path, key: str, stored: NDArray[Any]) -> NDArray[np.float64]:
    if stored.dtype.kind not in "fiub":
        raise ConfigError(f'{path}: array "{key}": holds {stored.dtype}, not numbers')
    values: NDArray[np.float64] = np.array(stored, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or 0 in values.shape:
        raise ConfigError(f'{path}: array "{key}": has the shape {stored.shape}, not (rows, fields)')
    values[~(np.abs(values) <= MAX_MAGNITUDE)] = np.nan
    if np.isnan(values).all():
        raise ConfigError(f'{path}: array "{key}": holds no number that can be used')
    return values


def _labels(path: Path, key: str, stored: NDArray[Any], rows: int) -> NDArray[np.bool_]:
    if stored.dtype.kind not in "fiub" or stored.size != rows:
        raise ConfigError(f'{path}: array "{key}": is no label 0 or 1 for each of {rows} rows')
    return np.asarray(np.nan_to_num(stored.ravel()) != 0)


def _times(path: Path, key: str, stored: NDArray[Any], rows: int) -> NDArray[np.float64]:
    """Unix seconds (T,), NaN where a row has none."""
    if stored.dtype.kind not in "fiuM" or stored.size != rows:
        raise ConfigError(f'{path}: array "{key}": is no time for each of {rows} rows')
    flat = stored.ravel()
    if flat.dtype.kind == "M":
        unknown = np.isnat(flat)
        times: NDArray[np.float64] = np.where(
            unknown, np.nan, flat.astype("datetime64[us]").astype(np.int64) / 1e6
        )
    else:
        times = flat.astype(np.float64)
        latest = np.nanmax(times, initial=0.0)
        times /= next((per_second for above, per_second in _UNITS if latest > above), 1.0)
    return times


def _fields(path: Path, known: Manifest, count: int) -> tuple[str, ...]:
    if known.fields is None:
        width = len(str(count))
        return tuple(f"x{n + 1:0{width}}" for n in range(count))
    if len(known.fields) != count or len(set(known.fields)) != count:
        raise ConfigError(f'{path}: device "{known.name}": {count} fields, but other names for them')
    # A name that is no text, as arrays may hold, would not fit into any report.
    return tuple(name.encode("utf-8", "replace").decode() for name in known.fields)
