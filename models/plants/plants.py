"""Simulated plants in which a memory matters, with sensors that round and err.

Each is nonlinear, switches its mode, and hides from a single reading something that an earlier one
showed: which recipe runs, which pump was last, what is on its way through the pipe. The laws are in
`laws`; the sensors are here. Devices of one plant obey the same law with other sizes, rhythms and
sensors, so a fleet of them can share one network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gruard.models.plants import laws

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator
    from numpy.typing import NDArray

#: Every recording begins on this Monday at midnight, UTC: 1 January 2024.
START_S = 1_704_067_200.0


class Sensor(NamedTuple):
    """One field as reported: truth * gain + offset + noise, rounded.

    Noise has the standard deviation `noise` + `relative` * |truth|; both it, the gain (1 +- `gain`) and the
    offset (+- `offset`) differ from device to device. A command that a controller reports has none of them.
    """

    field: str
    resolution: float
    noise: float = 0.0
    relative: float = 0.0
    gain: float = 0.0
    offset: float = 0.0
    lowest: float = -np.inf


@dataclass(frozen=True, slots=True)
class Plant:
    """A law, the seconds between its readings, and the sensors that look at it, in the order of axis F."""

    law: Callable[[NDArray[np.float64], Generator, Generator], laws.Course]
    step_s: float
    sensors: tuple[Sensor, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Readings of one simulated device, oldest first, all of them normal."""

    fields: tuple[str, ...]  # F names
    time_s: NDArray[np.float64]  # (T,)
    values: NDArray[np.float64]  # (T, F) physical units
    hidden: dict[str, NDArray[np.float64]]  # what no sensor shows, name -> (T,); see the law


PLANTS: dict[str, Plant] = {
    "thermostat": Plant(
        laws.thermostat,
        10.0,
        (
            Sensor("room_c", 0.05, 0.03, gain=0.005, offset=0.3),
            Sensor("heater_w", 1.0, 1.0, 0.004, gain=0.02, lowest=0.0),
            Sensor("ambient_c", 0.1, 0.08, gain=0.005, offset=0.3),
        ),
    ),
    "batch": Plant(
        laws.batch,
        10.0,
        (
            Sensor("level_pct", 0.1, 0.15, gain=0.01, offset=0.5, lowest=0.0),
            Sensor("vessel_c", 0.1, 0.1, gain=0.005, offset=0.3),
            Sensor("heater_kw", 0.1, 0.02, 0.008, gain=0.02, lowest=0.0),
            Sensor("inlet_pct", 1.0, 0.4, lowest=0.0),
            Sensor("outlet_pct", 1.0, 0.4, lowest=0.0),
        ),
    ),
    "interlock": Plant(
        laws.interlock,
        10.0,
        (
            Sensor("sump_m", 0.01, 0.008, gain=0.01, offset=0.02),
            Sensor("receiver_m", 0.01, 0.008, gain=0.01, offset=0.02),
            Sensor("pump_a_a", 0.05, 0.01, 0.01, gain=0.02, lowest=0.0),
            Sensor("pump_b_a", 0.05, 0.01, 0.01, gain=0.02, lowest=0.0),
        ),
    ),
    "delayed": Plant(
        laws.delayed,
        5.0,
        (
            Sensor("upstream_us_cm", 1.0, 1.0, 0.002, gain=0.02, offset=3.0),
            Sensor("downstream_us_cm", 1.0, 1.0, 0.002, gain=0.02, offset=3.0),
            Sensor("flow_lpm", 0.1, 0.1, 0.002, gain=0.01),
        ),
    ),
    "compressor": Plant(
        laws.compressor,
        20.0,
        (
            Sensor("pressure_bar", 0.01, 0.008, gain=0.005, offset=0.03),
            Sensor("motor_kw", 0.1, 0.02, 0.008, gain=0.02, lowest=0.0),
            Sensor("oil_c", 0.1, 0.15, gain=0.005, offset=0.5),
        ),
    ),
    "daily": Plant(
        laws.daily,
        300.0,
        (
            Sensor("load_kw", 0.1, 0.2, 0.012, gain=0.02),
            Sensor("heating_kw", 0.1, 0.1, 0.015, gain=0.02, lowest=0.0),
            Sensor("outdoor_c", 0.1, 0.15, gain=0.005, offset=0.4),
        ),
    ),
}


def simulate(name: str, rows: int, seed: int, device: int = 0) -> Recorded:
    """`rows` readings of one device of the plant `name`, one every `step_s` seconds from `START_S`.

    `device` decides what the machine and its sensors are like, `seed` what happens to it: the same device
    under another seed is the same machine on another occasion. The same arguments give the same
    readings, and a longer run begins with the shorter one.

    Raises:
        ValueError: no such plant, fewer than one row, or a negative seed or device.
    """
    if name not in PLANTS:
        raise ValueError(f"no such plant: {name!r}; there are {', '.join(PLANTS)}")
    if rows < 1 or seed < 0 or device < 0:
        raise ValueError(f"rows must be positive, seed and device not negative: {rows}, {seed}, {device}")
    plant = PLANTS[name]
    own = np.random.default_rng([0, device, *name.encode()])
    chance = np.random.default_rng([1, device, *name.encode(), seed])
    # Sensors draw apart from the law, so that neither moves the other's numbers.
    own_law, own_sensors = own.spawn(2)
    chance_law, noise = chance.spawn(2)
    time_s = START_S + plant.step_s * np.arange(rows, dtype=np.float64)
    course = plant.law(time_s, own_law, chance_law)
    values = _measured(course.truth, plant.sensors, own_sensors, noise)
    return Recorded(tuple(sensor.field for sensor in plant.sensors), time_s, values, course.hidden)


def _measured(
    truth: NDArray[np.float64], sensors: tuple[Sensor, ...], own: Generator, chance: Generator
) -> NDArray[np.float64]:
    """What the sensors say of `truth` (T, F) -> (T, F)."""
    about = np.array([sensor[1:] for sensor in sensors]).T  # (6, F)
    resolution, noise, relative, gain, offset, lowest = about
    gain = 1.0 + gain * own.uniform(-1.0, 1.0, len(sensors))
    offset = offset * own.uniform(-1.0, 1.0, len(sensors))
    noisiness = own.uniform(0.7, 1.4, len(sensors))  # of this device's sensors
    said = truth * gain + offset
    said += noisiness * (noise + relative * np.abs(truth)) * chance.standard_normal(truth.shape)
    return np.asarray(np.maximum(np.round(said / resolution) * resolution, lowest))
