"""Simulated plants: the same law for a fleet, honest sensors, and a memory that is really needed."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gruard.models.plants import laws
from gruard.models.plants.plants import PLANTS, START_S, simulate

if TYPE_CHECKING:
    from numpy.typing import NDArray

every_plant = pytest.mark.parametrize("name", PLANTS)


def runs(x: NDArray[Any]) -> list[tuple[int, int, float]]:
    """(first, end, value) of the stretches of equal values, without the first and the last, which are cut."""
    edges = np.flatnonzero(np.diff(x.astype(float)) != 0) + 1
    return [(int(a), int(b), float(x[a])) for a, b in itertools.pairwise(edges)]


def best_guess(x: NDArray[Any], answer: NDArray[np.bool_]) -> float:
    """Share of right answers of the best threshold on any one column of x (n, F), chosen with hindsight."""
    best = 0.0
    for column in x.T:
        right = np.cumsum(answer[np.argsort(column, kind="stable")])  # trues at or below each cut
        below = np.arange(1, len(answer) + 1)
        share = (below - right + right[-1] - right) / len(answer)
        best = max(best, float(share.max()), float(1 - share.min()))
    return best


@every_plant
def test_simulate_any_plant_gives_finite_readings_in_step(name: str) -> None:
    """A recording has the plant's fields, one finite reading per step from the agreed Monday on."""
    recorded = simulate(name, 700, seed=3)
    plant = PLANTS[name]
    assert recorded.fields == tuple(sensor.field for sensor in plant.sensors)
    assert recorded.values.shape == (700, len(recorded.fields))
    assert np.isfinite(recorded.values).all()
    np.testing.assert_allclose(recorded.time_s, START_S + plant.step_s * np.arange(700))
    assert all(row.shape == (700,) for row in recorded.hidden.values())
    with pytest.raises(FrozenInstanceError):
        recorded.fields = ()  # type: ignore[misc]


@every_plant
def test_simulate_same_arguments_same_readings(name: str) -> None:
    """A seed is a promise; another seed or another device is another recording with the same fields."""
    first = simulate(name, 500, seed=1, device=2)
    np.testing.assert_array_equal(first.values, simulate(name, 500, seed=1, device=2).values)
    for other in (simulate(name, 500, seed=2, device=2), simulate(name, 500, seed=1, device=3)):
        assert other.fields == first.fields
        assert (other.values != first.values).mean() > 0.2


@every_plant
def test_simulate_longer_run_begins_with_the_shorter(name: str) -> None:
    """Asking for more rows never changes the rows before."""
    long, short = simulate(name, 2500, seed=1), simulate(name, 400, seed=1)
    np.testing.assert_array_equal(long.values[:400], short.values)
    for key, row in short.hidden.items():
        np.testing.assert_array_equal(long.hidden[key][:400], row)


@every_plant
def test_simulate_devices_differ_in_size_and_obey_one_law(name: str) -> None:
    """Across a fleet every field's mean varies from device to device, yet stays in one range of units."""
    means = np.array([simulate(name, 1500, seed=0, device=d).values.mean(axis=0) for d in range(8)])
    celsius = np.array([sensor.field.endswith("_c") for sensor in PLANTS[name].sensors])
    means += 273.15 * celsius  # zero is no place to compare temperatures from
    assert (means.std(axis=0) > 0.001 * means.mean(axis=0)).all()
    assert (means.max(axis=0) < 3 * means.min(axis=0)).all()


@every_plant
def test_simulate_sensors_round_and_err(name: str) -> None:
    """Readings lie on each sensor's grid, and no power, level or opening is below its lowest value."""
    values = simulate(name, 800, seed=0).values
    for column, sensor in zip(values.T, PLANTS[name].sensors, strict=True):
        steps = column / sensor.resolution
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
        assert column.min() >= sensor.lowest
        assert len(np.unique(column)) > 3


