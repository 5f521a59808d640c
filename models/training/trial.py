"""A candidate on trial: what it would do to alerts, and what it sees of faults, beside the model in charge.

Both are enrolled on the older readings of some devices and then given the newest ones, exactly as the scorer
would give them: once as they were, for the alerts; and in copies with faults put in, for what is found. Of
faults only those count at whose place neither model is in alarm anyway.

Sizes of faults are in spreads of the very readings, and a spread is a robust one: a minority of poisoned
readings that widens what counts as normal does not make the faults larger along with it.

Shapes: N devices, C copies, R rows of the trial, F fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gruard.models.group import GroupScorer
from gruard.models.history import History
from gruard.models.plants import faults
from gruard.models.quality.episodes import GAP, GRACE, openings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gruard.models.calibration import Budget
    from gruard.models.enrolment import Fitted
    from gruard.models.forecaster import Forecaster

#: Devices of a trial at most; the newest rows of each that are played, at most that share of what it has;
#: fewer rows are no trial.
MOST_DEVICES, TRIAL_ROWS, TRIAL_SHARE, FEWEST_ROWS = 16, 1000, 0.5, 200
#: Copies with faults over all devices, at least MOST_DEVICES of them; and how the faults lie in each.
COPIES = 96
SHARE, SHORTEST, LONGEST, MARGIN = 0.25, 20, 120, 60
#: Kinds of fault that any device can show, and from where to where their sizes go, as multiples of what is
#: clear to the eye: some are found and some are not, whatever the device, so that a loss of sight shows.
KINDS: tuple[faults.Kind, ...] = ("shift", "departure", "stuck", "noise")
SMALLEST, LARGEST = 0.05, 8.0
#: Recall that may be lost against the model in charge, and against the anchor: in all rounds together.
MAY_MISS = 0.02
#: The same beside a model that takes more for a fault because it knows less: it was trained on fewer than
#: this share of the candidate's readings, or raises alerts at readings that the candidate takes for normal.
YOUNG, MAY_MISS_BESIDE_NERVOUS = 0.6, 0.1
#: Faults that must count for a comparison.
COUNTED_SHARE = 0.3
#: Standard errors of a difference of recall that are still luck.
LUCK = 1.0
#: Alerts that a candidate may add beyond those it drops: so many, and so many for each of the other's.
MAY_ADD, MAY_ADD_SHARE = 2, 0.1
#: Episodes whose peaks differ by this factor are of another grade.
GRADE = 2.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the scorer has it: shared weights and what was fixed for devices that it was trained on."""

    forecaster: Forecaster
    fitted: Mapping[str, Fitted]
    rows: int  # readings that it was trained on


class Course(NamedTuple):
    """What a model made of a trial's readings (R, N, 1 + C): as they were, then with faults."""

    alarm: NDArray[np.bool_]
    score: NDArray[np.float32]


class Episode(NamedTuple):
    """One alarm of one device, in rows of the trial."""

    device: int
    first: int
    last: int
    peak: float  # highest score


