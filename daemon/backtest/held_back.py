"""Held-back readings to choose and to confirm settings by, and how well a model does on them.

    teach (1/2) | select (1/4) | confirm (1/4)        the readings of every device, oldest first

A model is taught with the `warmup_readings` rows just before a part and judged on the part alone, as a new
device of the daemon would be. A history without labels says nothing about what a detector misses, so faults
of known place and size are put into a copy of the part (`gruard.models.plants.faults`): VUS-PR is of the
copy, false alerts are counted in the original. The rows that teach are the same in both, and untouched.

A part is judged in blocks, each with an anomaly in it: a block of one device is a place, P places in all.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gruard.daemon.backtest.alerts import raise_alerts
from gruard.daemon.backtest.gain import LEAST_PLACES
from gruard.models.history import History, usual_gap
from gruard.models.plants.faults import inject_all, schedule
from gruard.models.quality.episodes import GRACE
from gruard.models.quality.ranking import period, segments, vus_pr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from gruard.daemon.backtest.series import Series
    from gruard.daemon.settings_tables import Model
    from gruard.models.detector import DetectorConfig
    from gruard.models.lockstep import SeriesScores

#: Shares of a device's readings that teach, and that teach or select; the rest confirms.
TEACH, SELECT = 0.5, 0.75
#: Rows of a block at least: one fault with calm around it. Places in a part that is long enough, about.
BLOCK_ROWS, PLACES = 150, 12
#: Share of a block that is faulty, rows of a fault, and healthy rows between two of them.
FAULTY, SHORTEST, LONGEST, MARGIN = 0.2, 20, 300, 60
#: Rows that the label of an anomaly is softened by, both sides together, at most: as forgiving as GRACE.
WIDEST = 2 * GRACE


class Scorer(Protocol):
    """What `gruard.models.lockstep.score_series` does."""

    def __call__(
        self,
        histories: Sequence[History],
        warmup: int,
        config: DetectorConfig,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[SeriesScores]:
        """Score the readings of devices that share a network."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The held-back rows of one device, behind all rows that may teach."""

    series: Series  # from the device's first reading to the last of the part
    first: int  # row at which the part begins
    blocks: tuple[tuple[int, int], ...]  # rows (first, end), the end not included
    faulty: Series | None = None  # the same with faults in the blocks; None: `series` has labels


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all models are judged under."""

    base: DetectorConfig  # its budget counts; network and seed are replaced
    update_every_s: float
    score: Scorer


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """How one trained model did, place by place."""

    vus_pr: NDArray[np.float64]  # (P,) 0..1; NaN where no fault could be put in
    false_alerts: NDArray[np.float64]  # (P,) opened in rows that are not known to be anomalous
    quiet_rows: NDArray[np.float64]  # (P,) number of such rows
    allowed: NDArray[np.float64]  # (P,) false alerts that the budget accepts in as many
    cost_us: float  # microseconds to score a reading, with all devices of a group in one batch


def parts(series: Sequence[Series], *, labelled: bool) -> tuple[list[Part], list[Part]]:
    """Cut every device in time -> what selects, what confirms. Devices without a block there are left out.

    With `labelled` a block is a stretch with a labelled anomaly; otherwise one without.
    """
    most = max(math.ceil(PLACES / max(len(series), 1)), LEAST_PLACES)
    select: list[Part] = []
    confirm: list[Part] = []
    for one in series:
        middle, end = int(one.rows * SELECT), one.rows
        for chosen, first, stop in ((select, int(one.rows * TEACH), middle), (confirm, middle, end)):
            head = one.head(stop)
            cut = _around_labels if labelled else _between_labels
            blocks = cut(head, first, most)
            if blocks:
                chosen.append(Part(head, first, tuple(blocks)))
    return select, confirm


def places(held: Iterable[Part]) -> int:
    """Number of places."""
    return sum(len(part.blocks) for part in held)


def _between_labels(series: Series, first: int, most: int) -> list[tuple[int, int]]:
    """Blocks of equal length, without those in which something is known to be wrong already."""
    count = min((series.rows - first) // BLOCK_ROWS, most)
    edges = np.linspace(first, series.rows, count + 1).astype(int).tolist() if count else []
    blocks = list(pairwise(edges))
    labels = series.labels
    return [(a, b) for a, b in blocks if labels is None or not labels[a:b].any()]


def _around_labels(series: Series, first: int, most: int) -> list[tuple[int, int]]:
    """Blocks that each hold whole labelled anomalies, about as many in each, and MARGIN normal rows or more.

    Where nearly everything is anomalous, every ranking is nearly perfect.
    """
    if series.labels is None:
        return []
    events = [(a + first, b + first) for a, b in segments(series.labels[first:])]
    groups = [g for g in np.array_split(np.array(events, int).reshape(-1, 2), most) if len(g)]
    cuts = [(int(a[-1, 1]) + int(b[0, 0]) + 1) // 2 for a, b in pairwise(groups)]
    edges = [first, *cuts, series.rows] if groups else []
    return [(a, b) for a, b in pairwise(edges) if (~series.labels[a:b]).sum() >= MARGIN]


def with_faults(held: Sequence[Part], seed: Sequence[int]) -> list[Part]:
    """The parts with faults in every block that can carry one; `seed` decides which, where and how large."""
    return [_faulty(part, np.random.default_rng([*seed, n])) for n, part in enumerate(held)]


def _faulty(part: Part, rng: np.random.Generator) -> Part:
    series = part.series
    plan = []
    for first, end in part.blocks:
        timetable = schedule(
            end - first, rng, share=FAULTY, shortest=SHORTEST, longest=LONGEST, margin=MARGIN
        )
        plan += [(kind, a + first, b + first) for kind, a, b in timetable]
    values, labels, _ = inject_all(series.history.values, plan, rng)
    history = History(series.history.time_s, values, series.history.normal)
    return replace(part, faulty=replace(series, history=history, labels=labels))


def examine(
    held: Sequence[Part],
    model: Model,
    conditions: Conditions,
    seed: int,
    progress: Callable[[float], None],
    stop: Callable[[], bool],
) -> Sheet | None:
    """Teach a model with these settings before the parts and judge it on them; None when told to stop.

    Devices with the same fields share a network, as in the daemon. A device and its faulty copy are two of
    them, alike in all rows that teach. `progress` is told the share that is done.

    Raises:
        ModelError: there is too little before the parts to train on.
    """
    config = replace(
        conditions.base,
        cell=model.cell,
        hidden=model.hidden,
        layers=model.layers,
        dropout=model.dropout,
        seed=seed,
    )
    groups: dict[tuple[str, ...], list[Part]] = {}
    for part in held:
        groups.setdefault(part.series.fields, []).append(part)
    warmup = model.warmup_readings
    found: list[tuple[float, ...]] = []
    clock = _Clock()
    for n, group in enumerate(groups.values()):
        lanes = [_window(p.series, p, warmup) for p in group]
        lanes += [_window(p.faulty, p, warmup) for p in group if p.faulty is not None]
        clock.start(len(lanes) * warmup)
        whole = sum(lane.rows for lane in lanes)

        def tell(done: int, n: int = n, whole: int = whole) -> None:
            clock.note(done)
            progress((n + done / whole) / len(groups))

        scores = conditions.score([lane.history for lane in lanes], warmup, config, tell, stop)
        if stop():
            return None
        for k, part in enumerate(group):
            ranked = k if part.faulty is None else len(group) + k
            offset = part.first - warmup
            blocks = [(a - offset, b - offset) for a, b in part.blocks]
            vus = _vus_pr(lanes[ranked], scores[ranked], blocks)
            found += [
                (value, *counted)
                for value, counted in zip(vus, _alerts(lanes[k], scores[k], blocks, conditions), strict=True)
            ]
    vus_pr_, false_alerts, quiet_rows, allowed = np.array(found, np.float64).T
    return Sheet(vus_pr_, false_alerts, quiet_rows, allowed, clock.microseconds)


class _Clock:
    """Processor time of the readings behind the warm-up, of one group after another."""

    def __init__(self) -> None:
        self._seconds, self._readings = 0.0, 0
        self._warm = 0
        self._since: tuple[float, int] | None = None

    def start(self, warm: int) -> None:
        """A group begins; its first `warm` readings, and the training after them, do not count."""
        self._warm, self._since = warm, None

    def note(self, done: int) -> None:
        """So many readings of the group are done."""
        if done <= self._warm:
            return
        now = time.process_time()
        if self._since is not None:
            self._seconds += now - self._since[0]
            self._readings += done - self._since[1]
        self._since = now, done

    @property
    def microseconds(self) -> float:
        """Per reading; NaN when nothing was timed."""
        return 1e6 * self._seconds / self._readings if self._readings else float("nan")


def _window(series: Series, part: Part, warmup: int) -> Series:
    """The rows that teach, and the part."""
    h, rows = series.history, slice(part.first - warmup, None)
    history = History(h.time_s[rows], h.values[rows], h.normal[rows])
    return replace(series, history=history, labels=None if series.labels is None else series.labels[rows])


def _vus_pr(series: Series, scores: SeriesScores, blocks: Sequence[tuple[int, int]]) -> list[float]:
    window = min(period(series.history.values[:, 0]), WIDEST)
    labels = np.zeros(series.rows, bool) if series.labels is None else series.labels
    return [vus_pr(labels[a:b], scores.value[a:b], window) for a, b in blocks]


def _alerts(
    series: Series, scores: SeriesScores, blocks: Sequence[tuple[int, int]], conditions: Conditions
) -> list[tuple[float, float, float]]:
    """Of each block: false alerts, quiet rows, and how many false alerts are accepted in these."""
    labels = np.zeros(series.rows, bool) if series.labels is None else series.labels
    excused = labels.copy()
    for first, last in segments(labels):
        excused[first : last + 1 + GRACE] = True
    opened = np.array([alert.first for alert in raise_alerts(series, scores, conditions.update_every_s)], int)
    false = np.bincount(opened[~excused[opened]], minlength=series.rows)
    rate = conditions.base.budget.rate(usual_gap(series.history.time_s))
    quiet = [float((~excused[a:b]).sum()) for a, b in blocks]
    return [(float(false[a:b].sum()), rows, rate * rows) for (a, b), rows in zip(blocks, quiet, strict=True)]