def test_simulate_another_seed_is_the_same_machine() -> None:
    """The device decides what the heater can do, the seed only what happens to it."""
    power = [
        np.median(v[v > 100])
        for v in (
            simulate("thermostat", 3000, seed, device).values[:, 1] for device in (0, 1) for seed in (0, 1)
        )
    ]
    assert abs(power[0] / power[1] - 1) < 0.02
    assert abs(power[2] / power[3] - 1) < 0.02
    assert abs(power[0] / power[2] - 1) > 0.05


@pytest.mark.parametrize(
    ("name", "rows", "seed", "device", "text"),
    [
        ("reactor", 10, 0, 0, "no such plant: 'reactor'; there are thermostat"),
        ("batch", 0, 0, 0, "rows must be positive"),
        ("batch", 10, -1, 0, "not negative"),
        ("batch", 10, 0, -1, "not negative"),
    ],
)
def test_simulate_impossible_wish_is_refused(name: str, rows: int, seed: int, device: int, text: str) -> None:
    """What cannot be simulated is refused in words."""
    with pytest.raises(ValueError, match=text):
        simulate(name, rows, seed, device)


def test_thermostat_cycles_take_60_to_300_readings_and_vary() -> None:
    """The duty cycle has the documented length, and the ambient changes it."""
    for device in range(6):
        on = simulate("thermostat", 10_000, seed=0, device=device).values[:, 1] > 100
        cycles = np.diff(np.flatnonzero(np.diff(on.astype(int)) == 1))
        assert cycles.min() >= 60
        assert cycles.max() <= 300
        assert cycles.max() > 1.15 * cycles.min()


def test_thermostat_room_still_moves_the_old_way_after_the_relay() -> None:
    """With the heater just off, the room rises; later, with the heater as off as before, it falls."""
    values = simulate("thermostat", 6000, seed=0).values
    off = [(a, b) for a, b, on in runs(values[:, 1] > 100) if not on]
    early = np.mean([values[a + 5, 0] - values[a, 0] for a, _ in off])
    late = np.mean([values[a + 35, 0] - values[a + 30, 0] for a, _ in off])
    assert early > 0.02
    assert late < -0.02


def test_batch_phases_follow_in_order_and_last_40_to_400_readings() -> None:
    """Fill, heat, hold, cool, drain, and again, none of them hurried, none of them always as long."""
    for device in range(4):
        phases = runs(simulate("batch", 10_000, seed=0, device=device).hidden["phase"])
        for (*_, phase), (*_, following) in itertools.pairwise(phases):
            assert following == (phase + 1) % len(laws.PHASES)
        for kind in range(len(laws.PHASES)):
            lengths = [b - a for a, b, phase in phases if phase == kind]
            assert min(lengths) >= 40
            assert max(lengths) <= 400
            assert len(set(lengths)) > 1


def batches(rows: int = 30_000) -> tuple[NDArray[np.float64], list[tuple[int, int, int, int]]]:
    """Readings and (begin of dosing, end of hold, begin of drain, recipe) of whole batches."""
    recorded = simulate("batch", rows, seed=5)
    phases = runs(recorded.hidden["phase"])
    found = []
    for k in range(len(phases) - 4):
        if phases[k][2] == 0:
            begin, drain = phases[k][0], phases[k + 4][0]
            found.append((begin, phases[k + 2][1], drain, int(recorded.hidden["recipe"][begin])))
    return recorded.values, found


def test_batch_recipe_seen_while_dosing_decides_what_happens_hundreds_of_readings_later() -> None:
    """The inlet's opening in the first 12 readings tells the hold temperature and the drain of that batch."""
    values, found = batches()
    assert len(found) > 40
    assert {recipe for *_, recipe in found} == {0, 1, 2, 3}
    for begin, held, drain, number in found:
        dose = values[begin : begin + laws.DOSING, 3].mean()
        recipe = min(laws.RECIPES, key=lambda known: abs(known.dose_pct - dose))
        assert recipe is laws.RECIPES[number]
        assert abs(values[held - 20 : held, 1].mean() - recipe.hold_c) < 1.5
        assert abs(values[drain : drain + 30, 4].mean() - recipe.outlet_pct) < 1.0
        assert held - begin > 200
        assert drain - begin > 250


