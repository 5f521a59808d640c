"""The devices of one source and field set, scored together: B readings are one batched step.

A device goes through four phases. Its first readings only show what is usual; then an adaptive baseline
scores; from BASELINE_READY on it may raise alarms; and once a trained model is at hand that forecasts the
device's own held-back rows tolerably, the model takes charge.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from gruard.models import alarm, baseline_lines, calibration, enrolment, judge, loan, memory, onset, scaling
from gruard.models import reasons as why
from gruard.models.arena import Arena, Column, Rows
from gruard.models.patterns import LARGER, QUIET, Patterns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gruard.models.calibration import Budget
    from gruard.models.enrolment import Fitted
    from gruard.models.forecaster import Forecaster
    from gruard.models.history import History
    from gruard.models.loan import Loan
    from gruard.models.reasons import Reasons, Seen

    Floats = NDArray[np.float32]

#: Readings after which a device is scaled and the baseline scores; and may raise alarms.
FIRST_SCORE, BASELINE_READY = 10, 50
#: Readings at which a device without a model in charge is enrolled anew, on all it has shown so far.
ENROL_AT = (FIRST_SCORE, BASELINE_READY, 200, 400, 1000, 3000)
#: Fewest readings on which a model may take charge of a device, and of one that borrows from its group.
MODEL_READY, LOAN_READY = 200, 50
#: Readings at which a device that has borrowed gives a part of it back: it is enrolled anew.
REPAY_AT = (*ENROL_AT, 100)
#: The running skill looks at one reading in so many, with this share of the newest.
SKILL_EVERY, SKILL_ALPHA = 8, np.float32(0.02)


class Phase(IntEnum):
    """How far a device has come."""

    GATHERING = 0  # no score yet
    WARMING = 1  # the baseline scores, without alarms
    LEARNING = 2  # the baseline is calibrated and in charge
    READY = 3  # the model is in charge


#: Looking a member up in an enumeration costs more than comparing with it.
_GATHERING, _LEARNING, _READY = int(Phase.GATHERING), int(Phase.LEARNING), int(Phase.READY)


class Scores:
    """What B readings scored, each against forecasts made before it was seen. Arrays (B,)."""

    __slots__ = (
        *("alarm", "lasted", "onset", "phase", "resets", "score", "threshold"),
        *("_fields", "_reasons", "_seen"),
    )

    def __init__(self, batch: int, fields: int, phase: NDArray[np.int64]) -> None:
        self.score = np.full(batch, np.nan, np.float32)  # 0..1; NaN while gathering
        self.onset = np.zeros(batch, np.float32)  # 0..1: above 0 where something begins
        self.threshold = np.full(batch, np.nan, np.float32)  # a score that lasts above it opens an alarm
        self.alarm = np.zeros(batch, bool)
        self.lasted = np.zeros(batch, bool)  # the newest alarm ended as a new normal
        self.phase = phase
        self.resets = 0  # hidden states that were not finite and start again
        self._fields = fields
        self._seen: list[tuple[NDArray[np.int64] | slice, Seen]] = []
        self._reasons: Reasons | None = None

    def note(self, where: NDArray[np.int64] | slice, seen: Seen) -> None:
        """Keep what the readings `where` are explained by."""
        self._seen.append((where, seen))

    @property
    def reasons(self) -> Reasons:
        """Why, of every reading: worked out when it is first asked for."""
        if self._reasons is None:
            told = why.nothing(len(self.score), self._fields)
            for where, seen in self._seen:
                part = why.reasons(seen)
                told.expected[where], told.deviation[where] = part.expected, part.deviation
                told.share[where] = part.share
            self._reasons = told
        return self._reasons


class GroupScorer:
    """Devices that share fields and a model. Slots are given out by `add`; all else is batched over them."""

    def __init__(self, fields: int, budget: Budget) -> None:
        self.fields = fields
        self.forecaster: Forecaster | None = None
        self._loan: Loan | None = None  # what a device that no round has seen may borrow
        self.patterns = Patterns()  # what operators called normal
        self._budget = budget
        self._mix = np.zeros((0, 2), np.float32)
        self._arena = Arena(_blocks(fields, None), salt="none")

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
        alarm.reset(self._arena["alarm"][slot])
        self._arena["count"][slot] = count
        self._arena["last_time_s"][slot] = last_time_s if count else 0.0
        return slot

    def remove(self, slot: int) -> None:
        """Forget a device."""
        self.patterns.keep(slot, ())
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

    def borrowed(self, slots: NDArray[np.int64]) -> Floats:
        """Share (B,) of each slot's thresholds that its group has lent it: 0 for what stands on its own."""
        return np.asarray(self._arena["borrowed"][slots])

    def heads(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Whose linear weights forecast each slot (B,): 0 = the shared ones, also for the baseline."""
        if self.forecaster is None or not self.forecaster.heads:
            return np.zeros(len(slots), np.int64)
        in_charge = self._arena["phase"][slots] == Phase.READY
        return np.where(in_charge, self._arena["head"][slots], 0)

    def hidden(self, slots: NDArray[np.int64]) -> Floats:
        """The recurrent memory of each slot (B, W); W is 0 without a model."""
        if self.forecaster is None:
            return np.zeros((len(slots), 0), np.float32)
        return np.asarray(self._arena["hidden"][slots])

    def skill(self, slots: NDArray[np.int64]) -> float:
        """Running skill of the model in charge: 1 - its mean error / that of the last value. NaN without."""
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
        device = self._arena.gather(slots, "device")
        device["count"] += 1
        gap_s = time_s - device["last_time_s"]
        device["last_time_s"][:] = time_s
        phase = device["phase"].copy()
        scores = Scores(len(slots), self.fields, phase)
        ready = phase == _READY
        if np.count_nonzero(ready) == len(slots):
            self._by_model(slots, device, gap_s, time_s, values, slice(None), scores)
            return scores
        self._arena.scatter(slots, device)
        for side, here in ((self._by_model, ready), (self._by_baseline, ~ready & (phase > _GATHERING))):
            where = np.flatnonzero(here)
            if len(where):
                part = self._arena.gather(slots[where], "device")
                side(slots[where], part, gap_s[where], time_s[where], values[where], where, scores)
        return scores

    def _by_model(
        self,
        slots: NDArray[np.int64],
        device: Rows,
        gap_s: NDArray[np.float64],
        time_s: NDArray[np.float64],
        values: NDArray[np.float64],
        where: NDArray[np.int64] | slice,
        scores: Scores,
    ) -> None:
        forecaster = self.forecaster
        if forecaster is None:
            raise RuntimeError("a device is ready without a model")
        rows = self._arena.gather(slots, "model")
        z, mask = _filled(values, device, rows["lags"])
        # Nobody forecasts a fault: how well a model does shows in what is normal.
        due = (device["count"] % SKILL_EVERY == 0) & (device["alarm"][:, alarm.OPEN] == 0.0)
        last = rows["lags"][:, 0].copy() if np.count_nonzero(due) else None
        line, resets = memory.advance(rows, z, mask, gap_s / device["usual_gap_s"], time_s, forecaster)
        scores.resets += resets
        u, streams = judge.judge(rows, line, mask, forecaster.precision, self._mix)
        if last is not None:
            _note_errors(device, due, z, last, line[0])
        parts = rows["parts"][:, :-1].copy()
        self._arena.scatter(slots, rows)
        shown = (z, mask, z - line[:1], streams[:, :-1], parts)
        self._tell(slots, device, u, shown, rows["lags"], where, scores)
        self._arena.scatter(slots, device)

    def _by_baseline(
        self,
        slots: NDArray[np.int64],
        device: Rows,
        _gap_s: NDArray[np.float64],
        _time_s: NDArray[np.float64],
        values: NDArray[np.float64],
        where: NDArray[np.int64] | slice,
        scores: Scores,
    ) -> None:
        rows = self._arena.gather(slots, "baseline")
        z, mask = _filled(values, device, rows["base_lags"])
        step = baseline_lines.advance(rows, z, mask)
        u, streams = baseline_lines.judge(rows, step, z, mask)
        parts = rows["base_parts"].copy()
        forecasts = np.stack([step.mix, step.ar, np.zeros_like(z)])  # in the order of its lines
        self._arena.scatter(slots, rows)
        self._tell(slots, device, u, (z, mask, forecasts, streams, parts), rows["base_lags"], where, scores)
        self._arena.scatter(slots, device)

    def _tell(
        self,
        slots: NDArray[np.int64],
        device: Rows,
        u: Floats,
        seen: tuple[Floats, NDArray[np.bool_], Floats, Floats, Floats],
        lags: Floats,
        where: NDArray[np.int64] | slice,
        scores: Scores,
    ) -> None:
        """From u (B, 2) of state and onset to the scores of the readings `where`; `seen` is as in Seen."""
        glow, state = device["glow"], u[:, 0]
        glow += calibration.GLOW * (calibration.glowing(state) - glow)
        told = np.empty((3, len(u)), np.float32)
        np.maximum(state, np.sqrt(np.sqrt(glow)), out=told[0])
        location, scale = device["location"].copy(), device["scale"].copy()
        known = np.zeros(len(u), bool)
        if self.patterns:
            quiet = np.float32(QUIET) * device["level"] * device["alarm"][:, alarm.FACTOR]
            known = self.patterns.like(slots, told[0] > quiet, lags, seen[4], seen[3], scale)  # (B,)
            state = np.where(known, np.minimum(state, quiet), state)
        open_, threshold = alarm.follow(device["alarm"], state, device["level"], self._budget.per_reading)
        # Of a known pattern the threshold stands above what is scored: it is told, and does not alarm.
        told[1] = np.where(known, np.maximum(threshold, np.float32(LARGER) * told[0]), threshold)
        told[2] = onset.follow(device["onset_counts"], device["onset"], u[:, 1])
        scores.score[where], scores.threshold[where], scores.onset[where] = calibration.to_score(told)
        scores.alarm[where] = open_ & (device["phase"] >= _LEARNING)
        scores.lasted[where] = alarm.lasted(device["alarm"])
        scores.note(where, why.Seen(*seen, told[0], threshold, location, scale))

    def level(self, slot: int) -> float:
        """The m that raises an alarm of a device that has raised none lately."""
        return float(self._arena["level"][slot])

    def forgive(self, slot: int) -> None:
        """Take the charge of a device's newest alarm back: see `gruard.models.alarm`."""
        alarm.forgive(self._arena["alarm"][slot])

    def lower(self, slot: int, steps: int) -> None:
        """Bring a device's threshold down by so many steps, or up again."""
        alarm.lower(self._arena["alarm"][slot], steps)

    def score_again(self, slot: int, history: History, start: int, end: int) -> list[Seen]:
        """What the rows `start` to `end` of a device's history show, one after the other.

        The device itself does not move; the first rows only bring the memory to where they are. Without an
        afterglow: `u` is that of the row alone.
        """
        twin = GroupScorer(self.fields, self._budget)
        if self.forecaster is not None:
            twin.adopt(self.forecaster, "again")
        one = np.array([twin.add()])
        twin.load(int(one[0]), self.dump(slot))
        found: list[Seen] = []
        for t in range(start, end):
            twin._arena["glow"][one] = 0.0
            scores = twin.score(one, history.time_s[t : t + 1], history.values[t : t + 1])
            found += [seen for _, seen in scores._seen]  # noqa: SLF001 -- likewise
        return found

    def due(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the slots just scored must be enrolled on their history before their next reading."""
        count, phase = self._arena["count"][slots], self._arena["phase"][slots]
        due = np.isin(count, ENROL_AT) & (phase != Phase.READY)
        if self._loan is not None:
            due |= np.isin(count, REPAY_AT) & (self._arena["borrowed"][slots] > 0.0)
        return np.asarray(slots[due])

    def enrol(
        self,
        slots: NDArray[np.int64],
        histories: Sequence[History],
        fitted: Sequence[Fitted | None] | None = None,
    ) -> None:
        """Fit devices anew on their recent readings: scaling, calibration, warmed-up hidden state.

        Histories end with the newest reading applied to the slot. `fitted` holds what the trainer fixed.
        """
        known = list(fitted) if fitted is not None else [None] * len(slots)
        count = self._arena["count"][slots]
        unseen = np.array([one is None for one in known])
        young = (count >= LOAN_READY) & (count < loan.REPAID_ROWS)
        lent = unseen & young & (self._loan is not None)
        if lent.any():
            # Whose readings the group's forecasts do not fit is no device of its kind, and borrows nothing.
            fits = self._enrol(slots, histories, known, np.flatnonzero(lent), self._loan)
            lent[np.flatnonzero(lent)[~fits]] = False
        if not lent.all():
            self._enrol(slots, histories, known, np.flatnonzero(~lent), None)

    def _enrol(
        self,
        slots: NDArray[np.int64],
        histories: Sequence[History],
        known: Sequence[Fitted | None],
        chosen: NDArray[np.int64],
        lender: Loan | None,
    ) -> NDArray[np.bool_]:
        """Enrol those `chosen` (n,) of the devices; of which the model is in charge then (n,).

        With a `lender`, only those.
        """
        slots = slots[chosen]
        histories, known = [histories[n] for n in chosen], [known[n] for n in chosen]
        count = self._arena["count"][slots]
        # A device that the model was trained on was judged by the trainer, however little it has shown.
        fewest = MODEL_READY if lender is None else LOAN_READY
        may = np.array([one is not None for one in known]) | (count >= fewest)
        rows, ready = enrolment.enrol(histories, known, self.forecaster, self._budget, may, lender)
        by_baseline = np.where(count >= BASELINE_READY, Phase.LEARNING, Phase.WARMING)
        rows["phase"] = np.where(ready, Phase.READY, by_baseline)
        rows["level"] = np.where(rows["phase"] == Phase.WARMING, np.float32(alarm.NEVER), rows["level"])
        shares = [loan.share_of(len(history.time_s)) if lender else 0.0 for history in histories]
        rows["borrowed"] = np.array(shares, np.float32)
        alarm.carry(rows["alarm"], self._arena["alarm"][slots])
        if lender is not None:  # who does not borrow is enrolled by what comes next
            slots, rows = slots[ready], {name: values[ready] for name, values in rows.items()}
        self._arena.scatter(slots, rows)
        return ready

    def adopt(self, forecaster: Forecaster | None, model_id: str, lender: Loan | None = None) -> None:
        """Take new weights. Every device keeps its count and must be enrolled again before it is scored.

        `lender`: what devices that these weights were not trained on may borrow.
        """
        old = self._arena
        arena = Arena(_blocks(self.fields, forecaster), salt=model_id)
        arena.take_places(old)
        for name in ("count", "last_time_s", "location", "scale", "usual_gap_s"):
            arena[name][: old.capacity] = old[name]
        # What only the baseline found alarming is the model's to judge anew.
        alarm.reset(arena["alarm"])
        ready = np.flatnonzero(old["phase"] == Phase.READY)
        arena["alarm"][ready] = old["alarm"][ready]
        self.forecaster, self._arena, self._loan = forecaster, arena, lender
        if forecaster is not None:
            self._mix = judge.weights(len(forecaster.precision))


def _blocks(fields: int, forecaster: Forecaster | None) -> dict[str, Mapping[str, Column]]:
    """What a device carries: always, for the baseline, and for the model when there is one."""
    blocks: dict[str, Mapping[str, Column]] = {
        "device": {
            "count": Column((), "i8"),  # readings applied to the state
            "phase": Column((), "i8"),
            "last_time_s": Column((), "f8"),
            "usual_gap_s": Column((), "f8", 1.0),
            "location": Column((fields,), "f8"),  # m: physical units
            "scale": Column((fields,), "f8", 1.0),  # s
            "level": Column((), fill=calibration.LEVEL_HIGH),  # m that raises an alarm
            "borrowed": Column(()),  # share of its thresholds that the group has lent it
            "glow": Column(()),  # running mean of u^4
            "errors_mean": Column((2,), fill=1.0),  # running |residual|: last value, model
            **alarm.columns(),
            **onset.columns(),
        },
        "baseline": baseline_lines.columns(fields),
    }
    if forecaster is not None:
        blocks["model"] = memory.columns(forecaster) | judge.columns(forecaster)
    return blocks


def _filled(values: NDArray[np.float64], device: Rows, lags: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Physical units (B, F), NaN = missing -> sigma, where missing values take the last one seen; mask."""
    z = scaling.to_sigma(values, device["location"], device["scale"])
    mask = np.isfinite(z)
    if np.count_nonzero(mask) == mask.size:
        return z, mask
    return np.where(mask, z, lags[:, 0]), mask


def _note_errors(device: Rows, due: NDArray[np.bool_], z: Floats, last: Floats, residual: Floats) -> None:
    """Move the running forecast errors (B, 2) of the last value and the model past some readings (B, F)."""
    found = np.stack([np.abs(z - last).mean(axis=1), np.abs(residual).mean(axis=1)], axis=1)
    errors = device["errors_mean"]
    errors += np.where(due[:, None], SKILL_ALPHA, np.float32(0.0)) * (np.minimum(found, 5.0) - errors)
