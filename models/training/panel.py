"""The rows of a group as training looks at them, and the linear forecasters fitted on them.

Rows are split in time. What is fitted and scaled on the rows before the cut is honest about those behind it.

Shapes: N devices, T rows, F fields, X horizons, P regressors, C clock columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gruard.models import clock, linear
from gruard.models.errors import ModelError
from gruard.models.forecaster import horizons_for
from gruard.models.history import FIT_SHARE, Aligned, History, align, blank, normal_rows
from gruard.models.training.comparators import TWO_SIDED_CELL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

#: Fewest rows a device must have to take part, and fewest on either side of the cut.
FEWEST_ROWS, FEWEST_HELD = 60, 16
#: The clock is used where it lowers the held-back squared error, each held within CLOCK_LIMIT, to this share.
CLOCK_EARNS, CLOCK_LIMIT = 0.8, 25.0


@dataclass(frozen=True, slots=True)
class Panel:
    """N devices' rows, aligned at the newest: arrays (T, N, ...), padded in front."""

    names: tuple[str, ...]
    histories: list[History]
    scaling: dict[str, NDArray[Any]]  # location, scale and usual gap of each device, from all its rows
    early_scaling: dict[str, NDArray[Any]]  # the same from the rows before the cut
    readings: Aligned
    early: Aligned  # in the early scaling
    normal: NDArray[np.bool_]  # (T, N) the device was not in alarm
    seen: NDArray[np.bool_]  # (T, N, F) was seen, in a normal row
    cut: int  # rows from here on are held back, of every device
    horizons: tuple[int, ...]

    @property
    def to_sigma(self) -> Floats:
        """(N, F): what turns a residual in early sigma into one in sigma."""
        return np.asarray(self.early_scaling["scale"] / self.scaling["scale"], np.float32)


@dataclass(frozen=True, slots=True)
class Linear:
    """Linear forecasters of every horizon: fitted on the rows before the cut, and on all."""

    weights: Floats  # (P, X * F) on all rows, the constant last
    clock: Floats  # (C, X * F); C is 0 where no clock was earned
    early: Floats  # (X, T, N, F) residuals of the early one, in early sigma


def panel_of(histories: Mapping[str, History], cell: str) -> Panel:
    """The devices of a group that have shown enough.

    Raises:
        ModelError: none has.
    """
    histories = _long_enough(histories)
    listed = list(histories.values())
    total = max(len(h.time_s) for h in listed)
    cut = int(total * FIT_SHARE)
    held = total - cut
    before = [History(h.time_s[:-held], h.values[:-held], h.normal[:-held]) for h in listed]
    rows, early_rows = (blank(part, [None] * len(listed)) for part in (listed, before))
    readings = align(rows, listed)
    normal = normal_rows(listed, total)
    return Panel(
        names=tuple(histories),
        histories=listed,
        scaling=rows,
        early_scaling=early_rows,
        readings=readings,
        early=align(early_rows, listed),
        normal=normal,
        seen=readings.mask & normal[..., None],
        cut=cut,
        # Who hears what follows the next reading has heard all that lies further ahead.
        horizons=(1,) if cell == TWO_SIDED_CELL else horizons_for(total),
    )


def fit_linear(panel: Panel) -> Linear:
    """Fit the linear forecasters of every horizon, each with a clock where it earns it."""
    weights, clocks, early = [], [], []
    columns = max(
        clock.columns_for(h.time_s, gap)
        for h, gap in zip(panel.histories, panel.scaling["usual_gap_s"].tolist(), strict=True)
    )
    for ahead in panel.horizons:
        residual = early_residual(panel, ahead, 0)
        used = 0
        if columns:
            with_clock = early_residual(panel, ahead, columns)
            if squared_error(panel, with_clock) < CLOCK_EARNS * squared_error(panel, residual):
                residual, used = with_clock, columns
        early.append(residual)
        solved = _sums(panel, panel.readings, ahead, used, len(panel.seen)).solve()  # (P, F)
        slopes = len(solved) - 1 - used
        weights.append(np.delete(solved, np.s_[slopes : slopes + used], axis=0))
        part = np.zeros((columns, solved.shape[1]), np.float32)
        part[:used] = solved[slopes : slopes + used]
        clocks.append(part)
    time = np.concatenate(clocks, axis=1)
    return Linear(np.concatenate(weights, axis=1), time if time.any() else time[:0], np.stack(early))


