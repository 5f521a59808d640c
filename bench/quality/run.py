"""Run contenders over suites stream by stream, out of the cache where it holds them already."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING

from quality.suites import load
from quality.trace import Cache, TooSlowError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from quality.suites import Stream
    from quality.trace import Contender, Trace


@dataclass(frozen=True, slots=True)
class Unit:
    """What is run, and given up, as one: a contender with one seed on one suite."""

    contender: Contender
    suite: str
    seed: int

    @property
    def label(self) -> tuple[str, str, int]:
        """The same in every process."""
        return self.contender.name, self.suite, self.seed


@dataclass(frozen=True, slots=True)
class Done:
    """How a unit ended."""

    unit: Unit
    fresh: int  # streams that were not in the cache
    seconds: float
    reason: str  # why there are no figures, '' when there are


@dataclass(frozen=True, slots=True)
class Runner:
    """Where recordings and traces are, and how long a unit may take."""

    recordings: Path
    cache: Path
    cap_s: float

    def run(self, units: Sequence[Unit], jobs: int) -> Iterator[Done]:
        """Run all units, `jobs` at a time; yields each as it ends."""
        if jobs == 1:
            yield from map(self.complete, units)
            return
        # A fresh interpreter each: torch's threads do not survive a fork.
        with ProcessPoolExecutor(jobs, get_context("spawn"), _end_quietly) as pool:
            try:
                for future in as_completed([pool.submit(self.complete, unit) for unit in units]):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def complete(self, unit: Unit) -> Done:
        """Score what the cache does not hold of one unit."""
        begun, fresh = time.perf_counter(), 0
        contender, cache = unit.contender, Cache(self.cache)
        streams = load(self.recordings, unit.suite)
        lacking = [s for s in streams if cache.read(unit.suite, contender, unit.seed, s) is None]
        reason = self._reason(unit, lacking)
        while lacking and not reason:
            stream = lacking.pop(0)
            left = self.cap_s - (time.perf_counter() - begun)
            try:
                trace = contender.score(stream, unit.seed, left)
            except TooSlowError:
                reason = f"gave up after {self.cap_s:.0f} s with {len(lacking) + 1} of {len(streams)} to go"
                self._give_up(unit, stream, reason)
                break
            cache.write(unit.suite, contender, unit.seed, stream, trace)
            fresh += 1
        return Done(unit, fresh, time.perf_counter() - begun, reason)

    def traces(self, unit: Unit) -> list[tuple[Stream, Trace]] | None:
        """All streams of a unit with their traces; None where one is lacking."""
        cache, pairs = Cache(self.cache), []
        for stream in load(self.recordings, unit.suite):
            trace = cache.read(unit.suite, unit.contender, unit.seed, stream)
            if trace is None:
                return None
            pairs.append((stream, trace))
        return pairs

    def _reason(self, unit: Unit, lacking: Sequence[Stream]) -> str:
        """Why a unit that lacks streams is not to be run, '' if it is."""
        if not lacking:
            return ""
        missing = unit.contender.missing()
        if missing:
            return f"{missing} is not installed"
        try:
            kept = json.loads(self._mark(unit).read_text("utf-8"))
        except (OSError, ValueError):
            return ""
        same = any(kept["key"] == unit.contender.key(unit.seed, stream) for stream in lacking)
        return str(kept["reason"]) if same and kept["cap_s"] >= self.cap_s else ""

    def _give_up(self, unit: Unit, stream: Stream, reason: str) -> None:
        """Remember it: a run that is resumed does not try again, unless it may take longer."""
        mark = self._mark(unit)
        mark.parent.mkdir(parents=True, exist_ok=True)
        key = unit.contender.key(unit.seed, stream)
        mark.write_text(json.dumps({"key": key, "cap_s": self.cap_s, "reason": reason}), "utf-8")

    def _mark(self, unit: Unit) -> Path:
        return Cache(self.cache).place(unit.suite, unit.contender.name, unit.seed, "gave-up", "json")


def _end_quietly() -> None:
    """Ctrl-C ends a worker without a traceback; what it had finished is in the cache."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
