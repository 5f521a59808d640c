"""One device, driven by hand: the library's front door. The daemon scores with the same parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gruard.models.enrolment import History, fitted_devices
from gruard.models.forecaster import Forecaster
from gruard.models.group import ENROL_AT, GroupScorer, Phase

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Readings without which there is nothing to train on.
LEAST_WARMUP = 60


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """How a detector learns and when it raises an alarm."""

    cell: str = "gru"  # gru | lstm | rnn
    hidden: int = 32
    layers: int = 1
    dropout: float = 0.0
    seed: int = 0
    alarms_per_week: float = 1.0  # the false-alarm budget behind `alarm`


@dataclass(frozen=True, slots=True)
class Score:
    """What one reading scored."""

    value: float  # higher = more anomalous; 0..1, and 0.5 is about the most that normal readings show
    ready: bool  # false while warming: `value` is then the adaptive baseline's, or 0 before that
    alarm: bool  # above the false-alarm budget's threshold, with hysteresis
    threshold: float
    expected: NDArray[np.float32]  # (F,) physical units; NaN while gathering the first readings
    share: NDArray[np.float32]  # (F,) how much each field contributes; sums to 1


@dataclass(slots=True)
class Detector:
    """A stateful detector for one device with `fields` fields; trains inline after `warmup` readings.

    Training needs torch and takes about a second; everything before and after is numpy.
    """

    fields: int
    warmup: int = 400
    config: DetectorConfig = field(default_factory=DetectorConfig)
    _group: GroupScorer = field(init=False, repr=False)
    _slots: NDArray[np.int64] = field(init=False, repr=False)
    _times: list[float] = field(init=False, repr=False, default_factory=list)
    _values: list[NDArray[np.float64]] = field(init=False, repr=False, default_factory=list)
    _normal: list[bool] = field(init=False, repr=False, default_factory=list)
    _alarm: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        if self.fields < 1:
            raise ValueError(f"fields must be at least 1, not {self.fields}")
        if self.warmup < LEAST_WARMUP:
            raise ValueError(f"warmup must be at least {LEAST_WARMUP} readings, not {self.warmup}")
        self._group = GroupScorer(self.fields, self._alarms_per_second)
        self._slots = np.array([self._group.add()])

    @property
    def _alarms_per_second(self) -> float:
        return self.config.alarms_per_week / (7 * 86_400)

    def update(self, time_s: float, values: NDArray[np.float32]) -> Score:
        """Score a reading, then remember it: time_s Unix seconds, values (F,), NaN = missing.

        Raises:
            ValueError: the shape is wrong or a value is infinite.
        """
        row = np.asarray(values, np.float64)
        if row.shape != (self.fields,) or np.isinf(row).any():
            raise ValueError(f"a reading is {self.fields} finite numbers (NaN = missing), got {values!r}")
        if len(self._times) == self.warmup and self._group.forecaster is None:
            self._train()
        scores = self._group.score(self._slots, np.array([float(time_s)]), row[None])
        value = float(np.nan_to_num(scores.score[0]))
        phase = int(scores.phase[0])
        if phase >= Phase.LEARNING:
            self._alarm = value >= (scores.release if self._alarm else scores.threshold)[0]
        if self._group.forecaster is None:
            self._remember(time_s, row)
        return Score(
            value=value,
            ready=self._group.forecaster is not None and phase >= Phase.LEARNING,
            alarm=self._alarm,
            threshold=float(np.nan_to_num(scores.threshold[0], nan=1.0)),
            expected=scores.expected[0].astype(np.float32),
            share=scores.share[0],
        )

    def _remember(self, time_s: float, row: NDArray[np.float64]) -> None:
        self._times.append(time_s)
        self._values.append(row)
        self._normal.append(not self._alarm)
        if len(self._times) in ENROL_AT and len(self._times) < self.warmup:
            self._group.enrol(self._slots, [self._history()])

    def _history(self) -> History:
        return History(np.array(self._times), np.array(self._values), np.array(self._normal))

    def _train(self) -> None:
        # Imported here only: whoever scores with ready weights never pays for torch.
        from gruard.models.training.candidate import TrainingOptions, train  # noqa: PLC0415 - see above
        from gruard.models.training.fit import FitConfig  # noqa: PLC0415 - see above

        history = self._history()
        # The caller says the warm-up is mostly normal; the baseline's own alarms do not overrule that.
        history.normal[:] = True
        c = self.config
        net = FitConfig(cell=c.cell, hidden=c.hidden, layers=c.layers, dropout=c.dropout, seed=c.seed)
        candidate = train({"device": history}, TrainingOptions(net, self._alarms_per_second))
        self._group.adopt(Forecaster(candidate.config, candidate.tensors), "inline")
        fitted = fitted_devices(candidate.devices, candidate.tensors)
        self._group.enrol(self._slots, [history], [fitted["device"]])
        self._times.clear()
        self._values.clear()
        self._normal.clear()
        self._alarm = False
