"""A history to tune on, and a detector that costs nothing and is as good as its settings say."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gruard.models.lockstep import SeriesScores
from gruard.models.plants.plants import START_S, simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gruard.models.detector import DetectorConfig
    from gruard.models.history import History

#: Readings of a device, and where in them the parts begin.
ROWS, SELECT, CONFIRM = 2400, 1200, 1800
STEP_S = 10.0


def write_history(path: Path, devices: int = 2, rows: int = ROWS) -> Path:
    """An archive with devices of one simulated plant."""
    arrays = {}
    for k in range(devices):
        recorded = simulate("interlock", rows, 3, k)
        arrays |= {f"pump-{k}|x": recorded.values, f"pump-{k}|t": recorded.time_s}
    np.savez(path, **arrays)
    return path


@dataclass(slots=True)
class Call:
    """One model that was asked to score."""

    config: DetectorConfig
    warmup: int
    histories: list[History]

    @property
    def confirms(self) -> bool:
        """Whether it scored the part that confirms."""
        return bool(self.histories[0].time_s[self.warmup] >= START_S + CONFIRM * STEP_S)


@dataclass(slots=True)
class FakeDetector:
    """Scores faulty copies: what differs from the original scores 1, and noise is added to all of it.

    `noise` gives its standard deviation, `wild` says which settings alarm in every hundredth reading.
    """

    noise: Callable[[Call], float]
    wild: Callable[[Call], bool] = lambda _: False
    before: Callable[[int], None] = lambda _: None  # told the number of the call
    calls: list[Call] = field(default_factory=list)

    def __call__(
        self,
        histories: Sequence[History],
        warmup: int,
        config: DetectorConfig,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[SeriesScores]:
        assert progress is not None
        assert stop is not None
        call = Call(config, warmup, list(histories))
        self.calls.append(call)
        self.before(len(self.calls))
        whole = sum(len(h.time_s) for h in histories)
        progress(len(histories) * warmup + 1)
        progress(whole)
        count = len(histories) // 2
        originals = list(histories[:count]) * 2
        return [
            self._scores(call, history, original, lane)
            for lane, (history, original) in enumerate(zip(histories, originals, strict=True))
        ]

    def _scores(self, call: Call, history: History, original: History, lane: int) -> SeriesScores:
        rows, width = history.values.shape
        differs = (np.nan_to_num(history.values) != np.nan_to_num(original.values)).any(axis=1)
        # Settings of equal noise are equally good on average, and no two of them score alike.
        c = call.config
        own = zlib.crc32(repr((c.cell, c.hidden, c.layers, c.dropout, c.seed, call.warmup, lane)).encode())
        noise = self.noise(call) * np.random.default_rng(own).standard_normal(rows)
        value = np.asarray(0.5 + 0.4 * np.tanh(differs + noise), np.float32)
        alarm = np.zeros(rows, bool)
        if self.wild(call):
            alarm[::100] = True
        return SeriesScores(
            value=value,
            threshold=np.full(rows, 0.95, np.float32),
            onset=np.zeros(rows, np.float32),
            ready=np.arange(rows) >= call.warmup,
            alarm=alarm,
            expected=np.zeros((rows, width), np.float32),
            share=np.full((rows, width), 1.0 / width, np.float32),
        )