def solve_linear(panel: Panel, ahead: int, teachers: Sequence[int]) -> Floats:
    """Weights (P, F) of one horizon on all rows of some devices, without a clock."""
    return _sums(panel, panel.readings, ahead, 0, len(panel.seen), teachers).solve()


def _sums(
    panel: Panel,
    readings: Aligned,
    ahead: int,
    columns: int,
    before: int,
    teachers: Sequence[int] | None = None,
) -> linear.RidgeSums:
    """Normal equations over the rows before `before` of all devices, or of some."""
    sums = linear.RidgeSums(panel.seen.shape[2], ahead, columns)
    for n in range(len(panel.names)) if teachers is None else teachers:
        first = int(readings.valid[:, n].argmax())
        if before - first > ahead + sums.order:
            own = slice(first, before), n
            known = clock.harmonics(readings.time_s[own], columns) if columns else None
            sums.add(readings.z[own], panel.seen[own], panel.normal[own], known)
    return sums


def early_residual(
    panel: Panel,
    ahead: int,
    columns: int,
    teachers: Sequence[int] | None = None,
    judged: Sequence[int] | None = None,
) -> Floats:
    """Residuals (T, N, F) in early sigma of the forecaster that knows only the rows before the cut.

    It is taught by all devices or by some, and the residuals are those of all or of the `judged` ones.
    """
    sums = _sums(panel, panel.early, ahead, columns, panel.cut, teachers)
    weights = sums.solve()
    devices = range(len(panel.names)) if judged is None else judged
    out = np.zeros((len(panel.seen), len(devices), panel.seen.shape[2]), np.float32)
    for place, n in enumerate(devices):
        first = int(panel.early.valid[:, n].argmax())
        own = slice(first, None), n
        known = clock.harmonics(panel.early.time_s[own], columns) if columns else None
        out[first:, place] = sums.residuals(panel.early.z[own], weights, known)
    return out


def squared_error(panel: Panel, residual: Floats, n: int | None = None) -> float:
    """Mean held-back squared residual (T, N, F), each held within a limit, of all devices or of device n."""
    of = slice(panel.cut, None), slice(None) if n is None else n
    return float(np.minimum(np.square(residual[of])[panel.seen[of]], CLOCK_LIMIT).mean())


def settled(panel: Panel) -> NDArray[np.bool_]:
    """Rows (X, T, N) whose forecast was made from readings rather than from before the start."""
    age = np.cumsum(panel.readings.valid, axis=0)
    order = linear.var_order(panel.seen.shape[2])
    return np.stack([age >= h + order for h in panel.horizons])


def _long_enough(histories: Mapping[str, History]) -> dict[str, History]:
    longest = max((len(h.time_s) for h in histories.values()), default=0)
    # One cut in time serves all devices, so those that joined after it cannot take part this time.
    fewest = max(FEWEST_ROWS, int(longest * (1 - FIT_SHARE)) + FEWEST_ROWS // 2)
    held = longest - int(longest * FIT_SHARE)
    # On both sides of the cut a device must have normal rows: one to fit on, the other to be judged by.
    chosen = {
        name: h
        for name, h in sorted(histories.items())
        if h.normal.sum() >= fewest and min(h.normal[:-held].sum(), h.normal[-held:].sum()) >= FEWEST_HELD
    }
    if not chosen:
        raise ModelError(f"no device has the {fewest} normal readings that training needs")
    return chosen
