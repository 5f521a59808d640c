"""The alarm rule alone: what opens one, what ends it, what it costs, and the rate that comes of it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gruard.models import alarm, calibration, evidence
from gruard.models.alarm import BASE, FACTOR, GROWTH, LONGEST, MOST_FACTOR, OPEN, RECOVERY, M, Q
from gruard.models.calibration import Budget

LEVEL = np.ones(1, np.float32)


def fresh(devices: int = 1) -> np.ndarray:
    """States (B, 8) of devices that have been at u = 0.3 for long."""
    state = np.zeros((devices, len(alarm.FRESH)), np.float32)
    alarm.reset(state)
    state[:, [M, Q]] = 0.3
    return state


def play(state: np.ndarray, *parts: tuple[float, int], rate: float | None = None) -> np.ndarray:
    """Alarms (T,) of one device at level 1; parts are (u, readings)."""
    u = np.concatenate([np.full(rows, value, np.float32) for value, rows in parts])
    return np.array([alarm.follow(state, u[t : t + 1], LEVEL, rate)[0][0] for t in range(len(u))])


def edges(alarms: np.ndarray) -> list[tuple[int, int]]:
    """First and end row of every alarm."""
    changes = np.flatnonzero(np.diff(np.concatenate([[0], alarms.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in zip(changes[::2], changes[1::2], strict=True)]


@pytest.mark.parametrize("u", [2.0, 5.0, 10.0])
def test_follow_one_wild_reading_opens_nothing(u: float) -> None:
    """What is gone at the next reading wakes nobody."""
    assert not play(fresh(), (0.3, 50), (u, 1), (0.3, 100)).any()


def test_follow_lasting_evidence_opens_sooner_the_stronger_it_is() -> None:
    """An excess that stays opens an alarm; a mean of 32 readings is in no hurry where it is slight."""
    opened = [edges(play(fresh(), (0.3, 50), (u, 200)))[0][0] - 50 for u in (1.1, 2.0, 5.0)]
    assert opened == sorted(opened, reverse=True)
    assert opened[0] > 20
    assert 2 <= opened[1] <= 16
    assert opened[2] <= 4


def test_follow_evidence_under_the_level_opens_nothing() -> None:
    """High for ever, and not above the level, is normal."""
    assert not play(fresh(), (0.99, 5000)).any()


def test_follow_alarm_ends_when_the_evidence_fades() -> None:
    """An alarm does not wait for its slow mean: that may still be above the level when it ends."""
    state = fresh()
    told = play(state, (0.3, 20), (4.0, 100))
    assert told[-1]
    last = 0
    while alarm.follow(state, np.full(1, 0.3, np.float32), LEVEL)[0][0]:
        last += 1
    assert 1 <= last <= 20
    assert state[0, M] > 1.0


def test_follow_alarm_outlasts_a_dip() -> None:
    """A few calm readings inside a fault do not end its alarm."""
    dips = [(3.0, 12), (1.2, 3)] * 10
    assert len(edges(play(fresh(), (0.3, 20), *dips))) == 1


@pytest.mark.parametrize("peak", [3.0, 8.0, 19.0])
def test_follow_fault_that_fades_slowly_is_one_alarm(peak: float) -> None:
    """Evidence that decays over its longest scale after a fault does not open the next alarm at once."""
    decay = [(float(peak * np.exp(-t / 30)), 1) for t in range(200)]
    found = edges(play(fresh(), (0.3, 20), (peak, 60), *decay, (0.3, 100)))
    assert len(found) == 1


def test_follow_every_alarm_doubles_what_the_next_must_show() -> None:
    """A device that alarmed needs twice the evidence, and returns to where it was over RECOVERY readings."""
    state = fresh()
    assert play(state, (1.8, 60), (0.3, 60)).any()
    assert state[0, FACTOR] == pytest.approx(GROWTH, rel=0.01)
    assert not play(state, (1.8, 60), (0.3, 60)).any()
    play(state, (0.3, RECOVERY))
    assert state[0, FACTOR] == pytest.approx(1.0, rel=0.01)
    assert play(state, (1.8, 60)).any()


def test_follow_threshold_told_is_the_mean_that_opens() -> None:
    """What is told beside the alarm is level times factor, before this reading changed anything."""
    state = fresh()
    _, threshold = alarm.follow(state, np.full(1, 0.3, np.float32), np.full(1, 1.25, np.float32))
    assert threshold[0] == pytest.approx(1.25)
    state[0, FACTOR] = 4.0
    _, threshold = alarm.follow(state, np.full(1, 0.3, np.float32), np.full(1, 1.25, np.float32))
    assert threshold[0] == pytest.approx(5.0)


def test_follow_an_open_alarm_costs_nothing_until_it_ends() -> None:
    """The factor stands still while an alarm is open, so one that lasts is charged once."""
    state = fresh()
    play(state, (3.0, 300))
    assert state[0, OPEN] == 1.0
    assert state[0, FACTOR] == pytest.approx(1.0, rel=0.01)
    play(state, (3.0, 300), (0.3, 60))
    assert state[0, FACTOR] == pytest.approx(GROWTH, rel=0.02)


def test_follow_factor_is_bounded() -> None:
    """However often a device alarms, enough evidence is still heard."""
    state = fresh()
    for _ in range(12):
        play(state, (alarm.MOST, 100), (0.0, 100))
    assert state[0, FACTOR] <= MOST_FACTOR
    assert play(state, (alarm.MOST, 200)).any()


def test_follow_what_lasts_becomes_the_new_normal() -> None:
    """After LONGEST readings an alarm ends by itself, what it saw is quiet from then on, and more is not."""
    state = fresh()
    found = edges(play(state, (0.3, 20), (3.0, LONGEST + 3 * RECOVERY)))
    assert len(found) == 1
    assert found[0][1] - found[0][0] == LONGEST - 1
    assert state[0, BASE] == pytest.approx(3.0, rel=0.01)
    assert state[0, FACTOR] >= state[0, BASE]
    assert play(state, (9.0, 200)).any()


def test_follow_batch_equals_each_device_alone() -> None:
    """Devices share nothing: any batch gives the same bits as one device at a time."""
    rng = np.random.default_rng(0)
    devices, rows = 40, 3000
    u = np.abs(rng.standard_normal((rows, devices))).astype(np.float32)
    for n in range(devices):
        for start in rng.integers(0, rows - 300, 3):
            u[start : start + rng.integers(5, 300), n] += rng.uniform(1, 8)
    level = rng.uniform(0.5, 2.0, devices).astype(np.float32)
    together, alone = fresh(devices), fresh(devices)
    told = np.array([alarm.follow(together, row, level)[0] for row in u])
    for n in range(0, devices, 4):
        own = alone[n : n + 1]
        single = [alarm.follow(own, u[t, n : n + 1], level[n : n + 1])[0][0] for t in range(rows)]
        np.testing.assert_array_equal(told[:, n], single)
        kept = [M, Q, FACTOR, BASE, OPEN]  # the rest counts only while an alarm is open
        np.testing.assert_array_equal(together[n, kept], own[0, kept])
    assert 20 < sum(len(edges(told[:, n])) for n in range(devices)) < 200


# --- the rate of alarms --------------------------------------------------------------------------------


def noise(devices: int, rows: int) -> np.ndarray:
    """State evidence u (T, B) of stationary noise: smoothed over all scales, calibrated and combined."""
    rng = np.random.default_rng(3)
    d = np.abs(rng.standard_normal((rows, devices, 2))).astype(np.float32)  # two lines of evidence
    e = evidence.smooth_series(d, np.ones((rows, devices), bool)).reshape(rows, devices, -1)
    med, q = calibration.fit(e[: rows // 4].reshape(-1, e.shape[2]))
    streams = calibration.exceedance(e, med, calibration.inverse_width(med, q))
    return calibration.combine(streams, calibration.equal_weights(np.ones(e.shape[2], bool)))[..., 0]


def alarms_per_10k(u: np.ndarray, budget: Budget, held: int = 400, scale: float = 1.0) -> float:
    """Alarms in 10,000 readings of u (T, B) when each device's level is read off its first `held` rows."""
    rows, devices = u.shape
    level = np.array(
        [
            calibration.alarm_level(alarm.slow_mean(u[:held, n]), budget.rate(1.0), budget.least_level)
            for n in range(devices)
        ],
        np.float32,
    )
    state = fresh(devices)
    told = np.array([alarm.follow(state, row, level * np.float32(scale), budget.per_reading)[0] for row in u])
    opened = told[held + 1 :] & ~told[held:-1]
    return float(opened.sum() / (devices * (rows - held)) * 10_000)


