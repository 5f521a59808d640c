"""The history that a search goes by: which devices, which readings, and with what anomalies it is judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gruard.daemon.backtest.gain import LEAST_PLACES
from gruard.daemon.backtest.held_back import BLOCK_ROWS, SELECT, TEACH, Part, parts, places, with_faults
from gruard.daemon.backtest.run import LONGEST_WARMUP
from gruard.daemon.errors import ConfigError
from gruard.models.history import History

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gruard.daemon.backtest.series import Series

#: Fewest readings of a device. Of more devices, and of more than its newest readings, a search learns little
#: more and takes much longer.
LEAST_ROWS, MOST_ROWS, MOST_DEVICES = 800, 10_000, 8


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """Held-back readings of some devices."""

    series: tuple[Series, ...]
    labelled: bool  # judged by the labels of the file; false: by faults that were put in
    notes: tuple[str, ...]  # what was left out, in sentences
    most_warmup: int  # rows that stand before every part
    _select: list[Part]
    _confirm: list[Part]
    _seed: int

    def select(self, repeat: int) -> list[Part]:
        """The readings that select, with other faults in every repetition."""
        return self._select if self.labelled else with_faults(self._select, (self._seed, 0, repeat))

    def confirm(self, repeat: int) -> list[Part]:
        """The readings that confirm, with other faults in every repetition."""
        return self._confirm if self.labelled else with_faults(self._confirm, (self._seed, 1, repeat))


def prepare(path: Path, series: Sequence[Series], warmup: int, seed: int) -> Ground:
    """Choose devices and readings of a history and cut them; `warmup`: readings that teach at present.

    Raises:
        ConfigError: there is too little of it, or no fault can be put in; one sentence with what is needed.
    """
    notes: list[str] = []
    usable = _usable(path, series, warmup, notes)
    select, confirm = parts(usable, labelled=True)
    labelled = bool(select) and places(confirm) >= LEAST_PLACES
    if not labelled:
        if any(one.anomalous for one in usable):
            notes.append(
                f"Too few labelled anomalies to go by them: one must be in the {SELECT - TEACH:.0%} of the"
                f" readings that select, and {LEAST_PLACES} in the {1 - SELECT:.0%} that confirm."
            )
        select, confirm = parts(usable, labelled=False)
        if not select or places(confirm) < LEAST_PLACES:
            raise ConfigError(_too_short(path, usable))
    most_warmup = min(LONGEST_WARMUP, *(part.first for part in (*select, *confirm)))
    ground = Ground(tuple(usable), labelled, tuple(notes), most_warmup, select, confirm, seed)
    if not any((part.faulty or part.series).anomalous for part in ground.select(0)):
        raise ConfigError(f"{path}: no fault can be put into the readings that select: nothing is seen there")
    return ground


def _usable(path: Path, series: Sequence[Series], warmup: int, notes: list[str]) -> list[Series]:
    least = max(LEAST_ROWS, round(warmup / TEACH))
    usable = [one for one in series if one.rows >= least]
    if not usable:
        longest = max(series, key=lambda one: one.rows)
        raise ConfigError(
            f"{path}: too little history: {longest.name} has {longest.rows:,} readings, and {least:,} of a"
            f" device are needed (half of them teach: at least model.warmup_readings, which is {warmup:,})"
        )
    if len(usable) < len(series):
        notes.append(f"{len(series) - len(usable):,} devices have fewer than {least:,} readings: left out.")
    if len(usable) > MOST_DEVICES:
        notes.append(f"Of {len(usable):,} devices, {MOST_DEVICES} were looked at (--device names others).")
        usable = [usable[n] for n in np.linspace(0, len(usable) - 1, MOST_DEVICES).astype(int)]
    most = max(MOST_ROWS, least)
    if any(one.rows > most for one in usable):
        notes.append(f"Of each device, the newest {most:,} readings were looked at.")
    if any(not one.timed for one in usable):
        notes.append("The recording tells no time: its readings count as one second apart.")
    return [_newest(one, most) for one in usable]


def _newest(series: Series, rows: int) -> Series:
    h, kept = series.history, slice(-rows, None)
    history = History(h.time_s[kept], h.values[kept], h.normal[kept])
    return replace(series, history=history, labels=None if series.labels is None else series.labels[kept])


def _too_short(path: Path, series: Sequence[Series]) -> str:
    rows = sum(one.rows for one in series)
    needed = round(LEAST_PLACES * BLOCK_ROWS / (1 - SELECT))
    return (
        f"{path}: too little history: {rows:,} readings of {len(series)} devices, and about {needed:,}"
        " without a labelled anomaly are needed in all to tell a gain from luck"
    )
