"""When evidence becomes an alarm, and when it is over. State of B devices in, yes or no out; no clock.

    m, q       exponential means of u over 32 and 4 readings
    opens      m > level * factor                                     level: see `calibration.alarm_level`
    ends       m < OFF * level * factor,  or  q < OFF_FAST * level * factor  or  q < FADED * its own highest,
               but not by q while m > GROWTH * level * factor: the next one would open at once
    lasts      LONGEST readings: a new normal. It ends, and the next one must go beyond it
    factor     1 at first; every alarm multiplies it by GROWTH; it returns over RECOVERY readings

One reading opens an alarm only where it is far beyond anything normal, and an alarm does not linger until a
mean of 60 readings has decayed: it ends when the newest readings fall well below what the alarm itself has
seen. `factor` is the budget: a device that alarms often, and nobody can say which were false, must show more
each time, so that even an ill calibrated one raises about two alarms in RECOVERY readings and no more. It is
the step of Robbins & Monro (1951) on the logarithm of a threshold, as in adaptive conformal inference
(Gibbs & Candes 2021, arXiv:2106.00170). With a `rate` of alarms per reading it also falls while there are
fewer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gruard.models.arena import Column

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

#: Readings that the two means span, as shares of the newest one.
SLOW, FAST = 2.0 / 33.0, 2.0 / 5.0
#: u beyond this opens no sooner: one absurd reading must not hold the mean up for an hour.
MOST = 20.0
OFF, OFF_FAST, FADED, LONGEST = 0.75, 0.65, 0.4, 1000
GROWTH, RECOVERY = 2.0, 10_000
#: What `factor` is held within.
LEAST_FACTOR, MOST_FACTOR = 0.1, 16.0
#: What an alarm that was missed makes of `factor`, and how far such alarms bring it down.
STEP, LOWEST = 0.8, 0.5
#: A level that nothing reaches.
NEVER = 1e9
#: Where each number of a device's state stands.
M, Q, FACTOR, BASE, OPEN, HIGHEST_Q, HIGHEST_M, RUN = range(8)
FRESH = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
_ALPHAS = np.array([SLOW, FAST], np.float32)
_RECOVERS = np.float32(GROWTH ** (-1.0 / RECOVERY))


def columns() -> dict[str, Column]:
    """The alarm state of one device; `reset` makes it a fresh one."""
    return {"alarm": Column((len(FRESH),))}


def reset(state: Floats) -> None:
    """Forget all alarms: state (B, 8)."""
    state[...] = FRESH


def follow(
    state: Floats, u: Floats, level: Floats, rate: float | None = None
) -> tuple[NDArray[np.bool_], Floats]:
    """Move B devices past evidence u (B,): which are in alarm (B,), and the m that would open one (B,).

    state (B, 8) is changed; level (B,). `rate`: alarms per reading that are wanted, not only accepted.
    """
    means = state[:, : Q + 1]
    means += _ALPHAS * (np.minimum(u, np.float32(MOST))[:, None] - means)
    threshold = level * state[:, FACTOR]
    was_open = state[:, OPEN] > 0.0
    alarm = state[:, M] > threshold
    if np.count_nonzero(alarm) or np.count_nonzero(was_open):  # else all is quiet, nearly always
        alarm = np.where(was_open, _still_open(state, threshold), alarm)
        alarm = _in_alarm(state, alarm, was_open, level)
    _recover(state, alarm, rate)
    return alarm, threshold


def lasted(state: Floats) -> NDArray[np.bool_]:
    """Whether the newest alarm of each device (B,) went on for so long that it was taken for a new normal."""
    return np.asarray(state[:, RUN] >= LONGEST)


def _still_open(state: Floats, threshold: Floats) -> NDArray[np.bool_]:
    fast = np.maximum(np.float32(OFF_FAST) * threshold, np.float32(FADED) * state[:, HIGHEST_Q])
    # Where the next alarm would open at the next reading, this one is not over.
    goes_on = (state[:, Q] > fast) | (state[:, M] > np.float32(GROWTH) * threshold)
    return np.asarray((state[:, M] > np.float32(OFF) * threshold) & goes_on)


def _in_alarm(
    state: Floats, alarm: NDArray[np.bool_], was_open: NDArray[np.bool_], level: Floats
) -> NDArray[np.bool_]:
    """Keep count of open alarms, end those that are the new normal, and charge those that end."""
    for place, mean in ((HIGHEST_Q, Q), (HIGHEST_M, M)):
        so_far = np.where(was_open, state[:, place], 0.0)
        state[:, place] = np.where(alarm | was_open, np.maximum(so_far, state[:, mean]), 0.0)
    state[:, RUN] = np.where(alarm, np.where(was_open, state[:, RUN], 0.0) + 1.0, state[:, RUN])
    lasting = alarm & (state[:, RUN] >= LONGEST)
    ended = lasting | (was_open & ~alarm)
    base = np.where(lasting, np.maximum(state[:, BASE], state[:, HIGHEST_M] / level), state[:, BASE])
    state[:, FACTOR] = np.where(lasting, np.maximum(state[:, FACTOR], base), state[:, FACTOR])
    state[:, BASE] = base
    grown = np.minimum(state[:, FACTOR] * GROWTH, np.maximum(base, 1.0) * MOST_FACTOR)
    state[:, FACTOR] = np.where(ended, np.maximum(grown, state[:, FACTOR]), state[:, FACTOR])
    still = alarm & ~lasting
    state[:, OPEN] = still
    # A quiet device's state must not depend on whether somebody else of its batch is in alarm.
    state[:, HIGHEST_Q : HIGHEST_M + 1] *= still[:, None]
    return still


def _recover(state: Floats, alarm: NDArray[np.bool_], rate: float | None) -> None:
    factor = state[:, FACTOR]
    recovered = np.maximum(factor * _RECOVERS, np.minimum(factor, state[:, BASE]))
    if rate is not None:
        slow = np.float32(GROWTH**-rate)
        recovered = np.minimum(recovered, np.maximum(factor * slow, LEAST_FACTOR))
    state[:, FACTOR] = np.where(alarm, factor, recovered) if np.count_nonzero(alarm) else recovered


def settle(state: Floats, u: Floats) -> None:
    """Start the means of one device, state (8,), from the evidence u (T,) of its past; nothing is open."""
    for place, alpha in ((M, SLOW), (Q, FAST)):
        state[place] = mean_after(np.minimum(u, MOST), alpha)


def carry(state: Floats, before: Floats) -> None:
    """Let B devices keep their alarms through a new calibration: freshly settled state and `before`, (B, 8).

    What is open stays open and what the budget has charged stays charged; a new normal is one no more, for
    it was learned.
    """
    state[:, FACTOR] = before[:, FACTOR] / before[:, BASE]
    is_open = before[:, OPEN] > 0.0
    state[is_open, OPEN] = 1.0
    state[is_open, RUN] = before[is_open, RUN]
    state[is_open, HIGHEST_Q], state[is_open, HIGHEST_M] = state[is_open, Q], state[is_open, M]


def forgive(state: Floats) -> None:
    """Take the charge of the newest alarm of one device, state (8,), back; what is open of it ends now."""
    if state[OPEN] > 0.0:  # it is charged when it ends, at the next reading
        state[[M, Q, FACTOR]] = 0.0, 0.0, state[FACTOR] / GROWTH
    else:
        state[FACTOR] = max(state[FACTOR] / GROWTH, min(state[FACTOR], state[BASE]))


def lower(state: Floats, steps: int) -> None:
    """Bring the threshold of one device, state (8,), down by so many steps, or up where they are below 0."""
    factor = state[FACTOR] * STEP**steps
    low, high = min(state[FACTOR], LOWEST), max(state[FACTOR], state[BASE])
    state[FACTOR] = min(max(factor, low), high)


def mean_after(u: Floats, alpha: float) -> float:
    """Exponential mean of u (T,) after its last value, begun at its first."""
    # Weights of what lies further back than this are nothing.
    held = np.asarray(u, np.float64)[-math.ceil(40.0 / alpha) :]
    if not len(held):
        return 0.0
    weights = alpha * (1.0 - alpha) ** np.arange(len(held) - 1, -1, -1.0)
    return float(held @ weights + (1.0 - alpha) ** len(held) * held[0])


def slow_mean(u: Floats) -> NDArray[np.float64]:
    """m along a series u (T,), begun at its first value."""
    out, mean = np.empty(len(u)), float(min(u[0], MOST)) if len(u) else 0.0
    for t, value in enumerate(np.minimum(u, MOST).tolist()):
        mean += SLOW * (value - mean)
        out[t] = mean
    return out