@pytest.fixture(scope="module")
def stationary() -> np.ndarray:
    return noise(40, 16_000)


@pytest.mark.parametrize("asked", [1, 10])
def test_alarm_rate_asked_for_is_kept_on_stationary_noise(asked: int, stationary: np.ndarray) -> None:
    """A budget of 1 or 10 alarms in 10,000 readings is met within a factor of two, from the start."""
    found = alarms_per_10k(stationary, Budget(per_reading=asked / 10_000))
    assert asked / 2 <= found <= 2 * asked


def test_alarm_budget_in_time_is_a_limit_and_no_quota(stationary: np.ndarray) -> None:
    """One alarm a week is hardly ever used up by noise at a reading a second."""
    assert alarms_per_10k(stationary, Budget()) < 0.5


@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_alarm_budget_bounds_a_device_that_is_calibrated_ill(scale: float, stationary: np.ndarray) -> None:
    """Where the level is far too low, alarms raise it until there are a few in RECOVERY readings."""
    first, later = (alarms_per_10k(part, Budget(), scale=scale) for part in np.split(stationary, 2))
    assert first < 3
    assert later < 3


# --- start and hand-over -------------------------------------------------------------------------------


def test_settle_is_where_following_the_past_would_have_come() -> None:
    """Means begun from a history of evidence are those of a device that lived through it."""
    u = np.random.default_rng(1).exponential(0.3, 700).astype(np.float32)
    state = fresh()
    state[:, [M, Q]] = u[0]
    for value in u:
        alarm.follow(state, np.full(1, value), LEVEL * 1000)
    settled = np.zeros(len(alarm.FRESH), np.float32)
    alarm.settle(settled, u)
    np.testing.assert_allclose(settled[[M, Q]], state[0, [M, Q]], rtol=1e-4)
    assert alarm.slow_mean(u)[-1] == pytest.approx(state[0, M], rel=1e-4)