def test_batch_nothing_between_dosing_and_drain_betrays_the_outlet() -> None:
    """Readings just before the drain, and those of the hold, leave the outlet's opening to a guess."""
    values, found = batches()
    wide = np.array([laws.RECIPES[number].outlet_pct > 60 for *_, number in found])
    before = np.array([values[drain - 8 : drain].mean(axis=0) for *_, drain, _ in found])
    held = np.array([values[end - 20 : end].mean(axis=0) for _, end, _, _ in found])
    assert 0.3 < wide.mean() < 0.7
    assert best_guess(before, wide) < 0.8
    assert best_guess(held, wide) < 0.8
    dosed = np.array([abs(values[begin : begin + laws.DOSING, 3].mean() - 60) for begin, *_ in found])
    # 50 and 90 open wide, 30 and 70 do not: the dose tells all, though no threshold on it does.
    assert np.isin(np.round(dosed, -1)[wide], [10, 30]).all()


def starts(recorded: Any) -> tuple[NDArray[np.int_], NDArray[np.bool_]]:
    """Rows at which a pump starts after both stood still with the sump filling, and whether it was pump A."""
    on = recorded.values[:, 2:] > 2.0  # (T, 2)
    still = ~on.any(axis=1)
    rows = [b for a, b, value in runs(still) if value and recorded.hidden["permit"][a:b].all()]
    return np.array(rows), on[rows, 0]


def test_interlock_pumps_take_turns() -> None:
    """After every full cycle the other pump starts; with the permit there all along, without exception."""
    for device in range(4):
        recorded = simulate("interlock", 20_000, seed=0, device=device)
        rows, is_a = starts(recorded)
        swaps = np.diff(recorded.hidden["lead"]) != 0
        for before, after, first_a, then_a in zip(rows[:-1], rows[1:], is_a[:-1], is_a[1:], strict=True):
            assert (swaps[before:after].sum() % 2 == 1) == (first_a != then_a)
        assert len(rows) > 30
        assert (is_a[1:] != is_a[:-1]).mean() > 0.8


def test_interlock_standing_still_does_not_show_which_pump_ran_last() -> None:
    """Shortly before a start no reading tells which pump it will be; the one that ran last tells it."""
    recorded = simulate("interlock", 60_000, seed=1)
    rows, is_a = starts(recorded)
    before = np.array([recorded.values[row - 8 : row].mean(axis=0) for row in rows])
    assert best_guess(before, is_a) < 0.75
    pumps = recorded.values[:, 2:]
    last_a = np.array([pumps[row - 150 : row, 0].sum() > pumps[row - 150 : row, 1].sum() for row in rows])
    assert (is_a != last_a).mean() > 0.9


def test_interlock_interrupted_pump_goes_on_without_a_swap() -> None:
    """A withdrawn permit stops both pumps; when it comes back the same one runs."""
    seen = 0
    for device in range(6):
        recorded = simulate("interlock", 20_000, seed=2, device=device)
        on = recorded.values[:, 2:] > 2.0
        lead = recorded.hidden["lead"]
        for a, b, permit in runs(recorded.hidden["permit"]):
            if permit:
                continue
            assert not on[a:b].any()
            if on[a - 1].sum() == 1 and lead[a - 1] == lead[b] and on[b].sum() == 1:
                seen += 1
                np.testing.assert_array_equal(on[b], on[a - 1])
    assert seen > 10


