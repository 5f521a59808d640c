"""Series in, scores out: the same engine as live, strictly causal, one network each or one for a group.

Each series is scored in order; at row `warmup` a model is trained on the rows before it and takes charge.
Nothing depends on a later row, so the first half of a recording scores alone as it does in the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gruard.daemon.backtest.alerts import Raised, raise_alerts
from gruard.daemon.backtest.envelope import Drawing, draw, stretches
from gruard.daemon.backtest.measures import Measured, measure
from gruard.models.detector import LEAST_WARMUP
from gruard.models.history import History, usual_gap
from gruard.models.lockstep import score_series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from gruard.daemon.backtest.series import Series
    from gruard.models.detector import DetectorConfig

#: Where nobody says how long the warm-up is: this share of the readings, but not more than LONGEST_WARMUP,
#: on which a round of training looks at most, and never more than half of the recording.
WARMUP_SHARE, LONGEST_WARMUP, MOST_SHARE = 0.2, 5000, 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """How a backtest is run."""

    config: DetectorConfig
    warmup: int | float | None = None  # rows, or a share of them below 1; None: see `warmup_rows`
    least_warmup: int = 400  # rows, where nobody says
    shared: bool = False  # one network for all series with the same fields
    update_every_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Series that share a network."""

    series: tuple[Series, ...]
    warmup: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be scored, and what cannot be."""

    batches: tuple[Batch, ...]
    skipped: tuple[tuple[str, str], ...]  # series, reason
    stretches: int  # of every chart


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """All that is kept of a scored series."""

    series: Series  # as far as it was scored
    left: int  # rows behind that, which an interruption left out
    warmup: int
    raised: tuple[Raised, ...]
    measured: Measured
    drawing: Drawing


def warmup_rows(series: Series, options: Options) -> int:
    """Rows of a series that only teach: as asked for, else as the file says, else a share of them."""
    asked = options.warmup
    if asked is not None:
        return asked if isinstance(asked, int) else max(round(asked * series.rows), LEAST_WARMUP)
    if series.warmup is not None:
        return max(series.warmup, LEAST_WARMUP)
    usual = min(max(round(series.rows * WARMUP_SHARE), options.least_warmup), LONGEST_WARMUP)
    return max(min(usual, int(series.rows * MOST_SHARE)), LEAST_WARMUP)


def plan(series: Sequence[Series], options: Options) -> Plan:
    """Put the series into batches, in their order; too short ones are told."""
    skipped: list[tuple[str, str]] = []
    groups: dict[object, list[Series]] = {}
    for place, one in enumerate(series):
        warmup = warmup_rows(one, options)
        if one.rows <= warmup:
            skipped.append((one.name, f"has {one.rows} readings, and the warm-up alone takes {warmup}"))
        else:
            groups.setdefault(one.fields if options.shared else place, []).append(one)
    batches = tuple(
        # The shortest, so that no device is taught with rows that are to be judged.
        Batch(tuple(group), min(warmup_rows(one, options) for one in group))
        for group in groups.values()
    )
    chosen = [one for batch in batches for one in batch.series]
    return Plan(batches, tuple(skipped), stretches(chosen))


def run(
    batch: Batch,
    options: Options,
    most_stretches: int,
    progress: Callable[[int], None],
    stop: Callable[[], bool],
) -> Iterator[Finished]:
    """Score and measure the series of a batch, one by one; `progress` is told how many rows are done.

    When `stop` says so, a series ends where it stands; one that stands in its warm-up is left out.

    Raises:
        ModelError: there is too little in the warm-up to train on.
    """
    histories = [one.history for one in batch.series]
    scores = score_series(histories, batch.warmup, options.config, progress, stop)
    in_sample = _in_sample(batch, options, stop)
    for whole, own, warm in zip(batch.series, scores, in_sample, strict=True):
        one = whole.head(len(own.value))
        if one.rows <= batch.warmup:
            continue
        raised = raise_alerts(one, own, options.update_every_s)
        measured = measure(one, batch.warmup, own, raised, warm)
        drawing = draw(one, own, most_stretches)
        yield Finished(one, whole.rows - one.rows, batch.warmup, tuple(raised), measured, drawing)


def _in_sample(batch: Batch, options: Options, stop: Callable[[], bool]) -> list[NDArray[np.float32] | None]:
    """The fitted model's scores of the warm-up rows (warmup,), where there is something to rank."""
    if not any(one.anomalous for one in batch.series):
        return [None] * len(batch.series)
    # The same rows again, after the training that they cause: the seed makes it the same model.
    twice = [_twice(one.history, batch.warmup) for one in batch.series]
    scores = score_series(twice, batch.warmup, options.config, stop=stop)
    values = [own.value[batch.warmup :] for own in scores]
    return [own if len(own) == batch.warmup else None for own in values]


def _twice(history: History, rows: int) -> History:
    time_s, values = history.time_s[:rows], history.values[:rows]
    later = time_s + (time_s[-1] - time_s[0]) + usual_gap(time_s)
    return History(np.concatenate([time_s, later]), np.concatenate([values, values]), np.ones(2 * rows, bool))
