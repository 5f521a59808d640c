"""What a detector said about one stream, and where that is kept so that a run can be interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from quality.suites import Stream


class TooSlowError(Exception):
    """The time that a detector may take for a suite is up."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Scores (T,) of one stream, higher = more anomalous, and what they cost."""

    values: NDArray[np.float64]  # the state score: how abnormal is it now
    onsets: NDArray[np.float64] | None  # loud once per event; None: the detector has no such score
    alarms: NDArray[np.bool_] | None  # the detector's own decision; None: it makes none
    in_sample: NDArray[np.float64] | None  # (W,) the warm-up as the fitted model scores it; None: it cannot
    microseconds: float  # CPU time per reading, training apart
    fit_seconds: float  # CPU time of training; 0 where there is none apart
    measured: str = ""  # UTC date
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version


#: The fields of Trace that are arrays.
ARRAYS = ("values", "onsets", "alarms", "in_sample")


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table: how to make it score a stream, and what its scores depend on."""

    name: str
    kind: str  # gruard | ablation | control | floor | peer
    settings: Mapping[str, Any]  # JSON
    score: Callable[[Stream, int, float], Trace]  # stream, seed, seconds left -> trace; or TooSlowError
    sources: tuple[Path, ...]  # the code, besides this file's folder's own wrapper, that the scores are from
    packages: tuple[str, ...] = ("numpy",)  # distributions that the scores depend on
    several_seeds: bool = False
    note: str = ""  # what a reader of the table must know

    def missing(self) -> str:
        """The first package that is not installed here, or ''."""
        return next((p for p in self.packages if not version_of(p)), "")

    def versions(self) -> dict[str, str]:
        """Of its packages, as installed here."""
        return {p: version_of(p) for p in self.packages}

    def key(self, seed: int, stream: Stream) -> str:
        """Changes with everything that the scores depend on, except versions of packages."""
        parts = [self.name, json.dumps(dict(self.settings), sort_keys=True), str(seed), digest(self.sources)]
        content = hashlib.sha256("\n".join(parts).encode())
        content.update(f"{stream.name} {stream.warmup}".encode())
        for array in (stream.time_s, stream.values):
            content.update(np.ascontiguousarray(array).tobytes())
        return content.hexdigest()


class Cache:
    """Traces by suite, contender, stream and seed: the newest of each, valid while its key is the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, suite: str, contender: Contender, seed: int, stream: Stream) -> Trace | None:
        """The kept trace, unless code, settings, stream or an installed package differ by now."""
        try:
            path = self.place(suite, contender.name, seed, stream.name, "npz")
            with path.open("rb") as file, np.load(file) as arrays:
                kept = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, BadZipFile):
            return None
        about = json.loads(kept.pop("about").tobytes())
        # What cannot run here may have been run elsewhere.
        same_packages = bool(contender.missing()) or about["versions"] == contender.versions()
        if about.pop("key") != contender.key(seed, stream) or not same_packages:
            return None
        fields: dict[str, Any] = {**dict.fromkeys(ARRAYS), **kept, **about}
        return Trace(**fields)

    def write(self, suite: str, contender: Contender, seed: int, stream: Stream, trace: Trace) -> None:
        """Keep a trace; it appears whole or not at all."""
        about = {
            "key": contender.key(seed, stream),
            "microseconds": trace.microseconds,
            "fit_seconds": trace.fit_seconds,
            "measured": datetime.now(UTC).date().isoformat(),
            "versions": contender.versions(),
        }
        arrays = {name: getattr(trace, name) for name in ARRAYS if getattr(trace, name) is not None}
        path = self.place(suite, contender.name, seed, stream.name, "npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        with scratch.open("wb") as file:
            np.savez_compressed(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
        scratch.replace(path)

    def place(self, suite: str, contender: str, seed: int, stream: str, suffix: str) -> Path:
        """Where one thing about a contender and stream is kept."""
        return self.folder / suite / _plain(contender) / f"{_plain(stream)}-{seed}.{suffix}"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", name)


@lru_cache
def version_of(package: str) -> str:
    """The installed version of a distribution, '' without one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@lru_cache
def digest(sources: tuple[Path, ...]) -> str:
    """Of the text of source files, read once per run: a run is of one code."""
    content = hashlib.sha256()
    for path in sources:
        content.update(path.read_bytes())
    return content.hexdigest()


class Stopwatch:
    """CPU time of this process, and the wall time that is left."""

    #: Rows between looks at the clock.
    EVERY = 128

    def __init__(self, seconds_left: float) -> None:
        self._end = time.perf_counter() + seconds_left
        self._start = time.process_time()

    def check(self, row: int) -> None:
        """Raise TooSlowError once the time is up; looks only now and then."""
        if row % self.EVERY == 0 and time.perf_counter() > self._end:
            raise TooSlowError

    def lap(self) -> float:
        """CPU seconds since the last lap."""
        now = time.process_time()
        taken, self._start = now - self._start, now
        return taken
