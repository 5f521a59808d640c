"""The tuning recordings, cut into suites: which rows of which streams, and how many of them are warm-up.

    skab   16 recordings of a water rig with a closing valve: 8 fields, a row a second, warm-up 400
    nab    11 members of TSB-AD: one field, TSB-AD's own warm-up
    msl    14 members of TSB-AD: 55 fields of a spacecraft, TSB-AD's own warm-up
    smd    the second halves of three servers: 38 fields, a row a minute, warm-ups like TSB-AD's
    nab25  all 25 files for the NAB score, with NAB's own probation as warm-up

The archives are `NAME.npz` with arrays `STREAM|x` (T, F), `STREAM|y` (T,) labels, `STREAM|t` (T,) seconds
where the source has a clock, and `manifest`: JSON, one entry per stream.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    #: A manifest entry -> first row kept and warm-up rows behind it; None leaves the stream out.
    Cut = Callable[[dict[str, Any]], tuple[int, int] | None]

ARCHIVES = ("skab", "nab", "msl", "smd")
#: Warm-up of a machine's second half, as TSB-AD would cut it.
SMD_WARMUPS = {"machine-1-6": 500, "machine-2-1": 5923, "machine-3-3": 738}
#: Seconds between rows where the source tells none.
UNKNOWN_STEP_S = 1.0


class RecordingsError(Exception):
    """The folder does not hold the recordings; the message says what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One recording as a detector is fed with it."""

    name: str
    time_s: NDArray[np.float64]  # (T,)
    values: NDArray[np.float32]  # (T, F) physical units
    labels: NDArray[np.bool_]  # (T,)
    warmup: int  # leading rows that may be taken as mostly normal
    windows: tuple[tuple[int, int], ...]  # NAB's anomaly windows, (first, last) rows

    @property
    def rows(self) -> int:
        """T."""
        return len(self.values)


def _skab(entry: dict[str, Any]) -> tuple[int, int] | None:
    return (0, entry["warmup"]) if entry["events"] else None


def _member(entry: dict[str, Any]) -> tuple[int, int] | None:
    return (entry["tsb_offset"], entry["tsb_train"]) if "tsb" in entry else None


def _second_half(entry: dict[str, Any]) -> tuple[int, int] | None:
    warmup = SMD_WARMUPS.get(entry["name"])
    return None if warmup is None else (entry["warmup"], warmup)


def _whole(entry: dict[str, Any]) -> tuple[int, int] | None:
    return 0, entry["warmup"]


#: Suite -> its archive and how it is cut. The first four are ranked, the last has the NAB score.
SUITES: dict[str, tuple[str, Cut]] = {
    "skab": ("skab", _skab),
    "nab": ("nab", _member),
    "msl": ("msl", _member),
    "smd": ("smd", _second_half),
    "nab25": ("nab", _whole),
}
RANKED, NAB_SCORED = ("skab", "nab", "msl", "smd"), "nab25"


def check(folder: Path) -> None:
    """Raise RecordingsError unless all archives are there."""
    missing = [f"{name}.npz" for name in ARCHIVES if not (folder / f"{name}.npz").is_file()]
    if missing:
        raise RecordingsError(
            f"no {', '.join(missing)} in {folder}: the labelled recordings are not part of gruard; "
            "give their folder as the argument"
        )


def load(folder: Path, suite: str) -> list[Stream]:
    """The streams of one suite.

    Raises:
        RecordingsError: the archive is missing or is none.
    """
    check(folder)
    archive, cut = SUITES[suite]
    try:
        with np.load(folder / f"{archive}.npz") as arrays:
            manifest = json.loads(arrays["manifest"].tobytes())
            return list(_streams(arrays, manifest, cut))
    except (KeyError, ValueError, OSError) as error:
        raise RecordingsError(f"{folder / archive}.npz is not an archive of recordings: {error}") from error


def _streams(arrays: Any, manifest: list[dict[str, Any]], cut: Cut) -> Iterator[Stream]:
    for entry in manifest:
        kept = cut(entry)
        if kept is None:
            continue
        first, warmup = kept
        name = entry["name"]
        values = arrays[f"{name}|x"]
        step_s = float(entry.get("dt", 0.0)) or UNKNOWN_STEP_S
        time_s: NDArray[np.float64] = (
            arrays[f"{name}|t"] if f"{name}|t" in arrays else np.arange(len(values)) * step_s
        )
        windows = tuple((int(a), int(b)) for a, b in entry.get("windows", ()))
        yield Stream(
            name,
            np.asarray(time_s, np.float64)[first:],
            values[first:],
            arrays[f"{name}|y"][first:] != 0,
            warmup,
            windows if first == 0 else (),
        )
