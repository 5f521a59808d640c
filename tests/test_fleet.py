"""The simulated pumps: their physics, their faults and their repeatability."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from gruard.daemon.demo.fleet import DEMO_KINDS, FIELDS, Fault, FaultKind, Fleet, device_name, planned_faults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FLOW, PRESSURE, CURRENT, VIBRATION, BEARING, SPEED = range(6)


def play(seconds: int, faults: Sequence[Fault] = (), *, pumps: int = 3, seed: int = 7) -> NDArray[np.float64]:
    """Readings of the first `seconds` (T, pumps, F)."""
    fleet = Fleet(pumps, seed, faults)
    return np.array(
        [[list(reading.fields.values()) for reading in fleet.readings(t)] for t in range(seconds)]
    )


def with_fault(kind: FaultKind, **options: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same fleet healthy and with one fault of pump-02 from second 100 to 340, up to second 400."""
    fault = Fault(kind, "pump-02", 100, 240, **options)
    return play(400), play(400, [fault])


def test_readings_name_every_pump_and_every_field() -> None:
    """One second gives one reading per pump, with all fields and the second as its time."""
    readings = Fleet(3, seed=1).readings(0)

    assert [reading.device for reading in readings] == ["pump-01", "pump-02", "pump-03"]
    assert all(tuple(reading.fields) == FIELDS and reading.time_s == 0.0 for reading in readings)


def test_readings_repeat_with_the_same_seed() -> None:
    """Seed and faults decide every number; another seed gives another fleet."""
    assert np.array_equal(play(50), play(50))
    assert not np.array_equal(play(50), play(50, seed=8))


def test_readings_live_through_skipped_seconds() -> None:
    """Asking for second 40 at once gives what asking for every second would have given."""
    patient = Fleet(2, seed=3)
    every = [patient.readings(t) for t in range(41)]

    assert Fleet(2, seed=3).readings(40) == every[40]


def test_readings_refuse_a_second_that_is_over() -> None:
    """A fleet has memory, so time does not run backwards."""
    fleet = Fleet(1, seed=1)
    fleet.readings(5)

    with pytest.raises(ValueError, match="second 5 is over"):
        fleet.readings(5)


@pytest.mark.parametrize(
    "fault", [Fault("dry running", "pump-09", 0, 1), Fault("stuck sensor", "pump-01", 0, 1, field="colour")]
)
def test_fleet_refuses_a_fault_of_something_it_does_not_have(fault: Fault) -> None:
    """A fault that could never show is a mistake of the caller."""
    with pytest.raises(ValueError, match="no such device or field"):
        Fleet(2, seed=1, faults=[fault])


def test_healthy_pumps_obey_the_affinity_laws() -> None:
    """Over a pump's two speeds flow grows as n, pressure as n squared, hydraulic power as n cubed."""
    rows = play(900, pumps=6)
    for pump in range(6):
        speed = rows[:, pump, SPEED]
        fast, slow = speed > 0.99 * speed.max(), speed < 1.02 * speed.min()
        n = speed[slow].mean() / speed[fast].mean()
        flow, pressure = (rows[slow, pump, f].mean() / rows[fast, pump, f].mean() for f in (FLOW, PRESSURE))

        assert n == pytest.approx(0.6, abs=0.02)
        assert flow == pytest.approx(n, rel=0.03)
        assert pressure == pytest.approx(n**2, rel=0.04)
        assert flow * pressure == pytest.approx(n**3, rel=0.06)


def test_healthy_pumps_switch_speed_with_hysteresis() -> None:
    """Every pump goes through its whole duty cycle many times within 400 readings and never flutters."""
    speed = play(400, pumps=12)[:, :, SPEED]
    fast = speed > 0.8 * speed.max(axis=0)
    switches = np.abs(np.diff(fast.astype(int), axis=0)).sum(axis=0)

    assert (switches >= 14).all()
    assert (switches <= 50).all()


def test_healthy_pumps_stay_within_what_their_first_minutes_showed() -> None:
    """A detector that learns from 300 readings has seen what a healthy pump does for the next 1,300."""
    rows = play(1600, pumps=12)
    low, high = rows[:300].min(axis=0), rows[:300].max(axis=0)
    margin = 0.1 * (high - low)
    outside = ((rows[300:] < low - margin) | (rows[300:] > high + margin)).mean(axis=0)

    assert outside.mean() < 0.002
    assert outside.max() < 0.02


def test_pumps_differ_from_each_other() -> None:
    """Every pump has its own size and rhythm."""
    means = play(600, pumps=8).mean(axis=0)

    assert (np.ptp(means, axis=0) > 0.05 * means.mean(axis=0)).all()


def test_bearing_remembers_its_heat_for_about_a_minute() -> None:
    """After a worn bearing is replaced vibration is normal at once, while its heat fades with a lag."""
    healthy, faulty = with_fault("bearing wear")
    excess_c = (faulty - healthy)[:, 1, BEARING]

    assert faulty[341:, 1, VIBRATION].mean() == pytest.approx(healthy[341:, 1, VIBRATION].mean(), rel=0.01)
    assert excess_c[339] > 10
    assert 0.25 < excess_c[399] / excess_c[339] < 0.55