def test_interlock_lag_pump_helps_only_above_the_high_mark() -> None:
    """The second pump joins the first only in a sump that is fuller than where a single pump starts."""
    joined = []
    for device in range(12):
        recorded = simulate("interlock", 20_000, seed=0, device=device)
        running = (recorded.values[:, 2:] > 2.0).sum(axis=1)
        start_m = np.median(recorded.values[starts(recorded)[0], 0])
        joins = np.flatnonzero((running[1:] == 2) & (running[:-1] == 1)) + 1
        joined += (recorded.values[joins, 0] - start_m).tolist()
        assert (running == 2).mean() < 0.15
    assert len(joined) > 5
    assert min(joined) > 0.1


def test_delayed_downstream_follows_upstream_at_the_documented_lag() -> None:
    """The cross-correlation of the two sensors peaks at the transport delay of that device's pipe."""
    for device in range(6):
        recorded = simulate("delayed", 20_000, seed=0, device=device)
        up, down = (x - x.mean() for x in recorded.values[:, :2].T)
        correlation = [float((up[: len(up) - k] * down[k:]).mean()) for k in range(500)]
        delay = recorded.hidden["delay"]
        assert abs(int(np.argmax(correlation)) - np.median(delay)) < 20
        assert 130 < np.median(delay) < 280
        assert delay.min() > 100
        assert delay.max() < 320
        assert max(correlation) > 3 * abs(correlation[0])


def test_delayed_flow_sets_the_delay() -> None:
    """More flow, less delay: the flow summed over the delay is the volume of the pipe."""
    recorded = simulate("delayed", 10_000, seed=0)
    delay, flow = recorded.hidden["delay"], recorded.values[:, 2]
    rows = np.arange(400, 10_000, 50)
    volumes = np.array([flow[row - round(delay[row]) + 1 : row + 1].sum() for row in rows])
    assert volumes.std() / volumes.mean() < 0.01
    assert delay.std() / delay.mean() > 0.01


def test_delayed_bed_swallows_small_pulses_and_flattens_large_ones() -> None:
    """What arrives of a pulse is less than proportional at both ends."""
    recorded = simulate("delayed", 60_000, seed=1)
    up, down = recorded.values[:, 0], recorded.values[:, 1]
    peaks = [a for a in range(400, 59_500) if up[a] > 370 and up[a] == up[a - 60 : a + 60].max()]
    calm_up, calm_down = np.median(up), np.median(down)
    height = np.array([up[a] - calm_up for a in peaks])
    arrived = np.array([down[a + 150 : a + 270].max() - calm_down for a in peaks])
    assert len(peaks) > 100
    large = height > np.quantile(height, 0.9)
    middle = (height > np.quantile(height, 0.4)) & (height < np.quantile(height, 0.6))
    assert np.median(arrived[large] / height[large]) < 0.75 * np.median(arrived[middle] / height[middle])
    assert arrived.max() < 170


def test_compressor_motor_stops_after_the_same_number_of_idle_readings() -> None:
    """By night the motor stops, always after the same patience; by day it never has the time."""
    for device in range(6):
        recorded = simulate("compressor", 20_000, seed=0, device=device)
        kw, idle = recorded.values[:, 1], recorded.hidden["idle"]
        stopped = kw < 0.02 * kw.max()
        patience = {int(idle[a]) for a, _, off in runs(stopped) if off}
        assert len(patience) == 1
        clock = laws.hour(recorded.time_s)
        ends = np.flatnonzero((idle[1:] == 0) & (idle[:-1] > 0))
        by_day = (clock[ends] > 7) & (clock[ends] < 22)
        by_night = (clock[ends] > 1) & (clock[ends] < 5)
        assert stopped[ends[by_day]].mean() == 0
        assert stopped[ends[by_night]].mean() > 0.95


