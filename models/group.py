"""The devices of one source and field set, scored together: B readings are one batched step.

A device goes through four phases. Its first readings only show what is usual; then an adaptive baseline
scores; from BASELINE_READY on it may raise alarms; and where a trained model forecasts the device's own
held-back rows no worse, the model takes charge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from gruard.models import calibration, evidence, scaling
from gruard.models.arena import Arena
from gruard.models.enrolment import MAY_LOSE, Fitted, History, enrol
from gruard.models.lines import (
    BASELINE_LINES,
    LEVEL,
    LINES,
    MODEL_LINES,
    PARTS_ALPHA,
    TAIL,
    Step,
    advance,
    columns,
    filled,
    lines,
    note_errors,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray

    from gruard.models.forecaster import Forecaster

#: Readings after which a device is scaled and the baseline scores; and may raise alarms.
FIRST_SCORE, BASELINE_READY = 10, 50
#: Readings at which a device without a model in charge is enrolled anew, on all it has shown so far.
ENROL_AT = (FIRST_SCORE, BASELINE_READY, 200, 400, 1000, 3000)
#: Fewest readings on which a model may take charge of a device.
MODEL_READY = 200


class Phase(IntEnum):
    """How far a device has come."""

    GATHERING = 0  # no score yet
    WARMING = 1  # the baseline scores, without alarms
    LEARNING = 2  # the baseline is calibrated and in charge
    READY = 3  # the model is in charge


@dataclass(frozen=True, slots=True)
class Scores:
    """What B readings scored, each against forecasts made before it was seen."""

    score: NDArray[np.float32]  # (B,) 0..1; NaN while gathering
    threshold: NDArray[np.float32]  # (B,) the score that opens an alarm
    release: NDArray[np.float32]  # (B,) the score under which an alarm may end
    phase: NDArray[np.int64]  # (B,)
    expected: NDArray[np.float64]  # (B, F) physical units, NaN while gathering
    deviation: NDArray[np.float64]  # (B, F) (value - expected) in the field's usual spread, NaN = missing
    share: NDArray[np.float32]  # (B, F) who makes up the strongest line of evidence; sums to 1
    resets: int  # hidden states that were not finite and start again


class GroupScorer:
    """Devices that share fields and a model. Slots are given out by `add`; all else is batched over them."""

    def __init__(self, fields: int, alarms_per_second: float) -> None:
        self.fields = fields
        self.forecaster: Forecaster | None = None
        self._alarms_per_second = alarms_per_second
        self._arena = Arena(columns(fields, 0), salt="none")

    def __len__(self) -> int:
        return len(self._arena)

    @property
    def layout_id(self) -> str:
        """Names the meaning of `dump`'s bytes; differs between models."""
        return self._arena.layout_id

    @property
    def row_bytes(self) -> int:
        """Bytes of state that one device occupies."""
        return self._arena.row_bytes

    def add(self, count: int = 0, last_time_s: float = 0.0) -> int:
        """A slot for a device that has shown `count` readings so far, the newest at `last_time_s`."""
        slot = self._arena.allocate()
        self._arena["count"][slot] = count
        self._arena["last_time_s"][slot] = last_time_s if count else 0.0
        return slot

    def remove(self, slot: int) -> None:
        """Forget a device."""
        self._arena.release(slot)

    def dump(self, slot: int) -> bytes:
        """A device's whole memory as bytes."""
        return self._arena.dump(slot)

    def load(self, slot: int, stored: bytes) -> None:
        """Put back what `dump` gave; ModelError where the bytes do not fit."""
        self._arena.load(slot, stored)

    def phases(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Phase of each slot (B,)."""
        return np.asarray(self._arena["phase"][slots])

    def counts(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Readings applied to the state of each slot (B,)."""
        return np.asarray(self._arena["count"][slots])

    def skill(self, slots: NDArray[np.int64]) -> float:
        """Running skill of the model in charge: 1 - its mean error / the baseline's. NaN when none is."""
        ready = slots[self._arena["phase"][slots] == Phase.READY]
        if not len(ready):
            return float("nan")
        errors = self._arena["errors_mean"][ready].mean(axis=0)  # (2,)
        return float(1.0 - errors[1] / max(float(errors[0]), 1e-6))

    def score(
        self, slots: NDArray[np.int64], time_s: NDArray[np.float64], values: NDArray[np.float64]
    ) -> Scores:
        """Score one reading each of B different devices, then move their state past it.

        Slots (B,) unique; time_s (B,) event times; values (B, F) physical units, NaN = missing.
        The result does not depend on B or on the order of the devices.
        """
        result = _nothing(len(slots), self.fields)
        self._arena["count"][slots] += 1
        gap_s = time_s - self._arena["last_time_s"][slots]
        self._arena["last_time_s"][slots] = time_s
        begun = np.flatnonzero(self._arena["phase"][slots] > Phase.GATHERING)  # (B',)
        if not len(begun):
            return result
        slots, values = slots[begun], values[begun]
        rows = self._arena.gather(slots)
        z, mask = filled(rows, scaling.to_sigma(values, rows["location"], rows["scale"]))  # (B', F)
        step = advance(rows, z, mask, gap_s[begun], self.forecaster)
        d, parts = lines(rows, step, z, mask, self.forecaster)  # (B', E), (B', E, F)
        rows["evidence"] = evidence.smooth(rows["evidence"], d)
        rows["parts"] += PARTS_ALPHA * (parts - rows["parts"])
        note_errors(rows, step, z, mask)
        self._arena.scatter(slots, rows)
        _judge(rows, step, z, values, mask, begun, result)
        return replace(result, resets=step.resets)

    def due(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the slots just scored must be enrolled on their history before their next reading."""
        count, phase = self._arena["count"][slots], self._arena["phase"][slots]
        return np.asarray(slots[np.isin(count, ENROL_AT) & (phase != Phase.READY)])

    def enrol(
        self,
        slots: NDArray[np.int64],
        histories: Sequence[History],
        fitted: Sequence[Fitted | None] | None = None,
    ) -> None:
        """Fit devices anew on their recent readings: scaling, calibration, warmed-up hidden state.

        Histories end with the newest reading applied to the slot. `fitted` holds what the trainer fixed.
        """
        known = fitted if fitted is not None else [None] * len(slots)
        rows, skill = enrol(histories, known, self.forecaster, self._alarms_per_second)
        count = self._arena["count"][slots]
        phase = np.where(count >= BASELINE_READY, Phase.LEARNING, Phase.WARMING)
        # A device that the model was trained on was judged by the trainer, however little it has shown.
        judged = np.array([k is not None for k in known]) | (count >= MODEL_READY)
        allowed = judged & (skill >= 1.0 - MAY_LOSE)  # false where skill is NaN
        rows["phase"] = np.where(allowed, Phase.READY, phase)
        rows["count"] = count
        self._arena.scatter(slots, rows)

    def adopt(self, forecaster: Forecaster | None, model_id: str) -> None:
        """Take new weights. Every device keeps its count and must be enrolled again before it is scored."""
        old = self._arena
        width = 0 if forecaster is None else forecaster.state_width
        arena = Arena(columns(self.fields, width), salt=model_id)
        arena.take_places(old)
        for name in ("count", "last_time_s", "location", "scale", "usual_gap_s"):
            arena[name][:] = old[name]
        self.forecaster, self._arena = forecaster, arena


def _nothing(batch: int, fields: int) -> Scores:
    return Scores(
        score=np.full(batch, np.nan, np.float32),
        threshold=np.full(batch, np.nan, np.float32),
        release=np.full(batch, np.nan, np.float32),
        phase=np.full(batch, Phase.GATHERING, np.int64),
        expected=np.full((batch, fields), np.nan),
        deviation=np.full((batch, fields), np.nan),
        share=np.full((batch, fields), 1.0 / fields, np.float32),
        resets=0,
    )


def _judge(
    rows: dict[str, NDArray[Any]],
    step: Step,
    z: NDArray[np.float32],
    values: NDArray[np.float64],
    mask: NDArray[np.bool_],
    begun: NDArray[np.int64],
    result: Scores,
) -> None:
    """Turn smoothed evidence into scores and reasons, written into `result` at the rows `begun`."""
    u = calibration.exceedance(rows["evidence"], rows["median"], rows["quantile"])  # (B', E, K)
    ready = rows["phase"] == Phase.READY  # (B',)
    sides = [list(BASELINE_LINES), list(MODEL_LINES)]
    combined = [calibration.combine(u[:, side].reshape(len(u), -1)) for side in sides]
    total = np.where(ready, combined[1], combined[0])  # (B',)
    level = np.where(ready, rows["level"][:, 1], rows["level"][:, 0])
    strongest = u.max(axis=2)  # (B', E)
    silent = np.ones((2, LINES), bool)  # lines that do not speak: baseline in charge, model in charge
    silent[0, sides[0]] = silent[1, sides[1]] = False
    strongest[silent[ready.astype(int)]] = -1.0
    line = strongest.argmax(axis=1)  # (B',)

    parts = rows["parts"][np.arange(len(line)), line] + 1e-9  # (B', F)
    share = parts / parts.sum(axis=1, keepdims=True)

    # Forecasts follow a fault within a few readings and then call it expected. While the score is high,
    # what was expected is the forecast or the learned normal (0), whichever the reading is further from.
    expected = np.where(ready[:, None], step.model, step.mix)  # (B', F) sigma
    expected = np.where((line == TAIL)[:, None], step.ar, expected)
    surprise = (share * np.abs(z - expected)).sum(axis=1)
    follows = (total > level * calibration.FALL) & (surprise < (share * np.abs(z)).sum(axis=1))
    expected = np.where((follows | (line == LEVEL))[:, None], 0.0, expected)
    units = scaling.to_units(expected, rows["location"], rows["scale"])

    result.score[begun] = calibration.to_score(total)
    result.threshold[begun] = calibration.to_score(level)
    result.release[begun] = calibration.to_score(level * calibration.FALL)
    result.phase[begun] = rows["phase"]
    result.expected[begun] = units
    result.deviation[begun] = np.where(mask, (values - units) / rows["scale"], np.nan)
    result.share[begun] = share
