"""The laws of the simulated plants: what really happens in each, before any sensor looks at it.

A law takes the times of its readings (T,), a generator `own` for what sets this machine apart from its
sisters, and a generator `chance` for what happens to it (weather, demand, recipes). One step is one
reading; rates and time constants are per reading. Every sequence that chance decides has a stream of
its own, so that a longer run begins exactly like a shorter one.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    Series = NDArray[np.float64]  # (T,)

_DAY_S = 86_400.0
#: Readings before the first one reported, so that no run begins with all machines in the same place.
_RUN_IN = 600


class Course(NamedTuple):
    """What a plant did: `truth` (T, F) in physical units, `hidden` what no sensor shows, name -> (T,)."""

    truth: NDArray[np.float64]
    hidden: dict[str, Series]


def lag(x: Series, tau: float, start: float) -> Series:
    """First-order lag y += (x - y) / tau of x (T,), from `start` -> (T,)."""
    follow = accumulate(x.tolist(), lambda y, value: y + (value - y) / tau, initial=start)
    return np.array(list(follow)[1:])


def wander(chance: Generator, rows: int, tau: float, sd: float) -> Series:
    """A stationary random walk that forgets within `tau` readings, with standard deviation `sd` -> (T,)."""
    start = chance.normal(0.0, sd)
    return lag(chance.normal(0.0, sd * math.sqrt(2.0 * tau - 1.0), rows), tau, start)


def hour(time_s: Series) -> Series:
    """Hour of the day (T,), UTC, with its fraction."""
    return time_s % _DAY_S / 3600.0


def thermostat(time_s: Series, own: Generator, chance: Generator) -> Course:
    """A heated room with a two-point controller. Fields: room C, heater W, ambient C.

        h += (u - h) / tau_h            warmth of the radiator, 0..1, which no sensor shows
        T += (T_a + lift h - T) / tau   room, C
        u  = 1 once T < low, 0 once T > high, otherwise as before

    The ambient swings by the day and wanders by the hour, which changes both halves of the cycle (60 to
    300 readings). Because the radiator stays warm, the room overshoots: at the same room temperature
    and the same heater power it rises or falls depending on how long ago the relay moved.
    """
    rows = len(time_s)
    weather, mains, begin = chance.spawn(3)
    low = own.uniform(20.0, 21.5)
    high = low + own.uniform(0.7, 1.1)
    tau, tau_h, lift = own.uniform(500, 850), own.uniform(8, 13), own.uniform(28, 34)
    nominal_w = own.uniform(1500, 2500)
    ambient = own.uniform(6, 10) + 4.5 * np.sin(2 * np.pi * (hour(time_s) - 9.0) / 24.0)
    ambient += wander(weather, rows, 700.0, 2.0)
    room, on, warmth = begin.uniform(low, high), bool(begin.integers(2)), begin.uniform()
    course = []
    for outside in ambient.tolist():
        on = room < high if on else room < low
        warmth += (on - warmth) / tau_h
        room += (outside + lift * warmth - room) / tau
        course.append((room, float(on), warmth))
    walked = np.array(course)  # (T, 3)
    heater_w = walked[:, 1] * nominal_w * (1.0 + wander(mains, rows, 200.0, 0.01)) + 3.0
    return Course(np.column_stack([walked[:, 0], heater_w, ambient]), {"warmth": walked[:, 2]})


class Recipe(NamedTuple):
    """What a batch is made of: seen while dosing, obeyed hundreds of readings later."""

    dose_pct: float
    hold_c: float
    outlet_pct: float


#: Neither the hold temperature tells the outlet nor the other way round: only the dose tells both.
RECIPES = (Recipe(30, 62, 45), Recipe(50, 62, 90), Recipe(70, 78, 45), Recipe(90, 78, 90))
#: Readings at the start of a batch that show the recipe.
DOSING = 12
#: The phases of a batch, in order; `hidden["phase"]` counts them from 0.
PHASES = ("fill", "heat", "hold", "cool", "drain")


def batch(time_s: Series, own: Generator, chance: Generator) -> Course:
    """A stirred vessel that works through recipes. Fields: level %, vessel C, heater kW, inlet %, outlet %.

        fill    inlet at the dose of the recipe for 12 readings, then open until the level mark
        heat    full power, T += (T_a + lift - T) / tau, until the recipe's hold temperature
        hold    80 to 200 readings at that temperature, power = P (T - T_a) / lift
        cool    T += (T_c - T) / tau_c until 35 C
        drain   outlet at the recipe's opening until empty, level -= rate * opening

    Every phase takes 40 to 400 readings. The recipe is drawn anew for each batch and visible only in the
    first 12 readings; it decides the hold temperature some 150 readings later and the outlet opening some
    400 later. The four recipes pair both ways, so nothing in between betrays the outlet.
    """
    orders, holds, walk, begin = chance.spawn(4)
    rate, mark = own.uniform(1.4, 1.8), own.uniform(76, 84)
    outflow = own.uniform(1.7, 2.0) * mark / 80.0
    ambient, lift, tau = own.uniform(18, 24), own.uniform(110, 130), own.uniform(230, 290)
    coolant, tau_c, nominal_kw = own.uniform(9, 13), own.uniform(70, 95), own.uniform(40, 60)
    blocks: list[NDArray[np.float64]] = []  # (n, F + 2) each
    skipped = int(begin.integers(_RUN_IN))
    have = -skipped
    while have < len(time_s):
        number = int(orders.integers(len(RECIPES)))
        recipe = RECIPES[number]
        dosed = 5.0 + rate * recipe.dose_pct / 100.0 * np.arange(1, DOSING + 1)
        filled = np.append(dosed, np.arange(dosed[-1] + rate, mark, rate))
        mixed = 16.0 + 16.0 * np.exp(-np.arange(len(filled)) / 25.0)
        heated = _approach(mixed[-1], ambient + lift, tau, recipe.hold_c)
        held = np.full(int(holds.integers(80, 201)), recipe.hold_c)
        cooled = _approach(recipe.hold_c, coolant, tau_c, 35.0)
        drained = np.arange(mark, 5.0, -outflow * recipe.outlet_pct / 100.0)
        phases = (
            (filled, mixed, 0.0, np.where(np.arange(len(filled)) < DOSING, recipe.dose_pct, 100.0), 0.0),
            (mark, heated, nominal_kw, 0.0, 0.0),
            (mark, held, nominal_kw * (recipe.hold_c - ambient) / lift, 0.0, 0.0),
            (mark, cooled, 0.0, 0.0, 0.0),
            (drained, np.linspace(35.0, 32.0, len(drained)), 0.0, 0.0, recipe.outlet_pct),
        )
        for phase, columns in enumerate(phases):
            parts = [np.asarray(part, np.float64) for part in (*columns, number, phase)]
            block = np.column_stack(np.broadcast_arrays(*parts))
            blocks.append(block)
            have += len(block)
    course = np.concatenate(blocks)[skipped : skipped + len(time_s)]  # (T, F + 2)
    # The controller holds the vessel within a few tenths, not exactly.
    course[:, 1] += wander(walk, len(time_s), 15.0, 0.15)
    return Course(course[:, :5].copy(), {"recipe": course[:, 5].copy(), "phase": course[:, 6].copy()})


def _approach(start: float, end: float, tau: float, until: float) -> Series:
    """A first-order way from `start` towards `end`, as many readings as it needs to reach `until`."""
    needed = math.ceil(tau * math.log((end - start) / (end - until)))
    return end + (start - end) * np.exp(-np.arange(1, needed + 1) / tau)


def interlock(time_s: Series, own: Generator, chance: Generator) -> Course:
    """A sump emptied by two pumps in turn into a second tank. Fields: sump m, receiver m, pump A, pump B (A).

        sump     += (inflow - q_a u_a - q_b u_b) / area         m per reading, q relative to the mean inflow
        receiver += (pumped - draw sqrt(receiver)) / area_2     consumers now and then take half as much

    The lead pump starts at the high mark and runs to the low one; then lead and lag swap. Above the
    high-high mark, in a storm, the lag pump helps. A receiver above its limit withdraws the permit from
    both pumps until it has fallen; the pump that was interrupted then goes on, without a swap. While both
    stand still (some hundred readings) nothing shows which one ran last, yet the pumps differ in flow
    and current, and the next start must be the other one's.
    """
    rows = len(time_s)
    rain, storms, takers, begin = chance.spawn(4)
    flow = (own.uniform(2.2, 2.5), own.uniform(1.75, 2.0))
    amps = np.array([own.uniform(11.5, 13.0), own.uniform(9.0, 10.5)])  # (2,)
    area, area_2 = own.uniform(80, 120), own.uniform(70, 100)
    low, high, limit = own.uniform(0.4, 0.6), own.uniform(1.5, 1.7), own.uniform(2.3, 2.5)
    inflow = 1.0 + 0.1 * np.sin(2 * np.pi * (hour(time_s) - 8.0) / 24.0) + wander(rain, rows, 120.0, 0.08)
    inflow += np.where(wander(storms, rows, 60.0, 1.0) > 1.9, 2.0, 0.0)
    draw = own.uniform(0.9, 0.97) * np.where(wander(takers, rows, 90.0, 1.0) > 1.4, 0.5, 1.0)
    sump, receiver = begin.uniform(low, high), 1.3
    lead, running, helping, permit = int(begin.integers(2)), False, False, True
    course = []
    for arriving, taken in zip(inflow.tolist(), draw.tolist(), strict=True):
        permit = receiver < limit if permit else receiver < limit - 0.4
        if running and sump < low:
            running, helping, lead = False, False, 1 - lead
        running = running or sump > high
        helping = running and (helping or sump > high + 0.15)
        on = [permit and helping, permit and helping]
        on[lead] = permit and running
        pumped = flow[0] * on[0] + flow[1] * on[1]
        sump = min(sump + (arriving - pumped) / area, 2.4)  # there it spills over
        receiver = max(receiver + (pumped - taken * math.sqrt(receiver)) / area_2, 0.05)
        course.append((sump, receiver, float(on[0]), float(on[1]), float(lead), float(permit)))
    walked = np.array(course)  # (T, 6)
    head = 0.9 + 0.1 * (walked[:, 1] - walked[:, 0])  # a fuller receiver is harder to pump into
    current = walked[:, 2:4] * amps * head[:, None]  # (T, 2)
    hidden = {"lead": walked[:, 4], "permit": walked[:, 5]}
    return Course(np.column_stack([walked[:, :2], current]), hidden)


def delayed(time_s: Series, own: Generator, chance: Generator) -> Course:
    """Salt pulses through a long pipe and a filter bed. Fields: upstream, downstream uS/cm, flow l/min.

        downstream(t) = base(t - d) + g S (1 - exp(-max(x(t - d) - theta, 0) / S)),   then a lag of 5 readings
        d(t): the flow summed over the last d readings is the volume of the pipe

    Pulses x come at irregular times, 40 to several hundred readings apart. The bed takes up the first
    theta of each and saturates at S: small ones never arrive, large ones arrive flattened, 150 to 250
    readings later, when upstream has long been calm again.
    """
    rows = len(time_s) + _RUN_IN
    gaps, sizes, slow, valve = chance.spawn(4)
    lpm, volume = own.uniform(30, 50), own.uniform(150, 250)  # volume: in readings of the nominal flow
    theta, bound, passing = own.uniform(15, 25), own.uniform(130, 170), own.uniform(0.55, 0.75)
    base = own.uniform(280, 360) + wander(slow, rows, 1500.0, 4.0)
    share = 1.0 + np.clip(wander(valve, rows, 300.0, 0.04), -0.2, 0.2)  # of the nominal flow
    starts = np.cumsum(40 + gaps.exponential(110.0, rows // 40 + 1)).astype(int)
    heights = sizes.lognormal(math.log(90.0), 0.5, len(starts))
    drive = np.zeros(rows)
    drive[starts[starts < rows]] = heights[starts < rows] * own.uniform(30, 45)
    pulses = lag(lag(drive, 4.0, 0.0), 10.0, 0.0)
    passed = np.cumsum(share)
    row = np.arange(rows)
    left_at = np.interp(passed - volume, passed, row)  # (T,) when the water that arrives now went in
    arriving = np.maximum(np.interp(left_at, row, pulses) - theta, 0.0)
    downstream = np.interp(left_at, row, base) + passing * bound * (1.0 - np.exp(-arriving / bound))
    downstream = lag(downstream, 5.0, float(downstream[0]))
    truth = np.column_stack([base + pulses, downstream, lpm * share])[_RUN_IN:]
    return Course(truth, {"delay": (row - left_at)[_RUN_IN:]})


def compressor(time_s: Series, own: Generator, chance: Generator) -> Course:
    """A compressor on a pressure band. Fields: pressure bar, motor kW, oil C.

        p   += k (c (1 - 0.25 w) [loaded] - demand)     c = 1, demand 0.6 by day (6 to 22 h), 0.22 by night
        w   += [loaded] / life, serviced back to 0 at 1     wear, which no sensor shows
        oil += (T_a + 45 power / nominal - oil) / 60

    It loads below `low` and unloads above `high`. Unloaded, the motor idles at 28 % of its power and is
    stopped after `patience` idle readings: by night every time, by day never. So the same pressure falls
    while the motor idles or stands, and only the time since unloading tells when it will stop. Wear
    makes loading slower and dearer over tens of thousands of readings.
    """
    rows = len(time_s)
    users, begin = chance.spawn(2)
    low = own.uniform(6.4, 6.9)
    high = low + own.uniform(0.75, 0.9)
    k, nominal_kw, life = own.uniform(0.05, 0.06), own.uniform(30, 55), own.uniform(12_000, 20_000)
    patience, ambient = int(own.integers(37, 42)), own.uniform(18, 26)
    day = (hour(time_s) >= 6.0) & (hour(time_s) < 22.0)
    demand = np.where(day, own.uniform(0.57, 0.63), own.uniform(0.2, 0.25)) + wander(users, rows, 40.0, 0.015)
    pressure, wear, loaded = begin.uniform(low, high), begin.uniform(0.0, 0.8), bool(begin.integers(2))
    oil, idle = ambient + 30.0, 0
    course = []
    for used in demand.tolist():
        loaded = pressure < high if loaded else pressure < low
        idle = 0 if loaded else idle + 1
        wear += loaded / life
        wear = 0.0 if wear >= 1.0 else wear
        pressure += k * ((1.0 - 0.25 * wear) * loaded - used)
        power = (0.9 + 0.1 * (pressure - low)) * (1.0 + 0.15 * wear) if loaded else 0.28 * (idle <= patience)
        oil += (ambient + 45.0 * power - oil) / 60.0
        course.append((pressure, nominal_kw * power + 0.05, oil, wear, float(idle)))
    walked = np.array(course)  # (T, 5)
    return Course(walked[:, :3].copy(), {"wear": walked[:, 3], "idle": walked[:, 4], "demand": demand})


def daily(time_s: Series, own: Generator, chance: Generator) -> Course:
    """A building by the day and the week. Fields: load kW, heating kW, outdoor C; one reading in 5 minutes.

        heating = g max(17 - lag(T_out, 6 h), 0) (0.35 + 0.65 occ) (1 + chill occ)
        chill   = lag(1 - occ, 12 h)      how far the building has cooled down while empty
        load    = base + plugs occ + heating

    `occ` follows the working day (up around 7, a dip at noon, down around 18 h; the height differs from
    day to day); at weekends only a caretaker comes. The night before a Saturday looks like the night
    before a Friday: only the count of working days tells what the morning brings, and on a Monday the
    chilled building takes more heat than on a Tuesday.
    """
    rows = len(time_s)
    people, weather, plugs = chance.spawn(3)
    opens, closes = own.uniform(6.6, 7.6), own.uniform(17.2, 18.6)
    base_kw, plugs_kw, per_k = own.uniform(12, 20), own.uniform(50, 80), own.uniform(1.6, 2.4)
    clock, date = hour(time_s), (time_s // _DAY_S).astype(int)
    at_work = (date + 3) % 7 < 5  # the first of January 1970 was a Thursday
    height = people.normal(1.0, 0.04, date[-1] - date[0] + 1)[date - date[0]]
    present = _soft(clock - opens, 0.35) * _soft(closes - clock, 0.5)
    present *= 1.0 - 0.2 * np.exp(-np.square((clock - 12.5) / 0.45))
    occupied = np.where(at_work, height * present, 0.07 * present)
    outdoor = own.uniform(4, 9) + 3.5 * np.sin(2 * np.pi * (clock - 9.0) / 24.0)
    outdoor += wander(weather, rows, 400.0, 2.0)
    chill = lag(1.0 - occupied, 144.0, 0.9)
    heating = per_k * np.maximum(17.0 - lag(outdoor, 72.0, float(outdoor[0])), 0.0)
    heating *= (0.35 + 0.65 * occupied) * (1.0 + chill * occupied)
    load = base_kw + plugs_kw * occupied * (1.0 + wander(plugs, rows, 12.0, 0.02)) + heating
    return Course(
        np.column_stack([load, heating, outdoor]), {"at_work": at_work.astype(float), "chill": chill}
    )


def _soft(x: Series, width: float) -> Series:
    """A step at 0 that takes about `width` hours either side -> 0..1."""
    return 1.0 / (1.0 + np.exp(-x / (0.5 * width)))