class Changes(NamedTuple):
    """What a candidate would do to the alerts of the trial's rows."""

    added: int
    dropped: int
    changed: int  # of another grade
    before: int  # alerts of the model in charge

    def __str__(self) -> str:
        return f"would add {_alerts(self.added)}, drop {self.dropped}, change {self.changed}"

    @property
    def is_within_bound(self) -> bool:
        """Whether so many more alerts may come of it."""
        return self.added - self.dropped <= MAY_ADD + MAY_ADD_SHARE * self.before


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a trial ended."""

    refusal: str  # why the candidate must not take charge; empty when it may
    recall: float  # share of the faults that the candidate finds; NaN where there was no trial
    faults: int
    changes: Changes | None  # None: there is no model in charge
    recall_before: float = math.nan  # the same of the model in charge

    @property
    def told(self) -> str:
        """The trial in one line."""
        if not self.faults:
            return "too few readings for a trial"
        found = f"finds {self.recall:.0%} of {self.faults} injected faults"
        if self.changes is None:
            return found
        return f"{self.changes}; {found}, the model in charge {self.recall_before:.0%}"


class Trial:
    """The readings of one trial; `of` judges models on it."""

    def __init__(self, histories: Mapping[str, History], budget: Budget, seed: int) -> None:
        self._budget = budget
        rows = _trial_rows(histories)
        self.rows = rows
        chosen = [name for name in sorted(histories) if len(histories[name].time_s) * TRIAL_SHARE >= rows]
        self.names = chosen[:: -(-len(chosen) // MOST_DEVICES)] if rows else []
        self._histories = [histories[name] for name in self.names]
        self._copies: list[list[NDArray[np.float64]]] = []  # N lists of C arrays (R, F)
        self._placed: list[list[list[faults.Placed]]] = []
        rng = np.random.default_rng(seed)
        each = COPIES // max(len(self.names), 1)
        for history in self._histories:
            newest = history.values[-rows:]
            made = [_with_faults(newest, rng) for _ in range(each)]
            self._copies.append([values for values, _ in made])
            self._placed.append([placed for _, placed in made])

    def judge(self, candidate: Model, live: Model | None, anchor: Model | None = None) -> Verdict:
        """Whether a candidate may take charge.

        `live`: the model in charge, None for a group's first one. `anchor`: the first one that had seen
        enough, so that many small losses do not add up.
        """
        if not self.names:
            return Verdict("", math.nan, 0, None)
        new = self._play(candidate)
        if live is None:
            found, counted = self._found(new.alarm, new.alarm)
            return Verdict("", _share(found[counted]), int(counted.sum()), None)
        old = self._play(live)
        changes = _changes(self._episodes(old), self._episodes(new))
        found, counted = self._found(new.alarm, old.alarm)
        refusal = self._misses("the model in charge", (new, candidate), (old, live))
        if not refusal and anchor is not None and anchor is not live:
            refusal = self._misses("the anchor", (new, candidate), (self._play(anchor), anchor))
        if not refusal and not changes.is_within_bound:
            refusal = f"it {changes}"
        before = _share(self._found(old.alarm, new.alarm)[0][counted])
        return Verdict(refusal, _share(found[counted]), int(counted.sum()), changes, before)

    def _misses(self, name: str, new: tuple[Course, Model], old: tuple[Course, Model]) -> str:
        """Why the candidate finds too little of the faults beside another model, if it does."""
        found, counted = self._found(new[0].alarm, old[0].alarm)
        by_old, _ = self._found(old[0].alarm, new[0].alarm)
        if counted.sum() < COUNTED_SHARE * len(counted):
            return ""  # one of them is in alarm nearly always: there is nothing to compare
        changes = _changes(self._episodes(old[0]), self._episodes(new[0]))
        nervous = changes.dropped > changes.added or old[1].rows < YOUNG * new[1].rows
        found, by_old = found[counted], by_old[counted]
        # McNemar 1947: of faults that both find, or neither, nothing is learned.
        luck = LUCK * math.sqrt(float((found != by_old).sum())) / len(found)
        if by_old.mean() - found.mean() <= max(MAY_MISS_BESIDE_NERVOUS if nervous else MAY_MISS, luck):
            return ""
        return f"it finds {found.mean():.0%} of {len(found)} injected faults, {name} {by_old.mean():.0%}"

    def _play(self, model: Model) -> Course:
        """Alarms and scores of the readings as they were, then with faults."""
        devices, each = len(self.names), 1 + len(self._copies[0])
        scorer = GroupScorer(self._histories[0].values.shape[1], self._budget)
        before = [_head(history, self.rows) for history in self._histories]
        slots = np.array(
            [[scorer.add(len(h.time_s), float(h.time_s[-1])) for _ in range(each)] for h in before]
        )  # (N, 1 + C)
        scorer.adopt(model.forecaster, "trial")
        scorer.enrol(slots[:, 0], before, [model.fitted.get(name) for name in self.names])
        for own in slots:
            memory = scorer.dump(int(own[0]))
            for slot in own[1:].tolist():
                scorer.load(slot, memory)
        time_s = np.stack([h.time_s[-self.rows :] for h in self._histories], axis=1)  # (R, N)
        values = np.stack(
            [
                np.stack([h.values[-self.rows :], *copies], axis=1)
                for h, copies in zip(self._histories, self._copies, strict=True)
            ],
            axis=1,
        )  # (R, N, 1 + C, F)
        alarm = np.zeros((self.rows, devices * each), bool)
        scores = np.zeros(alarm.shape, np.float32)
        flat = slots.ravel()
        for t in range(self.rows):
            told = scorer.score(flat, np.repeat(time_s[t], each), values[t].reshape(len(flat), -1))
            alarm[t], scores[t] = told.alarm, told.score
        shape = self.rows, devices, each
        return Course(alarm.reshape(shape), np.nan_to_num(scores).reshape(shape))

    def _found(
        self, alarm: NDArray[np.bool_], other: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which of all faults alarms (R, N, 1 + C) answer; which count for these alarms and `other` ones."""
        found, counted = [], []
        for n, copies in enumerate(self._placed):
            for c, placed in enumerate(copies, 1):
                for fault in placed:
                    rows = slice(fault.first, fault.last + GRACE + 1)
                    found.append(alarm[rows, n, c].any())
                    counted.append(not (alarm[rows, n, 0].any() or other[rows, n, 0].any()))
        return np.array(found, bool), np.array(counted, bool)

    def _episodes(self, course: Course) -> list[Episode]:
        """Alarms of the readings as they were."""
        alarm, scores = course
        episodes = []
        for n in range(len(self.names)):
            opened = openings(alarm[:, n, 0])
            ends = np.append(opened, self.rows)[1:]
            for first, end in zip(opened.tolist(), ends.tolist(), strict=True):
                last = first + int(np.flatnonzero(alarm[first:end, n, 0])[-1])
                episodes.append(Episode(n, first, last, float(scores[first : last + 1, n, 0].max())))
        return episodes


