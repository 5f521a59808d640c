"""A fleet of pumps: plain physics, a seed, and faults whose truth is known. No clock, no I/O.

One pump keeps a tank between two levels. It runs fast until the tank is full, slow until it is low
(hysteresis), so it cycles in 20 to 45 seconds. Healthy, it obeys the affinity laws of centrifugal pumps:
flow ~ n, pressure ~ n^2, hydraulic power ~ n^3 of its relative speed n. The bearing warms towards the load it
carries with a time constant of about a minute, and vibration follows speed. Every pump has its own
size, period, noise and bearing; demand wanders slowly and once a day. Each sensor adds noise and rounds.

Faults act on the physics, not on the numbers, so all coupled fields move:

    kind            what changes                                 onset
    bearing wear    friction: vibration up to x3, bearing hot    grows over 90 s
    dry running     no liquid: flow, pressure, current collapse  grows over 5 s
    blocked outlet  resistance up to x12: pressure up, flow down grows over 10 s
    stuck sensor    one field repeats its last value             at once
    sensor drift    one field gains 25 % of its nominal value    grows over 90 s

Each fault stays at full strength after its onset until `start_s + length_s` and is then repaired at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Row = NDArray[np.float64]  # one number per pump

FaultKind = Literal["bearing wear", "dry running", "blocked outlet", "stuck sensor", "sensor drift"]

FIELDS = ("flow_lpm", "pressure_bar", "current_a", "vibration_mm_s", "bearing_c", "speed_rpm")
_ROUNDING = (1, 2, 2, 2, 1, 0)  # decimals each sensor reports

#: Seconds from the start of a fault to its full strength.
ONSET_S: dict[FaultKind, float] = {
    "bearing wear": 90.0,
    "dry running": 5.0,
    "blocked outlet": 10.0,
    "stuck sensor": 0.0,
    "sensor drift": 90.0,
}
#: The four kinds that the demo injects, in this order.
DEMO_KINDS: tuple[FaultKind, ...] = ("dry running", "bearing wear", "stuck sensor", "blocked outlet")

_FAST, _SLOW = 1.0, 0.6  # relative speeds of the duty cycle
_DEMAND = 0.78  # mean demand, as a share of the flow at full speed
_DAY_S = 86_400.0
_RUN_IN_S = 600  # simulated before the first reading, so that a fleet starts in its usual rhythm
_PUMP_CURVE = 0.35  # share of the hydraulic resistance that lies inside the pump


@dataclass(frozen=True, slots=True)
class Fault:
    """Ground truth: this device is broken in this way from `start_s` for `length_s` simulated seconds."""

    kind: FaultKind
    device: str
    start_s: float
    length_s: float
    field: str = "pressure_bar"  # the sensor concerned; stuck sensor and sensor drift only

    @property
    def end_s(self) -> float:
        """First simulated second at which the device is whole again."""
        return self.start_s + self.length_s

    def severity(self, t: float) -> float:
        """Strength at simulated second `t`: 0 outside the interval, a linear onset, then 1."""
        if not self.start_s <= t < self.end_s:
            return 0.0
        onset_s = ONSET_S[self.kind]
        return 1.0 if onset_s == 0 else min(1.0, (t - self.start_s) / onset_s)


class FleetReading(NamedTuple):
    """One pump at one simulated second, in physical units."""

    device: str
    time_s: float
    fields: dict[str, float]


def device_name(index: int) -> str:
    """Name of the pump at `index`, counted from one."""
    return f"pump-{index + 1:02d}"


def planned_faults(pumps: int, first_s: float, gap_s: float, length_s: float) -> tuple[Fault, ...]:
    """One fault of each kind in `DEMO_KINDS`, each on its own pump, `gap_s` apart; fewer for few pumps."""
    kinds = DEMO_KINDS[:pumps]
    spacing = max(1, pumps // len(DEMO_KINDS))
    return tuple(
        Fault(kind, device_name(number * spacing), first_s + number * gap_s, length_s)
        for number, kind in enumerate(kinds)
    )


class Fleet:
    """`pumps` pumps that differ from each other, one reading each per simulated second.

    The same arguments give the same readings; faults change nothing on other pumps nor before they start.

    Raises:
        ValueError: no pumps, or a fault names an unknown device or field.
    """

    def __init__(self, pumps: int, seed: int, faults: Sequence[Fault] = ()) -> None:
        if pumps < 1:
            raise ValueError("a fleet has at least one pump")
        self.devices = tuple(device_name(index) for index in range(pumps))
        self.faults = tuple(faults)
        for fault in self.faults:
            if fault.device not in self.devices or fault.field not in FIELDS:
                raise ValueError(f"no such device or field: {fault}")
        self._pumps = pumps
        self._random = np.random.default_rng(seed)
        self._draw_pumps()
        self._t = -_RUN_IN_S - 1
        self._last = np.zeros((pumps, len(FIELDS)))
        while self._t < -1:
            self._advance()

    def readings(self, t: int) -> list[FleetReading]:
        """Every pump at simulated second `t`; time only moves forward, skipped seconds are lived through.

        Raises:
            ValueError: `t` is not after the second asked for before.
        """
        if t <= self._t:
            raise ValueError(f"second {t} is over, the fleet stands at {self._t}")
        while self._t < t:
            self._advance()
        return [
            FleetReading(
                device,
                float(t),
                {
                    field: round(value, digits)
                    for field, value, digits in zip(FIELDS, row, _ROUNDING, strict=True)
                },
            )
            for device, row in zip(self.devices, self._last.tolist(), strict=True)
        ]

    def _draw_pumps(self) -> None:
        """Give every pump its own size, rhythm and sensors, and a place in its cycle."""

        def between(low: float, high: float) -> Row:
            return self._random.uniform(low, high, self._pumps)

        self._flow_lpm = between(100, 140)
        self._pressure_bar = between(3.5, 4.5)
        self._current_a = between(8.0, 10.0)
        self._idle_a = between(2.2, 2.8)
        self._speed_rpm = between(2800, 2950)
        self._vibration = between(1.4, 2.2)
        self._ambient_c = between(20, 25)
        self._warming_c = between(22, 32)
        self._bearing_tau_s = between(50, 80)
        self._day_phase = between(0, 2 * math.pi)
        self._nominal = np.stack(
            [
                self._flow_lpm,
                self._pressure_bar,
                self._current_a,
                self._vibration,
                self._ambient_c + self._warming_c,
                self._speed_rpm,
            ],
            axis=1,
        )  # (pumps, F)
        self._noise = np.array([0.008, 0.006, 0.007, 0.05, 0.004, 0.0015]) * self._nominal
        period_s = between(20, 45)
        # A tank this deep (in seconds of full flow) fills and drains once per period at mean demand.
        self._tank_s = period_s / (1 / (_FAST - _DEMAND) + 1 / (_DEMAND - _SLOW))
        self._level = between(0, 1)  # 0 low, 1 full
        self._filling = self._random.random(self._pumps) < 0.5
        self._speed = np.where(self._filling, _FAST, _SLOW)
        self._wander = np.zeros(self._pumps)
        self._bearing_c = self._ambient_c + 0.7 * self._warming_c

    def _severity(self, kind: FaultKind) -> Row:
        row = np.zeros(self._pumps)
        for fault in self.faults:
            if fault.kind == kind:
                index = self.devices.index(fault.device)
                row[index] = max(row[index], fault.severity(self._t))
        return row

    def _advance(self) -> None:
        """Live through one second. The random draws are the same in number whatever the faults are."""
        self._t += 1
        dry, blocked = self._severity("dry running"), self._severity("blocked outlet")
        wear = self._severity("bearing wear")

        liquid = 1 - 0.93 * dry
        resistance = 1 + 11 * blocked
        self._follow_speed()
        n = self._speed
        # The pump and its outlet share the head, so closing the outlet turns flow into pressure.
        flow = n * liquid / np.sqrt(_PUMP_CURVE + (1 - _PUMP_CURVE) * resistance)
        pressure = resistance * flow**2 / np.maximum(liquid, 0.1)
        power = flow * pressure * (1 + 0.8 * blocked) + 0.25 * n * wear
        self._follow_tank(flow)

        load = 0.4 * n + 0.6 * power + 1.1 * wear * n + 0.25 * dry
        target_c = self._ambient_c + self._warming_c * load
        self._bearing_c = self._bearing_c + (target_c - self._bearing_c) / self._bearing_tau_s
        vibration = (0.45 + 0.55 * n**2) * (1 + 2 * wear + 0.5 * dry + 0.6 * blocked)

        truth = np.stack(
            [
                self._flow_lpm * flow,
                self._pressure_bar * pressure,
                self._idle_a * n + (self._current_a - self._idle_a) * power,
                self._vibration * vibration,
                self._bearing_c,
                self._speed_rpm * n,
            ],
            axis=1,
        )  # (pumps, F)
        self._last = self._measure(truth)

    def _follow_speed(self) -> None:
        set_point = np.where(self._filling, _FAST, _SLOW)
        self._speed = self._speed + (set_point - self._speed) * (1 - math.exp(-1 / 2.5))

    def _follow_tank(self, flow: Row) -> None:
        """Balance the tank and switch the pump at its marks; demand wanders by the minute and by the day."""
        self._wander = 0.93 * self._wander + 0.005 * self._random.standard_normal(self._pumps)
        day = 0.06 * np.sin(2 * math.pi * self._t / _DAY_S + self._day_phase)
        demand = _DEMAND * (1 + day + self._wander)
        self._level = np.clip(self._level + (flow - demand) / self._tank_s, -0.3, 1.3)
        self._filling = np.where(self._level >= 1, False, np.where(self._level <= 0, True, self._filling))

    def _measure(self, truth: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the sensors say of `truth` (pumps, F): noise, drift, and the last value where one is stuck."""
        noise = self._noise.copy()
        noise[:, 3] *= truth[:, 3] / self._nominal[:, 3]  # a vibration sensor's noise grows with vibration
        said = np.maximum(truth + noise * self._random.standard_normal(truth.shape), 0)
        for fault in self.faults:
            severity = fault.severity(self._t)
            if severity == 0:
                continue
            place = self.devices.index(fault.device), FIELDS.index(fault.field)
            if fault.kind == "stuck sensor":
                said[place] = self._last[place]
            elif fault.kind == "sensor drift":
                said[place] += 0.25 * severity * self._nominal[place]
        return said