def test_compressor_wear_makes_loading_slower() -> None:
    """Between two services, the time from `low` to `high` by day grows with the wear that no sensor shows."""
    recorded = simulate("compressor", 60_000, seed=0)
    clock, wear = laws.hour(recorded.time_s), recorded.hidden["wear"]
    loads = [
        (wear[a], b - a)
        for a, b, loaded in runs(recorded.hidden["idle"] == 0)
        if loaded and 7 < clock[a] < 21
    ]
    worn, length = np.array(loads).T
    assert np.corrcoef(worn, length)[0, 1] > 0.7
    assert length[worn > 0.8].mean() > 1.2 * length[worn < 0.2].mean()
    assert (np.diff(wear) < -0.5).any()


def test_compressor_demand_has_two_levels() -> None:
    """By night the plant takes less than half of what it takes by day, so unloaded pressure falls slower."""
    recorded = simulate("compressor", 20_000, seed=0)
    clock, idle = laws.hour(recorded.time_s), recorded.hidden["idle"]
    fall = np.diff(recorded.values[:, 0])
    unloaded = idle[1:] > 1
    by_day = (clock[1:] > 7) & (clock[1:] < 21)
    by_night = (clock[1:] > 0) & (clock[1:] < 5)
    assert -fall[unloaded & by_night].mean() < 0.5 * -fall[unloaded & by_day].mean()


def at(recorded: Any, day: int, begin: float, end: float) -> NDArray[np.bool_]:
    """Rows of the given day, counted from Monday the first, between two hours."""
    clock = laws.hour(recorded.time_s)
    return np.asarray(
        ((recorded.time_s - START_S) // 86_400 == day) & (clock >= begin) & (clock < end), np.bool_
    )


def test_daily_weekends_rest() -> None:
    """From Monday to Friday the building is busy at ten, on Saturday and Sunday it is not."""
    recorded = simulate("daily", 288 * 28, seed=0)
    load = recorded.values[:, 0]
    busy = [load[at(recorded, day, 10, 11)].mean() for day in range(28)]
    quiet = np.median(load[laws.hour(recorded.time_s) < 4])
    for day, level in enumerate(busy):
        assert (level > quiet + 30) == (day % 7 < 5)
        assert recorded.hidden["at_work"][at(recorded, day, 10, 11)].all() == (day % 7 < 5)


def test_daily_night_before_a_saturday_looks_like_any_other() -> None:
    """Readings at four in the morning do not tell whether people will come; the count of days does."""
    recorded = simulate("daily", 288 * 7 * 12, seed=0)
    nights = [day for day in range(7 * 12) if day % 7 in {1, 2, 3, 4, 5}]  # each follows a working day
    early = np.array([recorded.values[at(recorded, day, 3, 5)].mean(axis=0) for day in nights])
    free = np.array([day % 7 == 5 for day in nights])
    assert best_guess(early, free) < 0.85  # one day in five is free: always saying "work" is right in 0.8


def test_daily_monday_takes_more_heat_than_tuesday() -> None:
    """The building remembers the weekend: at the same weather the first morning is dearer."""
    recorded = simulate("daily", 288 * 7 * 40, seed=0)
    day = (recorded.time_s - START_S) // 86_400 % 7
    morning = (laws.hour(recorded.time_s) >= 8) & (laws.hour(recorded.time_s) < 11)
    chill, lacking = recorded.hidden["chill"], 17 - recorded.values[:, 2]
    monday, tuesday = morning & (day == 0), morning & (day == 1)
    assert chill[monday].min() > chill[tuesday].max() - 0.2
    assert chill[monday].mean() > chill[tuesday].mean() + 0.1
    heat = [recorded.values[rows, 1].sum() / lacking[rows].sum() for rows in (monday, tuesday)]
    assert heat[0] > 1.06 * heat[1]


def test_lag_follows_a_step_and_wander_keeps_its_spread() -> None:
    """A lag covers 63 % of a step in its time constant; a walk stays as wide as it was asked to be."""
    step = laws.lag(np.ones(200), 20.0, 0.0)
    assert abs(step[19] - 0.632) < 0.02
    walk = laws.wander(np.random.default_rng(0), 200_000, 50.0, 3.0)
    assert abs(walk.std() - 3.0) < 0.3
