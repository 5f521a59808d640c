"""One device, driven by hand: the library's front door. The daemon scores with the same parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gruard.models.calibration import Budget
from gruard.models.enrolment import fitted_devices
from gruard.models.group import ENROL_AT, GroupScorer, Phase
from gruard.models.history import History

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gruard.models.group import Scores


#: Readings without which there is nothing to train on.
LEAST_WARMUP = 60
WEEK_S = 7 * 86_400.0
#: Looking a member up in an enumeration costs more than comparing with it.
LEARNING = int(Phase.LEARNING)


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """How a detector learns and when it raises an alarm."""

    cell: str = "gru"  # gru | lstm | rnn, or to compare with: mlp | transformer; on recordings also bigru
    hidden: int = 32
    layers: int = 1
    dropout: float = 0.0
    seed: int = 0
    alarms_per_week: float = 1.0  # the false-alarm budget behind `alarm`: the most that are accepted
    alarms_per_10k: float | None = None  # instead of it: so many in 10,000 readings are accepted, and wanted

    @property
    def budget(self) -> Budget:
        """The false-alarm budget of one device."""
        per_reading = None if self.alarms_per_10k is None else self.alarms_per_10k / 10_000
        return Budget(self.alarms_per_week / WEEK_S, per_reading)


class Score:
    """What one reading scored."""

    __slots__ = ("_row", "_scores", "alarm", "onset", "ready", "threshold", "value")

    def __init__(self, scores: Scores, row: int, *, trained: bool) -> None:
        value, threshold = float(scores.score[row]), float(scores.threshold[row])
        known = value == value  # noqa: PLR0124 -- NaN while gathering
        #: 0..1, higher = more anomalous; 0.5 is about the most that normal readings show. It stays up while a
        #: fault lasts.
        self.value = value if known else 0.0
        #: The value that, where it lasts, opens an alarm at the false-alarm budget.
        self.threshold = threshold if known else 1.0
        self.alarm = bool(scores.alarm[row])
        #: 0..1, above 0 only where something begins: one mark an event.
        self.onset = float(scores.onset[row])
        #: False while warming: `value` is then the adaptive baseline's, or 0 before that.
        self.ready = trained and int(scores.phase[row]) >= LEARNING
        self._scores, self._row = scores, row

    @property
    def expected(self) -> NDArray[np.float32]:
        """What was expected of each field (F,), physical units; NaN while gathering the first readings."""
        return np.asarray(self._scores.reasons.expected[self._row], np.float32)

    @property
    def share(self) -> NDArray[np.float32]:
        """How much each field contributes (F,); sums to 1."""
        return np.asarray(self._scores.reasons.share[self._row])


@dataclass(slots=True)
class Detector:
    """A stateful detector for one device with `fields` fields; trains inline after `warmup` readings.

    Training needs torch and takes a second or two, several where the warm-up is long; all else is numpy.
    """

    fields: int
    warmup: int = 400
    config: DetectorConfig = field(default_factory=DetectorConfig)
    _group: GroupScorer = field(init=False, repr=False)
    _slots: NDArray[np.int64] = field(init=False, repr=False)
    _times: list[float] = field(init=False, repr=False, default_factory=list)
    _values: list[NDArray[np.float64]] = field(init=False, repr=False, default_factory=list)
    _normal: list[bool] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.fields < 1:
            raise ValueError(f"fields must be at least 1, not {self.fields}")
        if self.warmup < LEAST_WARMUP:
            raise ValueError(f"warmup must be at least {LEAST_WARMUP} readings, not {self.warmup}")
        self._group = GroupScorer(self.fields, self.config.budget)
        self._slots = np.array([self._group.add()])

    def update(self, time_s: float, values: NDArray[np.float32]) -> Score:
        """Score a reading, then remember it: time_s Unix seconds, values (F,), NaN = missing.

        Raises:
            ValueError: the shape is wrong or a value is infinite.
        """
        row = np.array(values, np.float64)
        if row.shape != (self.fields,) or np.isinf(row).any():
            raise ValueError(f"a reading is {self.fields} finite numbers (NaN = missing), got {values!r}")
        trained = self._group.forecaster is not None
        if not trained and len(self._times) == self.warmup:
            train_inline(self._group, self._slots, [self._history()], self.config)
            self._times.clear()
            self._values.clear()
            self._normal.clear()
            trained = True
        scores = self._group.score(self._slots, np.array([float(time_s)]), row[None])
        score = Score(scores, 0, trained=trained)
        if not trained:
            self._remember(time_s, row, alarm=score.alarm)
        return score

    def _remember(self, time_s: float, row: NDArray[np.float64], *, alarm: bool) -> None:
        self._times.append(time_s)
        self._values.append(row)
        self._normal.append(not alarm)
        if len(self._times) in ENROL_AT and len(self._times) < self.warmup:
            self._group.enrol(self._slots, [self._history()])

    def _history(self) -> History:
        return History(np.array(self._times), np.array(self._values), np.array(self._normal))


def train_inline(
    group: GroupScorer,
    slots: NDArray[np.int64],
    histories: Sequence[History],
    config: DetectorConfig,
    whole: History | None = None,
) -> None:
    """Train one network on the histories of the devices in `slots` (N,), and put it in charge of them.

    The caller says that the rows are mostly normal; the baseline's own alarms do not overrule that. `whole`:
    the first device's readings to their end, for a cell that scores with hindsight.

    Raises:
        ModelError: there is too little to train on, or the cell does not serve so many devices.
    """
    # Imported here only: whoever scores with ready weights never pays for torch.
    from gruard.models.training.candidate import (  # noqa: PLC0415 - see above
        TrainingOptions,
        forecaster_for,
        train,
    )
    from gruard.models.training.fit import FitConfig  # noqa: PLC0415 - see above

    trusted = [History(h.time_s, h.values, np.ones(len(h.time_s), bool)) for h in histories]
    # Slots in decimal order, so that the trainer, which sorts by name, keeps the devices' order.
    names = [f"{n:06d}" for n in range(len(trusted))]
    c = config
    net = FitConfig(cell=c.cell, hidden=c.hidden, layers=c.layers, dropout=c.dropout, seed=c.seed)
    options = TrainingOptions(net, config.budget, vouched=True)
    candidate = train(dict(zip(names, trusted, strict=True)), options)
    group.adopt(forecaster_for(candidate, trusted[0], whole), "inline")
    fitted = fitted_devices(candidate.devices, candidate.tensors)
    group.enrol(slots, trusted, [fitted.get(name) for name in names])
