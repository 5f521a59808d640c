"""The settings in which the recurrent part is judged: whose rows, how many teach, and what goes wrong then.

Shapes: T rows, F fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from quality.suites import RANKED, UNKNOWN_STEP_S, load

from gruard.models.history import History
from gruard.models.plants import faults
from gruard.models.plants.plants import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from quality.suites import Stream

    #: Folder of the recordings, seed of what goes wrong -> the groups of a setting.
    Setting = Callable[[Path, int], list["Group"]]

#: Simulated devices that share a network, and their rows that teach and that judge.
DEVICES, TAUGHT, JUDGED = 5, 4000, 2400
PLANTS = ("batch", "thermostat", "compressor", "interlock", "delayed")
#: Kind of a case that was recorded as it is.
RECORDED = "recorded"


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One way in which a device's recording goes on: the leading rows are those of the device."""

    kind: str
    values: NDArray[np.float64]  # (T, F)
    labels: NDArray[np.bool_]  # (T,)


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """What teaches, and what is scored after it."""

    time_s: NDArray[np.float64]  # (T,)
    values: NDArray[np.float64]  # (T, F) without injected faults
    cases: list[Case]

    def head(self, rows: int) -> History:
        """The rows that teach, all of them trusted."""
        return History(self.time_s[:rows], self.values[:rows], np.ones(rows, np.bool_))


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Devices that share one network, which is trained at row `warmup`."""

    devices: list[Device]
    warmup: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Normal rows `first` to `first + rows` of a real recording; those before `warmup` teach."""

    archive: str
    stream: str
    first: int
    warmup: int
    rows: int

    def read(self, folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Seconds (T,) and values (T, F).

        Raises:
            ValueError: a row is labelled as abnormal.
        """
        rows = slice(self.first, self.first + self.rows)
        with np.load(folder / f"{self.archive}.npz") as arrays:
            values = arrays[f"{self.stream}|x"][rows].astype(np.float64)
            clock = f"{self.stream}|t"
            time_s = arrays[clock][rows] if clock in arrays else np.arange(len(values)) * UNKNOWN_STEP_S
            if arrays[f"{self.stream}|y"][rows].any():
                raise ValueError(f"{self.stream} is not normal in all of rows {rows.start} to {rows.stop}")
        return np.asarray(time_s, np.float64), values


def _machines(first: int) -> tuple[Stretch, ...]:
    names = ("machine-1-6", "machine-2-1", "machine-3-3")
    return tuple(Stretch("smd", name, first, 4000, 7000) for name in names)


def _cause(name: str, first: int, warmup: int, rows: int) -> tuple[Stretch, ...]:
    return (Stretch("nab", f"realKnownCause/{name}.csv", first, warmup, rows),)


#: Real recordings that are normal for long enough. All stretches end before the first labelled row of a
#: recording, or lie between two labelled stretches.
NORMAL: dict[str, tuple[Stretch, ...]] = {
    "skab anomaly-free": (Stretch("skab", "anomaly-free/anomaly-free", 0, 4000, 9405),),
    "smd, three machines": _machines(0),
    "nab cpu_utilization_asg": _cause("cpu_utilization_asg_misconfiguration", 0, 8000, 14_000),
    "nab machine_temperature": _cause("machine_temperature_system_failure", 4600, 4000, 10_000),
    "nab nyc_taxi": _cause("nyc_taxi", 0, 3500, 5800),
    "nab ambient_temperature": _cause("ambient_temperature_system_failure", 0, 2100, 3500),
    "msl M-1": (Stretch("msl", "M-1", 0, 1325, 2209),),
    "msl P-10": (Stretch("msl", "P-10", 0, 2584, 4308),),
    "msl P-15": (Stretch("msl", "P-15", 0, 2209, 3682),),
    "msl F-8": (Stretch("msl", "F-8", 0, 2005, 3342),),
}


def fleet(plant: str, _folder: Path, seed: int) -> list[Group]:
    """Devices of one plant, which share a network."""
    recorded = [simulate(plant, TAUGHT + JUDGED, seed=seed, device=n) for n in range(DEVICES)]
    devices = [Device(r.time_s, r.values, cases(r.values, TAUGHT, (seed, n))) for n, r in enumerate(recorded)]
    return [Group(devices, TAUGHT)]


def normal(stretches: Sequence[Stretch], folder: Path, seed: int) -> list[Group]:
    """Real recordings of one kind, which share a network."""
    devices = []
    for n, stretch in enumerate(stretches):
        time_s, values = stretch.read(folder)
        devices.append(Device(time_s, values, cases(values, stretch.warmup, (seed, n))))
    return [Group(devices, stretches[0].warmup)]


def labelled(suite: str, folder: Path, _seed: int) -> list[Group]:
    """The recordings of a suite as they are, each with a network of its own."""
    return [_recorded(stream) for stream in load(folder, suite)]


def _recorded(stream: Stream) -> Group:
    values = stream.values.astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    return Group([Device(stream.time_s, values, [Case(RECORDED, values, stream.labels)])], stream.warmup)


SETTINGS: dict[str, Setting] = {
    **{f"fleet: {plant}": partial(fleet, plant) for plant in PLANTS},
    **{f"normal: {name}": partial(normal, stretches) for name, stretches in NORMAL.items()},
    **{f"labelled: {suite}": partial(labelled, suite) for suite in RANKED},
}

#: Settings in which all cells are compared.
WHOLE_FAMILY = ("fleet: batch", "fleet: thermostat", "normal: nab cpu_utilization_asg")


def shortened(group: Group, taught: int = 300, judged: int = 900) -> Group:
    """One device of a group and two of its cases, so many rows on either side of the warm-up's end."""
    device = group.devices[0]
    rows = slice(group.warmup - taught, group.warmup + judged)
    cut = [Case(case.kind, case.values[rows], case.labels[rows]) for case in device.cases[:2]]
    return Group([Device(device.time_s[rows], device.values[rows], cut)], taught)


def cases(values: NDArray[np.float64], warmup: int, seed: Sequence[int]) -> list[Case]:
    """One continuation a kind of fault, all after `warmup`; a kind that does not fit is left out."""
    found = []
    for k, kind in enumerate(faults.KINDS):
        random = np.random.default_rng([*seed, k])
        changed, labels = values.copy(), np.zeros(len(values), np.bool_)
        for _, first, last in faults.schedule(len(values), random, kinds=(kind,), start=warmup):
            try:
                faulty, own = faults.inject(values, kind, first, last, random)
            except faults.UnfitError:
                continue
            changed[own] = faulty[own]
            labels |= own
        if labels.any():
            found.append(Case(kind, changed, labels))
    return found