def _trial_rows(histories: Mapping[str, History]) -> int:
    """Rows that the trial plays; 0 where no device has shown enough."""
    longest = max((len(h.time_s) for h in histories.values()), default=0)
    rows = min(TRIAL_ROWS, int(longest * TRIAL_SHARE))
    return rows if rows >= FEWEST_ROWS else 0


def _head(history: History, rows: int) -> History:
    return History(history.time_s[:-rows], history.values[:-rows], history.normal[:-rows])


def _with_faults(
    values: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], list[faults.Placed]]:
    plan = faults.schedule(
        len(values), rng, kinds=KINDS, share=SHARE, shortest=SHORTEST, longest=LONGEST, margin=MARGIN
    )
    changed, placed = values.copy(), []
    for kind, first, last in plan:
        size = faults.SIZES[kind][1] * math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST)))
        try:
            faulty, _ = faults.inject(values, kind, first, last, rng, size=size)
        except faults.UnfitError:
            continue
        changed[first : last + 1] = faulty[first : last + 1]
        placed.append(faults.Placed(kind, first, last, size))
    return changed, placed


def _changes(before: Sequence[Episode], after: Sequence[Episode]) -> Changes:
    """Alerts of one device that overlap, or come within GAP rows of each other, are the same."""
    met: set[Episode] = set()
    added = changed = 0
    for new in after:
        same = [
            old
            for old in before
            if old.device == new.device and old.first <= new.last + GAP and new.first <= old.last + GAP
        ]
        met.update(same)
        added += not same
        ratio = max((_u(old.peak) for old in same), default=0.0) / max(_u(new.peak), 1e-6)
        changed += bool(same) and not 1 / GRADE <= ratio <= GRADE
    return Changes(added, len(before) - len(met), changed, len(before))


def _share(found: NDArray[np.bool_]) -> float:
    return float(found.mean()) if len(found) else math.nan


def _u(score: float) -> float:
    score = min(score, 0.999999)
    return math.sqrt(score / (1.0 - score))


def _alerts(count: int) -> str:
    return f"{count} alert" if count == 1 else f"{count} alerts"