def test_settle_without_a_past_is_at_rest() -> None:
    """No evidence at all is a mean of 0."""
    assert alarm.mean_after(np.zeros(0, np.float32), alarm.SLOW) == 0.0
    assert len(alarm.slow_mean(np.zeros(0, np.float32))) == 0


def test_carry_alarm_goes_on_through_a_new_calibration() -> None:
    """What is open stays open, what was charged stays charged, and a quiet device gets no alarm from it."""
    before = fresh(2)
    for _ in range(60):
        alarm.follow(before, np.array([3.0, 0.3], np.float32), np.ones(2, np.float32))
    before[:, FACTOR] = 4.0
    assert before[:, OPEN].tolist() == [1.0, 0.0]
    after = np.zeros_like(before)
    alarm.reset(after)
    after[:, [M, Q]] = [[5.0, 5.0], [0.3, 0.3]]
    alarm.carry(after, before)
    told, threshold = alarm.follow(after, np.array([5.0, 0.3], np.float32), np.ones(2, np.float32))
    assert told.tolist() == [True, False]
    np.testing.assert_allclose(threshold, 4.0, rtol=1e-3)


def test_carry_new_normal_is_learned_and_forgotten() -> None:
    """What a device was let off for is part of its new calibration: it must not be let off twice."""
    before = fresh()
    play(before, (3.0, LONGEST + 5))
    assert before[0, BASE] > 2.5
    after = fresh()
    alarm.carry(after, before)
    assert after[0, BASE] == 1.0
    assert after[0, FACTOR] == pytest.approx(before[0, FACTOR] / before[0, BASE])
    assert after[0, FACTOR] < before[0, FACTOR]


def test_growth_and_recovery_balance_at_one_alarm_in_recovery_readings() -> None:
    """What one alarm adds to the factor is gone after RECOVERY readings, whatever the factor is."""
    state = fresh()
    steps = []
    for _ in range(3):
        play(state, (alarm.MOST, 40), (0.0, 40))
        steps.append(float(state[0, FACTOR]))
    for low, high in pairwise(steps):
        assert high / low == pytest.approx(GROWTH, rel=0.02)