@pytest.mark.parametrize(
    "kind", ["bearing wear", "dry running", "blocked outlet", "stuck sensor", "sensor drift"]
)
def test_fault_leaves_other_pumps_and_the_time_before_alone(kind: FaultKind) -> None:
    """Only the faulty pump changes, and only once the fault has begun."""
    healthy, faulty = with_fault(kind)

    assert np.array_equal(healthy[:, [0, 2]], faulty[:, [0, 2]])
    assert np.array_equal(healthy[:100, 1], faulty[:100, 1])
    assert not np.array_equal(healthy[100:340, 1], faulty[100:340, 1])


def test_bearing_wear_heats_and_shakes_slowly() -> None:
    """Wear raises vibration and temperature little by little while flow stays."""
    healthy, faulty = with_fault("bearing wear")
    early, late = slice(100, 115), slice(250, 340)

    assert faulty[early, 1, VIBRATION].mean() < 1.5 * healthy[early, 1, VIBRATION].mean()
    assert faulty[late, 1, VIBRATION].mean() > 2.5 * healthy[late, 1, VIBRATION].mean()
    assert faulty[late, 1, BEARING].mean() > healthy[late, 1, BEARING].mean() + 10
    assert faulty[late, 1, FLOW].mean() == pytest.approx(healthy[late, 1, FLOW].mean(), rel=0.02)


def test_dry_running_collapses_flow_pressure_and_current() -> None:
    """Without liquid there is almost no flow, pressure or current, although the pump turns."""
    healthy, faulty = with_fault("dry running")
    late = slice(115, 340)

    assert faulty[late, 1, FLOW].mean() < 0.15 * healthy[late, 1, FLOW].mean()
    assert faulty[late, 1, PRESSURE].mean() < 0.15 * healthy[late, 1, PRESSURE].mean()
    assert faulty[late, 1, CURRENT].mean() < 0.6 * healthy[late, 1, CURRENT].mean()
    assert faulty[late, 1, SPEED].mean() > healthy[late, 1, SPEED].mean()


def test_blocked_outlet_raises_pressure_and_lowers_flow() -> None:
    """Behind a closed outlet pressure goes beyond all that a healthy pump shows while flow falls."""
    healthy, faulty = with_fault("blocked outlet")
    late = slice(130, 340)

    assert faulty[late, 1, PRESSURE].mean() > healthy[:, 1, PRESSURE].max()
    assert faulty[late, 1, FLOW].mean() < 0.6 * healthy[late, 1, FLOW].mean()


def test_stuck_sensor_freezes_one_field_while_the_others_move() -> None:
    """The stuck field repeats its last value; every other field reads as if nothing had happened."""
    healthy, faulty = with_fault("stuck sensor", field="current_a")
    others = [FLOW, PRESSURE, VIBRATION, BEARING, SPEED]

    assert (faulty[100:340, 1, CURRENT] == faulty[99, 1, CURRENT]).all()
    assert np.array_equal(faulty[:, 1, others], healthy[:, 1, others])
    assert np.array_equal(faulty[340:, 1], healthy[340:, 1])


def test_sensor_drift_grows_to_a_quarter_of_nominal() -> None:
    """A drifting sensor departs step by step, the others stay."""
    healthy, faulty = with_fault("sensor drift", field="flow_lpm")
    gap = faulty[:, 1, FLOW] - healthy[:, 1, FLOW]

    assert 0 < gap[105:115].mean() < gap[140:150].mean() < gap[200:340].mean()
    assert gap[200:340].mean() == pytest.approx(0.25 * healthy[:, 1, FLOW].max(), rel=0.1)
    assert np.array_equal(faulty[:, 1, PRESSURE], healthy[:, 1, PRESSURE])


def test_severity_follows_the_documented_onset() -> None:
    """Strength is 0 before, linear through the onset, full until the end and 0 from there on."""
    fault = Fault("bearing wear", "pump-01", 100, 240)

    assert [fault.severity(t) for t in (99, 100, 145, 190, 339, 340)] == [0, 0, 0.5, 1, 1, 0]
    assert fault.end_s == 340


def test_planned_faults_give_each_kind_its_own_pump() -> None:
    """The plan has every kind once, staggered, on different pumps, so most pumps stay healthy."""
    faults = planned_faults(12, first_s=700, gap_s=140, length_s=240)

    assert tuple(fault.kind for fault in faults) == DEMO_KINDS
    assert len({fault.device for fault in faults}) == 4
    assert [fault.start_s for fault in faults] == [700, 840, 980, 1120]


@pytest.mark.parametrize("pumps", [1, 2, 3, 4, 5, 7, 50])
def test_planned_faults_fit_any_fleet(pumps: int) -> None:
    """However few pumps there are, the plan names only those and none twice."""
    faults = planned_faults(pumps, 0, 1, 2)
    devices = [fault.device for fault in faults]

    assert len(faults) == min(pumps, 4)
    assert len(set(devices)) == len(devices)
    assert set(devices) <= {device_name(index) for index in range(pumps)}
